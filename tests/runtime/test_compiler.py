"""Programs are compiled with the options of their platform, and plainly where the compiler does not know them."""

import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from vild_jax.runtime import compiler


@pytest.fixture(autouse=True)
def forget():
  compiler._known.cache_clear()
  yield
  compiler._known.cache_clear()


def convolve(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def test_convolutions_stay_with_xla_on_a_cpu():
  x, kernel = np.ones((2, 64, 64, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)  # small ones do so anyway
  compiled = compiler.jit(convolve).lower(x, kernel).compile()
  assert 'ynn' not in compiled.as_text()
  np.testing.assert_allclose(compiled(x, kernel), jax.jit(convolve)(x, kernel), rtol=1e-6)


def test_options_of_jit_are_passed_on():
  double = compiler.jit(lambda x, factor: x * factor, static_argnames='factor')
  assert double(3, factor=2) == 6


@pytest.mark.parametrize('platform', ['tpu', 'gpu'])
def test_other_platforms_get_no_options(platform):
  assert not compiler.compiler_options(platform)


def test_effort_is_an_option_of_every_platform_and_passes_the_compiler():
  compiler.use_effort(-1.0)
  try:
    assert compiler.compiler_options('tpu') == {'exec_time_optimization_effort': -1.0}
    assert compiler.compiler_options('cpu') == {**compiler._ON_CPU, 'exec_time_optimization_effort': -1.0}
    assert compiler.jit(lambda x: x + 1)(1) == 2
  finally:
    compiler.use_effort(0.0)


def test_an_unknown_option_is_left_out(monkeypatch):
  monkeypatch.setattr(compiler, '_ON_CPU', {'xla_cpu_there_is_no_such_option': '1'})
  assert compiler.compiler_options('cpu') == {}
  assert compiler.jit(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize('processes', [(0,), (0, 1), (1,)])
def test_a_program_of_several_processes_starts_when_all_have_compiled_it(monkeypatch, processes):
  """One that a process calls on its own devices waits for nobody, although there are two processes."""
  done = []
  devices = np.array([types.SimpleNamespace(platform='cpu', process_index=index) for index in processes])
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(compiler, '_wait_for_all', lambda: done.append('waited'))

  def double(x):
    done.append('traced')
    jax.debug.callback(lambda: done.append('ran'))
    return 2 * x

  program = compiler.jit(double, mesh=types.SimpleNamespace(devices=devices))
  assert program(3) == program(3) == 6 and program.lower(3).compile()(4) == 8
  jax.effects_barrier()
  assert done == (['traced', 'waited'] if len(processes) > 1 else ['traced']) + 3 * ['ran']


def test_buckets_are_powers_of_two_that_hold_the_rows():
  assert [compiler.bucket(count) for count in (0, 1, 2, 3, 4, 5, 1203)] == [1, 1, 2, 4, 4, 8, 2048]
  assert [compiler.bucket(count, 16) for count in (0, 1, 16, 17)] == [16, 16, 16, 32]


_SCRIPT = """
import sys
import jax
from pathlib import Path
from vild_jax.runtime import compiler

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition('/')[2]))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
compiler.keep_programs(Path(sys.argv[1]))
print(compiler.jit(lambda x: 3 * x)(2.0), events.count('cache_hits'), events.count('cache_misses'))
"""


@pytest.mark.slow
def test_kept_programs_are_read_by_the_next_process(tmp_path):
  said = []
  for _ in range(2):
    done = subprocess.run(
      [sys.executable, '-c', _SCRIPT, tmp_path / 'a' / 'cache'], capture_output=True, text=True, check=True
    )
    said.append(done.stdout.split())
    assert not done.stderr
  (value, hits, misses), warm = said
  assert value == '6.0' and hits == '0' and int(misses) > 0
  assert warm == ['6.0', misses, '0']
