"""Measures pasting and encoding of masks, 300 detections in pictures of 480 x 640; prints one JSON line.

`one` is `eval.results.detections_to_results` in this process, pictures a second; `two_processes` the same in two
processes, each with its own pictures. In `listed` only the share LISTED of the detections gets a mask: in the data of
`benchmarks/score.py` as many are of a class that LVIS lists for their picture. `whole_pictures` pastes every mask into
a picture and encodes that, which is the plain way; `ratio` is the rate of `one` divided by it. Boxes have sides of 12
to 250 pixels, masks are discs with noise.

Example: python benchmarks/encode_masks.py
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from vild_jax.data import rle
from vild_jax.eval import paste, results

HEIGHT, WIDTH, DETECTIONS, LISTED = 480, 640, 300, 0.29


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws masks [300, 28, 28] and boxes [300, 4] yxyx."""
  rng = np.random.default_rng(seed)
  centres = rng.uniform(0, (HEIGHT, WIDTH), (DETECTIONS, 2))
  sizes = np.exp(rng.uniform(np.log(12), np.log(250), (DETECTIONS, 2)))
  boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
  boxes = boxes.clip(0, (HEIGHT, WIDTH, HEIGHT, WIDTH)).astype(np.float32)
  rows, columns = np.mgrid[:28, :28] - 13.5
  masks = 1 / (1 + np.exp(np.hypot(rows, columns) - 10 - rng.normal(size=(DETECTIONS, 28, 28))))
  return masks.astype(np.float32), boxes


def encode(seed: int, pictures: int, share: float = 1.0) -> float:
  """Returns the seconds that as many pictures take if a share of their detections gets masks."""
  made = [picture(seed + i) for i in range(4)]
  masked = np.random.default_rng(seed).permutation(DETECTIONS) < share * DETECTIONS
  start = time.perf_counter()
  for i in range(pictures):
    masks, boxes = made[i % 4]
    ones, ids = np.ones(DETECTIONS), np.ones(DETECTIONS, int)
    results.detections_to_results(1, boxes, ones, ids, masks[masked], (HEIGHT, WIDTH), masked=masked)
  return time.perf_counter() - start


def plain(seed: int, pictures: int) -> float:
  """Returns the seconds that as many pictures take if every mask becomes a picture."""
  made = [picture(seed + i) for i in range(4)]
  start = time.perf_counter()
  for i in range(pictures):
    for mask in paste.paste_masks(*made[i % 4], HEIGHT, WIDTH):
      rle.encode_mask(mask)
  return time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--pictures', type=int, default=40)
  count = parser.parse_args().pictures
  encode(0, 4)
  turns = [(encode(0, count), plain(0, count // 4) * 4, encode(0, count, LISTED)) for _ in range(3)]
  one, whole, listed = (min(turn[k] for turn in turns) for k in (0, 1, 2))
  with ProcessPoolExecutor(2) as pool:
    list(pool.map(encode, (0, 0), (4, 4)))  # starts the processes
    two = min(max(pool.map(encode, (0, 100), (count, count))) for _ in range(3))
  rates = {
    'one': count / one,
    'two_processes': 2 * count / two,
    'whole_pictures': count / whole,
    'listed': count / listed,
  }
  print(json.dumps({name: round(rate, 1) for name, rate in rates.items()} | {'ratio': round(whole / one, 1)}))


if __name__ == '__main__':
  main()
