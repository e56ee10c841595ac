r"""Trains ViLD, ResNet-50, on the base categories of LVIS v1: one head learns labels and teacher (docs/method.md, 1).

Prepare data and vocabulary, train ViLD-text for its proposals, embed these with the teacher, then train this config:

  vild-jax prepare --annotations lvis_v1_train.json --images coco --out data --name lvis_v1 --drop-unusable
  vild-jax prepare --annotations lvis_v1_val.json --images coco --out data --name lvis_v1 --drop-unusable
  vild-jax embed-text --teacher clip-vit-base-patch32 --classes lvis --out data/lvis_v1_vocabulary.npz
  vild-jax train configs/vild_text_r50_lvis.py --workdir workdir/vild_text_r50_lvis
  vild-jax propose configs/vild_text_r50_lvis.py --checkpoint workdir/vild_text_r50_lvis --data data/lvis_v1 \
    --out data/lvis_v1_proposals
  vild-jax embed-regions --teacher clip-vit-base-patch32 --data data/lvis_v1 --proposals data/lvis_v1_proposals \
    --out data/lvis_v1_regions
  vild-jax train configs/vild_r50_lvis.py --workdir workdir/vild_r50_lvis
"""

from pathlib import Path

from vild_jax.config import Config, load


def get_config() -> Config:
  """Returns the config of ViLD-text with L_image and w = 0.5, the weight for ViT-B/32."""
  return load(
    Path(__file__).with_name('vild_text_r50_lvis.py'),
    [
      'name=vild_r50_lvis',
      'distillation.weight=0.5',
      'distillation.store=data/lvis_v1_regions',
    ],
  )
