"""Defines the settings of the optimiser and of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vild_jax.config.settings import require, require_positive


@dataclass(frozen=True)
class Optimizer:
  """Configures the update rule and the learning rate.

  The rate rises linearly during the warm-up, and is multiplied by `decay_factor` at each fraction of training in
  `decay_at`. `rule` is 'sgd' (with `momentum`, as in the paper), or, for short trainings, 'adamw' (`momentum` is its
  beta 1) or 'muon': kernels learn by Muon with `kernel_factor` times the learning rate, everything else by Adam.

  With `reference_batch` the rates are those of a batch of so many pictures. Another `data.batch_size` multiplies them
  by its ratio to that one, and warms up over as many pictures (`of_batch`). None: they stand as they are.
  """

  rule: str = 'sgd'
  learning_rate: float = 0.32
  warmup_learning_rate: float = 0.0032
  warmup_steps: int = 1000
  reference_batch: int | None = None
  decay_at: tuple[float, ...] = (0.9, 0.95, 0.975)
  decay_factor: float = 0.1
  momentum: float = 0.9
  weight_decay: float = 4e-5
  kernel_factor: float = 10.0  # of 'muon' alone
  drop_last_decay: bool = False  # True: the reference's schedule, without the last decay (docs/departures.md, 7)

  def __post_init__(self):
    require(self.rule in ('sgd', 'adamw', 'muon'), 'optimizer.rule', self.rule, "'sgd', 'adamw' or 'muon'")
    require(
      all(0 < f < 1 for f in self.decay_at) and list(self.decay_at) == sorted(set(self.decay_at)),
      'optimizer.decay_at',
      self.decay_at,
      'increasing fractions of training between 0 and 1',
    )
    require_positive(
      self,
      'optimizer',
      'learning_rate',
      'kernel_factor',
      zero=('warmup_learning_rate', 'warmup_steps', 'decay_factor', 'weight_decay'),
    )
    require(
      self.reference_batch is None or self.reference_batch > 0,
      'optimizer.reference_batch',
      self.reference_batch,
      'a number of pictures, or null',
    )
    require(0 <= self.momentum < 1, 'optimizer.momentum', self.momentum, 'a number from 0 to below 1')

  def of_batch(self, batch_size: int) -> Optimizer:
    """Returns the settings for batches of `batch_size` pictures, whose rates are to be taken as they stand.

    Rates are proportional to the batch, and the warm-up takes as many pictures as with `reference_batch` (Goyal et al.
    2017, arXiv 1706.02677, section 2.1).
    """
    if self.reference_batch is None:
      return self
    factor = batch_size / self.reference_batch
    return replace(
      self,
      learning_rate=self.learning_rate * factor,
      warmup_learning_rate=self.warmup_learning_rate * factor,
      warmup_steps=round(self.warmup_steps / factor),
      reference_batch=None,
    )


@dataclass(frozen=True)
class Train:
  """Configures the length of training and how often it logs, saves and draws, in steps.

  `pictures` is the number of pictures that are drawn every `pictures_every` steps; 0 draws none. The newest `keep`
  checkpoints are kept, and the `keep_best` with the lowest loss (its mean over the steps since the previous save).
  `on_nan` is what to do if the loss or a gradient is not finite: 'stop', or 'skip' the update and count it.
  `accumulate` microbatches make one batch (`data.batch_size`), which takes less memory for the same losses (see
  `train.accumulate`). `init_backbone` is a folder of `vild-jax convert resnet`: its weights are the initial ones of
  the backbone. `init_first_stage` is a work directory or a bundle, which may lie on the Hugging Face hub
  (`hf://owner/name`): it gives the initial weights of backbone, pyramid and proposal network. `init` is one of these or
  a folder of `vild-jax convert tf-vild`: every parameter and batch statistic of it that fits is an initial one. If all
  three are empty, training starts from scratch. `freeze` holds patterns of the names of parameters, such as
  `backbone/*`, that training leaves as they are; their batch statistics are frozen too. `retention` is the weight of
  the losses that keep what the detector of `init` says of classes without labels (docs/finetuning.md); 0: without.
  """

  steps: int = 180_000
  log_every: int = 50
  checkpoint_every: int = 1000
  keep: int = 3
  keep_best: int = 1
  on_nan: str = 'stop'
  pictures_every: int = 5000
  pictures: int = 4
  accumulate: int = 1
  init_backbone: str = ''
  init_first_stage: str = ''
  init: str = ''
  freeze: tuple[str, ...] = ()
  retention: float = 0.0

  def __post_init__(self):
    require(self.on_nan in ('stop', 'skip'), 'train.on_nan', self.on_nan, 'stop or skip')
    require_positive(
      self,
      'train',
      'steps',
      'log_every',
      'checkpoint_every',
      'keep',
      'pictures_every',
      'accumulate',
      zero=('pictures', 'keep_best', 'retention'),
    )
    require(
      not self.retention or bool(self.init),
      'train.retention',
      self.retention,
      '0 unless train.init names the detector whose knowledge is kept',
    )
    require(
      not (self.init_backbone and self.init_first_stage),
      'train.init_first_stage',
      self.init_first_stage,
      "'' if train.init_backbone is set, because each of them sets the backbone",
    )
    require(
      not (self.init and (self.init_backbone or self.init_first_stage)),
      'train.init',
      self.init,
      "'' if train.init_backbone or train.init_first_stage is set, because each of them sets the backbone",
    )
    require(
      isinstance(self.freeze, tuple) and all(isinstance(pattern, str) and pattern for pattern in self.freeze),
      'train.freeze',
      self.freeze,
      'patterns of names of parameters separated by commas, such as backbone/*,fpn/*',
    )
