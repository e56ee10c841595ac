"""`vild-jax detect`: detects any class names in pictures; writes drawings and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser, 'vild-jax detect street.jpg --checkpoint bundle --classes "red mug, toy elephant" --out found'
  )
  parser.add_argument('images', nargs='+', metavar='IMAGE')
  parser.add_argument('--checkpoint', required=True, help='a work directory or a bundle')
  parser.add_argument('--classes', required=True, help='names separated by commas, or a text file with one name a line')
  parser.add_argument('--teacher', help="folder of a teacher to use instead of the bundle's text tower")
  parser.add_argument(
    '--min-score', type=float, default=defaults.DRAWN_MIN_SCORE, help='leave out detections with a lower score'
  )
  parser.add_argument('--out', required=True, help='folder for a drawing of each picture and detections.json')


def run(args: argparse.Namespace) -> None:
  """Detects in each picture and writes the drawings and the JSON file."""
  from vild_jax.inference.detector import load
  from vild_jax.workflows import detecting

  detector = load(args.checkpoint, teacher=args.teacher)
  images = [Path(image) for image in args.images]
  detecting.detect(detector, images, args.classes, Path(args.out), min_score=args.min_score)
