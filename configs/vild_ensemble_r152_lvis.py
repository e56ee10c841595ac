r"""ViLD-ensemble, ResNet-152, LVIS v1 base categories.

The data and the vocabulary, ViLD-text for its proposals, what the teacher says about them, then this training:
The regions are those of vild_r50_lvis.py: whoever has them begins at the last line.

  vild-jax prepare --annotations lvis_v1_train.json --images train2017 --out data --name lvis_v1
  vild-jax prepare --annotations lvis_v1_val.json --images val2017 --out data --name lvis_v1
  vild-jax embed-text --teacher clip-vit-base-patch32 --classes lvis --out data/lvis_v1_vocabulary.npz
  vild-jax train configs/vild_text_r50_lvis.py --workdir workdir/vild_text_r50_lvis
  vild-jax propose configs/vild_text_r50_lvis.py --checkpoint workdir/vild_text_r50_lvis --data data/lvis_v1 \
    --out data/lvis_v1_proposals
  vild-jax embed-regions --teacher clip-vit-base-patch32 --data data/lvis_v1 --proposals data/lvis_v1_proposals \
    --out data/lvis_v1_regions
  vild-jax train configs/vild_ensemble_r152_lvis.py --workdir workdir/vild_ensemble_r152_lvis
"""

from pathlib import Path

from vild_jax.config import Config, load


def get_config() -> Config:
  """The deeper backbone, with w = 2."""
  return load(
    Path(__file__).with_name('vild_ensemble_r50_lvis.py'),
    [
      'name=vild_ensemble_r152_lvis',
      'model.backbone.depth=152',
      'distillation.weight=2',
    ],
  )
