"""Runs `vild-jax <command>`: parses the arguments, joins the processes, runs the command, prints an error in one line.

Exit code 0 only on success; bad input gives one line and exit code 2 (`--debug` shows the traceback).
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType

from vild_jax.runtime import files, messages, processes, streams

# {name: summary}. The module `commands/NAME.py` declares the options of a command and runs it; `run` may return an exit
# code, for work of which a part failed.
COMMANDS = {
  'demo': 'run the whole pipeline on the built-in toy world, offline, on a CPU',
  'prepare': 'convert pictures with annotations of LVIS, COCO, YOLO, VOC or CVAT into a TFDS data set in ArrayRecord',
  'inspect': 'show on a page what is in a data set, and what the network will see of it',
  'embed-text': 'embed class names with the text tower of a teacher, into a vocabulary file',
  'classify': 'classify pictures with a teacher alone, among any names',
  'train': 'train a detector, or resume where it stopped',
  'plan': 'check whether a training fits devices that are not here, by compiling its step for them',
  'propose': "compute a checkpoint's proposals for every picture of a data set, into a region store",
  'embed-regions': 'embed the 1x and 1.5x crops of proposals with a teacher, into a region store to distil from',
  'evaluate': 'detect on a data set and write results file, metrics, table by category and plots',
  'calibrate': 'search temperature, exponents and NMS threshold on logits that evaluate saved, without inference',
  'score': 'compute the metrics of a results file by the protocol of LVIS, COCO, VOC or others; needs no JAX',
  'detect': 'detect any class names in pictures and videos and draw what is found',
  'serve': 'serve a page to try a detector, and a JSON API',
  'export': 'write a self-contained folder that `vild_jax.load` reads anywhere',
  'check': 'check whether a data set, region store, bundle, work directory, vocabulary or teacher is whole',
  'convert': 'convert published weights into a detector, or into a backbone to start training from',
}


_LONGEST = 2000  # characters of a message: what a damaged file holds may be long


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit code."""
  of_process = argv is None  # and not called from Python, where the streams and threads are those of others
  lost = streams.keep() if of_process else lambda: None
  words = sys.argv[1:] if argv is None else argv
  try:
    # SIGTERM to `train` counts also while the command itself is imported; `_run` has a block of its own for the work.
    told = processes.ending_when_told() if list(words[:1]) == ['train'] else nullcontext()
    with processes.noting_interrupts(of_process), told:
      args = parse(words)
      if of_process and not args.debug:
        messages.threads_in_one_line(f'vild-jax {args.command}')
      code = _run(args)
  except KeyboardInterrupt:  # while the command is imported
    code = _interrupted(joined=False)
  except processes.Preempted as error:
    print(f'vild-jax train: {error}', file=sys.stderr)
    code = processes.EXIT_PREEMPTED
  else:
    if error := lost():
      print(f'vild-jax {args.command}: standard output: {error.strerror}', file=sys.stderr)
      code = code or 2
  if code and of_process:
    _end(code)
  return code


