"""An export as StableHLO, run by its own runner in a process without our code, finds what the live detector finds."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vild_jax
from tests.helpers import portable_model
from vild_jax.portable import stablehlo

# Everything that the runner may not need; `import` of one of these fails.
_ALONE = """
import json, runpy, sys
class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {'vild_jax', 'flax', 'orbax', 'cv2', 'tensorflow', 'tensorflow_datasets', 'jaxtyping'}:
      raise ImportError(f'{name} is not among what the runner may import')
sys.meta_path.insert(0, Refuse())
sys.argv = json.loads(sys.argv[1])
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run_alone(folder, *words):
  """What run.py of a folder prints, as JSON."""
  given = json.dumps([str(folder / 'run.py'), *map(str, words)])
  done = subprocess.run([sys.executable, '-c', _ALONE, given], cwd=folder, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow  # exports and compiles a detector, with and without suppression
@pytest.mark.parametrize('flags', [(), ('--without-nms',)])
def test_the_runner_finds_what_the_live_detector_does(flags, tmp_path):
  bundle = portable_model.bundle(tmp_path / 'bundle', 'model.image_head=true')
  words = ('--checkpoint', bundle, '--out', tmp_path / 'out', '--format', 'stablehlo', *flags)
  # In a process of its own, because the checks of array shapes in tests know no symbolic ones.
  command = [sys.executable, '-m', 'vild_jax', 'export', bundle / 'config.json', *words]
  assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == f'{tmp_path / "out"}\n'
  rng = np.random.default_rng(0)
  paths = [tmp_path / f'{number}.png' for number in range(2)]
  for path, size in zip(paths, [(40, 72), (90, 50)], strict=True):
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
  names = ['zebra', 'ant', 'tree']
  told = run_alone(tmp_path / 'out', *paths, '--classes', ', '.join(names), '--min-score', '0', '--batch-size', '2')
  live = vild_jax.load(bundle).detect(paths, names, min_score=0.0, batch_size=2)
  for one, expected in zip(told, live, strict=True):
    found = one['detections']
    assert len(found) == len(expected) > 0
    assert [x['name'] for x in found] == [names[label] for label in expected.labels]
    np.testing.assert_allclose([x['score'] for x in found], expected.scores, atol=1e-4)
    np.testing.assert_allclose([x['box'] for x in found], expected.boxes, atol=0.05)
    masks = [np.repeat(np.arange(len(x['mask']['counts'])) % 2, x['mask']['counts']) for x in found]
    there = expected.masks.transpose(0, 2, 1).reshape(len(expected), -1)
    assert np.mean(np.array(masks, bool) == there) > 0.9995


def test_an_export_without_flatbuffers_is_refused_before_anything_is_read(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(ValueError, match='needs flatbuffers, which is not installed; expected: pip install flatbuffers'):
    stablehlo.check()
