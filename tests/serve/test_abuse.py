"""What clients can do wrong or in bad faith: each gets a status with a reason, and the service lives."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import zlib

import numpy as np
import pytest

from tests.helpers import service as service_lib
from tests.helpers.encoded import encode
from tests.helpers.fake_detector import FakeDetector
from vild_jax.serve.limits import Limits

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
PNG, JPEG = encode(PIXELS), encode(PIXELS, 'JPEG')
TEXT = base64.b64encode(PNG).decode()
LIMITS = Limits(
  picture_bytes=50_000,
  pixels=10_000,
  classes=5,
  examples=2,
  attributes=3,
  name_characters=20,
  body_seconds=0.5,
  queue=4,
)
JSON = {'content-type': 'application/json'}


@pytest.fixture(scope='module')
def served():
  with service_lib.serving(limits=LIMITS) as one:
    yield one
    assert one.detect({'image': TEXT, 'classes': ['a']})[0] == 200
    assert one.service.batcher.taken == 0


def refused(answer, status: int, reason: str) -> None:
  found, content = answer
  assert found == status and list(content) == ['error'], content
  assert content['error']['status'] == status and reason in content['error']['reason'], content
  assert '\n' not in content['error']['reason'] and len(content['error']['reason']) <= 300


def png_of(width: int, height: int) -> bytes:
  """The header of a PNG of any size, and the pixels of none."""
  chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + body


def malformed() -> dict[str, bytes]:
  """50 files that are no pictures, though many begin like one."""
  found = {
    'GIF': encode(PIXELS, 'GIF'),
    'SVG': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>',
    'EPS': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n',
    'PDF': b'%PDF-1.4\n1 0 obj\n<<>>\nendobj\n',
    'ICO': encode(PIXELS, 'ICO'),
    'text': b'a picture',
    'zeros': bytes(5000),
    'HTML': b'<!doctype html><img src=x>',
    'zip': b'PK\x03\x04' + bytes(100),
    'header alone': PNG[:33],
    'cut': PNG[:-40],
    'small bomb': png_of(50, 50),
    'empty chunk': PNG[:8] + bytes(12),
    'a JPEG of two bytes': JPEG[:2],
  }
  rng = np.random.default_rng(1)
  for number in range(18):
    data = bytearray(PNG)
    for place in rng.integers(8, len(data) - 12, 40):
      data[place] = rng.integers(0, 256)
    found[f'fuzzed PNG {number}'] = bytes(data)
    # A JPEG with other bits inside its scan is a picture still: its end and its header are what can be damaged.
    data = JPEG[: int(rng.integers(20, len(JPEG) - 100))]
    found[f'cut JPEG {number}'] = data
  return found


MALFORMED = malformed()


def test_there_are_50():
  assert len(MALFORMED) == 50


@pytest.mark.parametrize('name', MALFORMED)
def test_malformed_uploads(served, name):
  refused(served.upload(MALFORMED[name], {'classes': ['a']}), 422, 'expected a whole JPEG, PNG, WebP, BMP or TIFF file')


def test_fuzzed_headers_never_break_the_service(served):
  rng = np.random.default_rng(2)
  for number in range(60):
    data = bytearray((PNG, JPEG)[number % 2])
    for place in rng.integers(0, 60, 6):
      data[place] = rng.integers(0, 256)
    assert served.upload(bytes(data), {'classes': ['a']})[0] in (200, 413, 422)


def test_bombs_are_not_decoded(served):
  refused(served.upload(png_of(30_000, 30_000)), 413, '30000 wide and 30000 high; expected at most 10000 pixels')
  refused(served.upload(png_of(101, 100)), 413, '101 wide')
  shown = [{'name': name, 'image': base64.b64encode(encode(np.zeros((90, 90, 3), np.uint8))).decode()} for name in 'ab']
  refused(served.upload(PNG, {'examples': shown}), 413, "'b' is 90 wide and 90 high; expected at most 1900 pixels")
  refused(served.upload(b''), 422, '0 bytes')
  refused(served.detect({'image': ''}), 422, '0 bytes')


def test_too_many_bytes(served):
  refused(served.upload(PNG + bytes(50_000)), 413, 'expected at most 50000')
  refused(served.detect({'image': base64.b64encode(bytes(50_001)).decode()}), 413, '50001 bytes')
  refused(served.detect(bytes(10**6)), 413, 'the request has more than')


@pytest.mark.slow
def test_100_megabytes():
  """The client, which reads nothing before it has sent all, gets its answer."""
  with service_lib.serving() as served:
    refused(served.upload(bytes(10**8)), 413, 'the request has more than')


def test_bodies_without_a_length_are_counted(served):
  """In chunks, so that no header says how long it is."""
  with socket.create_connection(('127.0.0.1', served.port), timeout=10) as connection:
    connection.sendall(b'POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n')
    connection.sendall(b'Transfer-Encoding: chunked\r\n\r\n')
    chunk = b'10000\r\n' + bytes(65536) + b'\r\n'
    connection.sendall(chunk * 20 + b'0\r\n\r\n')
    assert read_all(connection).startswith(b'HTTP/1.1 413')


@pytest.mark.parametrize(
  ('question', 'reason'),
  [
    ({}, 'no picture or several'),
    ({'image': TEXT, 'image_id': '0' * 64}, 'no picture or several'),
    ({'image_id': 'x'}, 'image_id is'),
    ({'image': 'not base64!'}, 'not base64'),
    ({'image': TEXT, 'classes': 'cat'}, '$.classes'),
    ({'image': TEXT, 'classes': [1]}, '$.classes'),
    ({'image': TEXT, 'classes': []}, 'one or more names'),
    ({'image': TEXT, 'classes': ['']}, 'a name is'),
    ({'image': TEXT, 'classes': ['a' * 21]}, '1 to 20 characters'),
    ({'image': TEXT, 'classes': list('abcdef')}, '6 classes and examples; expected at most 5'),
    ({'image': TEXT, 'examples': [{'name': 'a', 'box': [0, 0, 1, 1]}] * 3}, '3 examples; expected at most 2'),
    ({'image': TEXT, 'examples': [{'name': 'a', 'box': [0, 0, 1]}]}, '$.examples[0].box'),
    ({'image': TEXT, 'examples': [{'name': 'a'}]}, 'no box; expected one, or an image of its own'),
    ({'image': TEXT, 'examples': [{'name': 'a', 'image': '!'}]}, 'not base64'),
    ({'image': TEXT, 'examples': [{'name': 'a', 'image': 'abcd'}]}, "the picture of 'a': no readable picture"),
    ({'image': TEXT, 'attributes': list('abcd')}, '4 attributes'),
    ({'image': TEXT, 'min_score': 2}, '$.min_score'),
    ({'image': TEXT, 'max_detections': 0}, '$.max_detections'),
    ({'image': TEXT, 'masks': 'png'}, '$.masks'),
    ({'image': TEXT, 'clases': ['a']}, 'unknown field `clases`'),
    ([1], 'Expected `object`'),
    (b'', 'not as expected'),
    (b'{"image": "', 'not as expected'),
    (b'{"image": "\xff"}', 'not as expected'),
    (b'{"min_score": NaN}', 'not as expected'),
    (b'{"classes": ' + b'[' * 20_000 + b']' * 20_000 + b'}', 'not as expected'),
    (b'{"min_score": 1' + b'0' * 5000 + b'}', 'not as expected'),
  ],
)
def test_questions_that_are_none(served, question, reason):
  refused(served.detect(question), 422, reason)


def test_multipart_that_is_none(served):
  def send(body: bytes, kind: str):
    status, _, content = served.ask('POST', '/v1/detect', body, {'content-type': kind})
    return status, json.loads(content)

  kind = f'multipart/form-data; boundary={service_lib.BOUNDARY}'
  whole = service_lib.multipart({'image': PNG, 'request': b'{}'})
  assert send(whole, kind)[0] == 200
  refused(send(whole, 'multipart/form-data'), 422, 'names no boundary')
  refused(send(whole, 'multipart/form-data; boundary=other'), 422, 'damaged')
  refused(send(whole[:-30], kind), 422, 'no end')
  refused(send(b'', kind), 422, 'no end')
  refused(send(service_lib.multipart({'picture': PNG}), kind), 422, "a part 'picture'")
  refused(send(service_lib.multipart({'image': PNG, 'request': b'{'}), kind), 422, 'not as expected')
  twice = service_lib.multipart({'image': PNG}).replace(f'--{service_lib.BOUNDARY}--'.encode(), b'') + whole
  refused(send(twice, kind), 422, 'each of image and request once')
  refused(send(b'--a-boundary\r\nX: ' + b'y' * 9000 + b'\r\n\r\n', kind), 422, 'damaged')
  refused(send(PNG, 'image/png'), 415, "'image/png'")
  status, _, content = served.ask('POST', '/v1/detect', b'{}')
  assert status == 415 and b'application/json' in content
  status, _, content = served.ask('GET', '/v1/detect')
  assert status == 405 and json.loads(content)['error']['status'] == 405


def read_all(connection: socket.socket) -> bytes:
  found = b''
  while part := connection.recv(65536):
    found += part
  return found


def test_a_slow_body_holds_nothing(served):
  """It is given up after half a second, and meanwhile others are served: more of them than there are places."""
  head = b'POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n'
  slow = [socket.create_connection(('127.0.0.1', served.port), timeout=20) for _ in range(3 * LIMITS.queue)]
  for one in slow:
    one.sendall(head + b'{"image": "')
  assert served.detect({'image': TEXT})[0] == 200
  for one in slow:
    answer = read_all(one)
    assert answer.startswith(b'HTTP/1.1 408') and b'expected all of it' in answer
    one.close()


@pytest.mark.parametrize('length', [b'abc', b'-5', b'5, 6', b'1e3'])
def test_lengths_that_are_none(served, length):
  with socket.create_connection(('127.0.0.1', served.port), timeout=10) as connection:
    connection.sendall(b'POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: ' + length + b'\r\n\r\n{}')
    assert read_all(connection).startswith(b'HTTP/1.1 400')


def test_lengths_that_are_wrong(served):
  head = b'POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n'
  body = json.dumps({'image': TEXT}).encode()
  with socket.create_connection(('127.0.0.1', served.port), timeout=10) as connection:
    connection.sendall(head % (len(body) - 5) + body)  # what is too much is no request either
    assert read_all(connection).startswith(b'HTTP/1.1 422')
  with socket.create_connection(('127.0.0.1', served.port), timeout=10) as connection:
    connection.sendall(head % (len(body) + 5) + body)
    assert read_all(connection).startswith(b'HTTP/1.1 408')
  with socket.create_connection(('127.0.0.1', served.port), timeout=10) as connection:
    connection.sendall(head % (len(body) + 5) + body)  # and nobody waits for the answer
  time.sleep(0.1)
  assert served.json('/health') == {'status': 'ok'}


def test_what_takes_too_long_is_given_up_and_does_not_keep_its_place():
  detector = FakeDetector()
  with service_lib.serving(detector, Limits(seconds=0.3, queue=1)) as served:
    detector.may_go_on.clear()
    refused(served.detect({'image': TEXT}), 503, 'no answer after 0.3 s')
    refused(served.detect({'image': TEXT}), 503, 'no answer after 0.3 s')
    detector.may_go_on.set()
    assert served.detect({'image': TEXT})[0] == 200
    assert detector.looked == [1]  # the second was never begun, and the third found the picture of the first


def test_nobody_computes_for_a_client_that_has_left():
  detector = FakeDetector()
  with service_lib.serving(detector) as served:
    detector.may_go_on.clear()
    body = json.dumps({'image': TEXT, 'classes': ['left']}).encode()
    head = 'POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n'
    connections = [socket.create_connection(('127.0.0.1', served.port)) for _ in range(6)]
    for one in connections:
      one.sendall(head.encode() % len(body) + body)
    while served.service.batcher.taken < 6:
      time.sleep(0.01)
    for one in connections:
      one.close()
    while served.service.batcher.taken:
      time.sleep(0.01)
    detector.may_go_on.set()
    assert served.detect({'image': TEXT})[0] == 200
    assert len(detector.found) < 6


def test_bodies_together_are_bounded():
  limits = Limits(bodies_bytes=150_000, body_seconds=1)
  head = b'POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n'
  with service_lib.serving(limits=limits) as served:
    with socket.create_connection(('127.0.0.1', served.port), timeout=10) as connection:
      connection.sendall(head + bytes(140_000))
      time.sleep(0.2)
      refused(served.detect(bytes(20_000)), 429, 'are being read')
      assert read_all(connection).startswith(b'HTTP/1.1 408')
    assert served.detect({'image': TEXT})[0] == 200


def test_a_connection_without_the_head_of_a_request_is_closed():
  """Without an end to them, a few hundred would take all files that the process may open."""
  head = b'GET /health HTTP/1.1\r\nHost: x\r\n'
  limits = Limits(body_seconds=0.3)
  with service_lib.serving(FakeDetector(seconds=1), limits=limits) as served:
    for begun in (b'', head):
      with socket.create_connection(('127.0.0.1', served.port), timeout=20) as one:
        one.sendall(begun)
        assert one.recv(100) == b''
    with socket.create_connection(('127.0.0.1', served.port), timeout=20) as one:
      one.sendall(head + b'\r\n')
      answer = b''
      while not answer.endswith(b'{"status":"ok"}'):
        answer += one.recv(10_000)
      one.sendall(head)
      assert one.recv(100) == b''
    assert served.detect({'image': TEXT})[0] == 200  # an answer may take longer
