"""Computes the anchors of the region proposal network (docs/method.md, 2)."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def pyramid_anchors(
  image_size: tuple[int, int],
  *,
  min_level: int,
  max_level: int,
  aspect_ratios: Sequence[float],
  num_scales: int,
  anchor_size: float,
) -> dict[int, Float[Array, '_ 4']]:
  """Returns the anchors of every level in yxyx pixels, as constants of the program.

  Level l has one cell every 2**l pixels. Each cell has `num_scales` x `len(aspect_ratios)` anchors around its centre,
  of area (anchor_size * 2**l * 2**(scale / num_scales))**2 and with width / height = ratio. Anchors may extend beyond
  the border of the input.

  Args:
    image_size: (height, width) of the padded input, multiples of 2**max_level.
    min_level: the first level.
    max_level: the last level, which is included.
    aspect_ratios: width / height.
    num_scales: scales of each level, 2**(0 / num_scales), 2**(1 / num_scales), ...
    anchor_size: side in units of 2**l pixels of a square anchor of the first scale.

  Returns:
    {level: [H_l * W_l * A, 4]} in the order (y, x, scale, ratio).

  Raises:
    ValueError: if a side is not a multiple of 2**max_level, because cells and feature maps would not agree.
  """
  height, width = image_size
  if height % 2**max_level or width % 2**max_level:
    raise ValueError(f'image_size: expected multiples of {2**max_level} (2**max_level), found {height} x {width}')
  ratios = np.asarray(aspect_ratios, np.float64)
  levels = {}
  for level in range(min_level, max_level + 1):
    stride = 2**level
    sides = anchor_size * stride * 2.0 ** (np.arange(num_scales) / num_scales)
    half_height = 0.5 * (sides[:, None] / np.sqrt(ratios)[None, :]).reshape(-1)
    half_width = 0.5 * (sides[:, None] * np.sqrt(ratios)[None, :]).reshape(-1)
    y = (np.arange(height // stride) + 0.5)[:, None, None] * stride
    x = (np.arange(width // stride) + 0.5)[None, :, None] * stride
    corners = np.broadcast_arrays(y - half_height, x - half_width, y + half_height, x + half_width)
    levels[level] = jnp.asarray(np.stack(corners, axis=-1).reshape(-1, 4), jnp.float32)
  return levels
