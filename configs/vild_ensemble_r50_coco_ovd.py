r"""Trains ViLD-ensemble, ResNet-50, on COCO: 48 base and 17 novel categories; the other 15 are not used or scored.

As published, it is trained on the pictures that show an object of a base class (107,761 of 118,287), and scored on
those that show one of the 65 classes (4,836 of 5,000); the counts are printed at the start. The 45,000 steps are our
choice: the paper states no schedule for COCO that we know of.

The proposals must also come from COCO, from a ViLD-text trained on its base categories:

  vild-jax prepare --annotations instances_train2017.json --images train2017 --out data --name coco --drop-unusable
  vild-jax prepare --annotations instances_val2017.json --images val2017 --out data --name coco --drop-unusable
  vild-jax embed-text --teacher clip-vit-base-patch32 --classes coco-ovd --out data/coco_ovd_vocabulary.npz
  vild-jax train configs/vild_ensemble_r50_coco_ovd.py --workdir workdir/vild_text_r50_coco_ovd \
    --model.image_head=false --distillation.weight=0
  vild-jax propose workdir/vild_text_r50_coco_ovd/config.json --checkpoint workdir/vild_text_r50_coco_ovd \
    --data data/coco --out data/coco_proposals
  vild-jax embed-regions --teacher clip-vit-base-patch32 --data data/coco --proposals data/coco_proposals \
    --out data/coco_regions
  vild-jax train configs/vild_ensemble_r50_coco_ovd.py --workdir workdir/vild_ensemble_r50_coco_ovd
"""

from pathlib import Path

from vild_jax.config import Config, load


def get_config() -> Config:
  """Returns the config of LVIS with the data of COCO, for 45,000 steps."""
  return load(
    Path(__file__).with_name('vild_ensemble_r50_lvis.py'),
    [
      'name=vild_ensemble_r50_coco_ovd',
      'vocabulary=data/coco_ovd_vocabulary.npz',
      'data.train=data/coco',
      'data.val=data/coco',
      'data.only_with_objects=true',
      'distillation.store=data/coco_regions',
      'train.steps=45000',
      'evaluation.protocol=coco',
      'evaluation.only_with_objects=true',
    ],
  )
