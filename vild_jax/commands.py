"""What the commands do with folders and files: open, check that things belong together, call the rooms, write.

`cli` parses words into these calls, `demo` strings them together, and Scenic's front door (`interop.scenic_project`)
opens and trains by them. Nothing else imports this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vild_jax import alignment, baselines, embedding, evaluation, files, inference, objective, offline, progress, viz
from vild_jax.config import Config, difference, with_embedding_dim
from vild_jax.data import batch as batches
from vild_jax.data import class_lists, join, region_import, sources, transforms
from vild_jax.data import regions as regions_lib
from vild_jax.eval import paste
from vild_jax.interop import export as export_lib
from vild_jax.interop import hf_clip
from vild_jax.structs import TrainState
from vild_jax.teacher import prompts, zero_shot
from vild_jax.teacher import vocabulary as vocabulary_lib
from vild_jax.train import checkpoint, loop, sharding, state

DETECTIONS_FILE, COSINE_FILE = 'detections.json', 'teacher_cosine.json'
METRICS = ('box', 'mask', 'seconds_per_image', 'with_objectness', 'teacher_cosine')  # what --json of evaluate keeps
_DATA_FILE = 'data.json'  # of a work directory: which pictures, annotations and regions it is trained on


def train(config: Config, workdir: Path) -> TrainState:
  """Trains, or resumes, in `workdir`; the vocabulary is copied beside the checkpoints, so that they stay usable."""
  return train_on(open_training(config), workdir)


@dataclass(frozen=True)
class Training:
  """What a training reads, opened and found to belong together.

  Attributes:
    config: the experiment, with the embedding dimension of the vocabulary.
    dataset: the prepared split.
    vocabulary: the training vocabulary.
    regions: the store to distil from, or None.
    labels: the vocabulary's row of each category that training may see.
  """

  config: Config
  dataset: sources.PreparedDataset
  vocabulary: vocabulary_lib.VocabularyFile
  regions: regions_lib.RegionStore | None
  labels: batches.LabelMap

  def stream(self, start_step: int) -> Iterator[batches.Arrays]:
    """This process's part of each training batch from `start_step` on."""
    return batches.train_batches(self.dataset, self.labels, self.config, regions=self.regions, start_step=start_step,
                                 process_index=jax.process_index(), process_count=jax.process_count())


def open_training(config: Config) -> Training:
  """Opens the data, vocabulary and regions of the config; ValueError if they do not belong together."""
  dataset = sources.open_dataset(_given(config.data.train, 'data.train'), config.data.train_split)
  vocabulary = vocabulary_lib.load(_given(config.vocabulary, 'vocabulary'))
  config = with_embedding_dim(config, vocabulary.embeddings.shape[1])
  inference.check_dimension(vocabulary, config)
  store = _open_regions(config, dataset, vocabulary)
  labels = batches.label_map(dataset.categories, vocabulary.names, vocabulary.is_base,
                             novel=config.assignment.novel_labels)
  if not dataset.has_masks:
    raise ValueError(f'{config.data.train} holds objects without a segmentation; expected one for each to train masks')
  return Training(config, dataset, vocabulary, store, labels)


def train_on(opened: Training, workdir: Path, *, stream: Callable[[int], Iterator[Mapping]] | None = None,
             writer: Any = None) -> TrainState:
  """Trains, or resumes, in `workdir`.

  Args:
    opened: what `open_training` returned.
    workdir: the work directory, see `train`.
    stream: start step -> batches, for who has put a pipeline of their own around `opened.stream`, the default.
    writer: as in `loop.train`.
  """
  config, vocabulary = opened.config, opened.vocabulary
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(mesh, config.data.batch_size, 'data.batch_size', accumulate=config.train.accumulate)
  state.check_start(config, mesh)
  pictures = None
  if config.train.pictures:
    shown = sources.open_dataset(config.data.val, config.data.val_split) if config.data.val else opened.dataset
    pictures = evaluation.picture_drawer(config, vocabulary, shown, config.train.pictures)
  checkpoint.claim_workdir(workdir, config)  # last: what fails before leaves the directory as it was
  _keep_vocabulary(workdir / checkpoint.VOCABULARY_FILE, vocabulary)
  _keep_identity(workdir / _DATA_FILE, opened.dataset, opened.regions)
  categories = opened.dataset.categories
  dropped = sorted({c.name for c in categories} - set(vocabulary.names))
  if dropped and jax.process_index() == 0:
    print(f'{len(dropped)} of {len(categories)} categories of the data are not in the vocabulary, '
          f'{dropped[0]!r} for one; nothing is learnt of them', file=sys.stderr)
  return loop.train(config, workdir, vocabulary_lib.to_struct(vocabulary), stream or opened.stream, mesh=mesh,
                    writer=writer, pictures=pictures)


