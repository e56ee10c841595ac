"""The student's embeddings beside the teacher's: against the head applied by hand, and plain loops for the groups."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_set, tiny
from vild_jax import detector
from vild_jax.core import roi_align
from vild_jax.data import pictures, prepare, sources, transforms
from vild_jax.distill import agreement
from vild_jax.train import sharding
from vild_jax.vocabulary import VocabularyFile

BASE = {3: True, 1: False, 8: True}  # category id -> is base
WORDS = VocabularyFile(np.eye(3, 16), ('red mug', 'ant', 'tree'), np.array([True, False, True]), 'made up', '')


class Store(dict):
  """A region store in memory."""

  def __init__(self, of, regions, **other):
    super().__init__(regions)
    self.__dict__.update(
      {'path': 'store', 'kind': 'embeddings', 'dataset': of.identity, 'teacher': 'made up', 'embedding_dim': 16} | other
    )


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  annotations, images = small_set.write(folder, stem='small_val')
  prepare.prepare(annotations, images, folder / 'data')
  return sources.open_dataset(folder / 'data', 'val')


@pytest.fixture(scope='module')
def store(dataset):
  """For each picture its objects, exactly and moved, regions anywhere, and one without area; one picture has none."""
  rng, regions = np.random.default_rng(0), {}
  for i in range(len(dataset)):
    example = dataset[i]
    height, width = example.height, example.width
    objects = example.objects.boxes
    corner, sides = rng.uniform(0, 0.5, (4, 2)), rng.uniform(0.1, 0.5, (4, 2))
    anywhere = np.concatenate([corner, corner + sides], axis=1) * ([height, width] * 2)
    boxes = np.concatenate([objects, objects + rng.uniform(-2, 2, objects.shape), anywhere, [[3, 3, 3, 9]]])
    boxes = boxes[:0] if example.image_id == 300 else boxes.astype(np.float32)
    regions[example.image_id] = SimpleNamespace(
      boxes=boxes, embeddings=rng.normal(size=(len(boxes), 16)).astype(np.float16)
    )
  return Store(dataset, regions)


def iou(a, b):
  both = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
  return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


@pytest.mark.parametrize('image_head', [True, False])
def test_the_mean_cosine_of_each_group(dataset, store, image_head):
  config = tiny.config(f'model.image_head={image_head}', 'mesh.data=1', 'evaluation.batch_size=3')
  variables = tiny.variables(config)
  found = agreement.distillation_cosine(
    config, variables, WORDS, dataset, store, mesh=sharding.make_mesh(config.mesh), regions_per_image=7
  )

  @jax.jit
  def student(image, boxes):
    module = detector.ViLD(config.model)
    features = module.apply(variables, image[None], train=False, method=detector.ViLD.features)
    pooled = roi_align.multilevel_roi_align({k: v[0] for k, v in features.items()}, boxes, output_size=7)
    head = getattr(detector.ViLD, 'image_regions' if image_head else 'regions')
    rows = module.apply(variables, pooled, jnp.ones(7, bool), train=False, method=head)
    return rows if image_head else rows[0]

  cosines = {group: [] for group in ('base', 'novel', 'other', 'all')}
  for i in range(len(dataset)):
    example = dataset[i]
    resized = transforms.resize_and_pad(pictures.decode(example.image), 64)
    regions = store[example.image_id]
    count = min(len(regions.boxes), 7)
    boxes = np.zeros((7, 4), np.float32)
    boxes[:count] = transforms.to_square(regions.boxes[:count], resized)
    rows = np.asarray(student(resized.image, boxes), np.float64)
    for j in range(count):
      box, teacher = regions.boxes[j], regions.embeddings[j].astype(np.float64)
      if (box[2:] <= box[:2]).any():
        continue
      cosine = rows[j] @ teacher / np.linalg.norm(rows[j]) / np.linalg.norm(teacher)
      overlaps = [iou(box, truth) for truth in example.objects.boxes]
      best = int(np.argmax(overlaps))
      category = int(example.objects.category_ids[best])
      group = 'other' if overlaps[best] < 0.5 else 'base' if BASE[category] else 'novel'
      cosines[group].append(cosine)
      cosines['all'].append(cosine)
  assert found['regions'] == {group: len(values) for group, values in cosines.items()}
  assert all(len(values) > 1 for values in cosines.values())
  for group, values in cosines.items():
    np.testing.assert_allclose(found[group], np.mean(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    ({'kind': 'proposals'}, 'is a store of proposals without embeddings'),
    ({'dataset': 'x'}, 'is of a data set with identity x, and'),
    ({'teacher': 'y'}, "has embeddings of teacher 'y', and the vocabulary of 'made up'"),
    ({'embedding_dim': 8}, 'has embeddings of dimension 8; expected 16'),
  ],
)
def test_a_store_that_does_not_belong_is_refused(dataset, store, other, message):
  with pytest.raises(ValueError, match=message):
    agreement.distillation_cosine(tiny.config(), {}, WORDS, dataset, Store(dataset, store, **other), mesh=None)
