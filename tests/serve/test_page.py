"""The page in a real browser, in front of a real server whose detector has no network."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers import browser as browser_lib
from tests.helpers import service as service_lib
from tests.helpers.encoded import encode
from tests.helpers.served_page import (
  PLACES,
  Detector,
  canvas,
  corner,
  detections_asked,
  ellipse,
  extent,
  look_for,
  only,
  touch,
)
from vild_jax.config import defaults
from vild_jax.data import rle
from vild_jax.inference import drawing
from vild_jax.serve.limits import Limits

pytestmark = pytest.mark.skipif(browser_lib.CHROMIUM is None, reason='there is no Chromium on this machine')

LARGE = (3000, 2000)  # width, height; larger than any display here


@pytest.fixture(scope='module')
def served():
  with service_lib.serving(Detector(), Limits(cached_pictures=1)) as one:
    yield one


@pytest.fixture(scope='module')
def tab(tmp_path_factory):
  folder = tmp_path_factory.mktemp('browser')
  with browser_lib.browser(folder) as one:
    one.call('Page.setDownloadBehavior', behavior='allow', downloadPath=str(folder))
    one.downloads = folder
    yield one


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pictures')
  rng = np.random.default_rng(0)
  for name, (width, height) in {'small': (60, 40), 'large': LARGE}.items():
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
    (folder / f'{name}.jpg').write_bytes(encode(coarse.resize((width, height)), 'JPEG'))
  (folder / 'page.tiff').write_bytes(encode(rng.integers(0, 256, (40, 60, 3), np.uint8), 'TIFF'))
  (folder / 'text.png').write_text('this is no picture')
  return folder


@pytest.fixture
def page(tab, served):
  """The page as a user finds it first. Afterwards: nothing went wrong in it, and it asked no other host."""
  tab.resize(1100, 900)
  tab.events.clear()
  tab.refusals = 0  # that the test provokes
  tab.open(f'http://127.0.0.1:{served.port}/')
  tab.until('document.querySelectorAll("#samples img").length > 0')
  yield tab
  hosts = {request['url'].split('/')[2] for request in tab.requests() if request['url'].startswith('http')}
  assert len(hosts) == 1 and hosts.pop().startswith('127.0.0.1:')
  refusals = [text for text in tab.complaints() if 'Failed to load resource' in text]
  assert tab.complaints() == refusals and len(refusals) == tab.refusals


@pytest.mark.parametrize(('name', 'pixels'), [('small', 1), ('large', 1), ('large', 2)])
def test_boxes_and_masks_are_where_the_detector_found_them(page, pictures, name, pixels):
  page.resize(1100, 900, pixels=pixels)
  look_for(page, 'red mug, \n square,star', pictures / f'{name}.jpg')
  assert page.js('[...document.querySelectorAll("#classes span")].map((e) => e.textContent)') == [
    'red mug',
    'square',
    'star',
  ]
  only(page, 'boxes')
  drawn = canvas(page)
  height, width = drawn.shape[:2]
  assert width == (4 * 60 if name == 'small' else page.js('frame.clientWidth') * pixels)
  assert abs(height - width * 2 / 3) <= 1
  for label in (0, 1):
    x, y, w, h = PLACES[label]
    expected = np.array([x * width, y * height, (x + w) * width, (y + h) * height])
    assert np.abs(extent(drawn, label) - expected).max() <= 1.5 * pixels, label
  assert extent(drawn, 2) is None  # below the lowest score
  only(page, 'masks')
  drawn = canvas(page)
  x, y, w, h = (np.array(PLACES[1]) * [width, height, width, height]).tolist()
  filled = np.abs(drawn[..., 3].astype(int) - 0.38 * 255) < 3
  inside = ellipse(np.array([x, y, w, h]), width, height)
  of_this = np.zeros_like(inside)
  of_this[round(y) : round(y + h), round(x) : round(x + w)] = True
  assert (filled == inside)[of_this].mean() > 0.93  # the outline takes the rest
  assert drawn[round(y + h / 2), round(x + w / 2), 3] and not drawn[round(y) + 3, round(x) + 3, 3]
  assert page.text('#status') == '2 objects of 2 classes shown, 1 more below the lowest score or switched off.'


def test_the_slider_and_the_toggles_ask_nothing_of_the_service(page, pictures):
  look_for(page, '', pictures / 'small.jpg')
  asked = detections_asked(page)
  assert page.js('[slider.min, slider.value].map(Number)') == [defaults.MIN_SCORE, defaults.DRAWN_MIN_SCORE]
  page.js('document.getElementById("slider").focus()')
  for key, code, shown in (('Home', 36, 3), ('End', 35, 0), ('Home', 36, 3)):
    page.key(key, code)
    assert page.js('document.querySelectorAll("tbody tr").length') == shown
  assert page.text('#score') == '0.05' and page.text('#status') == '3 objects of 3 classes shown.'
  only(page, 'boxes')
  assert all(extent(canvas(page), label) for label in range(3))
  page.click('#classes input[value="1"]')
  assert [extent(canvas(page), label) is not None for label in range(3)] == [True, False, True]
  page.click('#none')
  assert not canvas(page).any() and page.js('document.querySelectorAll("tbody tr").length') == 0
  page.click('#all')
  only(page)
  assert not canvas(page).any() and page.js('document.querySelectorAll("tbody tr").length') == 3
  only(page, 'labels')
  assert canvas(page).any()
  assert detections_asked(page) == asked == 1


def test_the_table_sorts_and_lights_up_objects_by_keyboard_and_mouse(page, pictures):
  look_for(page, 'b, c, a', pictures / 'small.jpg')
  page.js('document.getElementById("slider").focus()')
  page.key('Home', 36)
  names = lambda: page.js('[...document.querySelectorAll("tbody th")].map((e) => e.innerText)')
  assert names() == ['b', 'c', 'a']
  page.js('document.querySelector("th[data-sort=class] button").focus()')
  page.key('Enter', 13)
  assert names() == ['a', 'b', 'c']
  assert page.js('document.querySelector("th[data-sort=class]").ariaSort') == 'ascending'
  page.key('Enter', 13)
  assert names() == ['c', 'b', 'a']
  only(page, 'boxes')
  plain = canvas(page)
  page.js('document.querySelector("tbody tr").focus()')
  page.key('ArrowDown', 40)
  assert page.js('document.activeElement.innerText').startswith('b')
  lit = canvas(page)
  assert lit[..., 3].sum() != plain[..., 3].sum() and extent(lit, 0) and not extent(lit, 1)  # the others fade
  page.js('document.activeElement.blur()')
  assert (canvas(page) == plain).all()
  page.hover(*corner(page, 0.6, 0.5))
  assert page.js('document.querySelector("tr.lit").innerText').startswith('c')
  page.hover(1, 1)
  assert page.js('document.querySelector("tr.lit")') is None


def test_a_box_drawn_with_the_mouse_is_looked_for(page, pictures, served):
  look_for(page, 'star', pictures / 'large.jpg')
  page.drag(corner(page, 0.25, 0.25), corner(page, 0.5, 0.75))
  page.until('!document.getElementById("example-form").hidden')
  page.js('document.getElementById("example-name").select()')
  page.type('my mug')
  page.key('Enter', 13)
  page.until('document.querySelectorAll("#classes label").length === 2')
  star, example = served.detector.found[-1]['classes']
  assert star == 'star' and example.name == 'my mug'
  expected = np.array([0.25 * LARGE[1], 0.25 * LARGE[0], 0.75 * LARGE[1], 0.5 * LARGE[0]])
  display = LARGE[0] / page.js('frame.clientWidth')  # picture pixels in a pixel of the window
  assert np.abs(example.boxes[0] - expected).max() <= display + 1
  assert page.text('#examples') == 'my mug\n×'
  page.click('#examples button')
  assert page.js('document.querySelectorAll("#examples li").length') == 0


def test_examples_stay_for_further_pictures_and_attributes_are_asked_for(page, pictures, served):
  """The crop holds what the image tower sees of the box; a picture that no browser shows takes no box of another."""
  look_for(page, '', pictures / 'small.jpg')
  page.click('#mark')
  page.js('"x30 y10 w20 h16".split(" ").map((one) => { const e = document.getElementById(`box-${one[0]}`);'
          'e.value = one.slice(1); e.dispatchEvent(new Event("input")); })')  # fmt: skip
  page.key('Enter', 13)
  page.until('document.querySelectorAll("#examples li").length === 1 && !run.textContent.includes("Looking")')
  (first,) = served.detector.found[-1]['classes']
  look_for(page, 'a, b', pictures / 'large.jpg')
  kept = served.detector.found[-1]['classes'][2]
  assert kept.name == first.name == 'example 1' and kept.images[0].shape == (24, 30, 3)
  np.testing.assert_array_equal([first.boxes[0], kept.boxes[0]], [[10, 30, 26, 50], [4, 5, 20, 25]])
  assert np.abs(kept.images[0].astype(int) - first.images[0][6:30, 25:55]).max() < 12  # two decoders of JPEG
  assert page.text('#examples') == 'example 1\n×'
  page.js('document.getElementById("attributes").value = "red, blue"')
  page.choose('#file', pictures / 'page.tiff')
  page.until('!results.hidden && document.getElementById("picture-name").innerText.includes("cannot show")')
  assert len(served.detector.found[-1]['classes']) == 3 and page.js('document.getElementById("mark").disabled')
  assert page.js('[...document.querySelectorAll("tbody th")].map((e) => e.innerText)') == ['a red', 'b red']


def test_a_phone_has_one_column_and_draws_boxes_by_touch(page, pictures, served):
  page.resize(390, 844, pixels=2, phone=True)
  look_for(page, 'a very long name of a class that no line of a phone can hold, star', pictures / 'large.jpg')
  assert page.js('document.documentElement.scrollWidth') <= 390
  touch(page, corner(page, 0.7, 0.5))
  assert page.js('document.querySelector("tr.lit").innerText').startswith('star')
  page.click('#mark')
  touch(page, corner(page, 0.25, 0.25), corner(page, 0.5, 0.5))
  found = page.js('["x", "y", "w", "h"].map((side) => document.getElementById(`box-${side}`).valueAsNumber)')
  assert np.abs(np.array(found) - np.array([0.25, 0.25, 0.25, 0.25]) * [*LARGE, *LARGE]).max() <= 10
  page.click('#example-form .primary')
  page.until('document.querySelectorAll("#classes label").length === 3')
  assert served.detector.found[-1]['classes'][2].boxes[0][1] == pytest.approx(750, abs=10)


def test_the_picture_stays_in_view_and_covers_nothing(page):
  page.click('#samples button')
  page.until('!document.getElementById("results").hidden')
  page.click('summary')
  page.js('document.getElementById("card").style.height = "2000px"')
  edges = '[about.getBoundingClientRect().top - picture.lastElementChild.getBoundingClientRect().bottom, scrollY]'
  for place in (200, 800, 9000):
    (below, scrolled) = page.js(f'window.scrollTo(0, {place}), {edges}')
    assert below > 0 and scrolled >= min(place, 800)
  assert page.js('window.scrollTo(0, 130), document.getElementById("place").getBoundingClientRect().top') == 16


def test_all_of_it_by_keyboard_alone(page):
  def tab_to(selector: str):
    for _ in range(60):
      page.key('Tab', 9)
      if page.js(f'document.activeElement.matches({json.dumps(selector)})'):
        outline = page.js('getComputedStyle(document.activeElement).outlineStyle')
        assert outline != 'none' or selector == '#file', selector
        return
    raise AssertionError(f'the Tab key never comes to {selector}')

  tab_to('#file')
  tab_to('#samples button')
  page.key('Enter', 13)
  page.until('!document.getElementById("results").hidden')
  tab_to('#words')
  page.type('star')
  page.key('Enter', 13, shift=True)
  page.type('ring')
  page.key('Enter', 13)
  page.until('document.querySelectorAll("#classes label").length === 2')
  for selector in ('#slider', '#layer-masks', '#classes input', '#save-json', 'thead button', 'tbody tr', 'summary'):
    tab_to(selector)
  page.js('document.getElementById("file").focus()')
  tab_to('#mark')
  page.key('Enter', 13)
  assert page.js('document.activeElement.id') == 'example-name'
  page.key('Escape', 27)
  assert page.js('document.activeElement.id') == 'mark' and page.js('document.getElementById("example-form").hidden')
  nodes = page.call('Accessibility.getFullAXTree')['nodes']
  roles = {'button', 'textbox', 'slider', 'checkbox', 'radio', 'spinbutton', 'image', 'table', 'img'}
  controls = [node for node in nodes if not node['ignored'] and node['role']['value'] in roles]
  assert len(controls) > 15
  assert not [node for node in controls if not node.get('name', {}).get('value')], 'a control without a name'


def test_what_is_downloaded(page, pictures):
  look_for(page, 'mug, cup', pictures / 'small.jpg')
  page.click('#classes input[value="1"]')
  only(page, 'boxes')
  page.click('#save-json')
  page.click('#save-png')
  files = [page.downloads / 'small.json', page.downloads / 'small_found.png']
  end = time.monotonic() + 30
  while not all(path.is_file() and path.stat().st_size for path in files) and time.monotonic() < end:
    time.sleep(0.03)
  found = json.loads(files[0].read_text())
  assert found['images'] == [{'id': 1, 'file_name': 'small.jpg', 'width': 60, 'height': 40}]
  assert found['categories'] == [{'id': 1, 'name': 'mug'}, {'id': 2, 'name': 'cup'}]
  (only_one,) = found['annotations']
  assert only_one['bbox'] == [7.5, 5, 15, 10] and only_one['score'] == pytest.approx(0.9) and not only_one['iscrowd']
  assert only_one['category_id'] == only_one['image_id'] == 1
  mask = ellipse(np.array([7.5, 5, 15, 10]), 60, 40)
  assert (rle.decode_mask(only_one['segmentation'], 40, 60) == mask).all() and only_one['area'] == mask.sum()
  drawn = np.asarray(Image.open(files[1]).convert('RGBA'))
  assert drawn.shape == (160, 240, 4) and (drawn[..., 3] == 255).all()
  assert np.abs(extent(drawn, 0) - np.array([30, 20, 90, 60])).max() <= 1
  plain = np.asarray(Image.open(pictures / 'small.jpg'))[39, 59].astype(int)
  assert np.abs(drawn[-1, -1, :3] - plain).max() < 12


def test_refusals_are_told_and_the_page_goes_on(page, pictures):
  page.click('#run')
  assert page.text('#error') == 'Choose a picture first.'
  page.choose('#file', pictures / 'text.png')
  page.until('document.getElementById("error").innerText.includes("422")')
  assert page.js('document.getElementById("results").hidden') and page.js('document.getElementById("mark").disabled')
  look_for(page, 'star', pictures / 'small.jpg')
  assert page.text('#error') == ''
  page.js('document.getElementById("words").value = "unknown"')
  page.click('#run')
  page.until('document.getElementById("error").innerText.includes("not in the stored vocabulary")')
  assert page.js('document.querySelectorAll("tbody tr").length') == 1  # what was found before stays
  page.refusals = 2


def test_a_picture_that_the_service_has_forgotten_is_sent_again(page, pictures, served):
  look_for(page, 'star', pictures / 'small.jpg')
  page.click('#run')
  page.until('document.getElementById("times").innerText.includes("kept from before")')
  assert served.upload(encode(np.zeros((8, 8, 3), np.uint8)))[0] == 200  # the only place is taken now
  looked = len(served.detector.looked)
  page.click('#run')
  page.until('!document.getElementById("times").innerText.includes("kept from before")')
  assert len(served.detector.looked) == looked + 1 and page.text('#error') == ''
  kinds = [
    request['headers']['Content-Type'].partition(';')[0] for request in page.requests() if request['method'] == 'POST'
  ]
  assert kinds == ['multipart/form-data', 'application/json', 'application/json', 'multipart/form-data']
  page.refusals = 1


def test_a_picture_is_pasted_and_dropped(page, pictures):
  bytes_ = list(encode(np.zeros((8, 12, 3), np.uint8)))
  for kind, field, name in (('paste', 'clipboardData', 'pasted.png'), ('drop', 'dataTransfer', 'dropped.png')):
    page.js(
      f'{{ const data = new DataTransfer(); data.items.add(new File([new Uint8Array({bytes_})], "{name}", '
      f'{{type: "image/png"}})); const event = new Event("{kind}", {{bubbles: true, cancelable: true}});'
      f'Object.defineProperty(event, "{field}", {{value: data}}); document.body.dispatchEvent(event); }}'
    )
    page.until(f'!results.hidden && document.getElementById("picture-name").innerText === "{name}, 12 × 8"')


def test_light_and_dark(page):
  paper = lambda: page.js('getComputedStyle(document.body).backgroundColor')
  choose = lambda theme: page.click(f'.segments label:has([value="{theme}"])')
  page.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': 'dark'}])
  assert paper() == 'rgb(19, 21, 24)'
  choose('light')
  assert paper() == 'rgb(251, 251, 250)'
  page.call('Page.reload')
  page.until('document.readyState === "complete" && document.querySelector(".segments [value=light]")?.checked')
  assert paper() == 'rgb(251, 251, 250)'
  page.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': 'light'}])
  choose('dark')
  assert paper() == 'rgb(19, 21, 24)'
  choose('system')
  assert paper() == 'rgb(251, 251, 250)'


def test_a_token_is_asked_for_and_what_the_model_cannot_do_says_why(tab, pictures):
  about = dataclasses.replace(
    service_lib.ABOUT, masks=False, examples_allowed=False, card='---\na: 1\n---\n# Toy <b>\n| k | `v` |'
  )
  tab.events.clear()
  with service_lib.serving(Detector(takes_examples=False), token='secret', about=about) as served:
    tab.open(f'http://127.0.0.1:{served.port}/')
    tab.until('document.getElementById("token-dialog").open')
    tab.key('Escape', 27)
    tab.choose('#file', pictures / 'small.jpg')  # asks again
    tab.until('document.getElementById("token-dialog").open')
    tab.js('document.getElementById("token").focus()')
    tab.type('secret')
    tab.key('Enter', 13)
    tab.until('document.querySelectorAll("#samples img").length > 0')
    tab.click('#samples button')
    tab.until('!document.getElementById("results").hidden')
    assert 'no image tower' in tab.js('document.getElementById("mark").title')
    assert tab.js('document.getElementById("mark").disabled') and tab.js(
      'document.getElementById("layer-masks").disabled'
    )
    tab.drag(corner(tab, 0.25, 0.25), corner(tab, 0.5, 0.75))
    assert tab.js('document.getElementById("example-form").hidden')
    assert served.detector.found[-1]['classes'] is None
    assert tab.text('h1') == 'toy'
    assert tab.js('[...document.querySelectorAll("#card div > *")].map((e) => e.tagName + e.textContent)') == [
      'H3Toy <b>',
      'TABLEkv',
    ]
    tab.open('about:blank')


def test_the_page_decodes_run_lengths_and_has_the_colours_of_the_command(page):
  rng = np.random.default_rng(1)
  masks = [rng.random((13, 9)) < share for share in (0, 0.1, 0.5, 0.9, 1)]
  big = np.zeros((700, 40), bool)
  big[100:690, 3:30] = rng.random((590, 27)) < 0.95
  for mask in (*masks, big):
    code = json.dumps(rle.encode_mask(mask))
    outlines = page.js(f'import("./static/rle.js").then((rle) => rle.outlines({code}))')
    # A pixel is on if the borders to its left, each of which is crossed once, are of an odd number.
    crossed = np.zeros((mask.shape[0], mask.shape[1] + 1), int)
    for outline in outlines:
      points = np.array(outline).reshape(-1, 2)
      for (x, y), (to_x, to_y) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if x == to_x:
          crossed[min(y, to_y) : max(y, to_y), x] += 1
        else:
          assert y == to_y
    assert (crossed <= 1).all() and (crossed.cumsum(axis=1)[:, :-1] % 2 == mask).all()
  cut = page.js('import("./static/rle.js").then((rle) => rle.withoutStairs([0, 0, 1, 0, 2, 0, 2, 2, 0, 2]))')
  assert cut == [0, 0.5, 0.5, 0, 1.5, 0, 2, 0.5, 2, 1.5, 1.5, 2, 0.5, 2, 0, 1.5]
  colours = page.js('import("./static/paint.js").then((p) => [...Array(40).keys()].map(p.classColor))')
  assert np.abs(np.array(colours) - [drawing.class_color(label) for label in range(40)]).max() <= 1
