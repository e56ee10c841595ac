"""Trains the supervised baseline, ResNet-50, LVIS v1: base and novel labels, with repeat-factor sampling.

Only the text embeddings of the teacher are used, in the classifier, as in ViLD-text:

  vild-jax prepare --annotations lvis_v1_train.json --images coco --out data --name lvis_v1 --drop-unusable
  vild-jax prepare --annotations lvis_v1_val.json --images coco --out data --name lvis_v1 --drop-unusable
  vild-jax embed-text --teacher clip-vit-base-patch32 --classes lvis --out data/lvis_v1_vocabulary.npz
  vild-jax train configs/supervised_rfs_r50_lvis.py --workdir workdir/supervised_rfs_r50_lvis
"""

from pathlib import Path

from vild_jax.config import Config, load


def get_config() -> Config:
  """Returns ViLD-text on all labels; pictures of categories in fewer than 0.1 % of the pictures are repeated."""
  return load(
    Path(__file__).with_name('vild_text_r50_lvis.py'),
    [
      'name=supervised_rfs_r50_lvis',
      'assignment.novel_labels=true',
      'data.repeat_threshold=0.001',
    ],
  )
