"""Provides the configuration of an experiment: the names that users' config files import.

`experiment` defines the settings, `model` those of the network, `training` those of optimiser and loop. `settings`
reads and overrides them, and `defaults` holds the values that commands and functions share.
"""

from vild_jax.config.experiment import (
  Assignment,
  Config,
  Data,
  Distillation,
  Evaluation,
  Mesh,
  calibrated,
  from_text,
  load,
  read,
  to_text,
  with_embedding_dim,
  with_frozen,
  with_masks,
)
from vild_jax.config.model import (
  Anchors,
  Backbone,
  MaskHead,
  Model,
  Postprocess,
  ProposalNetwork,
  Pyramid,
  RegionHead,
)
from vild_jax.config.settings import ConfigError, difference, flatten, given, matches, override
from vild_jax.config.training import Optimizer, Train

__all__ = [
  'Anchors',
  'Assignment',
  'Backbone',
  'Config',
  'ConfigError',
  'Data',
  'Distillation',
  'Evaluation',
  'MaskHead',
  'Mesh',
  'Model',
  'Optimizer',
  'Postprocess',
  'ProposalNetwork',
  'Pyramid',
  'RegionHead',
  'Train',
  'calibrated',
  'difference',
  'flatten',
  'from_text',
  'given',
  'load',
  'matches',
  'override',
  'read',
  'to_text',
  'with_embedding_dim',
  'with_frozen',
  'with_masks',
]
