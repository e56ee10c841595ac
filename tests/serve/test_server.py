"""The server: its end, its address, its token."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from tests.helpers import service as service_lib
from tests.helpers import small_bundle
from tests.helpers.encoded import encode
from tests.helpers.fake_detector import FakeDetector
from vild_jax import cli, serve
from vild_jax.serve import server
from vild_jax.serve.limits import Limits

JSON = {'content-type': 'application/json'}


def question(number: int) -> bytes:
  """Another picture for each number."""
  picture = encode(np.full((8, 8, 3), number, np.uint8))
  return json.dumps({'image': base64.b64encode(picture).decode(), 'classes': ['a']}).encode()


@pytest.mark.slow
def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest():
  """Three are accepted, one of which is at the detector; then SIGTERM, and a request on a connection that is open."""
  with service_lib.process('tests.helpers.serve_slowly', '0.7', stderr=subprocess.PIPE) as process:
    port = int(process.stdout.readline())
    served = service_lib.Served(port, None, None)
    end = time.monotonic() + 30
    while True:
      try:
        assert served.ask('GET', '/health')[0] == 200
        break
      except ConnectionRefusedError:
        assert time.monotonic() < end
        time.sleep(0.05)
    late = socket.create_connection(('127.0.0.1', port), timeout=20)
    body = question(99)
    late.sendall(b'POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n')
    late.sendall(b'Content-Length: %d\r\n\r\n' % len(body))  # its body comes after SIGTERM
    statuses = []
    ask = lambda number: statuses.append(served.ask('POST', '/v1/detect', question(number), JSON)[0])
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
      thread.start()
    while 'vild_queue 3' not in served.ask('GET', '/metrics')[2].decode():
      time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    late.sendall(body)
    answer = late.recv(65536)
    assert answer.startswith(b'HTTP/1.1 503'), answer
    late.close()
    with pytest.raises(ConnectionRefusedError):
      served.ask('GET', '/health')
    for thread in threads:
      thread.join(30)
    assert statuses == [200, 200, 200]
    assert process.wait(30) == 0
    assert not process.stderr.read()


@pytest.mark.slow
def test_the_command_serves_a_bundle(tmp_path):
  """Words, a box as an example, and its end; nothing is written beside the bundle."""
  bundle = small_bundle.write(tmp_path / 'bundle', small_bundle.parts(tmp_path, sigmoid=True))
  cache = tmp_path / 'cache'
  environment = {key: value for key, value in os.environ.items() if key != 'VILD_JAX_CACHE'}
  words = ('vild_jax', 'serve', '--checkpoint', str(bundle), '--port', '0')
  with service_lib.process(*words, env=environment | {'XDG_CACHE_HOME': str(cache)}) as process:
    served = service_lib.Served(int(re.search(r':(\d+),', process.stdout.readline())[1]), None, None)
    while True:
      try:
        about = served.json('/v1/about')
        break
      except ConnectionRefusedError:
        time.sleep(0.05)
    assert about['examples_allowed'] and about['words_allowed'] and about['card'].startswith('---')
    assert about['names'] == list(small_bundle.NAMES)
    status, found = served.detect({**json.loads(question(7)), 'classes': ['a new name'], 'min_score': 0})
    assert status == 200 and not found['cached']
    box = [{'name': 'mine', 'box': [0, 0, 8, 4]}]
    again = {
      'image_id': found['image']['id'],
      'classes': ['tree'],
      'examples': box,
      'min_score': 0,
      'masks': 'polygons',
    }
    status, found = served.detect(again)
    assert status == 200 and found['cached'] and found['classes'] == ['tree', 'mine'] and found['detections']
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and not cache.exists()


def in_threads(count: int, call) -> list:
  found = [None] * count

  def one(number: int) -> None:
    found[number] = call(number)

  threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


def test_200_at_once_over_a_queue_of_16_and_none_is_lost():
  detector = FakeDetector(seconds=0.02)
  with service_lib.serving(detector, Limits(queue=16)) as served:
    answers = in_threads(200, lambda number: served.ask('POST', '/v1/detect', question(number), JSON))
    assert served.service.batcher.taken == 0
  statuses = [status for status, _, _ in answers]
  assert set(statuses) <= {200, 429} and statuses.count(200) >= 16
  for status, headers, content in answers:
    if status == 429:
      assert headers['retry-after'] == '1' and 'little later' in json.loads(content)['error']['reason']
  assert len(detector.found) == statuses.count(200)
  assert 1 < max(detector.looked) <= 4  # what waits goes through the network together


def test_load_in_short():
  """8 clients, each asking again what it asked; `test_soak.py` has the long form."""
  with service_lib.serving(FakeDetector(), Limits(cached_pictures=4)) as served:
    ask = lambda number: [served.ask('POST', '/v1/detect', question(number), JSON) for _ in range(15)]
    answers = [answer for one in in_threads(8, ask) for answer in one]
    assert [status for status, _, _ in answers] == [200] * 120
    assert len(served.service.held) == 4


@pytest.mark.parametrize(('batch_size', 'looked'), [(1, [1]), (6, [1, 2, 4, 8])])
def test_all_sizes_of_batches_are_compiled_before_the_first_request(batch_size, looked):
  detector = FakeDetector()
  assert server.compile_for(detector, batch_size) >= 0
  assert detector.looked == looked and [one['classes'] for one in detector.found] == [('circle',), None]


def test_only_the_loopback_needs_no_warning():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    server.bind('127.0.0.1', 0).close()
    server.bind('localhost', 0).close()
  with pytest.warns(UserWarning, match=r'--host is 0\.0\.0\.0: other machines can use the service'):
    server.bind('0.0.0.0', 0).close()


def test_an_address_that_cannot_be_used():
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f'--host 127.0.0.1 --port {port}: .*expected an address of this machine'):
      server.bind('127.0.0.1', port)
  for host in ('192.0.2.1', 'no.such.host.invalid'):
    with pytest.raises(ValueError, match=f'--host {host}'):
      server.bind(host, 0)


def test_where_the_token_comes_from(tmp_path, monkeypatch):
  monkeypatch.delenv('VILD_JAX_TOKEN', raising=False)
  assert server.token(None) is None
  monkeypatch.setenv('VILD_JAX_TOKEN', 'of-the-environment')
  assert server.token(None) == 'of-the-environment'
  path = tmp_path / 'token'
  path.write_text('of-a-file\nmore\n')
  assert server.token(str(path)) == 'of-a-file'
  for wrong in ('', '\n', 'two words', 'ümlaut'):
    path.write_text(wrong)
    with pytest.raises(ValueError, match='holds no token'):
      server.token(str(path))
  monkeypatch.setenv('VILD_JAX_TOKEN', '')
  with pytest.raises(ValueError, match='VILD_JAX_TOKEN holds no token'):
    server.token(None)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--queue', '0'], '--queue is 0; expected 1 or more'),
    (['--cache-megabytes', '-1'], '--cache-megabytes is -1; expected 0 or more'),
    (['--token', 'absent'], 'absent: No such file'),
    (['--port', '70000'], '--port is 70000; expected 0 to 65535'),
    (['--port', '0'], 'absent_bundle'),
  ],
)
def test_wrong_options_give_one_line(words, message, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('VILD_JAX_CACHE', 'off')
  assert cli.main(['serve', '--checkpoint', 'absent_bundle', *words]) == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1


def test_what_is_missing_is_named(capsys, monkeypatch):
  monkeypatch.delitem(sys.modules, 'vild_jax.serve.server')
  monkeypatch.delattr(serve, 'server')
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  assert cli.main(['serve', '--checkpoint', 'b']) == 2
  assert "uvicorn is not installed; expected it from: pip install 'vild_jax[serve]'" in capsys.readouterr().err
