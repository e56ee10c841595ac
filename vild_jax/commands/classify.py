"""`vild-jax classify`: classifies pictures with a teacher alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser, 'vild-jax classify cup.jpg --teacher clip-vit-base-patch32 --classes "red mug, toy elephant"'
  )
  parser.add_argument('images', nargs='+', metavar='IMAGE')
  arguments.add_teacher(parser, 'a CLIP-family model in the Hugging Face layout', required=True)
  parser.add_argument('--classes', required=True, help='names separated by commas, or a list as embed-text takes it')
  parser.add_argument(
    '--prompts', default=defaults.PROMPTS, help='vild (63 templates), imagenet (80), single, or a text file'
  )
  parser.add_argument(
    '--top', type=int, default=defaults.TOP_NAMES, metavar='N', help='print the best N names of each picture'
  )
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Classifies the pictures and prints the best names of each."""
  from vild_jax.workflows import classifying

  images = [Path(image) for image in args.images]
  found = classifying.classify(args.teacher, images, args.classes, which=args.prompts, top=args.top)
  print(classifying.scores_table(found))
  arguments.write_json(args.json, found)
