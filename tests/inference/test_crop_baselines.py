"""`evaluate --scores clip-crops|text+clip-crops` end to end, against the same written plainly in NumPy and PIL."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import small_set, small_teacher, tiny
from vild_jax import cli, detector, vocabulary
from vild_jax import config as config_lib
from vild_jax.data import pictures, prepare, rle, sources, transforms
from vild_jax.inference import crop_baselines
from vild_jax.structs import Vocabulary
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import text
from vild_jax.teacher.image import ImageTower
from vild_jax.train import checkpoint
from vild_jax.workflows import evaluating

NAMES = ('red mug', 'ant', 'tree')
IDS = {3: 0, 1: 1, 8: 2}  # category id -> row
IS_BASE = np.array([True, False, True])
# 27 proposals at most, and a picture in less than the square: some of the 30 are padding, some lie in it.
CONFIG = tiny.config(
  'model.region_head.embedding_dim=8',
  'model.pyramid.min_level=4',
  'model.anchors.size=1',
  'model.rpn.test_pre_nms_top_k=12',
  'mesh.data=1',
  'model.temperature=0.1',
  'model.postprocess.max_detections=100',
  'model.postprocess.base_weight=0.75',
  'evaluation.batch_size=3',
)


class PilTower:
  """`CropTower` as docs/method.md, 1, describes it, by PIL, one crop after the other."""

  def __init__(self, teacher):
    self._tower, self.boxes = ImageTower(teacher), []
    self.identity = self._tower.identity

  def embed(self, image, boxes):
    self.boxes.append(boxes)
    height, width = image.shape[:2]
    total = 0.0
    for scale in (1.0, 1.5):
      crops = []
      for y1, x1, y2, x2 in np.asarray(boxes, np.float64):
        dy, dx = (scale - 1) / 2 * (y2 - y1), (scale - 1) / 2 * (x2 - x1)
        top, left = max(int(np.floor(y1 - dy)), 0), max(int(np.floor(x1 - dx)), 0)
        bottom, right = min(int(np.ceil(y2 + dy)), height), min(int(np.ceil(x2 + dx)), width)
        crops.append(Image.fromarray(image[top:bottom, left:right]))
      total = total + self._tower.embed_images(crops)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A teacher, a data set, and a detector of random weights with the teacher's vocabulary."""
  folder = tmp_path_factory.mktemp('made')
  teacher = small_teacher.make('red mug ant tree')
  teacher_checkpoint.save_teacher(folder / 'teacher', teacher)
  teacher_checkpoint.save_text_tower(folder / 'words', teacher)
  annotations, images = small_set.write(folder, stem='small_val')
  prepare.prepare(annotations, images, folder / 'data')
  words = text.TextTower(teacher).vocabulary(NAMES, IS_BASE, 'single')
  for name, config in (('run', CONFIG), ('ensemble', config_lib.override(CONFIG, ['model.image_head=true']))):
    (folder / name).mkdir()
    (folder / name / 'config.json').write_text(config_lib.to_text(config))
    vocabulary.save(folder / name / 'vocabulary.npz', words)
  checkpoint.save_variables(folder / 'run', tiny.variables(CONFIG))
  with pytest.MonkeyPatch.context() as patch:
    towers = []
    patch.setattr(crop_baselines, 'CropTower', lambda teacher: towers.append(PilTower(teacher)) or towers[-1])
    metrics = {
      scores: evaluating.evaluate(
        CONFIG, folder / 'run', folder / 'data', 'val', folder / scores, scores=scores, teacher=folder / 'teacher'
      )
      for scores in ('clip-crops', 'text+clip-crops')
    }
  return folder, words, metrics, towers


@pytest.fixture(scope='module')
def regions(made):
  """{image id: (proposals in the square, valid, objectness, refined boxes, text scores, picture, resized)}."""
  folder, words, _, _ = made
  variables, vocabulary_rows = (
    tiny.variables(CONFIG),
    jax.tree.map(jnp.asarray, Vocabulary(words.embeddings, IS_BASE, np.ones(3, bool))),
  )
  predict = jax.jit(
    lambda image, size: detector.predict(CONFIG, variables, image, size, vocabulary_rows, return_intermediates=True)[1]
  )
  dataset, found = sources.open_dataset(folder / 'data', 'val'), {}
  masks = jax.jit(
    lambda features, boxes: detector.masks(
      CONFIG.model, variables, features, boxes, jnp.ones(boxes.shape[:2], bool), train=False
    )[0]
  )
  for i in range(len(dataset)):
    picture = pictures.decode(dataset[i].image)
    resized = transforms.resize_and_pad(picture, 64)
    inside = jax.device_get(predict(resized.image, resized.size))
    last = np.tile(resized.size - 1, 2)
    proposals = inside['proposals']
    decoded = detector.boxes.decode(
      jnp.asarray(inside['box_deltas']), jnp.asarray(proposals.boxes), weights=detector.BOX_WEIGHTS
    )
    logits = inside['text_logits'].astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found[dataset[i].image_id] = (
      np.clip(proposals.boxes, 0, last),
      proposals.valid,
      proposals.scores,
      np.clip(np.asarray(decoded), 0, last),
      (powers / powers.sum(1, keepdims=True))[:, :-1],
      picture,
      resized,
      partial(masks, {level: x[None] for level, x in inside['features'].items()}),
    )
  return found