def evaluate(config: Config, folder: Path, data: str, split: str, out: Path, *,
             vocabulary: str | None = None, scores: str = baselines.MODEL, teacher: str | None = None,
             regions: str | Path | None = None, step: int | None = None) -> dict[str, Any] | None:
  """Evaluates a checkpoint of a work directory (the newest, or that of `step`) or a bundle on a prepared split.

  Returns the metrics; of several processes the first does, and the others None.

  `scores`: of the model, or one of the `baselines`, which crop and embed with the teacher in the folder `teacher`.
  `regions`: a store of the teacher's embeddings for this split; `teacher_cosine` says how near the model's come to it.
  """
  if scores not in baselines.SCORES:
    raise ValueError(f'--scores is {scores!r}; expected one of {", ".join(baselines.SCORES)}')
  if scores != baselines.MODEL and not teacher:
    raise ValueError(f'--scores {scores} crops and embeds with a teacher; expected --teacher DIR or a teacher in the '
                     'config')
  if regions and jax.process_count() > 1:
    raise ValueError(f'--regions compares in one process, and this is one of {jax.process_count()}; expected evaluate '
                     'without it, or one process')
  config = _same_model(config, folder)
  dataset = sources.open_dataset(_given(data, '--data'), split)
  trained_on = vocabulary_lib.load(folder / checkpoint.VOCABULARY_FILE)
  classes = vocabulary_lib.load(vocabulary) if vocabulary else trained_on
  inference.check_teacher(classes, trained_on)
  predict = None
  if scores != baselines.MODEL:
    predict = partial(baselines.predictions, scores=scores,
                      tower=baselines.crop_tower(teacher, config, trained_on, scores))
  mesh = sharding.make_mesh(config.mesh)
  variables = checkpoint.load_variables(folder, config, mesh, step)
  cosine = {}
  if regions:
    store = regions_lib.RegionStore(regions)
    cosine = {'teacher_cosine': alignment.distillation_cosine(config, variables, trained_on, dataset, store, mesh=mesh,
                                                              regions_per_image=store.max_regions)}
  metrics = evaluation.evaluate(config, variables, classes, trained_on, dataset, out, mesh=mesh, predict=predict,
                                folders=baselines.folders(scores))
  if metrics is None:
    return None
  if cosine:
    files.write(out / COSINE_FILE, json.dumps(cosine, indent=2) + '\n')
  return metrics | cosine


def propose(config: Config, folder: Path, data: str, split: str, out: Path, *, max_proposals: int,
            images_per_shard: int, step: int | None = None) -> dict[str, Any]:
  """Writes the proposals of a work directory's or bundle's checkpoint for a prepared split; see `offline.propose`."""
  config = _same_model(config, folder)
  dataset = sources.open_dataset(_given(data, '--data'), split)
  mesh = offline.local_mesh(config)
  variables = checkpoint.load_variables(folder, config, mesh, step)
  return offline.propose(config, variables, dataset, out, max_proposals=max_proposals,
                         images_per_shard=images_per_shard, mesh=mesh, process_index=jax.process_index(),
                         process_count=jax.process_count())


def embed_regions(teacher: str | None, data: str, split: str, proposals: str | None, out: Path, *, max_regions: int,
                  dtype: str, batch_size: int, images_per_shard: int, imported: str | None = None) -> dict[str, Any]:
  """Writes the teacher's embeddings of a prepared split's proposals, or `imported` ones; see `embedding`."""
  if batch_size < 1:
    raise ValueError(f'--batch-size is {batch_size}; expected at least 1')
  dataset = sources.open_dataset(data, split)
  options = {'max_regions': max_regions, 'images_per_shard': images_per_shard, 'process_index': jax.process_index(),
             'process_count': jax.process_count()}
  if imported:
    return embedding.import_regions(region_import.ImportedRegions(imported), dataset, out, **options)
  store = regions_lib.RegionStore(_given(proposals, '--proposals'))
  return embedding.embed_regions(hf_clip.load_teacher(_given(teacher, '--teacher')), dataset, store, out,
                                 dtype=jax.numpy.dtype(dtype), batch_size=batch_size, **options)


