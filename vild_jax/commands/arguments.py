"""Shares code among the commands: parser, help, groups of options, checks of values, loading the config, --json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vild_jax.runtime import processes

if TYPE_CHECKING:
  from vild_jax.config import Config

_ON_THE_HUB = 'hf://owner/name[@revision]'


class Parser(argparse.ArgumentParser):
  """Parses arguments; reports wrong ones in one line, as all bad input is reported."""

  def error(self, message: str) -> NoReturn:
    """Prints one line with `message` and exits with 2."""
    self.exit(2, f'{self.prog}: {message}\n')


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
  """Shows the default of an option, unless it is None or False or the help text says it already."""

  def _get_help_string(self, action: argparse.Action) -> str | None:
    shown = action.default not in (None, False, argparse.SUPPRESS) and '(default' not in (action.help or '')
    return super()._get_help_string(action) if shown else action.help


def add_example(parser: argparse.ArgumentParser, example: str) -> None:
  """Adds an example to the help, below the options."""
  parser.epilog = f'example: {example}'


def add_config(parser: argparse.ArgumentParser) -> None:
  """Adds the argument CONFIG.py; arguments --key.path=VALUE override its settings (see `load_config`)."""
  parser.add_argument(
    'config',
    metavar='CONFIG.py',
    help='a file with get_config(), or a saved config.json; single values are overridden by --key.path=value, '
    'for example --data.batch_size=64',
  )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  """Adds the option --checkpoint."""
  parser.add_argument(
    '--checkpoint',
    required=True,
    help=f'a work directory or a bundle; a bundle on the Hugging Face hub is {_ON_THE_HUB}',
  )
  takes_buckets(parser, 'checkpoint')


def takes_buckets(parser: argparse.ArgumentParser, *options: str) -> None:
  """Lets options and settings have addresses gs://bucket/name as values; of all others `cli.parse` refuses them."""
  parser.set_defaults(in_buckets=(*(parser.get_default('in_buckets') or ()), *options))


def add_teacher(parser: argparse.ArgumentParser, what: str, **more: Any) -> None:
  """Adds the option --teacher; `what` says which teacher is meant."""
  parser.add_argument('--teacher', metavar='DIR', help=f'folder, or {_ON_THE_HUB}, of {what}', **more)


def add_step(parser: argparse.ArgumentParser) -> None:
  """Adds the option --step."""
  parser.add_argument('--step', type=int, metavar='N', help='use the checkpoint of step N (default: the newest)')


def add_settings(parser: argparse.ArgumentParser) -> None:
  """Adds the option --settings, which `load_config` applies."""
  parser.add_argument(
    '--settings', metavar='FILE', help='settings of post-processing that `vild-jax calibrate` has written'
  )


def add_processes(parser: argparse.ArgumentParser) -> None:
  """Adds the options of a command that can run in several processes; `cli` joins these before the command runs."""
  group = parser.add_argument_group(
    'several processes',
    'Start the same command in each process, with folders that all of them see. Cloud TPU, SLURM and indexed Jobs of '
    'Kubernetes are recognised. Elsewhere give these three options, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES '
    'and JAX_PROCESS_ID.',
  )
  group.add_argument('--coordinator-address', metavar='HOST:PORT', help='host of process 0 and a free port there')
  group.add_argument(
    '--coordinator-bind-address',
    metavar='HOST:PORT',
    help='where process 0 listens for the others, without encryption or password (default: on all interfaces of its '
    'machine, at the port of --coordinator-address): name the interface of a closed network',
  )
  group.add_argument('--num-processes', type=int, metavar='N', help='number of processes')
  group.add_argument('--process-id', type=int, metavar='I', help='number of this process, from 0')
  group.add_argument(
    '--heartbeat-seconds',
    type=int,
    metavar='S',
    default=processes.HEARTBEAT_SECONDS,
    help='if a process does not answer for S seconds, it counts as dead and the others end',
  )


def add_compiler(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the compiler; `cli` applies them before the command runs, by `use_compiler`."""
  parser.add_argument(
    '--cache',
    metavar='DIR',
    dest='programs',
    help='keep compiled programs in this folder, so that the next start does not compile them again; of several '
    'processes the first one writes, so that all must see it (default: JAX_COMPILATION_CACHE_DIR, or none)',
  )
  add_effort(parser)


def add_effort(parser: argparse.ArgumentParser) -> None:
  """Adds the option --effort; `require_effort` checks it."""
  parser.add_argument(
    '--effort',
    type=float,
    default=0.0,
    metavar='E',
    help='effort of the compiler, from -1 (least time) to 1; 0 is its default',
  )


def require_effort(args: argparse.Namespace) -> None:
  """Raises ValueError unless the value of --effort is one that the compiler takes."""
  require(-1 <= args.effort <= 1, f'--effort is {args.effort}; expected a number from -1 to 1')


def use_compiler(args: argparse.Namespace) -> None:
  """Applies the options of `add_compiler` to all programs that are compiled from now on."""
  from vild_jax.runtime import compiler

  require_effort(args)
  compiler.use_effort(args.effort)
  if args.programs:
    compiler.keep_programs(Path(args.programs))


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds the option --json; `write_json` writes the file."""
  parser.add_argument('--json', metavar='FILE', help='also write the results to this file')


def require(condition: object, message: str) -> None:
  """Raises ValueError with `message` unless `condition` holds."""
  if not condition:
    raise ValueError(message)


def load_config(args: argparse.Namespace, *overrides: str) -> Config:
  """Loads CONFIG.py; applies --settings, the overrides of the command line, then `overrides`: `--key.path=value`."""
  from vild_jax import config as config_lib

  chosen = config_lib.calibrated(args.settings) if getattr(args, 'settings', None) else []
  return config_lib.load(args.config, [*chosen, *args.overrides, *overrides])


def write_json(path: str | Path | None, content: Any) -> None:
  """Writes `content` as JSON to `path`, the value of --json; does nothing if it is None."""
  from vild_jax.runtime import files

  if path:
    files.write(path, json.dumps(content, indent=2) + '\n')
