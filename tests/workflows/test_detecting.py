"""`detect` on files: what it writes under which names, that it goes on, and what it does with broken files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers import small_set
from vild_jax import cli, vocabulary
from vild_jax.config import Config
from vild_jax.data import prepare, rle
from vild_jax.data.schema import DataError
from vild_jax.inference import video
from vild_jax.inference.detections import PictureDetections
from vild_jax.inference.queries import Queries
from vild_jax.workflows import detecting
from vild_jax.workflows.detecting import Settings

NAMES = ('tree', 'ant', 'red mug')
KNOWN = vocabulary.VocabularyFile(
  np.eye(3, 512, dtype=np.float32), NAMES, np.array([True, False, True]), 'a teacher', ''
)


class Blobs:
  """In the place of a detector: each bright spot is a tree, the larger the better."""

  def __init__(self, fails_after: int = 10**9):
    self.config, self.variables, self.vocabulary = Config(), {}, KNOWN
    self.seen: list[tuple[int, int]] = []
    self.calls: list[int] = []
    self._left = fails_after
    self._queries = Queries(self.config, KNOWN)

  def classes(self, classes, attributes):
    if attributes is not None:
      self._queries.attributes(attributes)
    return self._queries.resolve(classes)[1]

  def detect(self, images, classes, *, min_score, masks, batch_size, max_detections=None, attributes=None):
    if isinstance(images, np.ndarray):
      return self.detect([images], classes, min_score=min_score, masks=masks, max_detections=max_detections,
                         batch_size=batch_size, attributes=attributes)[0]  # fmt: skip
    found = [
      self._found(image, self._queries.resolve(classes)[0], min_score, masks, max_detections) for image in images
    ]
    self.calls.append(len(found))
    if attributes is None:
      return found
    # The larger, the likelier is the first attribute.
    rows = [np.stack([of.scores, 1 - of.scores], axis=1) for of in found]
    return [
      dataclasses.replace(of, attribute_names=tuple(attributes), attributes=row)
      for of, row in zip(found, rows, strict=True)
    ]

  def _found(self, image, names, min_score, masks, most):
    if self._left <= 0:
      raise KeyboardInterrupt
    self._left -= 1
    self.seen.append(image.shape[:2])
    _, places, about, _ = cv2.connectedComponentsWithStats((image[..., 0] > 128).astype(np.uint8))
    boxes = np.array([[y, x, y + h, x + w] for x, y, w, h, _ in about[1:]], np.float32).reshape(-1, 4)
    scores = np.minimum(about[1:, 4] / 1000, 1).astype(np.float32)
    order = [i for i in np.argsort(-scores, kind='stable') if scores[i] >= min_score][:most]
    rles = tuple(rle.encode_mask(places == i + 1) for i in order) if masks else None
    labels = np.zeros(len(order), np.int32)
    return PictureDetections(boxes[order], scores[order], labels, names, image.shape[:2], rles)


def picture(*spots: tuple[int, int, int, int], size=(60, 80)) -> np.ndarray:
  """A dark picture with bright boxes yxyx."""
  image = np.full((*size, 3), 20, np.uint8)
  for y1, x1, y2, x2 in spots:
    image[y1:y2, x1:x2] = 240
  return image


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
  """The working directory: two pictures of one name, one of another and a broken one."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'in' / 'b').mkdir(parents=True)
  Image.fromarray(picture((10, 20, 40, 60))).save('in/x.png')
  Image.fromarray(picture((5, 5, 35, 25), (30, 50, 55, 70), size=(64, 96))).save('in/b/x.bmp')
  Image.fromarray(picture()).save('in/empty.png')
  (tmp_path / 'in' / 'bad.jpg').write_bytes(b'no picture')
  return tmp_path


def found_in(out: str = 'out') -> dict[str, dict]:
  """{path of a picture: what detections.json has of it}."""
  return {of['image']: of for of in json.loads(Path(out, 'detections.json').read_text())}


