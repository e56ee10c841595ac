"""Evaluates a detector on a prepared data set: detects, writes a results file, and computes metrics; draws examples.

The detections are a file (`results.json`, LVIS format), which the package `eval` scores without an accelerator.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, defaults
from vild_jax.data import batch as batches
from vild_jax.data import class_lists, pictures, rle, sources, transforms
from vild_jax.data.schema import Category, DataError, Example
from vild_jax.eval import counted, detections, lvis, protocols, results, summary
from vild_jax.eval import shards as shards_lib
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.found import Found as Rows
from vild_jax.eval.shards import Entry
from vild_jax.eval.truth import Split, Truth
from vild_jax.inference import drawing, jobs, waits
from vild_jax.inference import logits as logits_lib
from vild_jax.inference.detector import Detector, sigmoid
from vild_jax.inference.waits import Timer
from vild_jax.runtime import digests, files, progress, workers
from vild_jax.structs import Detections, Vocabulary
from vild_jax.train import sharding
from vild_jax.train.step import make_predict_step
from vild_jax.vocabulary import VocabularyFile

_WAITING = 32  # pictures whose masks are encoded while the devices go on
# The detections in one picture, by one method or by several that share computation. Each is a dictionary: image_id,
# original_size, boxes, labels, scores, masks.
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
  scores: str = defaults.MODEL,
  on_scored: Callable[[Path, Truth, Rows, dict[str, Any], Split], None] | None = None,
  logits: Path | None = None,
) -> dict[str, Any] | None:
  """Detects on every picture of `dataset`, writes `results.json`, and scores it.

  With several processes, each detects on its share of every batch, and the first merges and scores the results. If it
  is killed, the same call goes on with the detections in `out/unfinished/` (`eval.shards`).

  Args:
    config: the experiment.
    variables: {'params', 'batch_stats'}, replicated on `mesh`.
    classes: the vocabulary to detect with. Rows that are not a category of the data set take part in the softmax, but
      their detections are not written.
    trained_on: the training vocabulary, which decides what is base and what is novel.
    dataset: a prepared split.
    out: gets `results.json`, `metrics.json`, `per_category.csv` and plots.
    mesh: devices to run on.
    predict: yields detections, as `predictions` (the default) does; `crop_baselines` has another one.
    folders: names below `out`, one for each method of `predict`; the first one is '', which is `out` itself.
    scores: what `predict` does, in words: an evaluation that was killed goes on only with the same.
    on_scored: called for each folder with it, the ground truth, the detections, the metrics and the split.
    logits: folder that also gets what post-processing needs of each picture (`inference.logits`), or None; only with
      the default `predict`.

  Returns:
    The metrics of `eval.protocols.score` and `seconds_per_image` (prediction alone, without compilation). Under the
    name of each further folder stand `box`, `mask` and `seconds_per_image` of its method. In all processes but the
    first: None.

  With the COCO protocol, categories that `classes` lacks are removed from the ground truth; all pictures stay. With the
  LVIS protocol they are an error.

  Raises DataError if a category of the data set is not in the vocabulary (with the COCO protocol, only if none is), or
  if `out` holds the unfinished evaluation of something else.
  """
  sharding.check_batch_size(mesh, config.evaluation.batch_size, 'evaluation.batch_size')
  vocabulary_lib.check_dimension(classes, config)
  protocol = config.evaluation.protocol
  categories = scored_categories(dataset.categories, classes, protocol)
  category_of_row = category_ids(categories, classes)
  whole, (truth, image_ids) = dataset, sources.ground_truth(dataset, quiet=jax.process_index() > 0)
  truth, indices = _restricted(truth, categories), np.arange(len(dataset))
  if config.evaluation.only_with_objects:
    truth, indices = _with_objects(truth, image_ids)
    image_ids = [image_ids[i] for i in indices]
  if protocol.startswith('lvis'):
    lvis.check_federated(truth['images'], truth['categories'], dataset.folder)  # before the detection, which takes long
  known = truth_lib.read(truth, str(whole.folder))
  masks = protocols.masks(protocol, known) if config.model.masks else None
  if jax.process_index() == 0 and (why := protocols.boxes_alone(protocol, known, learnt=config.model.masks)):
    print(f'boxes alone are scored: {why}', file=sys.stderr)
  out.mkdir(parents=True, exist_ok=True)
  timer = Timer()
  if logits:
    keep = partial(logits_lib.write_picture, logits, len(classes.names))
    predict, scores = partial(predictions, make_step=logits_lib.make_step, keep=keep), f'{scores}, logits in {logits}'

  def detect(places: np.ndarray) -> Iterator[Entry]:
    rest = sources.Subset(whole, indices[places])
    found = (predict or predictions)(config, variables, classes, trained_on, rest, mesh, timer)
    # A program that has workers for its input can be imported again, which other processes need as well.
    chosen = (tuple(_chosen(one, category_of_row, known, masks) for one in of_picture) for of_picture in found)
    yield from _encoded(chosen, min(config.data.workers, os.cpu_count() or 1), timer)
    if jax.process_index() == 0 and (line := timer.summary()):
      print(line, file=sys.stderr)

  shards = shards_lib.Shards(
    out,
    image_ids,
    batch_size=config.evaluation.batch_size,
    processes=jax.process_count(),
    methods=len(folders),
  )
  job = {}
  if jax.process_index() == 0:
    job = jobs.description(
      config, variables, classes, trained_on, image_ids, data=whole.identity, scores=f'{scores} {",".join(folders)}'
    ) | {'choice of masks': masks.func.__name__ if masks else 'none'}

  def begin() -> None:
    if logits:
      is_base = vocabulary_lib.is_base(classes.names, trained_on)
      logits_lib.begin(logits, config, classes, is_base, category_of_row, truth, job)

  jobs.detect_missing(shards, job, detect, begin)
  if jax.process_index() > 0:
    return None
  forget = lambda: [summary.remove_reports(out / folder) for folder in folders]
  shards.merge([out / folder / summary.RESULTS_FILE for folder in folders], before=forget)
  flags = vocabulary_lib.is_base([_row_name(category, classes) for category in categories], trained_on)
  split = Split(*(frozenset(c.id for c, f in zip(categories, flags, strict=True) if f == of) for of in (True, False)))
  limits = protocols.limits(config.evaluation)
  scored, rows = {}, {}
  for folder in folders:
    several = 0 if config.data.workers else 1
    results = files.fetched(out / folder / summary.RESULTS_FILE)
    found = detections.read(results, known, processes=several)
    scored[folder] = protocols.score(protocol, known, found, base=split, **limits)
    scored[folder]['seconds_per_image'] = timer.seconds_per_image()
    scored[folder]['identity'] = {key: job[key] for key in (*jobs.DETECTOR, 'vocabulary', 'data', 'scores')} | {
      'results': digests.sha256(results)
    }
    rows[folder] = found
  metrics = scored[folders[0]]
  metrics['detector'] = {key: job[key] for key in (*jobs.DETECTOR, 'scores')}
  metrics |= {
    folder: {key: scored[folder][key] for key in ('box', 'mask', 'seconds_per_image')} for folder in folders[1:]
  }
  for folder in folders:
    summary.write_reports(out / folder, scored[folder])
  shards.remove()
  for folder in folders:
    if on_scored:
      on_scored(out / folder, known, rows[folder], scored[folder], split)
  return metrics


def predictions(
  config: Config,
  variables: Any,
  classes: VocabularyFile,
  trained_on: VocabularyFile,
  dataset: sources.PreparedDataset,
  mesh: Mesh,
  timer: Timer,
  *,
  make_step: Callable[[Config, Mesh], Callable[..., Any]] = make_predict_step,
  keep: Callable[[Any, Mapping[str, np.ndarray]], None] | None = None,
) -> Iterator[Found]:
  """Yields the detections of the model in each picture, best first, in pixels of the picture (see `Found`).

  `make_step` returns the program of a batch: it gives `Detections`, or a tuple of them, one for each method of `Found`.
  With `keep` it gives a pair, of such a result and of what `keep` takes for each picture, before that is yielded, with
  the picture's entry of the batch.
  """
  vocabulary = put_vocabulary(classes, trained_on, mesh)
  predict = make_step(config, mesh)
  size = config.evaluation.batch_size
  with bar_of(dataset) as bar:
    for number, arrays in enumerate(timer.each(local_batches(dataset, config), waits.PICTURES)):
      put = sharding.put_batch(mesh, {key: arrays[key] for key in ('image', 'image_size')})
      run = lambda put=put: sharding.local_part(predict(variables, put['image'], put['image_size'], vocabulary))
      if not timer.started:
        run()  # compiles, outside of the measured time
        timer.start()
      images = min(size, len(dataset) - number * size)
      with timer.waiting(waits.DEVICES, images):
        found = run()
      if keep:
        found, kept = found
        for i in np.flatnonzero(arrays['real']):
          keep(*jax.tree.map(lambda x, i=i: x[i], (kept, arrays)))
      for i in np.flatnonzero(arrays['real']):
        yield tuple(picture_of(one, arrays, i) for one in (found if isinstance(found, tuple) else (found,)))
      bar.set_postfix_str(f'waits: {timer.shares()}', refresh=False)
      bar.update(images)


def local_batches(dataset: sources.PreparedDataset, config: Config) -> Iterator[batches.Arrays]:
  """Yields this process's part of every batch of a split; all processes get the same number of parts."""
  return batches.eval_batches(
    dataset,
    config,
    batch_size=config.evaluation.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def bar_of(dataset: sources.PreparedDataset) -> Any:
  """Returns the progress bar of the detection on a split; only the first process shows it."""
  return progress.bar(len(dataset), 'detect', unit='image', disable=jax.process_index() > 0)


def put_vocabulary(classes: VocabularyFile, trained_on: VocabularyFile, mesh: Mesh) -> Vocabulary:
  """Returns the padded vocabulary of a forward pass, on the devices; `trained_on` decides which classes are base."""
  padded = 8 * -(-len(classes.names) // 8)
  vocabulary = vocabulary_lib.to_struct(classes, padded).replace(
    is_base=np.pad(vocabulary_lib.is_base(classes.names, trained_on), (0, padded - len(classes.names))),
    background=vocabulary_lib.background_of(classes, trained_on),
  )
  return jax.device_put(vocabulary, sharding.replicated(mesh))


def scored_categories(categories: Sequence[Category], classes: VocabularyFile, protocol: str) -> list[Category]:
  """Returns the categories whose raw name is in the vocabulary; stderr reports how many are left out.

  Open-vocabulary COCO, for example, has 65 of the 80 categories. The LVIS protocol averages over all categories, so
  there a category without a row is an error. Raises DataError for it, and for a vocabulary with none of the categories.
  """
  known = [category for category in categories if _row_name(category, classes)]
  missing = [category.name for category in categories if not _row_name(category, classes)]
  if missing and (protocol.startswith('lvis') or not known):
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
  """Returns int64 [C]: the category id of each row of the vocabulary, matched by raw name; -1 for other rows."""
  id_of = {_row_name(category, classes): category.id for category in categories}
  return np.array([id_of.get(name, -1) for name in classes.names], np.int64)


def _row_name(category: Category, classes: VocabularyFile) -> str | None:
  return class_lists.known_as(category.name, classes.names)


def _restricted(truth: dict[str, Any], categories: Sequence[Category]) -> dict[str, Any]:
  """Returns the ground truth of these categories alone; all pictures stay."""
  known = {category.id for category in categories}
  return truth | {
    'categories': [c for c in truth['categories'] if c['id'] in known],
    'annotations': [a for a in truth['annotations'] if a['category_id'] in known],
  }


def _with_objects(truth: dict[str, Any], image_ids: Sequence[int]) -> tuple[dict[str, Any], np.ndarray]:
  """The ground truth of the pictures that show an object, crowds included, and their places in the data set."""
  shown = {annotation['image_id'] for annotation in truth['annotations']}
  if not shown:
    raise DataError(f'none of the {len(image_ids)} pictures shows an object of a scored category')
  if jax.process_index() == 0:
    print(
      f'{len(shown):,} of {len(image_ids):,} pictures show an object of a scored category '
      '(evaluation.only_with_objects)',
      file=sys.stderr,
    )
  places = np.array([i for i, image_id in enumerate(image_ids) if image_id in shown], np.int64)
  return truth | {'images': [image for image in truth['images'] if image['id'] in shown]}, places


def picture_drawer(
  config: Config, trained_on: VocabularyFile, dataset: sources.PreparedDataset, count: int
) -> Callable[[Any], Mapping[str, np.ndarray]]:
  """Returns a function for the training log: variables -> {title: drawing uint8 [H, W, 3]}.

  Each drawing shows ground truth beside predictions, for the first `count` pictures of a split.
  """
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
  """Draws one picture twice, uint8 [H, W, 3]: with its ground truth, and with the detections of `detector`.

  Novel classes are marked.
  """
  image = pictures.decode_example(example)
  novel = ~vocabulary_lib.is_base(classes.names, detector.vocabulary)
  row_of_id = {key: row for row, key in enumerate(category_ids(dataset.categories, classes).tolist())}
  objects = example.objects
  shown = [i for i in range(len(objects.ids)) if not objects.is_crowd[i] and int(objects.category_ids[i]) in row_of_id]
  size = (example.height, example.width)
  masks = [rle.decode_mask(s, *size) if (s := objects.segmentations[i]) else np.zeros(size, bool) for i in shown]
  labels = np.array([row_of_id[int(objects.category_ids[i])] for i in shown], np.int32)
  truth = drawing.draw(
    image, objects.boxes[shown], labels, None, np.array(masks).reshape(-1, *image.shape[:2]), classes.names, novel=novel
  )
  found = detector.detect(image, classes, min_score=min_score)
  return truth, found.draw(image, novel=novel)


def picture_of(batch: Detections, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
  """Returns the detections in one picture of a batch (on the host) as `predictions` yields them.

  `arrays` is the batch of `eval_batches` that the detections are of.
  """
  found, row = jax.tree.map(lambda x: x[index], batch), {key: value[index] for key, value in arrays.items()}
  keep, (height, width) = found.valid, row['original_size']
  return {
    'image_id': int(row['image_id']),
    'original_size': (int(height), int(width)),
    'boxes': transforms.to_picture(found.boxes[keep], row['scale'], (height, width)),
    'labels': found.labels[keep],
    'scores': found.scores[keep],
    'masks': None if found.masks is None else sigmoid(found.masks[keep]),
  }


def _chosen(
  one: dict[str, Any], category_of_row: np.ndarray, known: Truth, masks: Callable[[Rows], np.ndarray] | None
) -> dict[str, Any]:
  """What `results.detections_to_results` takes of `Found`: detections with a category, and the masks that can count."""
  ids = category_of_row[one['labels']]
  keep = ids >= 0
  ids, scores = ids[keep], one['scores'][keep]
  masked = masks and masks(counted.of_picture(known, one['image_id'], ids, scores))
  return {
    'image_id': one['image_id'],
    'boxes': one['boxes'][keep],
    'scores': scores,
    'category_ids': ids,
    'masks': None if masked is None else one['masks'][keep][masked],
    'original_size': one['original_size'],
    'masked': masked,
  }


def _encoded(found: Iterable[Sequence[dict[str, Any]]], processes: int, timer: Timer) -> Iterator[Entry]:
  """Yields (image id, results of each method) in order; masks are pasted and encoded while the devices compute.

  `found` holds the arguments of `results.of_picture`. `processes` do it, or two threads if that is 0, which share one
  core for the most part.
  """
  with workers.pool(processes) if processes else ThreadPoolExecutor(2) as pool:
    waiting: deque[Future[Entry]] = deque()
    for of_picture in found:
      waiting.append(pool.submit(results.of_picture, of_picture))
      if len(waiting) > _WAITING:
        with timer.waiting(waits.MASKS):
          entry = waiting.popleft().result()
        yield entry
    yield from timer.each((future.result() for future in waiting), waits.MASKS)