def area(boxes):
  return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def iou(a, b):
  both = area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
  return both / (area(a) + area(b) - both)


def greedy(boxes, scores):
  """(class, box) pairs that class-wise suppression leaves, the best first."""
  kept = []
  for label in range(scores.shape[1]):
    chosen = []
    for i in np.argsort(-scores[:, label], kind='stable'):
      if all(iou(boxes[i], boxes[j]) < 0.5 for j in chosen):
        chosen.append(i)
    kept += [(label, i) for i in chosen]
  return sorted(kept, key=lambda pair: -scores[pair[1], pair[0]])[:100]


def expected_of(scores, words, tower, of_picture):
  """Boxes in the square, labels and scores of one picture."""
  crops, valid, objectness, refined, text_scores, picture, resized, _ = of_picture
  boxes = refined if scores == 'text+clip-crops' else crops
  keep = valid & (area(crops) > 0) & (area(boxes) > 0)
  cosine = tower.embed(picture, crops[keep] / np.tile(resized.scale, 2)).astype(np.float64) @ words.embeddings.T
  powers = np.exp((cosine - cosine.max(1, keepdims=True)) / 0.1)
  values = powers / powers.sum(1, keepdims=True)
  if scores == 'text+clip-crops':
    exponent = np.where(IS_BASE, 0.75, 0.25)
    values = text_scores[keep] ** exponent * values ** (1 - exponent)
  if scores == 'clip-crops/with_objectness':
    values = values * objectness[keep][:, None]
  pairs = greedy(boxes[keep], values)
  labels, index = np.array(pairs).T
  return boxes[keep][index], labels, values[index, labels]


@pytest.mark.parametrize('scores', ['clip-crops', 'clip-crops/with_objectness', 'text+clip-crops'])
def test_detections_are_what_the_method_says(made, regions, scores):
  folder, words, _, _ = made
  tower = PilTower(teacher_checkpoint.load_teacher(folder / 'teacher'))
  results = json.loads((folder / scores / 'results.json').read_text())
  assert any(not of_picture[1].all() for of_picture in regions.values()), 'padding among the proposals'
  for image_id, of_picture in regions.items():
    boxes, labels, values = expected_of(scores, words, tower, of_picture)
    height, width = of_picture[5].shape[:2]
    original = np.clip(boxes / np.tile(of_picture[6].scale, 2), 0, [height, width] * 2)
    found = [r for r in results if r['image_id'] == image_id]
    assert len(found) == len(boxes) > 10
    wanted = sorted(zip(labels, -values, range(len(boxes)), strict=True))
    found.sort(key=lambda r: (IDS[r['category_id']], -r['score']))
    assert [IDS[r['category_id']] for r in found] == [label for label, *_ in wanted]
    np.testing.assert_allclose([r['score'] for r in found], [-value for _, value, _ in wanted], rtol=2e-3, atol=1e-9)
    x, y, w, h = np.array([r['bbox'] for r in found]).T
    np.testing.assert_allclose(np.stack([y, x, y + h, x + w], 1), original[[i for *_, i in wanted]], atol=2e-2)


def test_masks_are_of_the_final_boxes(made, regions):
  folder, words, _, _ = made
  tower = PilTower(teacher_checkpoint.load_teacher(folder / 'teacher'))
  of_picture = regions[7]  # 64 x 64, so that the picture is the square
  boxes, labels, _ = expected_of('text+clip-crops', words, tower, of_picture)
  inside = np.asarray(of_picture[7](boxes[None, :1]))[0, 0] > 0
  found = [r for r in json.loads((folder / 'text+clip-crops' / 'results.json').read_text()) if r['image_id'] == 7]
  best = max(found, key=lambda r: r['score'])
  assert IDS[best['category_id']] == labels[0]
  mask = rle.decode_mask(best['segmentation'], 64, 64)
  np.testing.assert_allclose(mask.sum() / area(boxes[0]), inside.mean(), atol=0.1)


