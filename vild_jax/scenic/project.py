"""ViLD as a project of google-research/scenic: model, data and trainer for a team that trains with Scenic.

A config file of Scenic's makes a ConfigDict of one of our configs; its own `app.run` does the rest:

  # my_config.py
  from vild_jax import config
  from vild_jax.interop import scenic_config

  def get_config():
    return scenic_config.to_scenic(config.load('configs/vild_text_r50_lvis.py', ['data.train=data/lvis']))

  python -m vild_jax.scenic.project --config=my_config.py --workdir=W --config.batch_size=64

The work directory is one of ours as well: `vild-jax evaluate` and `export` read it, and `vild-jax train` with the same
config goes on with it, or the other way round. A main.py of your own calls `get_model_cls`, `get_dataset` and
`train_and_evaluate`, as those of Scenic's projects do.

Scenic (Apache 2.0) comes from git alone: `pip install 'vild_jax[scenic]'`, TensorFlow included. PyPI's `scenic` is
another project. This was run inside its commit 4a38d475ee89cb821078c0e2bf2065ee030e1535, which the extra pins.
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
from vild_jax import detector, objective
from vild_jax.config import Config
from vild_jax.data import batch as batches
from vild_jax.data import sources
from vild_jax.runtime import processes
from vild_jax.scenic.config import NAME, from_scenic, to_scenic
from vild_jax.structs import Batch, RegionTargets, TrainState, Vocabulary
from vild_jax.train import optim
from vild_jax.workflows import evaluating, training

_DATASET = 'opened'  # of a Dataset's meta_data: what `training.open_training` returned


# --- data -----------------------------------------------------------------------------------------------------------


class StepIterator:
  """An endless iterator over batches that can also be asked for the batches from a step on, which a resume needs."""

  def __init__(self, make: Callable[[int], Iterator[Mapping]]):
    self._make, self._running = make, None

  def from_step(self, step: int) -> Iterator[Mapping]:
    """A new iterator that begins with the batch after `step` steps."""
    return self._make(step)

  def __iter__(self) -> StepIterator:
    return self

  def __next__(self) -> Mapping:
    if self._running is None:  # the pipeline starts when somebody reads from it
      self._running = self._make(0)
    return next(self._running)


def get_dataset(scenic_config: Any, data_rng: Any = None) -> Any:
  """The prepared data sets of the config as a Scenic `Dataset`.

  Batches are this process's part, without a device axis: `inputs` float32 [B, S, S, 3], `batch_mask` float32 [B], and
  in `label` the other fields of `structs.Batch` (boxes yxyx in pixels of the square). `valid_iter` goes round and round
  `data.val`, and is None where that is empty. `meta_data` has Scenic's usual keys, the `vocabulary` (a
  `VocabularyFile`) and the `class_names`.

  Args:
    scenic_config: the experiment.
    data_rng: has no effect: the stream is a function of `rng_seed` and the step, and so the same as `vild-jax train`'s.

  Raises ValueError if data, vocabulary and regions do not belong together, ImportError without Scenic.
  """
  del data_rng
  dataset_utils = _scenic('dataset_lib.dataset_utils')
  opened = training.open_training(from_scenic(scenic_config))
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
      _DATASET: opened,
    },
  )


def _converted(convert: Callable[[Mapping], Mapping], stream: Iterator[Mapping]) -> Iterator[Mapping]:
  """`map` that closes the iterator, whose workers would go on, when it is closed itself."""
  try:
    yield from map(convert, stream)
  finally:
    stream.close()


def _rounds(dataset: sources.PreparedDataset, config: Config) -> Iterator[batches.Arrays]:
  while True:
    yield from batches.eval_batches(
      dataset,
      config,
      batch_size=config.evaluation.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def to_scenic_batch(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """A batch of `data.batch` under Scenic's names."""
  label = {key: value for key, value in arrays.items() if key not in ('image', 'real')}
  mask = arrays.get('real', np.ones(len(arrays['image']), bool))
  return {'inputs': arrays['image'], 'batch_mask': mask.astype(np.float32), 'label': label}


def from_scenic_batch(batch: Mapping[str, Any]) -> batches.Arrays:
  """The batch under our names. ValueError, in host memory, for a device axis or for padding, which training has not."""
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


def _struct(batch: Mapping[str, Any]) -> Batch:
  arrays = from_scenic_batch(batch)
  fields = {key: arrays[key] for key in Batch.__dataclass_fields__ if arrays.get(key) is not None}
  if isinstance(fields.get('regions'), Mapping):
    fields['regions'] = RegionTargets(**fields['regions'])
  return Batch(**fields)


# --- model ----------------------------------------------------------------------------------------------------------


