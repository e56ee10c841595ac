"""The names and shapes of a teacher's tensors, from our own table of them."""

from __future__ import annotations

import functools

from vild_jax.nn import clip
from vild_jax.teacher import parameter_names


@functools.cache
def theirs(config: clip.ClipConfig, original: bool = False, flat_patches: bool = False) -> dict[str, tuple[int, ...]]:
  """{name in the file: shape in the file} of both towers; every parameter of ours has its place."""
  shapes = parameter_names.expected_shapes(config)
  image = parameter_names.parameter_table(config, 'image', original)
  if flat_patches:
    image = parameter_names.with_flat_patches(image, config)
  table = parameter_names.parameter_table(config, 'text', original) | image
  assert table.keys() == shapes.keys()
  return {source.name: source.shape_in_file(shapes[ours]) for ours, source in table.items()}
