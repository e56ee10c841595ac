"""`vild-jax score`: computes the metrics of a results file, of any detector, by the protocol that a paper names."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser, 'vild-jax score --annotations lvis_v1_val.json --results workdir/eval/results.json --protocol lvis'
  )
  parser.add_argument('--annotations', required=True, help='ground truth, JSON in LVIS or COCO format')
  parser.add_argument(
    '--results', required=True, help='results JSON in COCO format; for the protocol proposals also a region store'
  )
  parser.add_argument(
    '--protocol',
    required=True,
    choices=defaults.PROTOCOLS,
    help='what is counted; docs/evaluation.md describes each protocol',
  )
  parser.add_argument(
    '--base',
    metavar='FILE',
    help='which categories are base: a vocabulary file, a text file of names, or coco-ovd (default: all that are not '
    'rare in LVIS; the published split for the protocol coco-ovd)',
  )
  parser.add_argument(
    '--ignore-unknown',
    action='store_true',
    help='leave out detections of pictures or categories that the annotations lack; by default they are refused',
  )
  parser.add_argument(
    '--out', help='folder for metrics.json, per_category.csv, plots, and report.html, which says why the detector fails'
  )
  parser.add_argument('--images', metavar='DIR', help='the folder of the pictures: shows some of them on the page')
  parser.add_argument(
    '--against', metavar='FILE', help='results of another detector, to compare boxes with, with bootstrap intervals'
  )
  parser.add_argument(
    '--resamples', type=int, default=100, metavar='N', help='samples of the pictures for the intervals of --against'
  )
  parser.add_argument(
    '--proposals',
    metavar='STORE|RESULTS',
    help='a region store, or a results file whose boxes are the proposals: the page shows their recall beside that of '
    'the detections',
  )
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Scores, prints a table and writes what was asked for."""
  from vild_jax.eval import summary
  from vild_jax.workflows import scoring

  arguments.require(args.resamples > 1, f'--resamples is {args.resamples}; expected 2 or more')
  arguments.require(args.out or not args.images, '--images are shown on the page; expected --out too')
  arguments.require(
    args.out or not args.proposals, 'the recall of --proposals is shown on the page; expected --out too'
  )
  metrics = scoring.score(
    args.annotations,
    args.results,
    args.protocol,
    base=args.base,
    ignore_unknown=args.ignore_unknown,
    out=Path(args.out) if args.out else None,
    images=Path(args.images) if args.images else None,
    against=args.against,
    resamples=args.resamples,
    proposals=args.proposals,
  )
  print(summary.text(metrics))
  arguments.write_json(args.json, summary.short(metrics))
