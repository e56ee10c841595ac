"""Evaluation of a detector on a prepared data set: pictures -> results file -> metrics; and pictures for the curious.

Predictions are a file (`results.json`, LVIS format), which `eval` then scores without an accelerator.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, defaults
from vild_jax.data import batch as batches
from vild_jax.data import rle, sources, transforms
from vild_jax.data.schema import Category, DataError, Example
from vild_jax.eval import coco, lvis, parts, results, summary
from vild_jax.inference import drawing
from vild_jax.inference.detector import Detector, sigmoid
from vild_jax.runtime import progress
from vild_jax.structs import Detections, Vocabulary
from vild_jax.train import sharding
from vild_jax.train.step import make_predict_step
from vild_jax.vocabulary import VocabularyFile

RESULTS_FILE = 'results.json'
# Of one picture, the detections of one method, or of several that share their work: image_id, original_size, boxes,
# labels, scores, masks.
Found = tuple[dict[str, Any], ...]
Predict = Callable[..., Iterator[Found]]


def evaluate(
  config: Config,
  variables: Any,
  classes: VocabularyFile,
  trained_on: VocabularyFile,
  dataset: sources.PreparedDataset,
  out: Path,
  *,
  mesh: Mesh,
  predict: Predict | None = None,
  folders: Sequence[str] = ('',),
) -> dict[str, Any] | None:
  """Detects on every picture of `dataset`, writes `results.json`, and scores it.

  Of several processes each detects on its share of every batch, and the first merges and scores their results.

  Args:
    config: the experiment.
    variables: {'params', 'batch_stats'}, replicated on `mesh`.
    classes: the vocabulary to detect with; rows that are no category of the data set compete, but are not written.
    trained_on: the training vocabulary, which decides what is base and what is novel.
    dataset: a prepared split.
    out: gets `results.json`, `metrics.json`, `per_category.csv` and plots.
    mesh: devices to run on.
    predict: what detects, as `predictions` does; the model alone by default. `baselines` has others.
    folders: below `out`, one for each method of `predict`; the first is '', `out` itself.

  Returns:
    The metrics of `eval.lvis.evaluate` with `seconds_per_image` added (prediction alone, compilation aside), and under
    the name of each further folder what its method got: `box`, `mask`, `seconds_per_image`. None in all processes but
    the first.

  By the COCO protocol the categories that `classes` lacks are left out of the ground truth, as if nobody had annotated
  them; every picture stays. By LVIS's they are an error.

  Raises DataError if a category of the data set is not in the vocabulary, or by the COCO protocol if none is.
  """
  sharding.check_batch_size(mesh, config.evaluation.batch_size, 'evaluation.batch_size')
  vocabulary_lib.check_dimension(classes, config)
  categories = scored_categories(dataset.categories, classes, config.evaluation.protocol)
  category_of_row = category_ids(categories, classes)
  truth = _restricted(sources.to_lvis_json(dataset), categories)
  if config.evaluation.protocol == 'lvis':
    lvis.check_federated(truth, dataset.folder)  # before the long part
  out.mkdir(parents=True, exist_ok=True)
  timer = Timer()
  found = (predict or predictions)(config, variables, classes, trained_on, dataset, mesh, timer)
  _write_results(_encoded(found, category_of_row), [out / folder / RESULTS_FILE for folder in folders], dataset)
  if jax.process_index() > 0:
    return None
  base = [
    category.id
    for category, flag in zip(categories, vocabulary_lib.is_base([c.name for c in categories], trained_on), strict=True)
    if flag
  ]
  protocol = {'lvis': lvis, 'coco': coco}[config.evaluation.protocol]
  scored = {}
  for folder in folders:
    scored[folder] = protocol.evaluate(
      truth,
      out / folder / RESULTS_FILE,
      base_category_ids=base,
      min_area=config.evaluation.min_area,
      min_instances=config.evaluation.min_instances,
    ) | {'seconds_per_image': timer.seconds_per_image()}
  metrics = scored[folders[0]]
  metrics |= {
    folder: {key: scored[folder][key] for key in ('box', 'mask', 'seconds_per_image')} for folder in folders[1:]
  }
  for folder in folders:
    summary.write_reports(out / folder, scored[folder])
  return metrics


def predictions(
  config: Config,
  variables: Any,
  classes: VocabularyFile,
  trained_on: VocabularyFile,
  dataset: sources.PreparedDataset,
  mesh: Mesh,
  timer: Timer,
) -> Iterator[Found]:
  """Yields for each picture, as one method's: image_id, original_size, detections in its own pixels, best first."""
  vocabulary = put_vocabulary(classes, trained_on, mesh)
  predict = make_predict_step(config, mesh)
  size = config.evaluation.batch_size
  with bar_of(dataset) as bar:
    for number, arrays in enumerate(local_batches(dataset, config)):
      put = sharding.put_batch(mesh, {key: arrays[key] for key in ('image', 'image_size')})
      run = lambda put=put: sharding.local_part(predict(variables, put['image'], put['image_size'], vocabulary))
      if not timer.warm:
        run()  # compiles
        timer.warm = True
      start = time.perf_counter()
      found = run()
      timer.add(time.perf_counter() - start, min(size, len(dataset) - number * size))
      for i in np.flatnonzero(arrays['real']):
        yield (picture_of(found, arrays, i),)
        bar.update(jax.process_count())


