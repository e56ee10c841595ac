"""`vild-jax serve`: serves a page to try a detector, and a JSON API."""

from __future__ import annotations

import argparse

from vild_jax.commands import arguments
from vild_jax.config import defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(parser, 'vild-jax serve --checkpoint bundle')
  arguments.add_checkpoint(parser)
  arguments.add_teacher(parser, "a teacher to use instead of the bundle's towers")
  parser.add_argument(
    '--host', default=defaults.SERVE_HOST, help='address to listen at; 0.0.0.0 is all of this machine'
  )
  parser.add_argument('--port', type=int, metavar='N', default=defaults.SERVE_PORT, help='port to listen at')
  parser.add_argument(
    '--token',
    metavar='FILE',
    help='requests must bring the first line of this file (default: what VILD_JAX_TOKEN holds; nothing without it)',
  )
  parser.add_argument(
    '--batch-size',
    type=int,
    metavar='N',
    help=f'pictures that go through the network together (default: 1 on a CPU, {defaults.DETECT_BATCH} elsewhere)',
  )
  parser.add_argument('--access-log', action='store_true', help='write a line for each request')
  limits = parser.add_argument_group('limits')
  for name, default, what in (
    ('max-megabytes', defaults.SERVE_MEGABYTES, 'of a picture, as it is sent'),
    ('max-megapixels', defaults.SERVE_MEGAPIXELS, 'of a picture, read from its header'),
    ('max-classes', defaults.SERVE_CLASSES, 'of a request'),
    ('queue', defaults.SERVE_QUEUE, 'requests that are accepted and not answered yet; others are refused'),
    ('cache-megabytes', defaults.SERVE_CACHE_MEGABYTES, 'of the last pictures, for further words; 0 keeps none'),
  ):
    limits.add_argument(f'--{name}', type=int, metavar='N', default=default, help=what)
  limits.add_argument(
    '--timeout', type=float, metavar='S', default=defaults.SERVE_SECONDS, help='seconds until a request is given up'
  )


def run(args: argparse.Namespace) -> None:
  """Serves until SIGTERM or Ctrl-C."""
  for name in ('batch_size', 'max_megabytes', 'max_megapixels', 'max_classes', 'queue', 'cache_megabytes', 'timeout'):
    value, least = getattr(args, name), 0 if name == 'cache_megabytes' else 1
    arguments.require(
      value is None or value >= least, f'--{name.replace("_", "-")} is {value}; expected {least} or more'
    )
  try:
    from vild_jax.serve import limits, server
  except ModuleNotFoundError as error:
    raise ValueError(f"{error.name} is not installed; expected it from: pip install 'vild_jax[serve]'") from None

  server.serve(
    args.checkpoint,
    host=args.host,
    port=args.port,
    teacher=args.teacher,
    token_file=args.token,
    batch_size=args.batch_size,
    access_log=args.access_log,
    limits=limits.Limits(
      picture_bytes=args.max_megabytes * 10**6,
      pixels=args.max_megapixels * 10**6,
      classes=args.max_classes,
      queue=args.queue,
      seconds=args.timeout,
      cached_bytes=args.cache_megabytes * 10**6,
    ),
  )
