"""The reference's golden values: its weights by rule, its arrays, and what equal means here.

Numbers are compared with the largest of an array: |found − expected| ≤ tolerance · max |expected|. Single elements near
zero carry the rounding of the large ones.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

VALUES, LOSSES = 1e-4, 1e-5


def weight_rule(shared: Path) -> ModuleType:
  """shared/golden/weight_rule.py, which makes a weight of its variable's name and shape."""
  spec = importlib.util.spec_from_file_location('weight_rule', shared / 'golden' / 'weight_rule.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def weights(shared: Path, variables: Iterable[Mapping]) -> dict[str, np.ndarray]:
  """{name: weight} of variables listed with `name` and `shape`, by the rule."""
  rule = weight_rule(shared)
  return {v['name']: rule.weight_for(v['name'], v['shape']) for v in variables}


def is_base(shared: Path) -> np.ndarray:
  """bool [20]: which of the goldens' classes are base (named "rare", but 1 is base; the background comes first)."""
  return weight_rule(shared).rare_mask(21)[1:] == 1


def arrays(shared: Path, name: str) -> dict[str, np.ndarray]:
  """The arrays of shared/golden/model/NAME."""
  with np.load(shared / 'golden' / 'model' / name, allow_pickle=False) as file:
    return dict(file)


def table(shared: Path, name: str):
  """The JSON of shared/golden/model/NAME."""
  return json.loads((shared / 'golden' / 'model' / name).read_text(encoding='utf-8'))


def background_last(x: np.ndarray) -> np.ndarray:
  """Class columns of the reference, background first -> ours, background last."""
  return np.roll(x, -1, axis=-1)


def error(found, expected) -> float:
  """The largest difference over the largest expected value."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape, f'{found.shape} and {expected.shape}'
  return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_close(found, expected, tolerance: float = VALUES, what: str = '') -> None:
  assert error(found, expected) <= tolerance, f'{what}: {error(found, expected):.2e} of the largest value'
