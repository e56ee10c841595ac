"""A Google Cloud Storage of this machine, in a process of its own: that of PyPI's `gcp-storage-emulator`.

Four things that the service does and the emulator does not are added. It looks at `ifGenerationMatch`, the condition
of a write or removal that locks and TensorStore rely on. It states the generation of what is read, which TensorStore
needs where a manifest is there already. A request whose client dies halfway writes nothing. And what is uploaded keeps
its last byte: the emulator reads it as an e-mail, in which a carriage return at the end belongs to the line.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from unittest import mock

import pytest

BUCKET = 'a-bucket'


@contextlib.contextmanager
def running() -> Iterator[str]:
  """The address of an empty bucket, which this process and those that it starts can reach until the block ends."""
  for module in ('gcsfs', 'gcp_storage_emulator'):
    if importlib.util.find_spec(module) is None:
      pytest.skip(f'{module} is not installed; expected the extra `test`')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  url = f'http://127.0.0.1:{port}'
  process = subprocess.Popen(
    [sys.executable, __file__, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  variables = {
    'STORAGE_EMULATOR_HOST': url,  # gcsfs, and Google's client that Orbax removes folders with
    'TENSORSTORE_GCS_HTTP_URL': url,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'any',  # of TensorStore
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # gcsfs would ask another service of Google's for the kind of bucket
  }
  try:
    deadline = time.monotonic() + 60
    while True:
      assert process.poll() is None and time.monotonic() < deadline, 'the emulator does not start'
      with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), timeout=1):
        break
      time.sleep(0.05)
    with mock.patch.dict(os.environ, variables):
      yield f'gs://{BUCKET}'
  finally:
    process.kill()
    process.wait()


def _serve(port: int) -> None:
  """Serves until the process is killed, one request at a time."""
  from gcp_storage_emulator.handlers import objects

  def conditional(handler: Callable[..., None]) -> Callable[..., None]:
    def handle(request: Any, response: Any, storage: Any, *args: Any, **more: Any) -> None:
      data, wanted = request.data, request.query.get('ifGenerationMatch')
      name = request.params.get('object_id') or request.query.get('name', [None])[0] or data['meta']['name']
      there = storage.objects.get(request.params['bucket_name'], {}).get(name, {'generation': '0'})
      if wanted and wanted != [there['generation']]:
        response.status = HTTPStatus.PRECONDITION_FAILED
      else:
        handler(request, response, storage, *args, **more)

    return handle

  send = objects.download

  def download(request: Any, response: Any, storage: Any, *args: Any, **more: Any) -> None:
    found = storage.objects.get(request.params['bucket_name'], {}).get(request.params['object_id'])
    if found:
      response['x-goog-generation'] = found['generation']
    send(request, response, storage, *args, **more)

  objects.download = download
  objects.insert, objects.delete = conditional(objects.insert), conditional(objects.delete)
  from gcp_storage_emulator import server  # takes the handlers when it is imported

  read = server._read_raw_data

  def read_whole(handler: Any) -> bytes | None:
    content, length = read(handler), handler.headers.get('Content-Length')
    if length and len(content) != int(length):
      raise ConnectionError('the client has gone')
    return content

  parse = server._read_data

  def parse_exactly(handler: Any, query: Any) -> Any:
    kind = handler.headers.get('Content-Type') or ''
    if not kind.startswith('multipart/related'):
      return parse(handler, query)
    raw = server._decode_raw_data(read_whole(handler), handler)
    mark = b'--' + re.search(r'boundary=\W?([\w=]+)', kind)[1].encode()
    _, meta, content = raw.split(mark, 2)
    line = b'\r\n' if meta.startswith(b'\r\n') else b'\n'
    about, _, content = content.rpartition(mark)[0].partition(2 * line)
    return {
      'meta': json.loads(meta.partition(2 * line)[2]),
      'content': content.removesuffix(line),
      'content-type': about.partition(b':')[2].strip().decode(),
    }

  server._read_raw_data, server._read_data = read_whole, parse_exactly
  server.create_server('127.0.0.1', port, in_memory=True, default_bucket=BUCKET).run()


if __name__ == '__main__':
  _serve(int(sys.argv[1]))
