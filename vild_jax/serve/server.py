"""Loads a detector and serves it until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import time
import warnings
from pathlib import Path
from types import FrameType

import jax
import numpy as np
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vild_jax import __version__
from vild_jax.config import defaults
from vild_jax.inference.detector import Detector, load
from vild_jax.runtime import compiler
from vild_jax.serve import app as app_lib
from vild_jax.serve import examples
from vild_jax.serve.limits import Limits
from vild_jax.serve.service import Service
from vild_jax.train import bundle_files, weights

TOKEN = 'VILD_JAX_TOKEN'  # the variable of the environment that may hold the token
_NAMES = 1000  # of the vocabulary, that GET /v1/about lists
_GRACE = 5  # seconds that an answer may take to be sent when the service shuts down, beyond those of a request


class Server(uvicorn.Server):
  """A server that takes no new work after SIGTERM, finishes what it has accepted, and lets the process end with 0."""

  def __init__(self, config: uvicorn.Config, service: Service):
    super().__init__(config)
    self._service = service

  def handle_exit(self, sig: int, frame: FrameType | None) -> None:
    self._service.batcher.stopping = True
    if sig == signal.SIGTERM:
      self.should_exit = True  # and not kept for later, as uvicorn does to end with the signal itself
    else:
      super().handle_exit(sig, frame)


def _protocol(seconds: float) -> type[H11Protocol]:
  """Returns the protocol of uvicorn, which would wait for ever for the head of a request, with an end to that.

  A connection is closed when no head has come for so long: all connections together are no more than a process may
  have files open.
  """

  class Protocol(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:
      super().connection_made(transport)
      self._patience = self.loop.call_later(seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
      self._patience.cancel()
      super().connection_lost(exc)

    def on_response_complete(self) -> None:
      super().on_response_complete()
      self._patience.cancel()
      self._patience = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
      if self.cycle is None or self.cycle.response_complete:  # else a request is being read or answered
        self.transport.close()

  return Protocol


def server(service: Service, app: app_lib.Starlette, *, access_log: bool = False) -> Server:
  """Returns the server of an application; `run(sockets=[...])` blocks until a signal, or until `should_exit` is set."""
  config = uvicorn.Config(
    app,
    http=_protocol(service.limits.body_seconds),
    ws='none',
    loop='asyncio',
    lifespan='on',
    log_level='info' if access_log else 'warning',
    access_log=access_log,
    server_header=False,
    timeout_graceful_shutdown=int(service.limits.seconds) + _GRACE,
  )
  return Server(config, service)


def serve(
  checkpoint: str,
  *,
  host: str,
  port: int,
  limits: Limits,
  teacher: str | None = None,
  token_file: str | None = None,
  batch_size: int | None = None,
  access_log: bool = False,
) -> None:
  """Serves a bundle or a work directory until a signal.

  Args:
    checkpoint: as `inference.detector.load` takes it.
    host: the address to listen at.
    port: 0 takes a free one.
    limits: what requests may cost.
    teacher: replaces the bundle's towers.
    token_file: its first line is what requests have to bring; None: the variable VILD_JAX_TOKEN, if it is set.
    batch_size: pictures that go through the network together; None: 1 on a CPU, 8 elsewhere.
    access_log: whether to write a line for each request.

  Raises ValueError for a bundle, a token or an address that cannot be used.
  """
  secret = token(token_file)
  listener = bind(host, port)  # before the bundle is read, which can take
  os.environ.setdefault('VILD_JAX_CACHE', 'off')  # nothing that clients send is written to the disk
  folder = weights.folder_of(checkpoint)
  detector = load(folder, teacher=teacher)
  batch_size = batch_size or (1 if jax.default_backend() == 'cpu' else defaults.DETECT_BATCH)
  compiled = compile_for(detector, batch_size)
  service = Service(detector, limits, batch_size)
  shown = examples.read(folder)
  app = app_lib.make(service, about(detector, folder), shown, secret)
  address = '{}:{}'.format(f'[{host}]' if ':' in host else host, listener.getsockname()[1])
  print(f'{detector.config.name} at http://{address}, compiled in {compiled:.0f} s; Ctrl-C ends it', flush=True)
  server(service, app, access_log=access_log).run(sockets=[listener])


def compile_for(detector: Detector, batch_size: int) -> float:
  """Compiles what most requests need, batches of all sizes among it, and returns the seconds that it took."""
  start, rows = time.perf_counter(), 1
  while rows <= compiler.bucket(batch_size):
    nothing, *_ = detector.look([detector.prepare(np.zeros((1, 1, 3), np.uint8))] * rows)
    rows *= 2
  for names in (detector.vocabulary.names[:1], None):  # a few words, and the vocabulary, which is asked for by default
    detector.find(nothing, names)
  return time.perf_counter() - start


def about(detector: Detector, folder: Path) -> app_lib.About:
  """Returns what the service says about a detector that was loaded from a folder."""
  return app_lib.About(
    name=detector.config.name,
    card=bundle_files.card(folder),
    names=list(detector.vocabulary.names[:_NAMES]),
    classes=len(detector.vocabulary.names),
    masks=detector.config.model.masks,
    words_allowed=detector.takes_names,
    examples_allowed=detector.takes_examples,
    image_size=detector.config.data.image_size,
    version=__version__,
  )


def bind(host: str, port: int) -> socket.socket:
  """Returns a socket at the address, which does not listen yet; warns if other machines can reach it."""
  if not 0 <= port < 2**16:
    raise ValueError(f'--port is {port}; expected 0 to 65535, of which 0 takes a free one')
  try:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
  except (OSError, OverflowError) as error:
    raise ValueError(
      f'--host {host} --port {port}: {error}; expected an address of this machine, and a free port'
    ) from None
  if not ipaddress.ip_address(address[0]).is_loopback:
    warnings.warn(
      f'--host is {host}: other machines can use the service; it has no encryption of its own, and asks for a token '
      'only with --token',
      stacklevel=2,
    )
  return listener


def token(file: str | None) -> str | None:
  """Returns the token: the first line of a file, or else the variable VILD_JAX_TOKEN; None if there is neither.

  Raises ValueError for one that is empty, or that no header can hold.
  """
  where = file or TOKEN
  if file is not None:
    found = Path(file).read_text(encoding='utf-8').partition('\n')[0].strip()
  else:
    found = os.environ.get(TOKEN)
  if found is not None and not (found and found.isascii() and found.isprintable() and ' ' not in found):
    raise ValueError(f'{where} holds no token; expected one line of letters, digits and signs')
  return found
