"""Trains ViLD-text, ResNet-50, on the base categories of LVIS v1: the paper's settings (docs/method.md, 2 and 3).

Prepare the data and the vocabulary first, then train:

  vild-jax prepare --annotations lvis_v1_train.json --images coco --out data --name lvis_v1 --drop-unusable
  vild-jax prepare --annotations lvis_v1_val.json --images coco --out data --name lvis_v1 --drop-unusable
  vild-jax embed-text --teacher clip-vit-base-patch32 --classes lvis --out data/lvis_v1_vocabulary.npz
  vild-jax train configs/vild_text_r50_lvis.py --workdir workdir/vild_text_r50_lvis
"""

from dataclasses import replace

from vild_jax.config import Config, Data, Model, Optimizer


def get_config() -> Config:
  """Returns the defaults of `vild_jax.config`, which are the paper's, in bfloat16, its rate by the batch."""
  return Config(
    name='vild_text_r50_lvis',
    vocabulary='data/lvis_v1_vocabulary.npz',
    model=replace(Model(), dtype='bfloat16'),
    data=Data(train='data/lvis_v1', val='data/lvis_v1'),
    optimizer=Optimizer(reference_batch=256),  # the rate follows --data.batch_size
  )