def test_every_picture_is_drawn_and_listed_and_a_broken_one_is_left_out(folder, capsys):
  (line,) = detecting.detect(Blobs(), ['in', 'in/x.png', 'in/*.png'], 'tree, ant', Path('out'))
  assert line.startswith('in/bad.jpg: no readable picture') and f'left out: {line}' in capsys.readouterr().err
  found = found_in()
  assert list(found) == ['in/b/x.bmp', 'in/empty.png', 'in/x.png']
  assert found['in/empty.png']['detections'] == []
  of = found['in/b/x.bmp']
  assert (of['height'], of['width'], of['picture']) == (64, 96, 'b_x_detections.png')
  assert [d['box_yxyx'] for d in of['detections']] == [[5, 5, 35, 25], [30, 50, 55, 70]]
  assert [d['class'] for d in of['detections']] == ['tree'] * 2
  assert [d['score'] for d in of['detections']] == pytest.approx([0.6, 0.5])
  mask = rle.decode_mask(of['detections'][1]['mask'], 64, 96)
  assert mask[30:55, 50:70].all() and mask.sum() == 25 * 20
  assert sorted(path.name for path in Path('out').iterdir()) == [
    'b_x_detections.png', 'detections.json', 'empty_detections.png', 'x_detections.png'
  ]  # fmt: skip
  drawn = np.asarray(Image.open('out/x_detections.png'))
  assert drawn.shape == (240, 320, 3) and (drawn[100, 120:200] != 240).any()


def test_a_link_in_the_place_of_a_drawing_is_replaced_and_not_followed(folder):
  Path('precious').write_text('precious')
  Path('out').mkdir()
  Path('out/x_detections.png').symlink_to('../precious')
  detecting.detect(Blobs(), ['in/x.png'], 'tree, ant', Path('out'))
  assert Path('precious').read_bytes() == b'precious'
  assert Image.open('out/x_detections.png').size and not Path('out/x_detections.png').is_symlink()


def test_settings_reach_the_detector(folder):
  settings = Settings(min_score=0.0, masks=False, max_detections=1, batch_size=2, max_megapixels=1)
  detector = Blobs()
  detecting.detect(detector, ['in'], 'tree', Path('out'), settings)
  assert detector.calls == [2, 1]
  assert [len(of['detections']) for of in found_in().values()] == [1, 0, 1]
  assert set(found_in()['in/x.png']['detections'][0]) == {'class', 'score', 'box_yxyx'}
  Image.fromarray(np.zeros((1000, 1001, 3), np.uint8)).save('large.png')
  (line,) = detecting.detect(detector, ['in/x.png', 'large.png'], 'tree', Path('out'), settings)
  assert 'large.png has more than 1 megapixels' in line and list(found_in()) == ['in/x.png']
  with pytest.raises(DataError, match=r'large\.png has more than 1 megapixels'):  # alone, it leaves nothing to do
    detecting.detect(detector, ['large.png'], 'tree', Path('alone'), settings)
  assert not Path('alone').exists()


def test_attributes_are_written_and_drawn(folder):
  detecting.detect(Blobs(), ['in'], 'tree', Path('plain'))
  asked = Settings(attributes=['ant', 'red mug'])
  detecting.detect(Blobs(), ['in'], 'tree', Path('out'), asked, coco=True)
  first, _ = found_in()['in/b/x.bmp']['detections']
  assert first['attributes'] == {'ant': pytest.approx(0.6), 'red mug': pytest.approx(0.4)} and first['class'] == 'tree'
  assert first['mask'] == found_in('plain')['in/b/x.bmp']['detections'][0]['mask']
  assert found_in()['in/empty.png']['detections'] == []
  name = 'x_detections.png'
  assert Path('out', name).read_bytes() != Path('plain', name).read_bytes()
  with pytest.raises(KeyboardInterrupt):
    detecting.detect(Blobs(fails_after=1), ['in'], 'tree', Path('out'), Settings(batch_size=1))
  with pytest.raises(DataError, match='of which the attributes differs'):
    detecting.detect(Blobs(), ['in'], 'tree', Path('out'), Settings(batch_size=1, attributes=['ant', 'red mug']))
  for attributes, message in ((['ant'], 'two or more that differ'), (['ant', 'zebra'], 'zebra')):
    with pytest.raises(ValueError, match=message):
      detecting.detect(Blobs(), ['in'], 'tree', Path('nothing'), Settings(attributes=attributes))
  assert not Path('nothing').exists()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'batch_size': 0}, '^--batch-size is 0; expected 1 or more$'),
    ({'max_megapixels': -1}, '^--max-megapixels is -1'),
    ({'tile': 0}, '^--tile is 0'),
    ({'overlap': 0.95}, r'^--overlap is 0.95; expected 0 to 0.9$'),
    ({'min_score': float('nan')}, '^--min-score is nan; expected 0 to 1$'),
  ],
)
def test_settings_out_of_range_are_one_line(settings, message):
  with pytest.raises(ValueError, match=message):
    Settings(**settings)