def detect(detector: inference.Detector, images: list[Path], classes: str, out: Path, *,
           min_score: float) -> list[dict[str, Any]]:
  """Draws what is found in each picture into `out` and writes `detections.json`; returns its content.

  Args:
    classes: names separated by commas, or a text file with one name a line.
    min_score: detections below are left out.
  """
  names = _names(classes)
  twice = {image.stem for image in images if [i.stem for i in images].count(image.stem) > 1}
  # Classes and pictures are checked before anything is written; pictures are not kept, there may be many.
  detector.classes(names)
  for image in images:
    transforms.decode(image)
  out.mkdir(parents=True, exist_ok=True)
  novel = ~inference.is_base(names, detector.vocabulary)
  found = []
  for number, path in enumerate(progress.track(images, 'detect', unit='image')):
    picture = transforms.decode(path, upright=True)
    result = detector.detect(picture, names, min_score=min_score)
    drawn = out / f'{path.stem}{f"_{number}" if path.stem in twice else ""}_detections.png'
    Image.fromarray(viz.draw(picture, result.boxes, result.labels, result.scores, result.masks, names,
                             novel=novel)).save(drawn)
    found.append({'image': str(path), 'picture': drawn.name, 'height': picture.shape[0], 'width': picture.shape[1],
                  'detections': [
                    {'class': names[label], 'score': float(score), 'box_yxyx': [float(v) for v in box],
                     'mask': paste.to_rle(mask)}
                    for label, score, box, mask in zip(result.labels, result.scores, result.boxes, result.masks,
                                                       strict=True)]})
  files.write(out / DETECTIONS_FILE, json.dumps(found, indent=1) + '\n')
  return found


def export(config: Config, folder: Path, out: Path, *, teacher: str | None = None, step: int | None = None) -> Path:
  """Writes the bundle of a work directory; `teacher` is the directory whose text tower it keeps."""
  config = _same_model(config, folder)
  path = folder / checkpoint.VOCABULARY_FILE
  return export_lib.export_bundle(out, config, checkpoint.load_variables(folder, config, step=step), path,
                                  vocabulary_teacher=vocabulary_lib.load(path).teacher,
                                  teacher=Path(teacher) if teacher else None)


def classify(teacher: str, images: list[Path], classes: str, *, which: str, top: int) -> dict[str, Any]:
  """Zero-shot classification: the best `top` names of each picture, with what they come from.

  Args:
    classes: names separated by commas, or a list of classes as `class_lists.class_list` takes it.
    which: the prompts, see `prompts.load_templates`.
  """
  names, templates = _names(classes), prompts.load_templates(which)
  if top < 1:
    raise ValueError(f'--top is {top}; expected at least 1')
  pictures = [transforms.decode(image) for image in images]
  loaded = hf_clip.load_teacher(teacher)
  scores = zero_shot.classify(loaded, pictures, names, templates)
  best = np.argsort(-scores.cosine, axis=1, kind='stable')[:, :top]
  return {'teacher': loaded.text_identity, 'image_tower': loaded.image_identity, 'prompts': prompts.as_text(which),
          'images': [
            {'image': str(path), 'scores': [
              {'class': names[i], 'probability': float(probability[i]), 'cosine': float(cosine[i])} for i in order]}
            for path, order, probability, cosine in zip(images, best, scores.probability, scores.cosine, strict=True)]}


def scores_table(found: dict[str, Any]) -> str:
  """A few lines for the console: under each picture its best names, with probability and cosine."""
  lines = []
  for image in found['images']:
    width = max(len(score['class']) for score in image['scores'])
    lines += [image['image'], f'  {"class":<{width}}  probability  cosine']
    lines += [f'  {score["class"]:<{width}}  {score["probability"]:>11.4f}  {score["cosine"]:>6.3f}'
              for score in image['scores']]
  return '\n'.join(lines)