def test_both_rows_come_from_one_pass_of_crops(made):
  folder, _, metrics, towers = made
  asked = [boxes for boxes in towers[0].boxes if len(boxes) > 1]  # one box alone warms up
  assert len(asked) == len(small_set.SIZES) and all((area(boxes) > 0).all() for boxes in asked)
  row = metrics['clip-crops']
  assert row['box'] != row['with_objectness']['box'] or row['mask'] != row['with_objectness']['mask']
  assert row['seconds_per_image'] == row['with_objectness']['seconds_per_image'] > 0
  assert json.loads((folder / 'clip-crops' / 'metrics.json').read_text())['with_objectness'] == row['with_objectness']
  below = json.loads((folder / 'clip-crops' / 'with_objectness' / 'metrics.json').read_text())
  assert below['mask'] == row['with_objectness']['mask']
  assert 'with_objectness' not in metrics['text+clip-crops']


def test_exponents_of_base_and_novel_are_swapped():
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(1, 4, 8)).astype(np.float32)
  words = Vocabulary(
    jnp.asarray(np.pad(np.eye(3, 8, dtype=np.float32), ((0, 1), (0, 0)))),
    jnp.asarray([True, False, True, False]),
    jnp.asarray([True, True, True, False]),
  )
  variables = {'params': {'background': jnp.ones(8)}}
  model = dataclasses.replace(CONFIG.model, temperature=0.5)
  of = lambda text_scores: np.asarray(
    crop_baselines.crop_scores(
      model,
      variables,
      crop_baselines.Candidates({}, None, None, None, None, text_scores),
      jnp.asarray(embeddings),
      words,
    )
  )
  alone = of(None)
  cosine = embeddings[0, :, :3] / np.linalg.norm(embeddings[0], axis=1, keepdims=True)
  powers = np.exp(cosine / 0.5)
  np.testing.assert_allclose(alone[0, :, :3], powers / powers.sum(1, keepdims=True), rtol=1e-5)
  assert (alone[..., 3] == 0).all()
  joint = of(jnp.full((1, 4, 4), 0.5))
  np.testing.assert_allclose(joint[0, :, 0], 0.5**0.75 * alone[0, :, 0] ** 0.25, rtol=1e-5)
  np.testing.assert_allclose(joint[0, :, 1], 0.5**0.25 * alone[0, :, 1] ** 0.75, rtol=1e-5)


def test_the_tower_is_the_teachers(made):
  folder, words, _, _ = made
  tower = crop_baselines.crop_tower(folder / 'teacher', CONFIG, words, 'clip-crops')
  image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
  boxes = np.array([[3.2, 4.1, 20.7, 22.3], [0, 0, 40, 30]], np.float32)
  expected = PilTower(teacher_checkpoint.load_teacher(folder / 'teacher')).embed(image, boxes)
  assert tower.embedding_dim == 8 and (np.sum(tower.embed(image, boxes) * expected, axis=1) > 0.999).all()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['run', '--scores', 'clip-crops'], 'expected --teacher DIR or a teacher in the config'),
    (
      ['run', '--scores', 'clip-crops', '--model.postprocess.temperature=0.1', '--teacher', 'teacher'],
      'takes neither model.postprocess.temperature nor objectness_weight',
    ),
    (['run', '--scores', 'clip-crops', '--teacher', 'other'], "other is of teacher 'clip"),
    (['run', '--scores', 'text+clip-crops', '--teacher', 'words'], 'words is not a teacher directory'),
    (['ensemble', '--scores', 'text+clip-crops', '--teacher', 'teacher'], 'but model.image_head is true; expected'),
    (['image', '--scores', 'text+clip-crops', '--teacher', 'teacher'], 'but model.background is false; expected'),
  ],
)
def test_what_cannot_be_scored_is_one_line_before_anything_is_written(made, capsys, tmp_path, words, message):
  folder, vocabulary_file, _, _ = made
  name, *rest = words
  if name == 'image':
    (folder / 'image').mkdir(exist_ok=True)
    config = config_lib.override(CONFIG, ['model.background=false'])
    (folder / 'image' / 'config.json').write_text(config_lib.to_text(config))
    vocabulary.save(folder / 'image' / 'vocabulary.npz', vocabulary_file)
  if rest[-1] == 'other':
    teacher = teacher_checkpoint.load_teacher(folder / 'teacher')
    changed = {**teacher.params, 'text': jax.tree.map(lambda x: 2 * x, teacher.params['text'])}
    teacher_checkpoint.save_teacher(folder / 'other', dataclasses.replace(teacher, params=changed))
  if '--teacher' in rest:
    rest[-1] = str(folder / rest[-1])
  assert (
    cli.main(
      [
        'evaluate',
        str(folder / name / 'config.json'),
        '--checkpoint',
        str(folder / name),
        '--data',
        str(folder / 'data'),
        '--out',
        str(tmp_path / 'o'),
        *rest,
      ]
    )
    == 2
  )
  error = capsys.readouterr().err.strip()
  assert message in error and len(error.splitlines()) == 1, error
  assert not (tmp_path / 'o').exists()
