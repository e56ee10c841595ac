"""`vild-jax train`: trains a detector, or resumes a training."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.runtime import processes


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
  parser.add_argument(
    '--on-nan',
    choices=['stop', 'skip'],
    help='after a step whose loss or gradients are not finite: stop the run, or skip the update and count it '
    '(default: train.on_nan of the config, which is stop)',
  )
  arguments.add_processes(parser)


def run(args: argparse.Namespace) -> None:
  """Trains to the end, from the newest checkpoint if there is one."""
  from vild_jax.workflows import training

  on_nan = [f'--train.on_nan={args.on_nan}'] if args.on_nan else []
  training.train(arguments.load_config(args, *on_nan), Path(args.workdir))
