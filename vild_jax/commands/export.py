"""`vild-jax export`: writes a bundle from a work directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(parser, 'vild-jax export configs/vild_text_r50_lvis.py --checkpoint workdir/text --out bundle')
  arguments.add_config(parser)
  parser.add_argument('--checkpoint', required=True, help='a work directory')
  arguments.add_step(parser)
  arguments.add_settings(parser)
  parser.add_argument('--out', required=True, help='folder of the bundle')
  parser.add_argument('--format', choices=['bundle'], default='bundle', help='format to write')
  parser.add_argument(
    '--teacher', help='folder of the teacher whose text tower the bundle keeps (default: teacher of the config)'
  )
  parser.add_argument(
    '--image-tower',
    action='store_true',
    help="keep the teacher's image tower too, so that example pictures can be asked for",
  )


def run(args: argparse.Namespace) -> None:
  """Writes the bundle and prints its folder."""
  from vild_jax.workflows import exporting

  config = arguments.load_config(args)
  teacher = args.teacher or config.teacher or None
  made = exporting.export(
    config, Path(args.checkpoint), Path(args.out), teacher=teacher, image_tower=args.image_tower, step=args.step
  )
  print(made)