def test_a_killed_run_goes_on_where_it_stopped(folder, capsys):
  one_by_one = Settings(batch_size=1)
  detecting.detect(Blobs(), ['in'], 'tree', Path('whole'), one_by_one)
  with pytest.raises(KeyboardInterrupt):
    detecting.detect(Blobs(fails_after=2), ['in'], 'tree', Path('out'), one_by_one)
  assert not Path('out/detections.json').exists()
  for classes, settings, differs in (
    ('tree, ant', one_by_one, 'vocabulary'),
    ('tree', Settings(batch_size=1, min_score=0.1), 'min_score'),
    ('tree', Settings(batch_size=1, tile=32), 'tile'),
  ):
    with pytest.raises(DataError, match=f'unfinished detection of which the {differs} differs; expected the same'):
      detecting.detect(Blobs(), ['in'], classes, Path('out'), settings)
  capsys.readouterr()
  detector = Blobs()
  assert len(detecting.detect(detector, ['in'], 'tree', Path('out'), one_by_one)) == 1
  assert detector.seen == [(60, 80)] and 'going on with 3 of 4 inputs' in capsys.readouterr().err
  for path in Path('whole').iterdir():
    assert (Path('out') / path.name).read_bytes() == path.read_bytes()
  assert len(list(Path('out').iterdir())) == len(list(Path('whole').iterdir())) == 4


def test_a_run_that_goes_on_has_the_batches_of_one_without_a_break(folder, monkeypatch):
  """The last bits of a result depend on what goes through the network with it."""
  two = Settings(batch_size=2)
  write = detecting.Parts.write

  def interrupted(parts, records, *place):
    if str(records[0]['image']) == 'in/empty.png':
      raise KeyboardInterrupt
    write(parts, records, *place)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(detecting.Parts, 'write', interrupted)
    detecting.detect(Blobs(), ['in'], 'tree', Path('out'), two)
  detector = Blobs()
  detecting.detect(detector, ['in'], 'tree', Path('out'), two)
  assert detector.calls == [2, 1]  # the first of the two has its record already
  detector = Blobs()
  with pytest.raises(KeyboardInterrupt):
    detecting.detect(Blobs(fails_after=2), ['in'], 'tree', Path('again'), two)
  detecting.detect(detector, ['in'], 'tree', Path('again'), two)
  assert detector.calls == [1]  # a batch with all its records is not detected in again


@pytest.mark.parametrize('glob', ['**/*.png', '*'])
def test_a_killed_run_over_a_glob_does_not_take_its_own_drawings_for_pictures(folder, glob):
  settings = Settings(batch_size=1)
  with pytest.raises(KeyboardInterrupt):
    detecting.detect(Blobs(fails_after=1), [glob], 'tree', Path('out'), settings)
  for _ in range(2):
    detecting.detect(Blobs(), [glob], 'tree', Path('out'), settings)
    assert all(path.startswith('in/') for path in found_in())


def test_a_run_that_began_nothing_binds_nobody_and_other_files_are_another_run(folder):
  with pytest.raises(KeyboardInterrupt):
    detecting.detect(Blobs(fails_after=0), ['in/x.png'], 'tree', Path('out'))
  detecting.detect(Blobs(), ['in/x.png'], 'ant', Path('out'))
  with pytest.raises(KeyboardInterrupt):
    detecting.detect(Blobs(fails_after=1), ['in/x.png', 'in/empty.png'], 'ant', Path('out'), Settings(batch_size=1))
  Image.fromarray(picture()).save('in/x.png')
  with pytest.raises(DataError, match='of which the inputs differs'):
    detecting.detect(Blobs(), ['in/x.png', 'in/empty.png'], 'ant', Path('out'), Settings(batch_size=1))


def test_a_folder_of_the_user_that_is_called_unfinished_stays(folder):
  (folder / 'unfinished').mkdir()
  Path('unfinished/mine.txt').write_text('mine')
  detecting.detect(Blobs(), ['in/x.png'], 'tree', Path('.'))
  assert [path.name for path in Path('unfinished').iterdir()] == ['mine.txt']


def _clip(path: str, frames: int = 10) -> None:
  with video.writing(Path(path), 5.0) as add:
    for k in range(frames):
      add(picture((100, 20 + 20 * k, 150, 60 + 20 * k), size=(240, 320)))


