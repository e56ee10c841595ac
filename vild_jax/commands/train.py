"""`vild-jax train`: trains a detector, or resumes a training."""

from __future__ import annotations

import argparse

from vild_jax.commands import arguments
from vild_jax.runtime import files, processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser,
    'vild-jax train configs/vild_text_r50_lvis.py --workdir workdir/text --data.batch_size=64; on SIGTERM it saves and '
    f'exits with {processes.EXIT_PREEMPTED}, and the same command continues from there',
  )
  arguments.add_config(parser)
  parser.add_argument(
    '--workdir', required=True, help='folder for the config, checkpoints, metrics.jsonl and TensorBoard files'
  )
  arguments.takes_buckets(parser, 'workdir', 'vocabulary', 'train.init', 'data.train', 'data.val', 'distillation.store')
  parser.add_argument(
    '--on-nan',
    choices=['stop', 'skip'],
    help='after a step whose loss or gradients are not finite: stop the run, or skip the update and count it '
    '(default: train.on_nan of the config, which is stop)',
  )
  parser.add_argument(
    '--fallback',
    action='store_true',
    help='if the newest checkpoint is damaged, move it into WORKDIR/damaged/ and go on from the newest one that is '
    'whole (default: stop, and say so)',
  )
  parser.add_argument(
    '--profile',
    type=int,
    metavar='STEPS',
    default=0,
    help='write a trace of so many steps into WORKDIR/profile, for XProf or Perfetto (default: none)',
  )
  arguments.add_compiler(parser)
  arguments.add_processes(parser)


def run(args: argparse.Namespace) -> None:
  """Trains to the end, from the newest checkpoint if there is one."""
  from vild_jax.train import timing
  from vild_jax.workflows import training

  clock = timing.Clock.of_process()
  arguments.require(args.profile >= 0, f'--profile is {args.profile}; expected a number of steps')
  on_nan = [f'--train.on_nan={args.on_nan}'] if args.on_nan else []
  config = arguments.load_config(args, *on_nan)
  training.train(config, files.path(args.workdir), clock=clock, profile=args.profile, fallback=args.fallback)
