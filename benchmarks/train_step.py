"""Measures the training step on the CPU, alone or against torchvision's Mask R-CNN; prints one JSON line.

A step is the whole compiled step, with the optimizer, on random pictures with eight boxes each. `gflop` counts matrix
products and convolutions of the traced program, without products with padding. `matmul` multiplies two float32 matrices
of side 4096 in the same process, just before and just after the steps; shares are those of the faster one. CPU seconds
are those of all threads, and rates those of the fastest step. `r50` is the ResNet-50 detector of LVIS at 512 px,
float32, with two pictures, 90 classes and the heads of torchvision; `toy` is the detector of the demo, with AdamW,
because the matrix products of Muon would count; `toy-ensemble` also distils.

With --peer, steps alternate with those of torchvision's `maskrcnn_resnet50_fpn` with trainable batch normalisation, in
a process of its own; only one of both computes at a time. PYTHON must be an interpreter with working torch and
torchvision, C++ operators included; it needs no JAX. torchvision computes masks of positive regions only
(`mask_regions`), ours those of a fixed number: compare seconds per GFLOP rather than seconds. Counted on neither side:
RoIAlign, NMS, batch normalisation, all else that goes element by element, and the optimizer. `gflop_with_padding` is
torch's own count, which also has the products with padding.

`cores_used_by_others` should be near 0. If it is not, set OMP_WAIT_POLICY=PASSIVE: else torch's threads wait for each
other in busy loops, which on a shared core can double the peer's CPU seconds.

Example: python benchmarks/train_step.py --config r50 --peer ~/torch/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax import config as config_lib
from vild_jax.config import Config
from vild_jax.data.transforms import MASK_SIZE
from vild_jax.plan import flops
from vild_jax.structs import Batch, RegionTargets, Vocabulary
from vild_jax.train import sharding, state
from vild_jax.train.step import make_train_step

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
BOXES = 8  # for each picture
SIDE = 4096  # of the matrices that are multiplied
# For each: the file, the number of classes, the dimension of the embeddings, and settings that differ from the file's.
_HEADS = 'model.region_head.num_convs=0 model.region_head.num_fcs=2 model.rpn.num_convs=1'
_ADAMW = 'optimizer.rule=adamw'
_TEACHER = 'distillation.weight=1.0 distillation.regions_per_image=24 distillation.store=none model.image_head=true'
EXPERIMENTS = {
  'r50': ('vild_text_r50_lvis.py', 90, 512, f'data.image_size=512 data.batch_size=2 model.dtype=float32 {_HEADS}'),
  'toy': ('vild_text_toy.py', 30, 64, _ADAMW),
  'lvis': ('vild_r50_lvis.py', 1203, 512, 'distillation.store=none'),
  'toy-ensemble': ('vild_text_toy.py', 30, 64, f'{_ADAMW} {_TEACHER}'),
}


def experiment(name: str, *more: str) -> tuple[Config, Batch, Vocabulary]:
  """Makes a configuration, with `more` settings, and a random batch and vocabulary for it."""
  file, classes, dimension, settings = EXPERIMENTS[name]
  config = config_lib.load(CONFIGS / file, [*settings.split(), *more])
  config = config_lib.with_embedding_dim(config, dimension)
  count, side, objects = config.data.batch_size, config.data.image_size, config.data.max_instances
  rng, regions = np.random.default_rng(0), None
  valid = np.broadcast_to(np.arange(objects) < BOXES, (count, objects)).copy()
  if config.distillation.weight:
    number = config.distillation.regions_per_image
    embeddings = rng.normal(size=(count, number, dimension)).astype(np.float32)
    regions = RegionTargets(random_boxes(rng, count, number, side), embeddings, np.ones((count, number), bool))
  batch = Batch(
    image=rng.normal(size=(count, side, side, 3)).astype(np.float32),
    image_size=np.full((count, 2), side, np.float32),
    boxes=random_boxes(rng, count, objects, side) * valid[..., None],
    labels=rng.integers(0, classes, (count, objects)).astype(np.int32),
    masks=np.full((count, objects, MASK_SIZE, MASK_SIZE), 255, np.uint8),
    valid=valid,
    regions=regions,
  )
  every = np.ones(classes, bool)
  return config, batch, Vocabulary(rng.normal(size=(classes, dimension)).astype(np.float32), every, every)


def random_boxes(rng: np.random.Generator, count: int, number: int, side: int) -> np.ndarray:
  corner = rng.uniform(0, 0.6 * side, (count, number, 2))
  size = rng.uniform(0.08 * side, 0.4 * side, (count, number, 2))
  return np.concatenate([corner, corner + size], -1).astype(np.float32)


def objects_of(batch: Batch, classes: int) -> str:
  """Returns the pictures' side and objects as JSON, as torchvision_peer.py expects them."""
  boxes, labels = batch.boxes[:, :BOXES][..., [1, 0, 3, 2]].tolist(), batch.labels[:, :BOXES].tolist()
  return json.dumps({'side': batch.image.shape[1], 'classes': classes, 'boxes': boxes, 'labels': labels})


