"""Measures training and prediction on one GPU beside torchvision's Mask R-CNN, in one call of at most ten minutes.

Ours is configs/vild_r50_lvis.py (ResNet-50, 1024 px, bfloat16, 1,203 classes, distillation) on random pictures with
eight boxes each; torchvision's is `maskrcnn_resnet50_fpn_v2` with as many classes, autocast to bfloat16, channels_last,
all layers trained. Its masks are of positive regions alone, ours of a fixed number: compare seconds per TFLOP, where
TFLOP are those of convolutions and matrix products without products with padding. Each part runs in a process of its
own, which has the whole memory, and its line of JSON is written when it ends; parts for which no time is left are named
in the last line. The interpreter needs jax with CUDA; for the peer it needs torch and torchvision too, or --peer names
one that has them.

  rate             bfloat16 products of matrices of side 8192
  train N          seconds a step, pictures/s, share of the peak (MFU) and of `rate`, peak memory, and for the first of
                   --batches the ten largest kernels by time
  predict N        pictures/s of N pictures at a time
  peer-train N, peer-predict N   the same by torchvision

Example: PYTHONPATH=. python benchmarks/gpu.py --out gpu.jsonl
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', '')  # `train_step` would choose the CPU

import jax
import jax.numpy as jnp
import numpy as np
from train_step import OurStep, Peer, experiment, objects_of

from vild_jax.plan import flops
from vild_jax.train import sharding, state
from vild_jax.train.step import make_predict_step

# Dense bfloat16 FLOP/s by the vendor's data sheets.
PEAK = {'NVIDIA H200': 989e12, 'NVIDIA H100 80GB HBM3': 989e12, 'NVIDIA A100-SXM4-80GB': 312e12}
SIDE = 8192  # of the matrices that are multiplied
STEPS = 10  # that are timed, after two others
LARGEST = 10  # kernels
FEWEST = 45  # seconds that a part needs at least


def rate() -> dict[str, Any]:
  """Returns the rate of products of large matrices."""
  matrix = jnp.full((SIDE, SIDE), 1 / SIDE, jnp.bfloat16)
  multiply = jax.jit(lambda a: a @ a)
  multiply(matrix).block_until_ready()
  seconds = of_a_step(lambda: multiply(matrix))
  return {'tflop_per_second': 2 * SIDE**3 / seconds / 1e12}


def of_a_step(step: Any) -> float:
  """Returns the seconds of a step with its end awaited: the median, as for the peer."""
  times = []
  for _ in range(2 + STEPS):
    start = time.perf_counter()
    jax.block_until_ready(step())
    times.append(time.perf_counter() - start)
  return float(np.median(times[2:]))


def kernels(step: Any) -> list[dict[str, Any]]:
  """Returns the kernels that take most of the device's time in three steps, with the operations that they come from."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(3):
        jax.block_until_ready(step())
    (file,) = Path(folder).rglob('*.xplane.pb')
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    time_of, source = collections.Counter(), {}
    for plane in planes:
      for line in plane.lines:
        if plane.name.startswith('/device:GPU') and line.name.startswith('Stream'):
          for event in line.events:
            time_of[event.name] += event.duration_ns
            source.setdefault(event.name, dict(event.stats).get('hlo_op', ''))
  total = sum(time_of.values())
  return [
    {'kernel': name[:80], 'operation': source[name], 'ms_per_step': ns / 3e6, 'share': ns / total}
    for name, ns in time_of.most_common(LARGEST)
  ]


def peak_memory() -> int | None:
  """Returns the most bytes that were in use on the device; None where it does not say."""
  return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def train(count: int, settings: list[str], with_kernels: bool) -> dict[str, Any]:
  """Measures the compiled training step."""
  ours = OurStep(*experiment('lvis', f'data.batch_size={count}', *settings))

  def step() -> Any:
    ours.state, ours.metrics = ours.compiled(ours.state, *ours.data)
    return ours.metrics

  seconds = of_a_step(step)
  found = {'seconds': seconds, 'tflop': ours.gflop / 1e3, 'first_call_seconds': ours.first_call_seconds}
  found |= {'peak_bytes': peak_memory(), 'loss': float(ours.metrics['loss'])}
  return found | ({'kernels': kernels(step)} if with_kernels else {})


