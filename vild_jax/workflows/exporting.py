"""Exports a work directory, or a bundle, as a bundle or as a portable model, which runs without this package."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, defaults
from vild_jax.eval import summary
from vild_jax.inference import bundle, jobs
from vild_jax.portable import folder as portable_folder
from vild_jax.portable import program
from vild_jax.runtime import compiler, files, reading
from vild_jax.train import bundle_files, checkpoint, weights
from vild_jax.workflows.training import DATA_FILE

# What a bundle keeps of it.
_KEPT = ('protocol', 'detections_counted', 'annotations', 'images', 'categories', 'objects', 'box', 'mask', 'versions')


def export(
  config: Config,
  folder: str | Path,
  out: Path,
  *,
  teacher: str | None = None,
  image_tower: bool = False,
  step: int | None = None,
  license: str | None = None,
  metrics: str | None = None,
) -> Path:
  """Writes a bundle and returns its folder.

  Args:
    config: the experiment that the checkpoint was trained with.
    folder: the work directory or bundle, or the name of a bundle on the hub (`hf://owner/name`).
    out: folder of the bundle: a new one, or an older bundle to replace.
    teacher: folder of the teacher whose text tower the bundle keeps, or its name on the hub; by default the text tower
      of the bundle `folder`, else that of the config's teacher; if there is none, the bundle has none.
    image_tower: whether the bundle keeps the teacher's image tower too, for example pictures; that of the bundle
      `folder` stays in any case.
    step: which checkpoint of the work directory; by default the newest.
    license: the identifier of a licence, such as apache-2.0, for the model card.
    metrics: file of metrics of `evaluate` or `score` for the model card; by default those that `evaluate` has written
      about these weights and settings in a folder of the work directory.

  Raises ValueError if config and checkpoint do not fit each other, the metrics are of other weights or settings, or
  there is no teacher to take an image tower of; other errors are those of `bundle.export_bundle`.
  """
  folder = weights.folder_of(folder)
  check_same = bundle_files.watched(folder)
  if image_tower and not (teacher or config.teacher or (folder / bundle_files.IMAGE_TOWER).is_dir()):
    raise ValueError('--image-tower keeps a tower of the teacher; expected --teacher DIR or a teacher in the config')
  config = checkpoint.same_model(config, folder)
  about = bundle_files.read_about(folder) if bundle_files.is_bundle(folder) else None
  if about is None:
    step = weights.step_of(weights.find(folder, step))  # a training that runs may save another meanwhile
  variables = checkpoint.load_variables(folder, config, step=step)
  path = files.fetched(folder / checkpoint.VOCABULARY_FILE)
  vocabulary = vocabulary_lib.load(path)
  check_same()
  of_these = jobs.of_detector(config, variables, vocabulary)
  training = _training(folder, step) if about is None else about.get('training')
  if metrics:
    found = [_given_metrics(Path(metrics), of_these)]
  elif about is None:
    found = _metrics_beside(folder, of_these)
  else:
    found = [kept for kept in about.get('metrics', []) if kept.get('detector', of_these) == of_these]
  text, images = _towers(config, folder, about is not None, teacher, image_tower)
  if teacher:
    config = dataclasses.replace(config, teacher=teacher)
  return bundle.export_bundle(
    out,
    config,
    variables,
    path,
    vocabulary_teacher=vocabulary.teacher,
    teacher=text,
    image_tower=images,
    training=training,
    metrics=found,
    license=license or (about or {}).get('license'),
  )


def export_portable(
  config: Config,
  folder: str | Path,
  out: Path,
  form: str,
  *,
  suppress: bool = True,
  step: int | None = None,
  license: str | None = None,
  classes: int | None = None,
  onnx_python: str | None = None,
) -> Path:
  """Writes a model that runs without this package, and returns its folder (`vild_jax.portable.folder`).

  Args:
    config, folder, step, license: as `export` takes them.
    out: a new folder, or an older portable model to replace.
    form: one of `defaults.PORTABLE`.
    suppress: whether the model chooses detections; if not, it gives boxes, scores and features.
    classes: of ONNX, the most that it takes, if more than the training vocabulary has; padded to a power of two.
    onnx_python: of ONNX, the interpreter that has jax2onnx; None: this one.

  Raises ValueError if config and checkpoint do not fit each other, what writes the form is not installed, or `out`
  exists and is no portable model.
  """
  writer = importlib.import_module(f'vild_jax.portable.{form}')
  where = (onnx_python or sys.executable,) if form == defaults.ONNX else ()
  writer.check(*where)
  folder = weights.folder_of(folder)
  check_same = bundle_files.watched(folder)
  config = checkpoint.same_model(config, folder)
  about = bundle_files.read_about(folder) if bundle_files.is_bundle(folder) else {}
  variables = jax.device_get(checkpoint.load_variables(folder, config, step=step))
  path = files.fetched(folder / checkpoint.VOCABULARY_FILE)
  vocabulary = vocabulary_lib.load(path)
  check_same()
  sizes = {}
  if form != defaults.STABLEHLO:  # of the runtimes, this one alone has bfloat16 for all operations
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype='float32'))
  if form == defaults.ONNX:
    fewest = program.fewest_classes(config.model)
    sizes = {'b': 1, 'c': compiler.bucket(max(len(vocabulary.names), classes or 0), fewest)}
  source = program.Source(config, variables, vocabulary.background, suppress, sizes)
  write = lambda out, source: writer.write(out, source, *where)
  return portable_folder.write(out, form, source, path, write, license=license or about.get('license'))


def _towers(
  config: Config, folder: Path, is_bundle: bool, teacher: str | None, image_tower: bool
) -> tuple[str | Path | None, str | Path | None]:
  """Returns whence the text tower and the image tower come; None for one that the bundle will not have."""
  of_bundle = lambda name: folder / name if is_bundle and (folder / name).is_dir() else None
  named = teacher or config.teacher or None
  text = teacher or of_bundle(bundle_files.TEXT_TOWER) or named
  own_images = of_bundle(bundle_files.IMAGE_TOWER)
  if image_tower and (teacher or own_images is None):
    return text, named
  return text, own_images


def _training(workdir: Path, step: int | None) -> dict[str, Any]:
  path = workdir / DATA_FILE
  return {'step': step, 'data': reading.json_object(path, 'what `vild-jax train` wrote') if path.is_file() else None}


def _metrics_beside(workdir: Path, of_these: Mapping[str, str]) -> list[dict[str, Any]]:
  """What `evaluate` has written in folders of a work directory about these weights with these settings."""
  found = []
  for path in sorted(workdir.glob(f'*/{summary.METRICS_FILE}')):
    try:
      metrics = _read_metrics(path, path.relative_to(workdir))
    except ValueError as error:  # nobody asked for this file, which may be of another program
      print(f'{error}: the model card leaves it out', file=sys.stderr)
      continue
    if _is_of(metrics, of_these):
      found.append(_kept(metrics, of_these))
    else:
      what = 'is not of these weights and settings' if 'detector' in metrics else 'does not say of which weights it is'
      print(f'{path} {what}: the model card leaves it out (--metrics FILE gives it one)', file=sys.stderr)
  return found


def _given_metrics(path: Path, of_these: Mapping[str, str]) -> dict[str, Any]:
  metrics = _read_metrics(path, Path(path.name))
  if 'detector' not in metrics:  # of `score`, or of an older version
    return _kept(metrics)
  if not _is_of(metrics, of_these):
    raise ValueError(f'{path} has metrics of other weights, settings or scores; expected those of this checkpoint')
  return _kept(metrics, of_these)


def _is_of(metrics: Mapping[str, Any], of_these: Mapping[str, str]) -> bool:
  known = metrics.get('detector', {})
  own_scores = known.get('scores', '').startswith((defaults.MODEL, defaults.HEADS))  # and not those of the teacher
  return own_scores and all(known.get(key) == value for key, value in of_these.items())


def _kept(metrics: Mapping[str, Any], of_these: Mapping[str, str] | None = None) -> dict[str, Any]:
  kept = {key: metrics[key] for key in ('file', *_KEPT) if key in metrics}
  return kept | ({'detector': dict(of_these)} if of_these else {})


def _read_metrics(path: Path, shown: Path) -> dict[str, Any]:
  metrics = reading.json_file(path, f'a {summary.METRICS_FILE} of `vild-jax evaluate`')
  if not isinstance(metrics, dict) or 'box' not in metrics:
    raise ValueError(f'{path} has no box metrics; expected a {summary.METRICS_FILE} of `vild-jax evaluate`')
  if why := summary.problem(path, metrics):
    raise ValueError(f'{why}; expected the metrics of one evaluation: evaluate again')
  return {**metrics, 'file': shown.as_posix()}