class OurStep:
  """Holds the compiled training step; each call does one step. Its first step is done when this is made."""

  def __init__(self, config: Config, batch: Batch, vocabulary: Vocabulary):
    mesh = sharding.make_mesh(config.mesh)
    self.state = state.create_on(config, mesh)
    self.data = sharding.put_batch(mesh, batch), jax.device_put(vocabulary, sharding.replicated(mesh))
    start = time.perf_counter()
    traced = make_train_step(config, mesh).trace(self.state, *self.data)
    self.compiled = traced.lower().compile()
    self()
    self.first_call_seconds = time.perf_counter() - start
    self.gflop = flops.count(traced.jaxpr) / 1e9

  def __call__(self) -> None:
    self.state, self.metrics = jax.block_until_ready(self.compiled(self.state, *self.data))


def timed(step: Callable[[], Any]) -> dict[str, float]:
  """Returns the wall and CPU seconds of a call."""
  wall, cpu = time.perf_counter(), time.process_time()
  step()
  return {'wall': time.perf_counter() - wall, 'cpu': time.process_time() - cpu}


class Peer:
  """Holds the process of torchvision (torchvision_peer.py); `tell` sends it a line and waits for the answer."""

  def __init__(self, python: str, *options: str):
    words, pipe = [python, Path(__file__).with_name('torchvision_peer.py'), *options], subprocess.PIPE
    self.process = subprocess.Popen(words, text=True, stdin=pipe, stdout=pipe)

  def tell(self, line: str) -> dict[str, Any]:
    try:
      self.process.stdin.write(line + '\n')
      self.process.stdin.flush()
      return json.loads(self.process.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError):
      raise SystemExit('the process of --peer ended; it needs working torch and torchvision') from None


def matmul() -> dict[str, float]:
  """Returns the GFLOP/s, per wall and per CPU second, of the fastest of five products of large matrices."""
  matrix, product = jnp.full((SIDE, SIDE), 1 / SIDE, jnp.float32), jax.jit(jnp.matmul)
  multiply = lambda: product(matrix, matrix).block_until_ready()
  multiply()
  times = [timed(multiply) for _ in range(5)]
  return {clock: 2 * SIDE**3 / 1e9 / min(t[clock] for t in times) for clock in ('wall', 'cpu')}


def busy_seconds() -> float:
  """Returns the CPU seconds of all processes of the machine since its start (Linux)."""
  return sum(map(int, Path('/proc/stat').read_text().split()[1:4])) / os.sysconf('SC_CLK_TCK')


def summary(times: list[dict[str, float]], gflop: float, reference: dict[str, float]) -> dict[str, Any]:
  """Returns seconds and rates of steps of `gflop`, and their shares of a rate of reference."""
  of = {clock: [t[clock] for t in times] for clock in ('wall', 'cpu')}
  seconds = {clock: {'fastest': min(of[clock]), 'median': float(np.median(of[clock]))} for clock in of}
  rates = {clock: gflop / seconds[clock]['fastest'] for clock in seconds}
  return {
    'gflop': gflop,
    'seconds': seconds,
    'gflop_per_second': rates,
    'share_of_matmul': {clock: rates[clock] / reference[clock] for clock in rates},
    'cpu_seconds_per_gflop': {key: value / gflop for key, value in seconds['cpu'].items()},
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='r50', choices=tuple(EXPERIMENTS))
  parser.add_argument('--repeats', type=int, default=5, help='timed steps, after the first one')
  parser.add_argument('--peer', metavar='PYTHON', help='compare with torchvision in this interpreter; r50 only')
  parser.add_argument('--json', type=Path, help='also write the line to this file')
  args = parser.parse_args()
  if args.peer and args.config != 'r50':
    parser.error(f'--peer compares with a ResNet-50, but --config is {args.config}; expected r50')

  config, batch, vocabulary = experiment(args.config)
  ours = OurStep(config, batch, vocabulary)
  peer = Peer(args.peer) if args.peer else None
  about = peer.tell(objects_of(batch, len(vocabulary.valid))) if peer else {}
  before = matmul()
  our_times, peer_times = [], []
  start, busy = time.perf_counter(), busy_seconds()
  for _ in range(args.repeats):
    peer_times += [peer.tell('step')] if peer else []
    our_times.append(timed(ours))
  others = busy_seconds() - busy - sum(t['cpu'] for t in our_times + peer_times)
  others /= time.perf_counter() - start
  if peer:
    peer.process.communicate()  # ends it
  after = matmul()
  best = {clock: max(before[clock], after[clock]) for clock in before}
  result = {
    'benchmark': 'train_step',
    'config': args.config,
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'cores': len(os.sched_getaffinity(0)),
    'batch_size': config.data.batch_size,
    'image_size': config.data.image_size,
    'first_call_seconds': ours.first_call_seconds,
    **summary(our_times, ours.gflop, best),
    'loss': float(ours.metrics['loss']),
    'cores_used_by_others': others,
    'matmul_gflop_per_second': {'before': before, 'after': after},
  }
  if peer:
    about['omp_wait_policy'] = os.environ.get('OMP_WAIT_POLICY', 'default')
    result['peer'] = about | summary(peer_times, about['gflop'], best)
    result['peer']['mask_regions'] = [t['mask_regions'] for t in peer_times]
    ours_per_gflop, peers = (r['cpu_seconds_per_gflop'] for r in (result, result['peer']))
    result['cpu_seconds_per_gflop_ours_over_peer'] = {key: ours_per_gflop[key] / peers[key] for key in peers}
  line = json.dumps(json.loads(json.dumps(result), parse_float=lambda x: float(f'{float(x):.4g}')))
  print(line)
  if args.json:
    args.json.write_text(line + '\n')


if __name__ == '__main__':
  main()
