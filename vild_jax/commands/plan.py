"""`vild-jax plan`: compiles the training step for devices that are not here, and reports what it needs."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(parser, 'vild-jax plan configs/vild_r50_lvis.py --topology v5e:16x16')
  arguments.add_config(parser)
  parser.add_argument(
    '--topology',
    required=True,
    metavar='KIND:NxN',
    help='v5e:16x16, v6e:8x8, v5p:4x4x4, ... (needs the extra [tpu]), or cpu:8 for 8 emulated devices',
  )
  parser.add_argument(
    '--platform',
    choices=['tpu', 'cpu'],
    help='cpu emulates as many devices as the topology has chips (default: depends on the topology)',
  )
  parser.add_argument('--batch', type=int, metavar='N', help='global batch (default: data.batch_size of the config)')
  parser.add_argument(
    '--classes', type=int, default=defaults.CLASSES, metavar='C', help='rows of the vocabulary; LVIS has 1203'
  )
  parser.add_argument('--fit', action='store_true', help='find the largest batch that fits, by several compilations')
  parser.add_argument(
    '--hbm',
    type=float,
    metavar='GIB',
    help='memory of one device that the program may need (default: the compiler decides)',
  )
  arguments.add_effort(parser)
  parser.add_argument(
    '--cache', metavar='DIR', help='folder that stores results for later runs (default: ~/.cache/vild_jax/plan)'
  )
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Compiles the step and prints memory, FLOPs, collectives and the largest arrays."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '1'  # the partitioner's warnings are part of the report
  from vild_jax.plan import report, search, topology

  batch = [] if args.batch is None else [f'--data.batch_size={args.batch}']
  config, target = arguments.load_config(args, *batch), topology.target(args.topology, args.platform)
  arguments.require(args.classes > 0, f'--classes is {args.classes}; expected a positive number')
  arguments.require(
    args.hbm is None or 0 < args.hbm < math.inf, f'--hbm is {args.hbm}; expected a positive number of GiB'
  )
  arguments.require_effort(args)
  cache = Path(args.cache or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'vild_jax' / 'plan')
  hbm = None if args.hbm is None else int(args.hbm * 2**30)
  found = search.planned(config, target, fit=args.fit, classes=args.classes, effort=args.effort, cache=cache, hbm=hbm)
  print(report.report(found))
  arguments.write_json(args.json, found)
