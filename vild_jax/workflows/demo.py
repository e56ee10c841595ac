"""Runs the whole pipeline on the built-in toy world, offline: data, teacher, training, evaluation, report.

Each stage does what its command does and writes its result into the work directory. Finished stages are skipped, so an
interrupted demo continues.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vild_jax
from vild_jax import config as config_lib
from vild_jax import vocabulary
from vild_jax.config import Config, defaults
from vild_jax.data import class_lists, pictures, prepare, sources
from vild_jax.demo import crops as toy_crops
from vild_jax.demo import lesson as toy_lesson
from vild_jax.demo import teacher as toy_teacher
from vild_jax.demo import world as toy_world
from vild_jax.demo.methods import DEFAULT, HEADS, METHODS, to_run
from vild_jax.eval import summary
from vild_jax.inference import evaluation
from vild_jax.inference.detector import Detector, load
from vild_jax.report import lesson as lesson_lib
from vild_jax.report import report
from vild_jax.runtime import locks
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import image, prompts, text, zero_shot
from vild_jax.train import writers
from vild_jax.workflows import distilling, evaluating, exporting, training
from vild_jax.workflows.stages import Stages

_TEACHER_CROPS = 16_000
_TEACHER_STEPS = 900
_START_STEPS = 120
_GALLERY = 12
_DISTILLATION = 'distillation.weight'  # the methods that change it need regions
_PROPOSALS = 32  # proposals of a picture that the teacher embeds; each training step draws some of them
_OF_HEADS = (
  ' The ViLD-ensemble has two heads, and a row of its own for each. They come from one training and share a backbone, '
  'which also hears the teacher: they are not the separately trained ViLD-text and ViLD-image.'
)
# Seconds of the stages on two cores, for the line that says how long is left.
_SECONDS = {
  'world': 12,
  'prepare': 4,
  'teacher': 120,
  'embed_text': 2,
  'start': 85,
  'propose': 14,
  'embed_regions': 36,
  'train': 195,
  'evaluate': 42,
  'export': 2,
  'gallery': 16,
}


def run(
  workdir: Path, *, seed: int = 0, methods: Sequence[str] = DEFAULT, json_file: str | None = None
) -> report.Report:
  """Runs the demo into `workdir` and writes `report.html` and `report.json` there; prints the metrics.

  Args:
    workdir: a new folder, or that of a demo with the same seed, whose finished stages are not run again.
    seed: random seed.
    methods: names in `demo.methods.METHODS`; ViLD-text is run with any other than the ViLD-ensemble alone.
    json_file: path of a copy of `report.json`, or None.

  Returns:
    What the report shows.

  Raises:
    FolderInUse: another process works in `workdir`.
    ValueError: the seed is out of range, a method is unknown, or `workdir` holds a demo with another seed or other
      settings.
  """
  if not 0 <= seed < 2**32:
    raise ValueError(f'--seed is {seed}; expected a number from 0 to below 2**32')
  if unknown := [method for method in methods if method not in METHODS]:
    raise ValueError(f'--methods has {unknown[0]!r}; expected some of {", ".join(METHODS)}')
  chosen = to_run(methods)
  workdir = workdir.resolve()  # configs store paths of this folder
  with locks.locked(workdir):
    return _run(workdir, seed, chosen, json_file)


def _run(workdir: Path, seed: int, chosen: Sequence[str], json_file: str | None) -> report.Report:
  world, data, teacher = (workdir / name for name in ('world', 'data', 'teacher'))
  classes = workdir / 'vocabulary.npz'
  config = toy_config(data / 'toy', classes, teacher, seed)
  stages = Stages(workdir, seed, _fingerprint(config), _expected(chosen))
  counts = stages.run(
    'world', 'Drew the toy world: pictures with LVIS-format annotations.', lambda: toy_world.generate(world, seed=seed)
  )
  stages.run('prepare', 'Prepared both splits as TFDS data sets in ArrayRecord.', lambda: _prepare(world, data))
  accuracy = stages.run(
    'teacher',
    'Trained a small CLIP on captioned pictures of single objects of all classes.',
    lambda: _train_teacher(teacher, seed, data / 'toy'),
  )
  stages.run(
    'embed_text', 'Embedded the class names as text: the vocabulary.', lambda: _embed_text(world, teacher, classes)
  )
  start = config_lib.override(config, ['name=start_toy', f'train.steps={_START_STEPS}'])
  stages.run(
    'start',
    f'Trained a ViLD-text on base classes for {start.train.steps} steps of {start.data.batch_size} pictures, as long '
    'as proposals need; its first stage is what every method starts from, with heads of its own.',
    lambda: _train(start, workdir / 'start'),
  )
  config = config_lib.override(config, [f'train.init_first_stage={workdir / "start"}'])
  metrics, titles = {}, {}
  for method in chosen:
    found = _run_method(method, stages, config, workdir)
    metrics[method], titles[method] = found, METHODS[method].title
    for head, (key, title) in HEADS.items():
      if head in found:
        metrics[key], titles[key] = found.pop(head), title
  best = _best(chosen)
  bundle = workdir / _stage('bundle', best)
  stages.run(
    _stage('export', best),
    f'Exported a bundle of {METHODS[best].title} with the text tower, for any names.',
    lambda: str(exporting.export(_config_of(best, config, workdir), workdir / best, bundle, teacher=config.teacher)),
  )
  gallery, lesson = stages.measure(
    'gallery',
    'Loaded the bundle and drew its detections: beside the ground truth, and beside what the teacher says.',
    lambda: _drawn(bundle, config, METHODS[best].title),
  )
  made = report.Report(
    title='vild_jax on the toy world',
    summary=f'{", ".join(METHODS[method].title for method in chosen)}, trained from scratch on the base classes of a '
    'procedural world. A class is a combination of shape and pattern with a noun of its own; training never '
    'saw annotations of the novel ones, which are found with the knowledge of the teacher.'
    + (_OF_HEADS if 'vild_ensemble' in chosen else '')
    + (' The supervised baseline is trained on all of them.' if 'supervised' in chosen else ''),
    seed=seed,
    stages=stages.done,
    data={'training': counts['train'], 'validation': counts['val']},
    methods=metrics,
    titles=titles,
    curves={
      METHODS[method].title: writers.read_metrics(workdir / method / writers.METRICS_FILE)
      for method in chosen
      if METHODS[method].trained
    },
    gallery=gallery,
    gallery_note=f'Predictions of {METHODS[best].title} with a score of 0.3 or more, of the validation pictures.',
    machine={
      'command': shlex.join(['vild-jax', *sys.argv[1:]]),
      'processor cores': os.cpu_count(),
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'Python': platform.python_version(),
      'jax': jax.__version__,
      'vild_jax': vild_jax.__version__,
      'toy teacher, zero-shot accuracy on the boxes of the validation objects': ', '.join(
        f'{kind} {100 * share:.1f} %' for kind, share in accuracy.items()
      ),
    },
    lesson=lesson,
    classes=toy_lesson.class_cards(seed),
  )
  report.write_html(workdir / 'report.html', made)
  report.write_json(workdir / 'report.json', made)
  if json_file:
    report.write_json(json_file, made)
  for method, title in titles.items():
    print(f'{title}\n{summary.table(metrics[method])}')
  print(f'report: {workdir / "report.html"}')
  return made


def _expected(chosen: Sequence[str]) -> dict[str, float]:
  """Returns {stage: its usual seconds} of all stages, in the order in which they run."""
  names = {name: name for name in ('world', 'prepare', 'teacher', 'embed_text', 'start')}
  for method in chosen:
    if _DISTILLATION in ' '.join(METHODS[method].changes):
      names |= {'propose': 'propose', 'embed_regions': 'embed_regions'}
    parts = ('train', 'evaluate') if METHODS[method].trained else ('evaluate',)
    names |= {_stage(part, method): part for part in parts}
  names |= {_stage('export', _best(chosen)): 'export', 'gallery': 'gallery'}
  return {stage: _SECONDS[part] for stage, part in names.items()}


def _best(chosen: Sequence[str]) -> str:
  """Returns the method whose bundle is exported."""
  return next(method for method in ('vild_ensemble', 'vild', 'vild_text') if method in chosen)


def _run_method(method: str, stages: Stages, config: Config, workdir: Path) -> dict[str, Any]:
  """Trains one method, if it is trained at all, evaluates it, and returns its metrics."""
  own, folder, name = _config_of(method, config, workdir), workdir / method, METHODS[method].title
  if own.distillation.weight:
    stages.run(
      'propose',
      'Proposed regions of all pictures by the network that every method starts from.',
      lambda: _propose(config, workdir),
    )
    stages.run(
      'embed_regions', 'Embedded their 1x and 1.5x crops by the teacher.', lambda: _embed_regions(config, workdir)
    )
  if METHODS[method].trained:
    kinds = 'base and novel classes' if own.assignment.novel_labels else 'base classes'
    stages.run(
      _stage('train', method),
      f'Trained {name} on {kinds} for {own.train.steps} steps of {own.data.batch_size} pictures.',
      lambda: _train(own, folder),
    )
  return stages.run(
    _stage('evaluate', method),
    f'{name}: detected on the validation pictures and scored by the LVIS protocol.',
    lambda: _evaluate(
      own,
      folder if METHODS[method].trained else workdir / 'vild_text',
      folder / 'evaluation',
      scores=METHODS[method].scores,
      regions=workdir / 'regions_val' if own.distillation.weight else None,
    ),
  )


def _propose(config: Config, workdir: Path) -> None:
  for split, end in _splits(config):
    distilling.propose(
      config,
      workdir / 'start',
      config.data.train,
      split,
      workdir / f'proposals{end}',
      max_proposals=_PROPOSALS,
      images_per_shard=250,
    )


def _embed_regions(config: Config, workdir: Path) -> None:
  for split, end in _splits(config):
    distilling.embed_regions(
      config.teacher,
      config.data.train,
      split,
      str(workdir / f'proposals{end}'),
      workdir / f'regions{end}',
      max_regions=_PROPOSALS,
      dtype='float32',
      batch_size=2 * _PROPOSALS,
      images_per_shard=250,
    )


def _splits(config: Config) -> tuple[tuple[str, str], ...]:
  """Returns (split, suffix of its stores' names) for each split that has regions."""
  return (config.data.train_split, ''), (config.data.val_split, '_val')


def _stage(what: str, method: str) -> str:
  return what if method == 'vild_text' else f'{what}_{method}'


def _config_of(method: str, config: Config, workdir: Path) -> Config:
  changes = [*METHODS[method].changes, f'name={method}_toy']
  if _DISTILLATION in ' '.join(changes):
    changes.append(f'distillation.store={workdir / "regions"}')
  return config_lib.override(config, changes) if METHODS[method].trained else config


def toy_config(data: Path, classes: Path, teacher: Path, seed: int) -> Config:
  """Returns `configs/vild_text_toy.py` with the paths and the seed of the demo."""
  # The folder is beside the package in a source tree, and inside it after an installation from a wheel.
  package = Path(vild_jax.__file__).parent
  folder = next((f for f in (package.parent / 'configs', package / 'configs') if f.is_dir()), package)
  config = config_lib.load(folder / 'vild_text_toy.py')
  return dataclasses.replace(
    config,
    seed=seed,
    vocabulary=str(classes),
    teacher=str(teacher),
    data=dataclasses.replace(config.data, train=str(data), val=str(data)),
    train=dataclasses.replace(config.train, pictures=0),  # they would make each training compile a detector too
  )


def _fingerprint(config: Config) -> str:
  """Returns a hash of all settings that the results of the stages depend on, except the seed."""
  plain = dataclasses.replace(
    config, seed=0, vocabulary='', teacher='', data=dataclasses.replace(config.data, train='', val='')
  )
  settings = [
    toy_world.GENERATOR_VERSION,
    _TEACHER_CROPS,
    _TEACHER_STEPS,
    _START_STEPS,
    _PROPOSALS,
    {name: dataclasses.asdict(method) for name, method in METHODS.items()},
    config_lib.to_text(plain),
  ]
  return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _prepare(world: Path, data: Path) -> None:
  for split in ('train', 'val'):
    prepare.prepare(_annotations(world, split), world / split, data)


def _train_teacher(teacher: Path, seed: int, data: Path) -> dict[str, float]:
  """Trains the toy teacher; returns its zero-shot accuracy on the ground-truth boxes of base and novel objects."""
  names = toy_world.caption_names()
  draw = lambda: toy_crops.captioned_crops(seed, _TEACHER_CROPS)
  return _teacher_accuracy(toy_teacher.train(draw, names, teacher, seed=seed, steps=_TEACHER_STEPS), data)


def _teacher_accuracy(teacher: teacher_checkpoint.Teacher, data: Path) -> dict[str, float]:
  dataset = sources.open_dataset(data, 'val')
  row = {category.id: i for i, category in enumerate(dataset.categories)}
  crops, labels = [], []
  for i in range(len(dataset)):
    example = dataset[i]
    picture = pictures.decode_example(example)
    for (y1, x1, y2, x2), category in zip(
      np.rint(example.objects.boxes).astype(int), example.objects.category_ids, strict=True
    ):
      crops.append(picture[y1:y2, x1:x2])
      labels.append(row[int(category)])
  right = zero_shot.is_right(
    teacher, crops, labels, [c.name for c in dataset.categories], prompts.load_templates(defaults.PROMPTS)
  )
  novel = np.array([dataset.categories[label].frequency == 'r' for label in labels])
  return {'base': float(right[~novel].mean()), 'novel': float(right[novel].mean())}


def _embed_text(world: Path, teacher: Path, out: Path) -> None:
  classes = class_lists.class_list(_annotations(world, 'train'))
  vocabulary.save(out, text.load_text(teacher).vocabulary(classes.names, classes.is_base, defaults.PROMPTS))


def _train(config: Config, folder: Path) -> None:
  training.train(config, folder)


def _evaluate(config: Config, folder: Path, out: Path, *, scores: str, regions: Path | None) -> dict[str, Any]:
  metrics = evaluating.evaluate(
    config, folder, config.data.val, config.data.val_split, out, scores=scores, teacher=config.teacher, regions=regions
  )
  return {key: metrics[key] for key in evaluating.METRICS if key in metrics and key != 'with_objectness'}


def _drawn(bundle: Path, config: Config, title: str) -> tuple[list[report.Pair], lesson_lib.Lesson]:
  """Returns the gallery, and the figure of what was learnt from what."""
  detector = load(bundle)
  gallery = _gallery(detector, config)
  tower = image.ImageTower(teacher_checkpoint.load_teacher(config.teacher), batch_size=2)  # two crops of an object

  def detect(picture: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
    found = detector.detect(picture)
    return found.boxes, [detector.vocabulary.names[i] for i in found.labels], found.scores

  return gallery, toy_lesson.lesson(
    sources.open_dataset(config.data.train, config.data.train_split),
    sources.open_dataset(config.data.val, config.data.val_split),
    detector.vocabulary,
    tower.embed_images,
    detect,
    finder=title,
    distils=title != METHODS['vild_text'].title,
  )


def _gallery(detector: Detector, config: Config) -> list[report.Pair]:
  """Draws validation pictures with the detections of the bundle; up to two thirds of them have a novel object."""
  dataset = sources.open_dataset(config.data.val, config.data.val_split)
  rare = {category.id for category in dataset.categories if category.frequency == 'r'}
  examples = [dataset[i] for i in range(min(len(dataset), 8 * _GALLERY))]
  with_novel = [e for e in examples if rare & set(e.objects.category_ids.tolist())]
  without = [e for e in examples if not rare & set(e.objects.category_ids.tolist())]
  chosen = with_novel[: 2 * _GALLERY // 3] + without[: _GALLERY - min(len(with_novel), 2 * _GALLERY // 3)]
  pairs = []
  for example in chosen:
    truth, found = evaluation.drawn_pair(detector, example, dataset, detector.vocabulary)
    pairs.append(report.Pair(f'image {example.image_id}', truth, found))
  return pairs


def _annotations(world: Path, split: str) -> Path:
  return world / 'annotations' / f'toy_{split}.json'
