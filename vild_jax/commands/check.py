"""`vild-jax check`: checks whether what other commands read is whole."""

from __future__ import annotations

import argparse
import sys

from vild_jax.commands import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser,
    'vild-jax check data/mine workdir/text bundle/ vocabulary.npz; of each it prints what is whole and what is not. '
    'The exit code is 0 if all is whole, else 2. docs/reliability.md says what is checked',
  )
  parser.add_argument(
    'paths',
    nargs='+',
    metavar='PATH',
    help='a prepared data set, a region store, a bundle, a work directory, converted weights, a vocabulary (.npz), a '
    'teacher, or the output folder of evaluate; what it is, is recognised. Every file is read: checksums are compared '
    'where the writer has stored them, otherwise records are decoded; weights must be finite',
  )
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Checks each path and prints what was found; returns the exit code."""
  from vild_jax.workflows import checking

  reports, refused = [], False
  for path in args.paths:
    try:
      reports.append(checking.check(path))
    except ValueError as error:  # the other paths are checked all the same
      print(f'vild-jax check: {error}', file=sys.stderr)
      refused = True
    else:
      print(*reports[-1].lines(), sep='\n', flush=True)
  arguments.write_json(args.json, [report.as_json() for report in reports])
  return 2 if refused or any(report.damaged for report in reports) else 0
