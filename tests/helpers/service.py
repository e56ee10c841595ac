"""A server in a thread, and requests to it by plain sockets and the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.fake_detector import FakeDetector
from vild_jax.serve import app as app_lib
from vild_jax.serve import examples, server
from vild_jax.serve.limits import Limits
from vild_jax.serve.service import Service

ABOUT = app_lib.About('toy', '# A card', ('circle', 'square', 'star'), 3, True, True, True, 64, '0')
BOUNDARY = 'a-boundary'


@dataclass(frozen=True)
class Served:
  """`port` of a running server, and what is behind it."""

  port: int
  detector: Any
  service: Service

  def ask(
    self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
  ) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
    with contextlib.closing(connection):
      connection.request(method, path, body, headers or {})
      answer = connection.getresponse()
      return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

  def json(self, path: str, **headers: str) -> Any:
    status, _, content = self.ask('GET', path, None, headers)
    assert status == 200, content
    return json.loads(content)

  def detect(self, question: Any, **headers: str) -> tuple[int, Any]:
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    status, _, content = self.ask('POST', '/v1/detect', body, {'content-type': 'application/json', **headers})
    return status, json.loads(content)

  def upload(self, picture: bytes, question: Any = None) -> tuple[int, Any]:
    parts = {'image': picture} | ({} if question is None else {'request': json.dumps(question).encode()})
    kind = f'multipart/form-data; boundary={BOUNDARY}'
    status, _, content = self.ask('POST', '/v1/detect', multipart(parts), {'content-type': kind})
    return status, json.loads(content)


def multipart(parts: dict[str, bytes]) -> bytes:
  """As browsers send it; a picture has a file name."""
  lines = b''
  for name, content in parts.items():
    file = '; filename="a \\"picture\\".png"\r\nContent-Type: image/png' if name == 'image' else ''
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    lines += head.encode() + content + b'\r\n'
  return lines + f'--{BOUNDARY}--\r\n'.encode()


@contextlib.contextmanager
def process(*words: str, **options: Any) -> Iterator[subprocess.Popen]:
  """A process of Python, whose first line says where it serves; it does not outlive the test."""
  root = Path(__file__).resolve().parents[2]
  with subprocess.Popen([sys.executable, '-m', *words], cwd=root, stdout=subprocess.PIPE, text=True, **options) as one:
    try:
      yield one
    finally:
      one.kill()


@contextlib.contextmanager
def serving(
  detector: Any = None,
  limits: Limits | None = None,
  *,
  batch_size: int = 4,
  token: str | None = None,
  about: app_lib.About = ABOUT,
  pictures: Sequence[examples.ExamplePicture] | None = None,
) -> Iterator[Served]:
  detector = detector or FakeDetector()
  service = Service(detector, limits or Limits(), batch_size)
  listener = server.bind('127.0.0.1', 0)
  running = server.server(service, app_lib.make(service, about, pictures or examples.drawn(), token))
  thread = threading.Thread(target=running.run, kwargs={'sockets': [listener]})
  thread.start()
  try:
    while not running.started:
      time.sleep(0.01)
    yield Served(listener.getsockname()[1], detector, service)
  finally:
    running.should_exit = True
    thread.join()