class Network(detector.ViLD):
  """The detector's parameters behind the call that Scenic makes: pictures -> features and every anchor's outputs."""

  def __call__(self, inputs: jax.Array, *, train: bool = False, debug: bool = False) -> tuple[dict, dict, dict]:
    """Images [B, S, S, 3] -> (features, objectness, box deltas), each {level: [B, ...]}."""
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
  """Runs both stages in training mode; see `ViLDModel.forward`, which takes a batch under Scenic's names."""
  first, variables = detector.first_stage(config.model, variables, batch.image, train=True, per_image=per_image)
  keys = jax.random.split(key, batch.image.shape[0])
  targets = objective.assign(config, first, batch, vocabulary, keys, per_image=per_image)
  outputs, variables = objective.outputs_of(config, variables, first, targets, vocabulary, per_image=per_image)
  return {'outputs': outputs, 'targets': targets, 'vocabulary': vocabulary}, variables


def get_model_cls(model_name: str = NAME) -> type:
  """The subclass of Scenic's `BaseModel`. ValueError for another name, ImportError without Scenic."""
  if model_name != NAME:
    raise ValueError(f'model_name is {model_name!r}; expected {NAME!r}')
  return _model_cls()


@functools.cache
def _model_cls() -> type:
  base_model = _scenic('model_lib.base_models.base_model')

  class ViLDModel(base_model.BaseModel):
    """ViLD: our detector and our losses behind Scenic's `BaseModel`.

    The losses are of regions that are sampled around the ground truth, so they need `forward`, not `flax_model.apply`,
    and they are normalised over the global batch: for a step that is jitted over global arrays, as ours is.
    """

    @functools.cached_property
    def experiment(self) -> Config:
      """Our config, with the vocabulary's embedding dimension."""
      dim = self.dataset_meta_data['vocabulary'].embeddings.shape[1]
      return config_lib.with_embedding_dim(from_scenic(self.config), dim)

    def build_flax_model(self) -> Network:
      return Network(self.experiment.model)

    def default_flax_model_config(self) -> Any:
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
      """Both stages in training mode -> (what `loss_function` takes as logits, variables with new statistics).

      Args:
        variables: {'params', 'batch_stats'} of `flax_model`.
        batch: as `get_dataset` delivers it.
        vocabulary: the training vocabulary.
        key: randomness of this step.
        per_image: maps a function of one image over the batch (see `detector`).
      """
      return forward(self.experiment, variables, _struct(batch), vocabulary, key, per_image=per_image)

    def losses(self, logits: dict[str, Any]) -> dict[str, jax.Array]:
      """Each loss by its name, weighted."""
      return objective.losses(self.experiment, logits['outputs'], logits['targets'], logits['vocabulary'])

    def loss_function(self, logits: dict[str, Any], batch: Mapping[str, Any], model_params: Any = None) -> jax.Array:
      """The sum of the losses; weight decay is the optimiser's."""
      del batch, model_params
      return sum(self.losses(logits).values())

    def get_metrics_fn(self, split: str | None = None) -> Callable:
      raise ValueError(
        f'get_metrics_fn({split!r}) is for pmap, which would normalise on each device; expected '
        'get_metrics_fn_jit, in a step over global arrays'
      )

    def get_metrics_fn_jit(self, split: str | None = None) -> Callable:
      """(logits, batch) -> {loss: (sum over pictures, pictures)}."""
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
  """Trains, or resumes, with the loop of `vild-jax train`; evaluates on `data.val` if there is one.

  Args:
    rng: has no effect: all randomness derives from `rng_seed`, as in `vild-jax train`, whose run this equals to the
      bit.
    config: the experiment, see `to_scenic`.
    model_cls: that of `get_model_cls`: the compiled step computes its `loss_function`, and could compute no other.
    dataset: that of `get_dataset`, or one made of it by `dataclasses.replace(dataset, train_iter=...)` whose batches
      look the same. An iterator without `from_step` goes on where it stands when a run is resumed.
    workdir: the work directory; metrics go to the writer alone.
    writer: clu's MetricWriter.

  Returns:
    Scenic's `TrainState`, the metrics of the last log step, and those of the evaluation (both empty where there were
    none: in all processes but the first, for one).
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
  """A MetricWriter that hands everything on and keeps the last scalars."""

  def __init__(self, writer: Any):
    self._writer, self.scalars = writer, {}

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    self.scalars = {key: float(value) for key, value in scalars.items()}
    self._writer.write_scalars(step, scalars)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._writer, name)


def main(rng: Any, config: Any, workdir: str, writer: Any) -> None:
  """What Scenic's `app.run` calls. A run that was told to end (SIGTERM) saves and exits as `vild-jax train` does."""
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
  """A module of Scenic's. ImportError, one line, says how to get what is missing."""
  try:
    return importlib.import_module(f'scenic.{name}')
  except ImportError as error:
    missing = error.name or ''
    problem = f'{missing or error} cannot be imported'
    if importlib.util.find_spec('scenic') is None:
      problem = 'google-research/scenic is not installed'
    elif missing.startswith('scenic.'):
      problem = (
        f'the scenic that is installed has no {missing}, so it is no google-research/scenic (on PyPI, scenic '
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
  processes.join(saves_on_sigterm=True)  # Scenic leaves this to its caller
  app.run(main=main)