def metrics_table(metrics: dict[str, Any]) -> str:
  """A few lines for the console: box and mask AP in per cent."""
  keys = [key for key in metrics['box'] if metrics['box'][key] is not None]
  lines = ['AP in %  ' + ''.join(f'{key:>12}' for key in keys)]
  for kind in ('box', 'mask'):
    if metrics[kind] is not None:
      values = [metrics[kind][key] for key in keys]
      texts = [f'{100 * value:.1f}' if value is not None else '-' for value in values]
      lines.append(f'{kind:<9}' + ''.join(f'{text:>12}' for text in texts))
  return '\n'.join(lines)


def _names(classes: str) -> list[str]:
  """The names of a list of classes (a folder ends with a slash, so that it is told from a name), or of words."""
  if classes in class_lists.BUILT_IN or classes.endswith(('.txt', '.json', '/')):
    return list(class_lists.class_list(classes).names)
  names = [name.strip() for name in classes.split(',') if name.strip()]
  if not names:
    raise ValueError(f'--classes is {classes!r}; expected names separated by commas')
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise ValueError(f'--classes has {twice[0]!r} more than once; expected each name once')
  return names


def _given(value: str, key: str) -> str:
  if not value:
    raise ValueError(f'{key} is empty; expected --{key.removeprefix("--")}=PATH or a value in the config')
  return value


def _same_model(config: Config, folder: Path) -> Config:
  """The config with the folder's embedding dimension, if the folder is of the same model.

  Weights fit many settings that change their meaning (anchors, temperature, input size): those must be equal.
  """
  parts, saved = ('model.', 'data.image_size'), checkpoint.read_config(folder)
  config = with_embedding_dim(config, saved.model.embedding_dim)
  differences = [d for d in difference(saved, config)
                 if d.startswith(parts) and not d.startswith(('model.postprocess.', 'model.backbone.remat:'))]
  if differences:
    raise ValueError(f'{folder} was trained with another model: {differences[0]} differ; expected the config that it '
                     'was trained with, overrides included (its config.json can be given as CONFIG)')
  return config


def _open_regions(config: Config, dataset: sources.PreparedDataset,
                  vocabulary: vocabulary_lib.VocabularyFile) -> regions_lib.RegionStore | None:
  """The store to distil from; None at a weight of 0, so that ViLD-text can be an override of any config."""
  path = config.distillation.store
  objective.check_distillation(config, has_regions=bool(path))
  if config.distillation.weight == 0:
    if path:
      print(f'distillation.weight is 0: the regions in {path} are not used', file=sys.stderr)
    return None
  store = regions_lib.RegionStore(path)
  join.check_store(store, dataset, config.model.embedding_dim)
  vocabulary_lib.check_regions(path, store.teacher, vocabulary)
  return store


def _keep_identity(path: Path, dataset: sources.PreparedDataset, store: regions_lib.RegionStore | None) -> None:
  """What is made anew under the same path is another data set or store: a resume on it would be neither run."""
  content = {'identity': dataset.identity, 'split': dataset.split, 'examples': len(dataset)}
  sources_of = {'identity': ('a data set', dataset.folder)}
  if store is not None:
    content |= {'proposals': store.boxes_identity, 'regions': store.identity}
    sources_of |= {'proposals': ('proposals', store.path), 'regions': ('a region store', store.path)}
  if not path.is_file():
    if jax.process_index() == 0:
      files.write(path, json.dumps(content) + '\n')
    return
  try:
    kept = json.loads(path.read_text(encoding='utf-8'))
    identities = {key: str(kept[key]) for key in sources_of}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path} is damaged ({type(error).__name__}); expected what `vild-jax train` wrote, or no such '
                     'file') from error
  for key, (what, where) in sources_of.items():
    if identities[key] != content[key]:
      raise ValueError(f'{path.parent} was trained on {what} with identity {identities[key][:12]}, and {where} has '
                       f'{content[key][:12]}; expected the same data, or a new --workdir')


def _keep_vocabulary(path: Path, vocabulary: vocabulary_lib.VocabularyFile) -> None:
  if path.is_file():
    kept = vocabulary_lib.load(path)
    if (kept.names, kept.teacher) != (vocabulary.names, vocabulary.teacher) or not (
        np.array_equal(kept.embeddings, vocabulary.embeddings) and np.array_equal(kept.is_base, vocabulary.is_base)):
      raise ValueError(f'{path} differs from the given vocabulary; expected the one training began with, '
                       'or a new --workdir')
  elif jax.process_index() == 0:
    vocabulary_lib.save(path, vocabulary)
