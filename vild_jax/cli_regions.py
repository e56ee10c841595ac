"""`vild-jax propose` and `embed-regions`: what `cli` knows of their arguments, which take some explaining."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def embed_regions(args: argparse.Namespace) -> None:
  """The teacher's embeddings of a store's regions -> another region store."""
  from vild_jax import commands, files

  if args.imported and (args.teacher or args.proposals):
    raise ValueError('--import brings boxes, embeddings and the name of the teacher with it; expected no --teacher and '
                     'no --proposals')
  if not args.imported and not (args.teacher and args.proposals):
    raise ValueError('embed-regions takes --teacher and --proposals, or --import')
  made = commands.embed_regions(args.teacher, args.data, args.split, args.proposals, Path(args.out),
                                max_regions=args.max_regions, dtype=args.dtype, batch_size=args.batch_size,
                                images_per_shard=args.images_per_shard, imported=args.imported)
  if args.json:
    files.write(args.json, json.dumps(made, indent=2) + '\n')


def add_propose_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of propose, besides its config."""
  add = parser.add_argument
  add('--checkpoint', required=True, help='a work directory or a bundle')
  add('--data', help='the prepared data set (default: data.train of the config)')
  add('--split', help='its split (default: data.train_split of the config, which is train)')
  add('--out', required=True, help='folder of the store; given again after an interruption, it goes on')
  add('--max-proposals', type=int, default=1000, metavar='N', help='keep the best N of each picture')
  add('--images-per-shard', type=int, default=256, metavar='N',
      help='pictures in a file: what an interruption costs, and what processes share')


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of embed-regions."""
  add = parser.add_argument
  add('--teacher', help='folder of a CLIP-family model in the Hugging Face layout')
  add('--data', required=True, help='the prepared data set')
  add('--split', default='train', help='of the data set')
  add('--proposals', metavar='STORE', help='what vild-jax propose wrote for it')
  add('--out', required=True, help='folder of the store; given again after an interruption, it goes on')
  add('--max-regions', type=int, default=300, metavar='N', help='keep the best N of each picture')
  add('--dtype', choices=['float32', 'bfloat16'], default='float32',
      help='of the image tower\'s arithmetic; bfloat16 is faster on accelerators. Stored is float16')
  add('--batch-size', type=int, default=100, metavar='N', help='crops that the tower takes at a time')
  add('--images-per-shard', type=int, default=64, metavar='N',
      help='pictures in a file: what an interruption costs, and what processes share')
  add('--import', dest='imported', metavar='NPZ_DIR',
      help='instead: a .npz file or a folder of them, each with image_ids [K], boxes [K, M, 4] (y1, x1, y2, x2 in '
           'pixels of the original picture), embeddings [K, M, D], teacher (a text: the identity of the text tower, or '
           'the NAME of embed-text --teacher-id), optionally scores [K, M], valid [K, M] (False for rows that fill up) '
           'and image_teacher; together every picture of the split once, best in its order')
