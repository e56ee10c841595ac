"""The routes, over a real server with a detector that has no network."""

from __future__ import annotations

import base64
import hashlib

import numpy as np
import pytest

from tests.helpers import service as service_lib
from tests.helpers.encoded import encode

PICTURE = encode(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope='module')
def served():
  with service_lib.serving() as one:
    yield one


def test_a_picture_in_base64(served):
  status, found = served.detect({'image': TEXT, 'classes': ['red mug', 'toy']})
  assert status == 200
  assert found['image'] == {'id': hashlib.sha256(PICTURE).hexdigest(), 'width': 60, 'height': 40}
  assert found['classes'] == ['red mug', 'toy']
  assert [one['class'] for one in found['detections']] == ['red mug', 'toy']
  assert found['detections'][0]['box'] == [15, 10, 15, 20]
