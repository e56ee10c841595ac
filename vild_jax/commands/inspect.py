"""`vild-jax inspect`: shows what is in a prepared data set, and what the network will see of it, on a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.runtime import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser, 'vild-jax inspect data/mine --out page.html --config configs/vild_text_r50_lvis.py --vocabulary v.npz'
  )
  parser.add_argument('data', metavar='DATA', help='a prepared data set')
  parser.add_argument('--out', required=True, metavar='page.html', help='the page, one file that needs no network')
  parser.add_argument('--split', help='(default: train, or the first one if there is none)')
  parser.add_argument(
    '--config',
    metavar='CONFIG.py',
    help='shows what the network sees in a training with this config; --key.path=value overrides single values',
  )
  parser.add_argument(
    '--regions', metavar='STORE', help='also show the regions to distil of this region store; needs --config'
  )
  parser.add_argument(
    '--vocabulary', metavar='V.npz', help='tells base from novel classes (default: the vocabulary of the config)'
  )
  parser.add_argument('--pictures', type=int, default=12, metavar='N', help='pictures that the page shows')
  parser.add_argument('--seed', type=int, default=0, metavar='K', help='of the choice of pictures and their transform')


def run(args: argparse.Namespace) -> None:
  """Writes the page and prints what looks wrong, and its path."""
  arguments.require(args.pictures >= 0, f'--pictures is {args.pictures}; expected 0 or more')
  arguments.require(args.seed >= 0, f'--seed is {args.seed}; expected 0 or more')
  arguments.require(args.config or not args.regions, 'the network sees --regions; expected --config too')
  arguments.require(
    args.config or not args.overrides, f'{"".join(args.overrides[:1])} is for a config; expected --config'
  )
  folder = Path(args.out).absolute().parent
  arguments.require(folder.is_dir(), f'--out is {args.out!r}; expected a file in a folder that exists')
  arguments.require(not Path(args.out).is_dir(), f'--out is a folder, {args.out!r}; expected the name of an HTML file')
  files.require_writable(args.out)
  config = arguments.load_config(args) if args.config else None

  from vild_jax.workflows import inspecting

  found = inspecting.inspect(
    args.data,
    args.out,
    split=args.split,
    config=config,
    regions=args.regions,
    vocabulary=args.vocabulary,
    pictures=args.pictures,
    seed=args.seed,
  )
  for text, _ in found.smells:
    print(text)
  print(args.out)