def _run(args: argparse.Namespace) -> int:
  """Runs the command; returns the exit code, and prints an error in one line."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # silences the logs of XLA and TensorStore
  os.environ.setdefault('EPATH_USE_TF', 'false')  # buckets are reached in one way, with and without TensorFlow
  os.environ.setdefault(
    'OPENBLAS_NUM_THREADS', '1'
  )  # NumPy runs in our own threads; more threads of BLAS would only compete with them
  import warnings

  import absl.logging

  # Silences Orbax, which also logs each error that it raises, once for every thread.
  absl.logging.set_verbosity(absl.logging.ERROR if args.debug else absl.logging.FATAL)
  if not args.debug:
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # its tasks are those of Orbax, one a tensor
  joined = False
  try:
    with warnings.catch_warnings(), processes.ending_when_told() if args.command == 'train' else nullcontext():
      warnings.showwarning = lambda message, *_, **__: print(
        f'vild-jax {args.command}: warning: {message}', file=sys.stderr
      )
      if getattr(args, 'json', None):
        files.require_writable(args.json)
      if hasattr(args, 'num_processes'):
        joined = processes.join(
          args.coordinator_address,
          args.num_processes,
          args.process_id,
          bind_address=args.coordinator_bind_address,
          heartbeat_seconds=args.heartbeat_seconds,
          saves_on_sigterm=args.command == 'train',
        )
      if hasattr(args, 'programs'):
        from vild_jax.commands import arguments

        arguments.use_compiler(args)
      return _module(args.command).run(args) or 0
  except KeyboardInterrupt:
    return _interrupted(joined)
  except processes.Preempted as error:
    print(f'vild-jax {args.command}: {error}', file=sys.stderr)
    return processes.EXIT_PREEMPTED
  except BaseException as error:
    if not (isinstance(error, Exception) or messages.is_panic(error)):
      raise
    if processes.was_interrupted():
      return _interrupted(joined)
    if args.debug:
      import traceback

      traceback.print_exc()
    expected = isinstance(error, ValueError | OSError | FloatingPointError | ImportError | MemoryError)
    others = '; if another process ended before, its output says why' if joined and not expected else ''
    print(f'vild-jax {args.command}: {_one_line(error, expected)}{others}', file=sys.stderr)
    code = 2 if expected else 1
    # A value that is not finite stops all processes at the same step; any other error may concern this one alone.
    return _exit_at_once(code) if joined and not isinstance(error, FloatingPointError) else code


def _interrupted(joined: bool) -> int:
  print('vild-jax: interrupted', file=sys.stderr)
  return _exit_at_once(processes.EXIT_INTERRUPTED) if joined else processes.EXIT_INTERRUPTED


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Parses the arguments after `vild-jax`; `args.overrides` gets those that override the config.

  Exits with 0 for `--help`; for wrong arguments prints one line and exits with 2.
  """
  named = next((word for word in argv if not word.startswith('-')), None)
  parser = _parser(named)
  args, rest = parser.parse_known_args(argv)
  has_config = hasattr(args, 'config')
  stray = [word for word in rest if not (has_config and word.startswith('--') and '=' in word)]
  if stray:
    lacks_value = has_config and stray[0].startswith('--') and '.' in stray[0]
    hint = f'expected {stray[0]}=VALUE' if lacks_value else f'see vild-jax {args.command} --help'
    parser.error(f'unknown argument {stray[0]!r}; {hint}')
  args.overrides = rest
  for name, word in _paths(args):
    try:
      if name not in getattr(args, 'in_buckets', ()) or not files.is_remote(word):
        files.local(word)
    except ValueError as error:
      parser.error(str(error))
  if getattr(args, 'json', None) and not Path(args.json).absolute().parent.is_dir():
    parser.error(f'--json is {args.json!r}; expected a file in a folder that exists')
  for option in ('out', 'json'):
    if reads := _also_read(args, option):
      parser.error(f'--{option} is {getattr(args, option)!r}, which the command reads too ({reads}); expected another')
  return args


def _also_read(args: argparse.Namespace, option: str) -> str:
  """Returns the name of another argument that is the file which `option` would replace; '' if there is none."""
  written = getattr(args, option, None)
  if not isinstance(written, str) or os.path.islink(written) or not os.path.isfile(written):
    return ''  # a link is replaced, not followed
  for name, word in _paths(args):
    with suppress(OSError, ValueError):
      if name not in ('out', 'json') and os.path.samefile(written, word):
        return name.replace('_', '-')
  return ''


def _paths(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
  """Yields all values that could be paths, by option or setting, except names on the Hugging Face hub."""
  for name, value in vars(args).items():
    for word in value if isinstance(value, list | tuple) else [value]:
      key = name
      if isinstance(word, str) and word.startswith('--'):
        key, _, word = word[2:].partition('=')
      if isinstance(word, str) and not word.startswith('hf:'):
        yield key, word


def _parser(named: str | None) -> argparse.ArgumentParser:
  """Builds the parser with the summaries of all commands, and the options of the named command only.

  Only that command is imported, so that `--help` is quick.
  """
  from vild_jax.commands import arguments

  whole = arguments.Parser(prog='vild-jax', description='Open-vocabulary object detection in JAX (ViLD).')
  subparsers = whole.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, summary in COMMANDS.items():
    parser = subparsers.add_parser(
      name,
      help=summary,
      description=summary[0].upper() + summary[1:] + '.',
      formatter_class=arguments.HelpFormatter,
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    if name == named:
      _module(name).add_arguments(parser)
  return whole


def _module(name: str) -> ModuleType:
  return importlib.import_module(f'vild_jax.commands.{name.replace("-", "_")}')


def _exit_at_once(code: int) -> int:
  """Exits at once and skips the shutdown barrier of `jax.distributed`; the other processes notice by a timeout."""
  for stream in (sys.stdout, sys.stderr):
    with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
      stream.flush()
  os._exit(code)


def _end(code: int) -> None:
  """Ends the process of a command that failed, past the end of the interpreter.

  Threads of libraries in C++ may still be at work for what was broken off; they crash when Python ends around them.
  """
  atexit._run_exitfuncs()
  _exit_at_once(code)


def _one_line(error: BaseException, expected: bool) -> str:
  if isinstance(error, OSError) and error.filename is not None:
    return f'{error.filename}: {error.strerror}'
  text = messages.first_line(error)[:_LONGEST]
  if isinstance(error, MemoryError):
    return f'not enough memory ({text}); expected smaller inputs or batches, or a larger machine'
  return text if expected else f'{type(error).__name__}: {text} (--debug shows the traceback)'
