"""The routes, over a real server with a detector that has no network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.routing import Route

from tests.helpers import service as service_lib
from tests.helpers.encoded import encode, oriented
from tests.helpers.fake_detector import FakeDetector
from vild_jax.data import rle
from vild_jax.inference.examples import Example
from vild_jax.serve import app as app_lib
from vild_jax.serve import examples, openapi
from vild_jax.serve.limits import Limits

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
PICTURE = encode(PIXELS)
ID = hashlib.sha256(PICTURE).hexdigest()
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope='module')
def served():
  with service_lib.serving() as one:
    yield one


def test_a_picture_in_base64(served):
  status, found = served.detect({'image': TEXT, 'classes': ['red mug', 'toy']})
  assert status == 200
  assert found['image'] == {'id': ID, 'width': 60, 'height': 40}
  assert found['classes'] == ['red mug', 'toy']
  mug, toy = found['detections']
  assert mug['class'] == 'red mug' and mug['label'] == 0 and mug['score'] == pytest.approx(0.9)
  assert toy['class'] == 'toy' and toy['label'] == 1 and toy['score'] == pytest.approx(0.81)
  assert mug['box'] == [15, 10, 15, 20] and 'attributes' not in mug
  mask = rle.decode_mask(mug['segmentation'], 40, 60)
  assert mask[10:30, 15:30].all() and mask.sum() == 20 * 15
  assert set(found['seconds']) == {'decode', 'image', 'words', 'total'}
  assert found['seconds']['total'] >= found['seconds']['decode'] > 0
  assert served.detect({'image': f'data:image/png;base64,{TEXT}'})[1]['classes'] == ['circle', 'square', 'star']


def test_a_picture_as_a_part(served):
  status, found = served.upload(PICTURE, {'classes': ['a'], 'masks': 'polygons', 'attributes': ['red', 'blue']})
  assert status == 200 and found['image']['id'] == ID
  (one,) = found['detections']
  (polygon,) = one['segmentation']
  corners = sorted(zip(polygon[::2], polygon[1::2], strict=True))
  assert corners == [(15, 10), (15, 30), (30, 10), (30, 30)]
  assert one['attributes'] == {'red': 0.5, 'blue': 0.5}
  assert served.upload(PICTURE)[1]['classes'] == ['circle', 'square', 'star']


def test_thresholds_and_boxes_alone(served):
  status, found = served.detect({'image': TEXT, 'min_score': 0.75, 'masks': 'none'})
  assert status == 200 and [one['class'] for one in found['detections']] == ['circle', 'square']
  assert all('segmentation' not in one for one in found['detections'])
  assert len(served.detect({'image': TEXT, 'max_detections': 1})[1]['detections']) == 1
  assert served.detect({'image': TEXT, 'max_detections': 1000})[0] == 200
  assert served.detector.found[-1]['max_detections'] == 10  # of the config


def test_new_words_for_a_held_picture_need_no_image_forward():
  with service_lib.serving() as served:
    first = served.detect({'image': TEXT, 'classes': ['a']})[1]
    again = served.detect({'image': TEXT, 'classes': ['b']})[1]
    by_id = served.detect({'image_id': first['image']['id'], 'classes': ['c']})[1]
    assert [one['cached'] for one in (first, again, by_id)] == [False, True, True]
    assert by_id['image'] == first['image'] and by_id['classes'] == ['c']
    assert again['seconds']['image'] == by_id['seconds']['image'] == 0 < first['seconds']['image']
    assert served.detector.looked == [1]
    status, found = served.detect({'image_id': '0' * 64})
    assert status == 404 and 'not held' in found['error']['reason']


def test_a_box_on_the_picture_is_an_example(served):
  turned = encode(PIXELS, 'JPEG', exif=oriented(6))  # 40 wide and 60 high as it is shown
  question = {'classes': ['cup'], 'examples': [{'name': 'my mug', 'box': [4, 10, 16, 45]}]}
  status, found = served.upload(turned, question)
  assert status == 200 and found['classes'] == ['cup', 'my mug'] and found['image']['height'] == 60
  name, example = served.detector.found[-1]['classes']
  assert name == 'cup' and isinstance(example, Example)
  np.testing.assert_array_equal(example.boxes, [[10, 4, 55, 20]])
  assert example.images[0].shape == (60, 40, 3)
  held = {'image_id': found['image']['id'], **question}
  assert served.detect(held)[1]['cached'] and served.detector.found[-1]['classes'][1].images[0].shape == (60, 40, 3)
  for box in ([30, 10, 11, 5], [-1, 0, 5, 5], [0, 0, 0, 5], [0, 56, 5, 5]):
    status, found = served.upload(turned, {'examples': [{'name': 'x', 'box': box}]})
    assert status == 422 and 'inside of the picture, which is 40 wide and 60 high' in found['error']['reason']


def test_an_example_brings_a_picture_of_its_own(served):
  other = base64.b64encode(encode(PIXELS[:20, :30])).decode()
  shown = [{'name': 'whole', 'image': other}, {'name': 'part', 'image': other, 'box': [1, 2, 29, 18]}]
  status, found = served.upload(PICTURE, {'examples': shown})
  assert status == 200 and found['classes'] == ['whole', 'part'] and found['image']['width'] == 60
  asked = served.detector.found[-1]['classes']
  np.testing.assert_array_equal([one.boxes[0] for one in asked], [[0, 0, 20, 30], [2, 1, 20, 30]])
  assert all((one.images[0] == PIXELS[:20, :30]).all() for one in asked)
  shown[1]['box'] = [1, 2, 30, 18]
  status, found = served.detect({'image': TEXT, 'examples': shown})
  assert status == 422 and 'inside of the picture, which is 30 wide and 20 high' in found['error']['reason']


def test_examples_need_an_image_tower():
  with service_lib.serving(FakeDetector(takes_examples=False)) as served:
    status, found = served.upload(PICTURE, {'examples': [{'name': 'x', 'box': [0, 0, 5, 5]}]})
    assert status == 422 and 'no image tower' in found['error']['reason']


def test_what_a_request_cannot_ask_for(served, capsys):
  status, found = served.detect({'image': TEXT, 'classes': ['unknown']})
  assert (status, found['error']['status']) == (422, 422) and 'not in the stored vocabulary' in found['error']['reason']
  status, found = served.detect({'image': TEXT, 'classes': ['broken']})
  assert status == 500 and 'device' not in found['error']['reason']
  assert 'RuntimeError: the device is gone' in capsys.readouterr().err
  assert served.detect({'image': TEXT})[0] == 200


def test_what_the_service_is(served):
  about = served.json('/v1/about')
  assert about['name'] == 'toy' and about['card'] == '# A card' and about['names'][0] == 'circle'
  assert about['examples_allowed'] and about['masks'] and about['classes'] == 3
  assert about['limits']['pixels'] == Limits().pixels
  assert served.json('/health') == {'status': 'ok'}


def test_example_pictures(served):
  listed = served.json('/v1/examples')
  assert len(listed) == 4
  for one in listed:
    status, headers, content = served.ask('GET', one['url'])
    assert status == 200 and headers['content-type'] == 'image/png'
    assert Image.open(io.BytesIO(content)).size == (one['width'], one['height'])
  assert served.ask('GET', '/v1/examples/none.png')[0] == 404


def test_example_pictures_of_any_name_are_found_at_their_address():
  shown = [dataclasses.replace(examples.drawn()[0], name='50% of #1?')]
  with service_lib.serving(pictures=shown) as served:
    (listed,) = served.json('/v1/examples')
    assert listed['name'] == '50% of #1?' and served.ask('GET', listed['url'])[2] == shown[0].png


def test_the_page_and_its_files(served):
  status, headers, content = served.ask('GET', '/')
  assert status == 200 and headers['content-type'].startswith('text/html') and b'<html' in content
  assert "default-src 'self'" in headers['content-security-policy']
  assert served.ask('GET', '/static/index.html')[2] == content
  for path in ('/static/../app.py', '/static/%2e%2e/app.py', '/static/none.js', '/none'):
    status, _, content = served.ask('GET', path)
    assert status == 404 and b'"status":404' in content


def test_metrics_count_requests_and_pictures():
  with service_lib.serving() as served:
    for question in ({'image': TEXT}, {'image': TEXT}, {'image': 'no base64'}):
      served.detect(question)
    served.ask('GET', '/none/such')
    status, headers, content = served.ask('GET', '/metrics')
  lines = content.decode().splitlines()
  assert status == 200 and headers['content-type'].startswith('text/plain; version=0.0.4')
  assert 'vild_requests_total{path="/v1/detect",status="200"} 2' in lines
  assert 'vild_requests_total{path="/v1/detect",status="422"} 1' in lines
  assert 'vild_requests_total{path="other",status="404"} 1' in lines
  assert 'vild_pictures_total{held="yes"} 1' in lines and 'vild_pictures_total{held="no"} 1' in lines
  assert 'vild_detect_seconds_count 2' in lines and 'vild_detect_seconds_bucket{le="+Inf"} 2' in lines
  assert 'vild_queue 0' in lines and 'vild_held_pictures 1' in lines
  assert f'vild_held_bytes {1000 + len(PICTURE)}' in lines
  assert all(re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{[^{}]*\})? [\d.]+', line) for line in lines)


def test_the_description_has_every_route_and_every_field(served):
  document = served.json('/openapi.json')
  routes = {
    route.path: {method.lower() for method in route.methods - {'HEAD'}}
    for route in app_lib.make(served.service, service_lib.ABOUT).routes
    if isinstance(route, Route)
  }
  assert {path: set(methods) for path, methods in document['paths'].items()} == routes
  schemas = document['components']['schemas']
  assert set(schemas['Question']['properties']) == {
    'image', 'image_id', 'classes', 'examples', 'min_score', 'max_detections', 'masks', 'attributes'
  }  # fmt: skip
  answer = served.detect({'image': TEXT, 'attributes': ['a', 'b']})[1]
  assert set(schemas['Answer']['properties']) == set(answer)
  assert set(schemas['Found']['properties']) == set(answer['detections'][0])
  references = re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(document))
  assert references and set(references) <= set(schemas)
  assert 'security' not in document
  sources = ''.join(path.read_text() for path in Path(app_lib.__file__).parent.glob('*.py'))
  statuses = set(re.findall(r'Refused\(\s*(\d+)', sources)) | {'429'}
  described = openapi.document('0', token=True)['paths']['/v1/detect']['post']['responses']
  assert len(statuses) > 7 and statuses <= set(described)


def test_a_token():
  with service_lib.serving(token='secret') as served:
    for path in ('/v1/about', '/v1/examples', '/v1/examples/drawn_1.png', '/metrics'):
      for headers in ({}, {'authorization': 'Bearer wrong'}, {'authorization': 'secret'}):
        status, answered, content = served.ask('GET', path, None, headers)
        assert status == 401 and answered['www-authenticate'] == 'Bearer' and b'"status":401' in content
      assert served.ask('GET', path, None, {'authorization': 'Bearer secret'})[0] == 200
    assert served.detect({'image': TEXT})[0] == 401 and not served.detector.looked
    assert served.detect({'image': TEXT}, authorization='Bearer secret')[0] == 200
    assert served.detect({'image': TEXT}, authorization='bearer  secret')[0] == 200
    assert served.json('/openapi.json')['security'] == [{'token': []}]
    assert served.ask('GET', '/')[0] == served.ask('GET', '/health')[0] == 200