def predict(count: int, settings: list[str]) -> dict[str, Any]:
  """Measures prediction, with 300 detections a picture and their masks."""
  config, batch, words = experiment('lvis', f'data.batch_size={count}', *settings)
  mesh = sharding.make_mesh(config.mesh)
  variables = state.variables(state.create_on(config, mesh))
  whole = sharding.replicated(mesh)
  inputs = jax.device_put((variables, batch.image, batch.image_size, words), whole)
  start = time.perf_counter()
  traced = make_predict_step(config, mesh).trace(*inputs)
  compiled = traced.lower().compile()
  step = lambda: compiled(*inputs)
  jax.block_until_ready(step())
  first = time.perf_counter() - start
  return {
    'seconds': of_a_step(step),
    'tflop': flops.count(traced.jaxpr) / 1e12,
    'first_call_seconds': first,
    'peak_bytes': peak_memory(),
  }


def peer(python: str, count: int, settings: list[str], *options: str) -> dict[str, Any]:
  """Measures torchvision on the pictures' objects, in the interpreter `python`."""
  _, batch, words = experiment('lvis', f'data.batch_size={count}', *settings)
  more = ('--device', 'cuda', '--amp') if jax.default_backend() == 'gpu' else ()
  process = Peer(python, '--model', 'v2', *more, *options)
  about = process.tell(objects_of(batch, len(words.valid)))
  steps = [process.tell('step') for _ in range(2 + STEPS)][2:]
  return about | {
    'seconds': float(np.median([s['wall'] for s in steps])),
    'tflop': about['gflop'] / 1e3,
    'peak_bytes': steps[-1].get('peak_bytes'),
    'mask_regions': steps[-1]['mask_regions'],
  }


def part(words: str, args: argparse.Namespace) -> dict[str, Any]:
  """Measures one part, named as in `--part`, in this process."""
  name, _, number = words.partition(' ')
  count = int(number or 0)
  if name.startswith('peer'):
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # the memory is the peer's
    found = peer(args.peer, count, args.settings, *(['--predict'] if name == 'peer-predict' else []))
  elif name == 'train':
    found = train(count, args.settings, count == args.batches[0])
  else:
    found = predict(count, args.settings) if name == 'predict' else rate()
  device = jax.devices()[0].device_kind
  if count:
    found['pictures_per_second'] = count / found['seconds']
    found['tflop_per_second'] = found['tflop'] / found['seconds']
  if device in PEAK:
    found['share_of_peak'] = found['tflop_per_second'] * 1e12 / PEAK[device]
  return {'part': words, 'device': device, 'jax': jax.__version__} | found


def rounded(found: dict[str, Any]) -> str:
  """Returns a line of JSON with four digits of each number."""
  return json.dumps(json.loads(json.dumps(found), parse_float=lambda x: float(f'{float(x):.4g}')))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batches', type=int, nargs='+', default=[8, 16, 32], help='pictures of a training step')
  parser.add_argument('--settings', nargs='*', default=[], metavar='KEY=VALUE', help='of the config')
  parser.add_argument('--minutes', type=float, default=9.5, help='all parts together')
  parser.add_argument('--out', type=Path, help='also append the lines to this file')
  parser.add_argument('--peer', metavar='PYTHON', default=sys.executable, help='interpreter with torch and torchvision')
  parser.add_argument('--part', help='measure this part alone, e.g. "train 8"')
  args = parser.parse_args()
  if args.part:
    print(rounded(part(args.part, args)))
    return
  first, *larger = args.batches
  parts = [
    'rate',
    f'train {first}',
    f'peer-train {first}',
    'predict 1',
    'peer-predict 1',
    'predict 8',
    'peer-predict 8',
  ]
  parts += [name for count in larger for name in (f'train {count}', f'peer-train {count}')]
  end, missing = time.monotonic() + 60 * args.minutes, []
  given = ['--peer', args.peer, '--batches', *map(str, args.batches), '--settings', *args.settings]
  for words in parts:
    left = end - time.monotonic()
    try:
      if left < FEWEST:
        raise subprocess.TimeoutExpired(words, left)
      done = subprocess.run(
        [sys.executable, __file__, '--part', words, *given], capture_output=True, text=True, timeout=left
      )
      lines = done.stdout.splitlines()
      line = lines[-1] if done.returncode == 0 and lines else json.dumps({'part': words, 'error': done.stderr[-1500:]})
    except subprocess.TimeoutExpired:
      missing.append(words)
      continue
    write(line, args.out)
  write(json.dumps({'parts_without_time': missing}), args.out)


def write(line: str, out: Path | None) -> None:
  """Prints a line and appends it to the file."""
  print(line, flush=True)
  if out:
    with out.open('a', encoding='utf-8') as file:
      file.write(line + '\n')


if __name__ == '__main__':
  main()
