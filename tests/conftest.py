"""What every test shares: eight CPU devices, strict promotion, checked shapes, and where the shared data lie."""

from __future__ import annotations

import functools
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Subprocesses of tests inherit the environment: they too stay on the CPU and quiet, on one device unless they ask.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Most of the suite's time is compilation. Without LLVM's optimisations, and with the older of XLA's two code generators
# for loops, programs compute the same and compile in a sixth of the time. Options of the user's come last, and win.
os.environ['XLA_FLAGS'] = ' '.join(
  ['--xla_backend_optimization_level=0', '--xla_cpu_use_fusion_emitters=false', os.environ.get('XLA_FLAGS', '')]
).strip()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('MPLBACKEND', 'Agg')
# What users have cached is neither read nor written; a test of the cache names a folder of its own.
os.environ['VILD_JAX_CACHE'] = 'off'

import absl.logging
import jax
import jaxtyping
import numpy as np
import pytest
from jax.experimental import pallas

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
absl.logging.set_verbosity(absl.logging.ERROR)
logging.getLogger('jax').setLevel(logging.ERROR)

# Checks the shapes in the signatures of core/ at run time; it sees only modules that are imported after it.
_SHAPE_CHECKS = jaxtyping.install_import_hook('vild_jax.core', 'beartype.beartype')

_TESTS = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption('--kills', type=int, default=10, help='how often a test marked soak stops what it has started')
  parser.addoption('--flips', type=int, default=500, help='how many bits a test marked soak flips')
  parser.addoption('--files', type=int, default=20_000, help='how many annotation files a test marked soak changes')
  parser.addoption('--inputs', type=int, default=2000, help='how many inputs a parser gets in a test marked soak')
  parser.addoption(
    '--faults', type=int, default=1, choices=range(1, 5), help='how often each call fails in a test marked soak'
  )
  parser.addoption('--record', help='a file that sums up the inputs of tests marked soak, which go on from it')


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
  """`kills` is how often a test stops what it has started: once, and in its long form as often as --kills says.

  `flip_count` is how many bits a test flips: five, and in its long form as many as --flips says.
  """
  if 'kills' in metafunc.fixturenames:
    many = pytest.param(metafunc.config.getoption('kills'), marks=pytest.mark.soak, id='many')
    metafunc.parametrize('kills', [pytest.param(1, id='once'), many])
  if 'flip_count' in metafunc.fixturenames:
    many = pytest.param(metafunc.config.getoption('flips'), marks=pytest.mark.soak, id='many')
    metafunc.parametrize('flip_count', [pytest.param(5, id='few'), many])


def pytest_configure(config: pytest.Config) -> None:
  """Makes one compilation cache for the whole run, since many files and the processes they start compile the same.

  It is a new folder, so that no result depends on an earlier run. The workers of pytest-xdist and the child processes
  inherit its path; the process that made it removes it.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is for a run that a script starts in the background. Tests send Ctrl-C to themselves and to their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if hasattr(config, 'workerinput'):
    return
  cache = tempfile.TemporaryDirectory(prefix='vild-jax-tests-', ignore_cleanup_errors=True)
  config.add_cleanup(cache.cleanup)
  for option, value in (
    ('jax_compilation_cache_dir', cache.name),
    ('jax_persistent_cache_min_compile_time_secs', 0),
    ('jax_persistent_cache_min_entry_size_bytes', -1),
  ):
    os.environ[option.upper()] = str(value)
    jax.config.update(option, value)


@pytest.fixture
def as_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
  """Returns a function: after its call programs compute, on the CPU, as they would on the platform that it is given.

  Kernels of Pallas are interpreted.
  """

  def choose(platform: str) -> None:
    chosen = lambda *args, default=None, **ways: ways.get(platform, default)(*args)
    monkeypatch.setattr(jax.lax, 'platform_dependent', chosen)
    monkeypatch.setattr(pallas, 'pallas_call', functools.partial(pallas.pallas_call, interpret=True))

  return choose


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


@pytest.fixture(scope='session')
def bucket() -> Iterator[str]:
  """The address of a bucket, one for a process of the tests: clients keep where it is."""
  from tests.helpers import emulated_bucket

  with emulated_bucket.running() as address:
    yield address
