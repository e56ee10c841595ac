"""Plans the training step for many sizes on TPUs that are not here, and draws what it costs a picture.

It compiles `configs/vild_r50_lvis.py` for v5e:2x2 with every image size and number of classes, one picture a chip, and
for one image size with more pictures a chip; the curves are what XLA counts (`bytes accessed`), what the model's
products need (`GFLOP`), and the memory at the peak. Each compilation takes minutes; results are kept in --cache, so a
second call only draws. Needs the extra [tpu] and matplotlib.

Example: python benchmarks/cost_by_size.py --out docs/cost_by_size.svg --cache plans/ --json cost_by_size.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from tqdm import tqdm

from vild_jax import config as config_lib
from vild_jax.plan import compile as compile_lib
from vild_jax.plan import topology

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'vild_r50_lvis.py'
TOPOLOGY, CHIPS, EFFORT = 'v5e:2x2', 4, -1.0
SIZES, CLASSES, BATCHES = (256, 512, 1024), (80, 1203, 13_000), (1, 2, 4, 8)
MIDDLE, LVIS = 512, 1203  # image size and classes of the curve over batches
PANELS = (
  ('bytes', 'GiB accessed a picture'),
  ('gflop', 'GFLOP of the model a picture'),
  ('peak', 'GiB of memory at the peak, a chip'),
)


def cost(size: int, classes: int, pictures: int, cache: Path) -> dict[str, Any]:
  """Returns what a step costs with `pictures` of size² a chip."""
  config = config_lib.load(CONFIG, [f'data.image_size={size}', f'data.batch_size={pictures * CHIPS}'])
  found = compile_lib.plan(config, topology.target(TOPOLOGY), classes=classes, effort=EFFORT, cache=cache)
  return {
    'size': size,
    'classes': classes,
    'pictures': pictures,
    'bytes': found['bytes_accessed'] / pictures / 2**30,
    'gflop': found['model_flops'] / pictures / CHIPS / 1e9,
    'peak': found['memory']['peak'] / 2**30,
  }


def grid() -> list[tuple[int, int, int]]:
  """Returns (image size, classes, pictures a chip) of all plans."""
  return [(size, classes, 1) for size in SIZES for classes in CLASSES] + [
    (MIDDLE, LVIS, pictures) for pictures in BATCHES[1:]
  ]


def draw(costs: list[dict[str, Any]], path: Path) -> None:
  """Draws three rows of panels: over the image size, the number of classes, and the pictures a chip."""
  rows = (
    ('size', 'side of the picture, pixels', 'classes', CLASSES, {'pictures': 1}),
    ('classes', 'classes', 'size', SIZES, {'pictures': 1}),
    ('pictures', 'pictures a chip', 'size', (MIDDLE,), {'classes': LVIS}),
  )
  figure, axes = plt.subplots(len(rows), len(PANELS), figsize=(12, 10), layout='constrained')
  for line, (x, label, by, values, fixed) in zip(axes, rows, strict=True):
    for panel, (y, title) in zip(line, PANELS, strict=True):
      for value in values:
        of = [c for c in costs if c[by] == value and all(c[k] == v for k, v in fixed.items())]
        points = sorted((c[x], c[y]) for c in of)
        panel.plot(*zip(*points, strict=True), marker='o', label=f'{value:,} {"classes" if by == "classes" else "px"}')
      panel.set(xlabel=label, ylabel=title, xscale='log', ylim=(0, None))
      ticks = sorted({c[x] for c in costs})
      panel.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
      panel.minorticks_off()
      panel.grid(alpha=0.3)
    line[0].legend()
  plt.rcParams['svg.hashsalt'] = 'cost'  # the same figures give the same file
  figure.savefig(path, metadata={'Date': None})


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=Path, required=True, help='the picture: .svg or .png')
  parser.add_argument('--cache', type=Path, required=True, help='folder where finished plans are kept')
  parser.add_argument('--json', type=Path, help='also write the figures to this file')
  args = parser.parse_args()
  costs = [cost(*of, args.cache) for of in tqdm(grid(), desc='plans', ascii=True)]
  if args.json:
    args.json.write_text(json.dumps(costs, indent=1))
  draw(costs, args.out)


if __name__ == '__main__':
  main()
