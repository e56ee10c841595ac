"""Converts a config into the ConfigDict of a google-research/scenic experiment, and back; does not need Scenic."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from vild_jax import config as config_lib
from vild_jax.config import Config, ConfigError

NAME = 'vild'  # name of the model, of the data set, and of the section with all our settings
# {Scenic's name of a setting: our name}. Both names refer to one value.
ALIASES = {
  'experiment_name': 'name',
  'rng_seed': 'seed',
  'batch_size': 'data.batch_size',
  'eval_batch_size': 'evaluation.batch_size',
  'num_training_steps': 'train.steps',
  'log_summary_steps': 'train.log_every',
  'checkpoint_steps': 'train.checkpoint_every',
  'max_checkpoint_keep': 'train.keep',
  'model_dtype_str': 'model.dtype',
}
_FIXED = {'model_name': NAME, 'dataset_name': NAME, 'data_dtype_str': 'float32', 'checkpoint': True}


def to_scenic(config: Config) -> Any:
  """Turns a config into the `ml_collections.ConfigDict` of a Scenic experiment, which `from_scenic` reads.

  Its section `vild` holds our settings. Scenic's own names (`ALIASES`) are at the top level and refer to the same
  values, so that `--config.batch_size=64` and `--config.vild.data.batch_size=64` are the same override.
  """
  import ml_collections

  scenic_config = ml_collections.ConfigDict({**_FIXED, NAME: dataclasses.asdict(config)})
  for theirs, ours in ALIASES.items():
    *parents, leaf = ours.split('.')
    section = functools.reduce(getattr, parents, scenic_config[NAME])
    scenic_config[theirs] = section.get_ref(leaf)
  return scenic_config


def from_scenic(scenic_config: Any) -> Config:
  """Returns our config from that of a Scenic experiment; unknown keys at the top level are Scenic's and are ignored.

  Raises ConfigError, one line: there is no section `vild`, it has an unknown key, the two names of a setting have
  different values, or a setting of Scenic would have no effect.
  """
  if NAME not in scenic_config:
    raise ConfigError(f'the Scenic config has no {NAME!r}; expected what scenic_config.to_scenic(config) makes')
  config = config_lib.from_text(json.dumps(scenic_config[NAME].to_dict()))
  leaves = config_lib.flatten(config)
  for theirs, ours in ALIASES.items():
    if theirs in scenic_config and scenic_config[theirs] != leaves[ours]:
      raise ConfigError(
        f'{theirs} is {scenic_config[theirs]!r} and {NAME}.{ours} {leaves[ours]!r}; expected one '
        'value, as both are names of one setting'
      )
  for key, value in _FIXED.items():
    if key in scenic_config and scenic_config[key] != value:
      raise ConfigError(f'{key} is {scenic_config[key]!r}; expected {value!r}')
  if scenic_config.get('num_training_epochs'):
    raise ConfigError(f'num_training_epochs is {scenic_config.num_training_epochs}; expected num_training_steps')
  return config
