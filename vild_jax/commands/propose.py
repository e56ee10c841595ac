"""`vild-jax propose`: writes the proposals of a checkpoint for a data set into a region store."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser,
    'vild-jax propose configs/vild_text_r50_lvis.py --checkpoint workdir/text --data data/lvis --out workdir/proposals',
  )
  arguments.add_config(parser)
  arguments.add_checkpoint(parser)
  arguments.add_step(parser)
  parser.add_argument('--data', help='the prepared data set (default: data.train of the config)')
  parser.add_argument('--split', help='its split (default: data.train_split of the config, which is train)')
  parser.add_argument(
    '--out',
    required=True,
    help='folder of the store, or an address gs://...; after an interruption the same command continues it',
  )
  parser.add_argument(
    '--max-proposals', type=int, default=defaults.MAX_PROPOSALS, metavar='N', help='keep the best N of each picture'
  )
  parser.add_argument(
    '--images-per-shard',
    type=int,
    default=defaults.PROPOSAL_IMAGES_PER_SHARD,
    metavar='N',
    help='pictures in a file; an interruption loses at most one file of work, and each process writes whole files',
  )
  arguments.takes_buckets(parser, 'data', 'data.train', 'out')
  arguments.add_compiler(parser)
  arguments.add_processes(parser)
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Writes the store, or the missing part of an interrupted one."""
  from vild_jax.workflows import distilling

  config = arguments.load_config(args)
  made = distilling.propose(
    config,
    args.checkpoint,
    args.data or config.data.train,
    args.split or config.data.train_split,
    Path(args.out),
    max_proposals=args.max_proposals,
    images_per_shard=args.images_per_shard,
    step=args.step,
  )
  arguments.write_json(args.json, made)
