"""`vild-jax embed-regions`: writes the teacher's embeddings of regions, or imported ones, into a region store."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser,
    'vild-jax embed-regions --teacher clip-vit-base-patch32 --data data/lvis --proposals workdir/proposals '
    '--out workdir/regions',
  )
  arguments.add_teacher(parser, 'a CLIP-family model in the Hugging Face layout')
  parser.add_argument('--data', required=True, help='the prepared data set')
  parser.add_argument('--split', default='train', help='its split')
  parser.add_argument('--proposals', metavar='STORE', help='the store that vild-jax propose wrote for it')
  parser.add_argument(
    '--data-cache', default='', metavar='DIR', help='where --data and --proposals are copied to if they are in a bucket'
  )
  parser.add_argument(
    '--out',
    required=True,
    help='folder of the store, or an address gs://...; after an interruption the same command continues it',
  )
  parser.add_argument(
    '--max-regions', type=int, default=defaults.MAX_REGIONS, metavar='N', help='keep the best N of each picture'
  )
  parser.add_argument(
    '--dtype',
    choices=['float32', 'bfloat16'],
    help='arithmetic of the image tower; by default bfloat16 on accelerators, where float32 takes several times as '
    'long, and float32 on a CPU. Embeddings are stored as float16',
  )
  parser.add_argument(
    '--batch-size',
    type=int,
    default=defaults.CROP_BATCH,
    metavar='N',
    help='number of crops, of any pictures of a shard, that each device embeds at a time',
  )
  parser.add_argument(
    '--images-per-shard',
    type=int,
    default=defaults.REGION_IMAGES_PER_SHARD,
    metavar='N',
    help='pictures in a file; an interruption loses at most one file of work, and each process writes whole files',
  )
  parser.add_argument(
    '--import',
    dest='imported',
    metavar='NPZ_DIR',
    help='instead of a teacher and proposals: a .npz file or a folder of them, each with image_ids [K], boxes '
    '[K, M, 4] (y1, x1, y2, x2 in pixels of the original picture), embeddings [K, M, D], teacher (text: the identity '
    'of the text tower, or the NAME of embed-text --teacher-id), optionally scores [K, M], valid [K, M] (False for '
    'padding rows) and image_teacher; all files together hold every picture of the split once, the best '
    'region of a picture first',
  )
  arguments.takes_buckets(parser, 'data', 'proposals', 'out')
  arguments.add_compiler(parser)
  arguments.add_processes(parser)
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Writes the store, or the missing part of an interrupted one."""
  from vild_jax.workflows import distilling

  how = {'max_regions': args.max_regions, 'images_per_shard': args.images_per_shard, 'cache': args.data_cache}
  if args.imported:
    arguments.require(
      not (args.teacher or args.proposals),
      '--import brings boxes, embeddings and the name of the teacher; expected no --teacher and no --proposals',
    )
    made = distilling.import_regions(args.imported, args.data, args.split, Path(args.out), **how)
  else:
    arguments.require(args.teacher and args.proposals, 'embed-regions takes --teacher and --proposals, or --import')
    made = distilling.embed_regions(
      args.teacher,
      args.data,
      args.split,
      args.proposals,
      Path(args.out),
      dtype=args.dtype,
      batch_size=args.batch_size,
      **how,
    )
  arguments.write_json(args.json, made)
