"""Runs ViLD as a project of google-research/scenic: model, data and trainer for a team that trains with Scenic.

Write a config file for Scenic that converts one of our configs, and start this module, which uses Scenic's `app.run`:

  # my_config.py
  from vild_jax import config
  from vild_jax.scenic import config as scenic_config

  def get_config():
    return scenic_config.to_scenic(config.load('configs/vild_text_r50_lvis.py', ['data.train=data/lvis']))

  python -m vild_jax.scenic.project --config=my_config.py --workdir=W --config.batch_size=64

The work directory is the same as that of `vild-jax train`: `vild-jax evaluate` and `export` read it, and either trainer
resumes what the other began with the same config. A main.py of your own calls `get_model_cls`, `get_dataset` and
`train_and_evaluate`, as in Scenic's own projects.

Scenic (Apache 2.0) is available from git only: `pip install 'vild_jax[scenic]'` installs it, with TensorFlow. The
package `scenic` on PyPI is another project. This module was run with commit
4a38d475ee89cb821078c0e2bf2065ee030e1535 of Scenic, which the extra pins.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vild_jax import config as config_lib
from vild_jax import detector, objective, targets
from vild_jax.config import Config
from vild_jax.data import batch as batches
from vild_jax.data import sources
from vild_jax.runtime import processes
from vild_jax.scenic.config import NAME, from_scenic, to_scenic
from vild_jax.structs import Batch, TrainState, Vocabulary
from vild_jax.train import loop, optim
from vild_jax.workflows import evaluating, training

_DATASET = 'opened'  # key in a Dataset's meta_data of the result of `training.open_training`


# --- data -----------------------------------------------------------------------------------------------------------


class StepIterator:
  """Iterates over batches without end; `from_step` starts at a later batch, which a resume needs."""

  def __init__(self, make: Callable[[int], Iterator[Mapping]]):
    self._make, self._running = make, None

  def from_step(self, step: int) -> Iterator[Mapping]:
    """Returns a new iterator that begins with the batch after `step` steps."""
    return self._make(step)

  def __iter__(self) -> StepIterator:
    return self

  def __next__(self) -> Mapping:
    if self._running is None:  # the pipeline starts with the first read
      self._running = self._make(0)
    return next(self._running)


def get_dataset(scenic_config: Any, data_rng: Any = None) -> Any:
  """Returns the prepared data sets of the config as a Scenic `Dataset`.

  Batches are this process's part, without a device axis: `inputs` [B, S, S, 3], `batch_mask` float32 [B], and in
  `label` the other fields of `structs.Batch`. `valid_iter` repeats `data.val` without end; it is None if that is empty.
  `meta_data` has Scenic's usual keys, the `vocabulary` (a `VocabularyFile`), the `class_names`, the `classes` (the
  `structs.Vocabulary` of the step), `masks` (whether the detector has any) and `frozen` (added to `train.freeze`).

  Args:
    scenic_config: the experiment.
    data_rng: has no effect: the batches depend on `rng_seed` and the step alone, as in `vild-jax train`.

  Raises ValueError if data, vocabulary and regions do not fit together, ImportError without Scenic.
  """
  del data_rng
  dataset_utils = _scenic('dataset_lib.dataset_utils')
  opened = training.open_training(given := from_scenic(scenic_config))
  config, valid = opened.config, None
  if config.data.val:
    valid = sources.open_dataset(config.data.val, config.data.val_split)
  return dataset_utils.Dataset(
    train_iter=StepIterator(lambda step: _converted(to_scenic_batch, opened.stream(step))),
    valid_iter=StepIterator(lambda _: _converted(to_scenic_batch, _rounds(valid, config))) if valid else None,
    meta_data={
      'input_shape': (-1, config.data.image_size, config.data.image_size, 3),
      'input_dtype': np.float32,
      'num_train_examples': len(opened.dataset),
      'num_eval_examples': len(valid) if valid else 0,
      'num_classes': len(opened.vocabulary.names),
      'class_names': opened.vocabulary.names,
      'vocabulary': opened.vocabulary,
      'classes': opened.classes(),
      'masks': config.model.masks,
      'frozen': tuple(pattern for pattern in config.train.freeze if pattern not in given.train.freeze),
      _DATASET: opened,
    },
  )


def _converted(convert: Callable[[Mapping], Mapping], stream: Iterator[Mapping]) -> Iterator[Mapping]:
  """Maps `convert` over `stream` and closes `stream` at the end, because its workers would keep running."""
  try:
    yield from map(convert, stream)
  finally:
    stream.close()


def _rounds(dataset: sources.PreparedDataset, config: Config) -> Iterator[batches.Arrays]:
  """Yields this process's part of the evaluation batches, again and again."""
  while True:
    yield from batches.eval_batches(
      dataset,
      config,
      batch_size=config.evaluation.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def to_scenic_batch(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a batch of `data.batch` with Scenic's names."""
  label = {key: value for key, value in arrays.items() if key not in ('image', 'real')}
  mask = arrays.get('real', np.ones(len(arrays['image']), bool))
  return {'inputs': arrays['image'], 'batch_mask': mask.astype(np.float32), 'label': label}


def from_scenic_batch(batch: Mapping[str, Any]) -> batches.Arrays:
  """Returns a batch with our names. Raises ValueError for a device axis or, in host memory, for padding pictures."""
  image, mask = batch['inputs'], batch.get('batch_mask')
  if image.ndim != 4:
    raise ValueError(
      f"a batch has inputs {image.shape}; expected [B, S, S, 3], this process's part without a device axis"
    )
  if isinstance(mask, np.ndarray) and not mask.all():
    raise ValueError(
      f'{int((mask == 0).sum())} of {mask.size} pictures of a training batch are padding by batch_mask; expected none'
    )
  return {'image': image, **batch['label']}


# --- model ----------------------------------------------------------------------------------------------------------


class Network(detector.ViLD):
  """Gives the detector the call that Scenic expects: pictures -> features and the outputs of every anchor."""

  def __call__(self, inputs: jax.Array, *, train: bool = False, debug: bool = False) -> tuple[dict, dict, dict]:
    """Returns (features, objectness, box deltas), each {level: [B, ...]}, of images [B, S, S, 3]."""
    del debug
    if self.is_initializing():
      self.everything(inputs)
    features = self.features(inputs, train=train)
    return features, *self.propose(features, train=train)


def forward(
  config: Config,
  variables: Any,
  batch: Batch,
  vocabulary: Vocabulary,
  key: jax.Array,
  *,
  per_image: detector.PerImage = jax.vmap,
) -> tuple[dict[str, Any], Any]:
  """Runs both stages in training mode; see `ViLDModel.forward`, which takes a batch with Scenic's names."""
  image = objective.network_input(batch.image, batch.image_size)
  first, variables = detector.first_stage(config.model, variables, image, train=True, per_image=per_image)
  keys = jax.random.split(key, batch.image.shape[0])
  assigned = targets.assign(config, first, batch, vocabulary, keys, per_image=per_image)
  outputs, variables = objective.outputs_of(config, variables, first, assigned, vocabulary, per_image=per_image)
  return {'outputs': outputs, 'targets': assigned, 'vocabulary': vocabulary}, variables


def get_model_cls(model_name: str = NAME) -> type:
  """Returns the subclass of Scenic's `BaseModel`. Raises ValueError for another name, ImportError without Scenic."""
  if model_name != NAME:
    raise ValueError(f'model_name is {model_name!r}; expected {NAME!r}')
  return _model_cls()


@functools.cache
def _model_cls() -> type:
  base_model = _scenic('model_lib.base_models.base_model')

  class ViLDModel(base_model.BaseModel):
    """Gives the ViLD detector and its losses the interface of Scenic's `BaseModel`.

    The losses need regions that are sampled around the ground truth. Therefore they take the output of `forward`, not
    that of `flax_model.apply`. They are normalised over the global batch, for a step that is jitted over global arrays.
    """

    @functools.cached_property
    def experiment(self) -> Config:
      """Returns our config with the embedding dimension of the vocabulary, and with what its masks allow."""
      dim = self.dataset_meta_data['vocabulary'].embeddings.shape[1]
      config = config_lib.with_embedding_dim(from_scenic(self.config), dim)
      config = config_lib.with_frozen(config, *self.dataset_meta_data.get('frozen', ()))
      return config_lib.with_masks(config, self.dataset_meta_data.get('masks', True))

    def build_flax_model(self) -> Network:
      """Returns the module with the parameters of the detector."""
      return Network(self.experiment.model)

    def default_flax_model_config(self) -> Any:
      """Returns the ConfigDict of our default config."""
      return to_scenic(Config())

    def forward(
      self,
      variables: Any,
      batch: Mapping[str, Any],
      vocabulary: Vocabulary,
      key: jax.Array,
      *,
      per_image: detector.PerImage = jax.vmap,
    ) -> tuple[dict[str, Any], Any]:
      """Runs both stages in training mode.

      Args:
        variables: {'params', 'batch_stats'} of `flax_model`.
        batch: a batch of `get_dataset`.
        vocabulary: the training vocabulary.
        key: random key of this step.
        per_image: maps a function of one image over the batch (see `detector`).

      Returns:
        (the argument `logits` of `loss_function`, the variables with updated batch statistics).
      """
      return forward(
        self.experiment, variables, loop.to_batch(from_scenic_batch(batch)), vocabulary, key, per_image=per_image
      )

    def losses(self, logits: dict[str, Any]) -> dict[str, jax.Array]:
      """Returns {name: loss}; each loss is multiplied by its weight."""
      return objective.losses(self.experiment, logits['outputs'], logits['targets'], logits['vocabulary'])

    def loss_function(self, logits: dict[str, Any], batch: Mapping[str, Any], model_params: Any = None) -> jax.Array:
      """Returns the sum of the losses, without weight decay, which the optimiser applies."""
      del batch, model_params
      return sum(self.losses(logits).values())

    def get_metrics_fn(self, split: str | None = None) -> Callable:
      """Raises ValueError: under pmap, losses would be normalised on each device alone."""
      raise ValueError(
        f'get_metrics_fn({split!r}) is for pmap, which would normalise on each device; expected '
        'get_metrics_fn_jit, in a step over global arrays'
      )

    def get_metrics_fn_jit(self, split: str | None = None) -> Callable:
      """Returns a function (logits, batch) -> {name of a loss: (sum over pictures, number of pictures)}."""
      del split

      def metrics(logits: dict[str, Any], batch: Mapping[str, Any]) -> dict[str, tuple[jax.Array, int]]:
        count = batch['inputs'].shape[0]
        return {key: (count * value, count) for key, value in self.losses(logits).items()}

      return metrics

  return ViLDModel


# --- training -------------------------------------------------------------------------------------------------------


def train_and_evaluate(
  rng: Any, config: Any, model_cls: type, dataset: Any, workdir: str, writer: Any
) -> tuple[Any, dict[str, float], dict[str, float]]:
  """Trains, or resumes, with the loop of `vild-jax train`; then evaluates on `data.val` unless it is empty.

  Args:
    rng: has no effect: all random keys derive from `rng_seed`. The run equals that of `vild-jax train` to the bit.
    config: the experiment; see `to_scenic`.
    model_cls: the class of `get_model_cls`; no other, because the compiled step computes the losses of this class.
    dataset: the result of `get_dataset`, or of `dataclasses.replace(dataset, train_iter=...)` with batches of the same
      form. When a run is resumed, an iterator without `from_step` continues at its current position.
    workdir: the work directory; metrics go to the writer only.
    writer: clu's MetricWriter.

  Returns:
    (Scenic's `TrainState`, the metrics of the last log step, the metrics of the evaluation). The metrics are empty if
    there were none; in all processes but the first they always are.

  Raises ValueError if `model_cls` or `dataset` does not fit; also the errors of `train_on` and `evaluating.evaluate`.
  """
  del rng
  if model_cls is not get_model_cls():
    raise ValueError(
      f'model_cls is {model_cls.__name__}; expected scenic_project.get_model_cls(): the step is that of '
      '`vild-jax train`'
    )
  opened = dataset.meta_data[_DATASET]
  experiment = model_cls(config, dataset.meta_data).experiment
  if differences := config_lib.difference(opened.config, experiment):
    raise ValueError(f'the data set was opened for another config: {differences[0]} differ; expected one config')
  remembering = _Remembering(writer)
  state = training.train_on(
    opened, Path(workdir), stream=functools.partial(_stream, dataset.train_iter), writer=remembering
  )
  metrics, scored = {}, None
  if experiment.data.val:
    scored = evaluating.evaluate(
      experiment, Path(workdir), experiment.data.val, experiment.data.val_split, Path(workdir) / 'evaluation'
    )
  if scored is not None:  # in the first of several processes
    metrics = {
      f'valid/{kind}_{key}': value
      for kind in ('box', 'mask')
      for key, value in (scored[kind] or {}).items()
      if value is not None
    }
    writer.write_scalars(int(state.step), metrics)
    writer.flush()
  return _scenic_state(state, experiment), remembering.scalars, metrics


def _stream(iterator: Any, step: int) -> Iterator[batches.Arrays]:
  if hasattr(iterator, 'from_step'):
    return _converted(from_scenic_batch, iterator.from_step(step))
  return map(from_scenic_batch, iterator)


def _scenic_state(state: TrainState, config: Config) -> Any:
  train_utils = _scenic('train_lib.train_utils')
  return train_utils.TrainState(
    tx=optim.optimizer(config),
    opt_state=state.opt_state,
    params=state.params,
    global_step=int(state.step),
    model_state={'batch_stats': state.batch_stats},
    rng=state.key,
    metadata={},
  )


class _Remembering:
  """Passes all calls on to a MetricWriter and keeps the last scalars."""

  def __init__(self, writer: Any):
    self._writer, self.scalars = writer, {}

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    self.scalars = {key: float(value) for key, value in scalars.items()}
    self._writer.write_scalars(step, scalars)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._writer, name)


def main(rng: Any, config: Any, workdir: str, writer: Any) -> None:
  """Trains for Scenic's `app.run`. On SIGTERM it saves and exits with `EXIT_PREEMPTED`, as `vild-jax train` does."""
  try:
    train_and_evaluate(
      rng=rng,
      config=config,
      model_cls=get_model_cls(config.model_name),
      dataset=get_dataset(config, rng),
      workdir=workdir,
      writer=writer,
    )
  except processes.Preempted as error:
    print(error, file=sys.stderr)
    sys.exit(processes.EXIT_PREEMPTED)


def _scenic(name: str) -> Any:
  """Imports a module of Scenic; raises ImportError, one line, that says how to install what is missing."""
  try:
    return importlib.import_module(f'scenic.{name}')
  except ImportError as error:
    missing = error.name or ''
    problem = f'{missing or error} cannot be imported'
    if importlib.util.find_spec('scenic') is None:
      problem = 'google-research/scenic is not installed'
    elif missing.startswith('scenic.'):
      problem = (
        f'the scenic that is installed has no {missing}, so it is not google-research/scenic (on PyPI, scenic '
        'is another project)'
      )
    raise ImportError(
      f"training with Scenic: {problem}; expected `pip install 'vild_jax[scenic]'`, which takes it from git"
    ) from error


if __name__ == '__main__':
  try:
    app = _scenic('app')
  except ImportError as missing:
    sys.exit(str(missing))
  processes.join(saves_on_sigterm=True)  # Scenic does not join processes itself
  app.run(main=main)