def test_a_video_becomes_a_video_and_a_line_a_frame(folder):
  _clip('clip.mp4')
  (folder / 'bad.mov').write_bytes(b'no video')
  (line,) = detecting.detect(Blobs(), ['clip.mp4', 'bad.mov', 'in/x.png'], 'tree', Path('out'), Settings(batch_size=4))
  assert line.startswith('bad.mov: no readable video') and list(found_in()) == ['in/x.png']
  lines = [json.loads(line) for line in Path('out/clip_detections.jsonl').read_text().splitlines()]
  assert [line['frame'] for line in lines] == list(range(10))
  assert [line['seconds'] for line in lines] == pytest.approx([k / 5 for k in range(10)], abs=1e-3)
  for k, line in enumerate(lines):
    best = line['detections'][0]
    np.testing.assert_allclose(best['box_yxyx'], [100, 20 + 20 * k, 150, 60 + 20 * k], atol=3)
    assert best['mask']['size'] == [240, 320]
  with video.reading(Path('out/clip_detections.mp4')) as drawn:
    assert drawn.rate == pytest.approx(5) and drawn.count == 10
    assert next(drawn.frames)[1].shape == (480, 640, 3)  # small ones are enlarged, so that text is legible


def test_a_killed_video_goes_on_where_it_stopped(folder):
  _clip('clip.mp4')
  settings = Settings(batch_size=3)
  detecting.detect(Blobs(), ['clip.mp4'], 'tree', Path('whole'), settings)
  with pytest.raises(KeyboardInterrupt):
    detecting.detect(Blobs(fails_after=7), ['clip.mp4'], 'tree', Path('out'), settings)
  assert [path.name for path in Path('out').iterdir()] == ['unfinished']
  detector = Blobs()
  detecting.detect(detector, ['clip.mp4'], 'tree', Path('out'), settings)
  assert len(detector.seen) == 4  # of ten, six were done
  for name in ('clip_detections.jsonl', 'clip_detections.mp4'):
    assert Path('out', name).read_bytes() == Path('whole', name).read_bytes()


def test_a_video_that_does_not_say_how_long_it_is(folder):
  writer = cv2.VideoWriter('raw.mjpeg', cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*'MJPG'), 25, (320, 240))
  for _ in range(3):
    writer.write(picture((100, 20, 150, 60), size=(240, 320)))
  writer.release()
  Path('raw.mjpeg').rename('raw.mpg')
  with video.reading(Path('raw.mpg')) as source:
    assert source.count == 0
  assert detecting.detect(Blobs(), ['raw.mpg'], 'tree', Path('out')) == []
  lines = [json.loads(line) for line in Path('out/raw_detections.jsonl').read_text().splitlines()]
  assert [len(line['detections']) for line in lines] == [1, 1, 1]


