"""`vild-jax embed-text`: writes a vocabulary file, from class names or from existing embeddings."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults
from vild_jax.runtime import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(parser, 'vild-jax embed-text --teacher clip-vit-base-patch32 --classes lvis --out lvis.npz')
  arguments.add_teacher(parser, 'a CLIP-family model in the Hugging Face layout')
  parser.add_argument(
    '--classes',
    required=True,
    help='lvis, coco, coco-ovd, voc, objects365, a text file with one name a line, an LVIS or COCO JSON, or '
    'the folder of a prepared data set',
  )
  parser.add_argument('--out', required=True, help='the vocabulary file, .npz')
  parser.add_argument(
    '--prompts', default=defaults.PROMPTS, help='vild (63 templates), imagenet (80), single, or a text file'
  )
  parser.add_argument(
    '--synonyms', action='store_true', help='also average over the synonyms of each class (lvis has them)'
  )
  parser.add_argument(
    '--base',
    help='text file with the names of the base classes, one a line (default: those that --classes marks as base, '
    'such as the frequent and common ones of lvis; a list without such marks has none)',
  )
  parser.add_argument('--from-npy', help='.npy file with existing embeddings [classes, dimension]')
  parser.add_argument('--teacher-id', help='name of the text tower that made the embeddings of --from-npy')


def run(args: argparse.Namespace) -> None:
  """Writes the vocabulary file and prints what it holds."""
  from vild_jax import vocabulary as vocabulary_lib
  from vild_jax.data import class_lists
  from vild_jax.teacher import text

  classes = class_lists.class_list(args.classes, base=args.base)
  if args.synonyms and (classes.synonyms is None or args.from_npy):
    problem = '--from-npy embeds nothing' if args.from_npy else f'{args.classes} has none'
    raise ValueError(f'--synonyms takes a list of classes with synonyms: lvis or an LVIS-format .json; {problem}')
  arguments.require(args.from_npy or not args.teacher_id, '--teacher-id names the tower of --from-npy; expected both')
  arguments.require(
    args.teacher_id or not args.from_npy, '--from-npy takes --teacher-id NAME, the tower that made the embeddings'
  )
  arguments.require(args.teacher or args.from_npy, 'embed-text takes --teacher DIR, or --from-npy FILE')
  Path(args.out).parent.mkdir(parents=True, exist_ok=True)
  files.require_writable(args.out)
  if args.from_npy:
    vocabulary = vocabulary_lib.from_npy(args.from_npy, classes.names, args.teacher_id, classes.is_base)
  else:
    synonyms = classes.synonyms if args.synonyms else None
    vocabulary = text.load_text(args.teacher).vocabulary(classes.names, classes.is_base, args.prompts, synonyms)
  vocabulary_lib.save(args.out, vocabulary)
  print(f'{args.out}: {vocabulary_lib.describe(vocabulary)}')
