"""The demo on a much smaller world, here or as a program: `python -m tests.helpers.small_demo demo --workdir W`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

from tests.helpers import tiny
from vild_jax import cli
from vild_jax.demo import world as toy_world
from vild_jax.workflows import demo


def shrink(set_to: Callable[[Any, str, Any], None] = setattr) -> None:
  """Makes the demo small: `set_to` is `setattr`, or that of a `pytest.MonkeyPatch`."""
  set_to(demo, '_TEACHER_CROPS', 256)
  set_to(demo, '_TEACHER_STEPS', 2)
  set_to(demo, '_START_STEPS', 2)
  set_to(demo.toy_teacher, '_PHASES', demo.toy_teacher._PHASES[1:])  # each compiles a step
  set_to(demo, '_GALLERY', 3)
  set_to(toy_world, 'generate', functools.partial(toy_world.generate, train_images=48, val_images=16))
  set_to(demo, 'toy_config', functools.partial(_tiny_config, demo.toy_config))


def _tiny_config(real, *args):
  config = real(*args)
  small = tiny.config('model.region_head.embedding_dim=0', 'train.steps=2', 'mesh.data=1', *tiny.SHALLOW)
  return dataclasses.replace(
    small,
    name=config.name,
    seed=config.seed,
    vocabulary=config.vocabulary,
    teacher=config.teacher,
    data=dataclasses.replace(small.data, train=config.data.train, val=config.data.val),
  )


if __name__ == '__main__':
  shrink()
  sys.exit(cli.main())
