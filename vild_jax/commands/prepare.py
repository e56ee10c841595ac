"""`vild-jax prepare`: writes a prepared data set, from annotations and pictures or from a data set of TFDS."""

from __future__ import annotations

import argparse

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser, 'vild-jax prepare --annotations lvis_v1_train.json --images coco --out data --name lvis_v1 --drop-unusable'
  )
  parser.add_argument(
    '--annotations',
    help='the JSON file, in LVIS or COCO format; yolo: the folder of label files; voc: the folder of XML files; cvat: '
    'the XML file',
  )
  parser.add_argument('--images', help='the folder of its pictures')
  parser.add_argument(
    '--format', choices=defaults.FORMATS, default=defaults.COCO, help='the format of the annotations; coco is also LVIS'
  )
  parser.add_argument(
    '--names',
    metavar='FILE',
    help="names of the classes: YOLO's data.yaml, or a text file with one name a line; yolo needs them, voc may have "
    'them',
  )
  parser.add_argument(
    '--from-tfds', metavar='NAME', help='instead of both: a stock TFDS data set, lvis or coco, or its folder'
  )
  parser.add_argument('--data-dir', help="folder in which TFDS keeps that data set (default: TFDS's own folder)")
  parser.add_argument('--out', required=True, help='folder of data sets; this one goes to OUT/NAME/1.0.0')
  parser.add_argument('--name', help="name of the data set (default: the file's name without the words train and val)")
  parser.add_argument(
    '--split',
    help='name of the split (default: train or val, by the word in the name of the file, or else of its folder)',
  )
  parser.add_argument('--overwrite', action='store_true', help='replace the split if it exists with other content')
  parser.add_argument(
    '--drop-unusable',
    '--drop-bad-boxes',  # its name when it left out boxes alone
    action='store_true',
    help='leave out objects whose box has no size or is outside the picture, or whose segmentation cannot be decoded; '
    'by default the file is refused',
  )
  parser.add_argument(
    '--max-megapixels',
    type=int,
    metavar='N',
    default=defaults.MAX_MEGAPIXELS,
    help='refuse pictures of more than N million pixels; training and evaluation read all that is accepted here',
  )
  parser.add_argument('--vocabulary', metavar='V.npz', help='the summary counts base and novel objects by it')
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Prepares one split and prints the folder of the data set, and on stderr a summary of what it holds."""
  from vild_jax.data import prepare
  from vild_jax.workflows import summarising

  arguments.require(args.max_megapixels > 0, f'--max-megapixels is {args.max_megapixels}; expected 1 or more')
  summaries = summarising.Summaries(args.vocabulary)
  how = {
    'name': args.name,
    'split': args.split,
    'overwrite': args.overwrite,
    'max_megapixels': args.max_megapixels,
    'told': summaries.add,
  }
  if args.from_tfds:
    arguments.require(
      not (args.annotations or args.images or args.names or args.drop_unusable) and args.format == defaults.COCO,
      '--from-tfds takes no --annotations, --images, --format, --names or --drop-unusable; expected one source',
    )
    folder = prepare.from_tfds(args.from_tfds, args.out, data_dir=args.data_dir, **how)
  else:
    arguments.require(args.annotations and args.images, 'prepare takes --annotations and --images, or --from-tfds')
    folder = prepare.prepare(
      args.annotations,
      args.images,
      args.out,
      drop_unusable=args.drop_unusable,
      format=args.format,
      names=args.names,
      **how,
    )
  arguments.write_json(args.json, {'folder': str(folder), 'splits': summaries.splits})
  print(folder)
