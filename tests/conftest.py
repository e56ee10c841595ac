"""What every test shares: eight CPU devices, strict promotion, checked shapes, and where the shared data lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Subprocesses of tests inherit the environment: they too stay on the CPU and quiet, on one device unless they ask.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Most of the suite's time is compilation. Without LLVM's optimisations the programs are the same, and compile in half
# the time. Options of the user's come last, and win.
os.environ['XLA_FLAGS'] = f'--xla_backend_optimization_level=0 {os.environ.get("XLA_FLAGS", "")}'.strip()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('MPLBACKEND', 'Agg')

import absl.logging
import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
absl.logging.set_verbosity(absl.logging.ERROR)
logging.getLogger('jax').setLevel(logging.ERROR)

# Checks the shapes in the signatures of core/ at run time; it sees only modules that are imported after it.
_SHAPE_CHECKS = jaxtyping.install_import_hook('vild_jax.core', 'beartype.beartype')

_TESTS = Path(__file__).resolve().parent
# The files that take a minute or more come first, so that two processes that share the files end at the same time.
_LONG = (
  'test_demo.py',
  'test_sharding.py',
  'test_commands.py',
  'test_two_processes.py',
  'test_memory.py',
  'test_accumulate.py',
  'test_kill_train.py',
  'test_distillation.py',
  'test_crop_baselines.py',
  'test_loop.py',
  'test_detector.py',
  'test_parity_training.py',
  'test_parity_model.py',
  'test_kill_regions.py',
  'test_kill_propose.py',
  'test_compile.py',
  'test_objective.py',
  'test_batch.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


@pytest.fixture(autouse=True)
def _strict_dtypes_in_core(request: pytest.FixtureRequest) -> Iterator[None]:
  """Strict dtype promotion around the tests of core/ alone: Linen's BatchNorm and optax's schedules break under it."""
  if _TESTS / 'core' not in request.path.parents:
    yield
    return
  with jax.numpy_dtype_promotion('strict'):
    yield


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of shared data and goldens beside the project; skips the test where it is not there."""
  path = _TESTS.parent.parent / 'shared'
  if not (path / 'golden').is_dir():
    pytest.skip('no folder ../shared beside the project: its data and golden values are not part of the repository')
  return path


@pytest.fixture(scope='session')
def golden(shared: Path) -> Callable[[str], dict[str, np.ndarray]]:
  """`golden(name)` reads shared/golden/unit/NAME.npz: `in_*` go into the reference's operation, `out_*` came out."""

  def read(name: str) -> dict[str, np.ndarray]:
    with np.load(shared / 'golden' / 'unit' / f'{name}.npz', allow_pickle=False) as arrays:
      return dict(arrays)

  return read