def local_batches(dataset: sources.PreparedDataset, config: Config) -> Iterator[batches.Arrays]:
  """This process's part of every batch of a split, as many for each process."""
  return batches.eval_batches(
    dataset,
    config,
    batch_size=config.evaluation.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def bar_of(dataset: sources.PreparedDataset) -> Any:
  """The bar of detecting on a split, in the first process."""
  return progress.bar(len(dataset), 'detect', unit='image', disable=jax.process_index() > 0)


def put_vocabulary(classes: VocabularyFile, trained_on: VocabularyFile, mesh: Mesh) -> Vocabulary:
  """The argument of a forward pass, padded, on the devices; base is what is base in training."""
  padded = 8 * -(-len(classes.names) // 8)
  vocabulary = vocabulary_lib.to_struct(classes, padded).replace(
    is_base=np.pad(vocabulary_lib.is_base(classes.names, trained_on), (0, padded - len(classes.names)))
  )
  return jax.device_put(vocabulary, sharding.replicated(mesh))


def scored_categories(categories: Sequence[Category], classes: VocabularyFile, protocol: str) -> list[Category]:
  """The categories that have a row in the vocabulary, by their raw names; stderr says what is left out.

  Open-vocabulary COCO has 65 of the 80. LVIS averages over all, so that one without a row is a DataError there.
  """
  names = set(classes.names)
  known = [category for category in categories if category.name in names]
  missing = [category.name for category in categories if category.name not in names]
  if missing and (protocol == 'lvis' or not known):
    raise DataError(
      f'{len(missing)} categories of the data set are not in the vocabulary, {missing[0]!r} for one; '
      f'expected a row for {"each" if known else "some"} (by its raw name)'
    )
  if missing:
    print(
      f'{len(missing)} of {len(categories)} categories of the data are not in the vocabulary, {missing[0]!r} for '
      'one; they are not scored',
      file=sys.stderr,
    )
  return known


def category_ids(categories: Sequence[Category], classes: VocabularyFile) -> np.ndarray:
  """int64 [C]: the id of the category of each vocabulary row, matched by raw name; -1 for other rows."""
  id_of = {category.name: category.id for category in categories}
  return np.array([id_of.get(name, -1) for name in classes.names], np.int64)


def _restricted(truth: dict[str, Any], categories: Sequence[Category]) -> dict[str, Any]:
  """Ground truth of these categories alone."""
  known = {category.id for category in categories}
  return truth | {
    'categories': [c for c in truth['categories'] if c['id'] in known],
    'annotations': [a for a in truth['annotations'] if a['category_id'] in known],
  }


def picture_drawer(
  config: Config, trained_on: VocabularyFile, dataset: sources.PreparedDataset, count: int
) -> Callable[[Any], Mapping[str, np.ndarray]]:
  """variables -> {title: ground truth beside predictions} on the first pictures of a split, for the training log."""
  examples = [dataset[i] for i in range(min(count, len(dataset)))]

  def draw(variables: Any) -> Mapping[str, np.ndarray]:
    detector = Detector(config, jax.device_get(variables), trained_on)
    return {
      f'predictions/{example.image_id}': drawing.side_by_side(*drawn_pair(detector, example, dataset, trained_on))
      for example in examples
    }

  return draw


def drawn_pair(
  detector: Detector,
  example: Example,
  dataset: sources.PreparedDataset,
  classes: VocabularyFile,
  *,
  min_score: float = defaults.DRAWN_MIN_SCORE,
) -> tuple[np.ndarray, np.ndarray]:
  """One picture drawn twice: with its ground truth, and with what `detector` finds; novel classes are marked."""
  image = transforms.decode(example.image, f'image {example.image_id}')
  novel = ~vocabulary_lib.is_base(classes.names, detector.vocabulary)
  row_of_name = {name: row for row, name in enumerate(classes.names)}
  row_of_id = {
    category.id: row_of_name[category.name] for category in dataset.categories if category.name in row_of_name
  }
  objects = example.objects
  shown = [
    i
    for i in range(len(objects.ids))
    if not objects.is_crowd[i] and objects.segmentations[i] and int(objects.category_ids[i]) in row_of_id
  ]
  masks = [rle.decode_mask(objects.segmentations[i], example.height, example.width) for i in shown]
  labels = np.array([row_of_id[int(objects.category_ids[i])] for i in shown], np.int32)
  truth = drawing.draw(
    image, objects.boxes[shown], labels, None, np.array(masks).reshape(-1, *image.shape[:2]), classes.names, novel=novel
  )
  found = detector.detect(image, classes, min_score=min_score)
  guess = drawing.draw(image, found.boxes, found.labels, found.scores, found.masks, classes.names, novel=novel)
  return truth, guess


class Timer:
  """Prediction time, compilation and what pads the last batch aside."""

  def __init__(self):
    self.warm = False
    self._seconds, self._images = 0.0, 0

  def add(self, seconds: float, images: int) -> None:
    """Counts `seconds` that detecting on `images` pictures took."""
    self._seconds, self._images = self._seconds + seconds, self._images + images

  def seconds_per_image(self) -> float:
    """The mean; NaN where nothing was counted."""
    return self._seconds / self._images if self._images else float('nan')


def picture_of(batch: Detections, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
  """One picture of a batch of detections (on the host) and of `eval_batches`, as `predictions` yields it."""
  found, row = jax.tree.map(lambda x: x[index], batch), {key: value[index] for key, value in arrays.items()}
  keep, (height, width) = found.valid, row['original_size']
  return {
    'image_id': int(row['image_id']),
    'original_size': (int(height), int(width)),
    'boxes': transforms.to_picture(found.boxes[keep], row['scale'], (height, width)),
    'labels': found.labels[keep],
    'scores': found.scores[keep],
    'masks': sigmoid(found.masks[keep]),
  }


def _write_results(
  pictures: Iterator[tuple[int, list[list[results.Result]]]], paths: Sequence[Path], dataset: sources.PreparedDataset
) -> None:
  """Writes the results of each method to its path: all of them, or this process's part, which the first merges."""
  count, index = jax.process_count(), jax.process_index()
  run = ''
  if count > 1:
    if index == 0:
      for path in paths:
        parts.remove_parts(path)
    number = np.frombuffer(os.urandom(4), np.uint32)
    run = f'{int(multihost_utils.broadcast_one_to_all(number)[0]):08x}'  # comes to all after the old parts are gone
  with contextlib.ExitStack() as stack:
    writers = [
      stack.enter_context(parts.PartWriter(path, run, index) if count > 1 else results.ResultsWriter(path))
      for path in paths
    ]
    for image_id, of_picture in pictures:
      for writer, found in zip(writers, of_picture, strict=True):
        writer.write(image_id, found)
  if count > 1 and index == 0:
    image_ids = [dataset[i].image_id for i in range(len(dataset))]
    for path in paths:
      parts.merge(path, run, count, image_ids)


def _encoded(found: Iterator[Found], category_of_row: np.ndarray) -> Iterator[tuple[int, list[list[results.Result]]]]:
  """(image id, results of each method). Pastes and encodes masks in threads while the devices go on; in order."""

  def encode(one: dict[str, Any]) -> list[results.Result]:
    ids = category_of_row[one['labels']]
    known = ids >= 0
    return results.detections_to_results(
      one['image_id'], one['boxes'][known], one['scores'][known], ids[known], one['masks'][known], one['original_size']
    )

  with ThreadPoolExecutor(2) as pool:
    waiting = []
    for of_picture in found:
      waiting.append(pool.submit(lambda every: (every[0]['image_id'], [encode(one) for one in every]), of_picture))
      if len(waiting) > 32:
        yield waiting.pop(0).result()
    for future in waiting:
      yield future.result()