def test_a_video_that_was_cut_off_is_detected_as_far_as_it_goes_and_named(folder, capsys):
  writer = cv2.VideoWriter('clip.avi', cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*'MJPG'), 25, (320, 240))
  for _ in range(20):
    writer.write(picture((100, 20, 150, 60), size=(240, 320)))
  writer.release()
  detecting.detect(Blobs(), ['clip.avi'], 'tree', Path('out'))
  assert 'can be read' not in capsys.readouterr().err
  whole = Path('clip.avi').read_bytes()
  Path('clip.avi').write_bytes(whole[: len(whole) // 2])
  detecting.detect(Blobs(), ['clip.avi'], 'tree', Path('out'))
  found = len(Path('out/clip_detections.jsonl').read_text().splitlines())
  assert 0 < found < 18 and f'clip.avi: only {found} of about 20 frames can be read' in capsys.readouterr().err


def test_tiles_find_what_the_whole_picture_has(folder):
  spots = [(10, 10, 40, 30), (90, 100, 125, 131), (180, 200, 215, 225), (230, 300, 270, 340)]
  Image.fromarray(picture(*spots, size=(300, 400))).save('large.png')
  settings = Settings(tile=128, overlap=0.4)
  detector = Blobs()
  detecting.detect(detector, ['large.png', 'in/x.png'], 'tree', Path('out'), settings)
  assert detector.seen[0] == (300, 400) and set(detector.seen[1:-1]) == {(128, 128)} and detector.calls[-1] == 1
  detecting.detect(Blobs(), ['large.png', 'in/x.png'], 'tree', Path('plain'), Settings())
  assert found_in() == found_in('plain') and len(found_in()['large.png']['detections']) == 4


def test_coco_json_is_what_tools_of_coco_read(folder):
  from faster_coco_eval import COCO

  settings = Settings(min_score=0.1)
  detecting.detect(Blobs(), ['in'], 'ant, tree', Path('out'), settings, coco=True)
  tool = COCO('out/coco.json')
  assert [c['name'] for c in tool.loadCats(tool.getCatIds())] == ['ant', 'tree']
  assert [image['file_name'] for image in tool.loadImgs(tool.getImgIds())] == list(found_in())
  first = tool.loadAnns(tool.getAnnIds(imgIds=[1]))
  assert [a['bbox'] for a in first] == [[5, 5, 20, 30], [50, 30, 20, 25]] and first[0]['category_id'] == 1
  assert [a['area'] for a in first] == [600, 500] and first[0]['score'] == pytest.approx(0.6)
  mask = tool.annToMask(first[1])
  assert mask.shape == (64, 96) and mask[30:55, 50:70].all() and mask.sum() == 500
  assert len(tool.loadRes(tool.dataset['annotations']).anns) == len(tool.anns) == 3
  detecting.detect(Blobs(), ['in/empty.png'], 'ant', Path('none'), coco=True)
  assert json.loads(Path('none/coco.json').read_text())['annotations'] == []
  detecting.detect(Blobs(), ['in/x.png'], 'ant', Path('boxes'), Settings(masks=False), coco=True)
  (only,) = json.loads(Path('boxes/coco.json').read_text())['annotations']
  assert only['segmentation'] == [] and only['area'] == 30 * 40


def test_classes_are_names_or_files(folder):
  vocabulary.save('v.npz', KNOWN)
  Path('names').write_text('ant\ntree\n')
  prepare.prepare(*small_set.write(folder / 'small'), folder / 'data')
  for classes, first in (('v.npz', 'tree'), ('names', 'ant'), ('data/', 'ant'), ('red mug', 'red mug')):
    detecting.detect(Blobs(), ['in/x.png'], classes, Path('out'))
    assert found_in()['in/x.png']['detections'][0]['class'] == first
  bad = vocabulary.VocabularyFile(np.eye(1, 512, dtype=np.float32), ('red\nmug',), np.array([True]), 'a teacher', '')
  vocabulary.save('bad.npz', bad)
  for classes, message in (
    ('w.npz', "'w.npz' looks like a path"), ('bad.npz', r"^bad.npz: the name 'red\\nmug' holds"), ('zebra', 'zebra'),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      detecting.detect(Blobs(), ['in/x.png'], classes, Path('nothing'))
  with pytest.raises(DataError, match=r'none.jpg does not exist'):
    detecting.detect(Blobs(), ['in/x.png', 'none.jpg'], 'tree', Path('nothing'))
  assert not Path('nothing').exists()


def test_names_without_a_font_are_numbers_that_are_explained(folder, capsys):
  known = vocabulary.VocabularyFile(KNOWN.embeddings, ('tree', '\u0378', 'ant'), KNOWN.is_base, 'a teacher', '')
  vocabulary.save('v.npz', known)
  detecting.detect(Blobs(), ['in/x.png'], 'v.npz', Path('out'))
  assert (
    'has all letters of 1 of 3 names, which drawings show by their numbers: #2 = \u0378. ' in capsys.readouterr().err
  )


def test_the_command_ends_with_1_if_an_input_is_broken(folder, monkeypatch, capsys):
  monkeypatch.setattr('vild_jax.inference.detector.load', lambda path, teacher: Blobs())
  words = ['--checkpoint', 'c', '--classes', 'tree', '--out', 'out']
  assert cli.main(['detect', 'in/x.png', *words]) == 0
  more = ['--format', 'coco', '--no-masks', '--max-detections', '2', '--tile', '999', '--overlap', '0']
  assert cli.main(['detect', 'in/x.png', 'in/bad.jpg', *words, *more]) == 1
  assert 'vild-jax detect: 1 input could not be read; all others are in out' in capsys.readouterr().err
  assert list(found_in()) == ['in/x.png'] and Path('out/coco.json').is_file()
  assert cli.main(['detect', 'in/x.png', *words, '--attributes', 'ant, red mug']) == 0
  assert list(found_in()['in/x.png']['detections'][0]['attributes']) == ['ant', 'red mug']
  assert cli.main(['detect', 'in/x.png', *words, '--attributes', '']) == 2
  assert '--attributes is' in capsys.readouterr().err
  assert cli.main(['detect', 'in/x.png', *words, '--batch-size', '0']) == 2
  assert cli.main(['detect', 'in/none', *words]) == 2
