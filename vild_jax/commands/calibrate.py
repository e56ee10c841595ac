"""`vild-jax calibrate`: searches the settings of post-processing on saved logits, without the network."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.runtime import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser,
    'vild-jax calibrate --logits logits --held-out held_out.txt --out settings.json, for a detector that was trained '
    'with `embed-text --base`, a list without these base classes; then vild-jax evaluate ... --settings settings.json '
    'with the detector that was trained on all of them',
  )
  parser.add_argument('--logits', required=True, metavar='DIR', help='folder of `vild-jax evaluate --save-logits`')
  parser.add_argument(
    '--held-out',
    metavar='LIST',
    help='base classes that this training did not see: names separated by commas or a text file (default: all that it '
    'did not see, without the rare ones of LVIS)',
  )
  parser.add_argument('--out', required=True, metavar='FILE', help='the settings, for `evaluate` and `export`')


def run(args: argparse.Namespace) -> None:
  """Searches, writes the settings and prints what they change."""
  from vild_jax.workflows import calibrating

  files.require_writable(args.out)
  print(calibrating.text(calibrating.calibrate(Path(args.logits), Path(args.out), held_out=args.held_out)))
