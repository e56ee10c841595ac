"""Builds the optimiser, its learning rate schedule and the mask of weight decay (docs/method.md, 3)."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vild_jax.config import Config, Optimizer, matches

_BETA2 = 0.99  # of AdamW: averages over about 100 steps, which suits trainings of a few hundred steps
# Four rounds after the scaling of "almost orthogonal layers" (https://arxiv.org/abs/2512.04632) bring a matrix as close
# to an orthogonal one as five rounds after division by its norm. Muon's own coefficients stand there once for each
# round: the rounds are then a loop, which compiles faster and runs as fast as rounds that are written out.
MUON = {'ns_coeffs': ((3.4445, -4.775, 2.0315),) * 4, 'ns_steps': 4, 'preconditioning': 'aol'}
# The first match counts; every parameter must match. True: weight decay. Text embeddings are not parameters.
DECAY_RULES = (
  (r'background', True),
  (r'.*/kernel', True),
  (r'.*/(bias|scale)', False),
)


def described(config: Config) -> str:
  """Describes the learning rate of a config's batch, and where it comes from."""
  given, used = config.optimizer, config.optimizer.of_batch(config.data.batch_size)
  text = f'learning rate {used.learning_rate:.4g} after {used.warmup_steps:,} steps of warm-up'
  if used.warmup_steps > (first := round(min(used.decay_at, default=1) * config.train.steps)):
    text += f', which do not end before the first decay at step {first:,}'
  if given.reference_batch in (None, config.data.batch_size):
    return text
  return (
    f'{text}: {given.learning_rate:g} and {given.warmup_steps:,} for a batch of {given.reference_batch} '
    f'(optimizer.reference_batch), here of {config.data.batch_size}'
  )


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
  """Returns the function step -> learning rate, of settings as their `of_batch` returns them.

  The rate rises linearly during the warm-up. It is multiplied by `decay_factor` at each step round(fraction · steps),
  for the fractions of `decay_at`. All decays happen (docs/departures.md, 7); `drop_last_decay` restores the reference,
  which leaves out the last one.
  """
  fractions = settings.decay_at[:-1] if settings.drop_last_decay else settings.decay_at
  boundaries = jnp.asarray([round(f * steps) for f in fractions])

  def rate(step: jax.Array) -> jax.Array:
    progress = jnp.clip(step / max(settings.warmup_steps, 1), 0, 1)
    warm = settings.warmup_learning_rate + (settings.learning_rate - settings.warmup_learning_rate) * progress
    decays = jnp.sum(jnp.expand_dims(step, -1) >= boundaries, axis=-1)
    return jnp.where(decays > 0, settings.learning_rate * settings.decay_factor**decays, warm)

  return rate


def optimizer(config: Config) -> optax.GradientTransformation:
  """Returns the optimiser of `optimizer.rule`.

  'sgd' is TensorFlow's Momentum: weight decay is added to the gradient, and the learning rate is not in the
  accumulator. 'adamw' applies weight decay separately from the gradient. 'muon' gives kernels Muon's orthogonal updates
  and decay (https://kellerjordan.github.io/posts/muon/), and everything else Adam with Nesterov's momentum. Parameters
  that `train.freeze` names get no update, and neither does the mask head if no masks are learnt (`model.masks`).
  """
  # Weight decay would shrink a mask head that is not in the program.
  rule, patterns = _rule(config), config.train.freeze + (() if config.model.masks else ('mask_head/*',))
  if not patterns:
    return rule
  # Frozen parameters have no momentum: their part of the optimiser's state is empty.
  groups = lambda params: jax.tree.map(lambda x: 'frozen' if x else 'trained', frozen(patterns, params))
  return optax.partition({'trained': rule, 'frozen': optax.set_to_zero()}, groups)


def _rule(config: Config) -> optax.GradientTransformation:
  settings = config.optimizer.of_batch(config.data.batch_size)
  decay = optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)
  rate = optax.scale_by_learning_rate(schedule(settings, config.train.steps))
  if settings.rule == 'adamw':
    return optax.chain(optax.scale_by_adam(settings.momentum, _BETA2), decay, rate)
  if settings.rule == 'muon':
    of_step, factor = schedule(settings, config.train.steps), settings.kernel_factor
    return contrib.muon(
      lambda step: factor * of_step(step),
      **MUON,
      weight_decay=settings.weight_decay,
      adam_b1=settings.momentum,
      adam_b2=_BETA2,
      adam_learning_rate=of_step,
      muon_weight_dimension_numbers=_kernels,
    )
  return optax.chain(decay, optax.trace(settings.momentum), rate)


def _kernels(params: Any) -> Any:
  """Says what is a matrix to Muon: kernels [height, width, in, out] and [in, out], both with `out` columns."""

  def of(path: tuple, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
    if not path_name(path).endswith('kernel'):
      return None
    return contrib.MuonDimensionNumbers(reduction_axis=tuple(range(leaf.ndim - 1)), output_axis=leaf.ndim - 1)

  return jax.tree_util.tree_map_with_path(of, params)


def decay_mask(params: Any) -> Any:
  """Returns {parameter: True if weight decay applies}. Raises ValueError for a parameter that no rule matches."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: first_match(DECAY_RULES, path_name(path), 'weight decay'), params
  )


def frozen(patterns: tuple[str, ...], params: Any) -> Any:
  """Returns {parameter: True if a pattern of `train.freeze` matches its name}.

  Raises ValueError for a pattern that matches no parameter, and if nothing would be left to train.
  """
  names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
  if idle := [pattern for pattern in patterns if not any(matches((pattern,), name) for name in names)]:
    tops = dict.fromkeys(name if '/' not in name else f'{name.split("/")[0]}/*' for name in names)
    raise ValueError(
      f'train.freeze: {idle[0]!r} matches no parameter; expected patterns such as {", ".join(tops)}, or of names below '
      f'them, such as {names[-1]}'
    )
  if all(matches(patterns, name) for name in names):
    raise ValueError(f'train.freeze is {",".join(patterns)}, which is every parameter; expected some that learn')
  return jax.tree_util.tree_map_with_path(lambda path, _: matches(patterns, path_name(path)), params)


def path_name(path: tuple) -> str:
  """Returns a path in a tree as text: `a/b/c`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def first_match(rules: tuple[tuple[str, Any], ...], name: str, what: str) -> Any:
  """Returns the value of the first rule whose pattern matches the whole `name`; raises ValueError if none does."""
  for pattern, value in rules:
    if re.fullmatch(pattern, name):
      return value
  raise ValueError(f'no rule of {what} matches {name!r}; expected one of {[pattern for pattern, _ in rules]}')
