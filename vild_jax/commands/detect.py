"""`vild-jax detect`: detects any class names in pictures and videos; writes drawings and JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser, 'vild-jax detect photos/ clip.mp4 --checkpoint bundle --classes "red mug, toy elephant" --out found'
  )
  parser.add_argument(
    'images',
    nargs='+',
    metavar='INPUT',
    help='a picture; a video; a folder, of which all pictures count, in folders below it too, except hidden ones; or a '
    'glob in quotes, such as "photos/**/*.jpg"',
  )
  arguments.add_checkpoint(parser)
  parser.add_argument(
    '--classes',
    required=True,
    help='names separated by commas, or a file: text with one name a line, a vocabulary .npz, or the .json of a data '
    f'set; or a list that is built in: {", ".join(defaults.CLASS_LISTS)}',
  )
  arguments.add_teacher(parser, "a teacher to use instead of the bundle's text tower")
  parser.add_argument(
    '--out',
    required=True,
    help='folder for NAME_detections.png of each picture and detections.json; NAME_detections.mp4 of each video and '
    'NAME_detections.jsonl, a line a frame. Where two inputs have one name, the second becomes NAME_2. The same '
    'command goes on where a killed one stopped',
  )
  parser.add_argument(
    '--format',
    choices=defaults.DETECTION_FORMATS,
    default=defaults.OWN,
    help="coco: also write coco.json, the pictures as a data set in COCO's format, whose annotations are the "
    'detections with their score',
  )
  found = parser.add_argument_group('what is found')
  found.add_argument(
    '--min-score', type=float, default=defaults.DRAWN_MIN_SCORE, help='leave out detections with a lower score'
  )
  found.add_argument(
    '--max-detections',
    type=int,
    metavar='N',
    help='keep the best N of each picture or frame (default: as many as the detector is configured for; with --tile, '
    'for each tile)',
  )
  found.add_argument(
    '--attributes',
    metavar='NAMES',
    help='such as "red, blue, wooden", or a file as for --classes: of these each object is taken to have one. '
    'detections.json gets how probable each is, and drawings name one that is likelier than all others together',
  )
  found.add_argument('--no-masks', action='store_true', help='find boxes alone, which is quicker')
  found.add_argument(
    '--batch-size',
    type=int,
    metavar='N',
    default=defaults.DETECT_BATCH,
    help='pictures, frames or tiles that go through the network together',
  )
  large = parser.add_argument_group('large pictures, in which objects are small')
  large.add_argument(
    '--tile',
    type=int,
    metavar='PIXELS',
    help='detect in the whole picture and in square tiles of it with this side, for example 1024, and merge; pictures '
    'that fit in one tile are detected as without it',
  )
  large.add_argument(
    '--overlap',
    type=float,
    metavar='SHARE',
    default=defaults.TILE_OVERLAP,
    help='a tile overlaps the next by this share of its side',
  )
  large.add_argument(
    '--max-megapixels',
    type=int,
    metavar='N',
    default=defaults.MAX_MEGAPIXELS,
    help='leave out pictures of more than N million pixels, which may be files made to fill the memory',
  )


def run(args: argparse.Namespace) -> int:
  """Detects in all inputs and writes the drawings and the JSON files; returns 1 if one could not be read."""
  from vild_jax.data import class_lists
  from vild_jax.inference.detector import load
  from vild_jax.workflows import detecting

  settings = detecting.Settings(
    min_score=args.min_score,
    masks=not args.no_masks,
    max_detections=args.max_detections,
    batch_size=args.batch_size,
    tile=args.tile,
    overlap=args.overlap,
    max_megapixels=args.max_megapixels,
    attributes=class_lists.names(args.attributes, '--attributes') if args.attributes is not None else None,
  )
  detector = load(args.checkpoint, teacher=args.teacher)
  coco = args.format == defaults.COCO
  unreadable = detecting.detect(detector, args.images, args.classes, Path(args.out), settings, coco=coco)
  if unreadable:
    count = f'{len(unreadable)} input{"s" * (len(unreadable) > 1)}'
    print(f'vild-jax detect: {count} could not be read; all others are in {args.out}', file=sys.stderr)
  return 1 if unreadable else 0
