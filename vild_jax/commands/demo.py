"""`vild-jax demo`: runs the whole pipeline on the toy world."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.demo import methods


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(parser, 'vild-jax demo --workdir workdir/demo')
  parser.add_argument('--workdir', required=True, help='folder for data, checkpoints, report.html and report.json')
  parser.add_argument('--seed', type=int, default=0, help='random seed')
  parser.add_argument(
    '--methods',
    default=','.join(methods.DEFAULT),
    metavar='A,B',
    help=f'methods to train and compare, of {", ".join(methods.METHODS)}; finished stages are not run again. By '
    'default a ViLD-ensemble, whose heads are also shown alone',
  )
  parser.add_argument('--full', action='store_true', help='train and compare all methods')
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the demo, or the stages that an earlier run has not finished."""
  from vild_jax.workflows import demo

  chosen = tuple(methods.METHODS) if args.full else [name.strip() for name in args.methods.split(',')]
  demo.run(Path(args.workdir), seed=args.seed, methods=chosen, json_file=args.json)
