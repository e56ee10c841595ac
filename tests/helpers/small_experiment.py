"""What every experiment on the small set begins with, made by commands: prepared data, a vocabulary, regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import planted_store, small_set
from vild_jax import cli, vocabulary
from vild_jax.data import sources


def run(*words: object) -> int:
  """One command; its exit code."""
  return cli.main([str(word) for word in words])


def prepare(
  folder: Path, tree: dict[str, Any] | None = None, *, stems: Sequence[str] = ('small_train', 'small_val')
) -> None:
  """Writes FOLDER/data, of `small_set` or of these annotations, and FOLDER/v.npz, three classes of dimension 16."""
  for stem in stems:
    annotations, images = small_set.write(folder, tree, stem=stem)
    assert run('prepare', '--annotations', annotations, '--images', images, '--out', folder / 'data') == 0
  np.save(folder / 'rows.npy', np.random.default_rng(0).normal(size=(3, 16)))
  assert (
    run(
      'embed-text',
      '--from-npy',
      folder / 'rows.npy',
      '--classes',
      annotations,
      '--teacher-id',
      'made up',
      '--out',
      folder / 'v.npz',
    )
    == 0
  )


def plant_regions(folder: Path) -> Path:
  """A store of embeddings for the training split, which fits the vocabulary; returns its folder."""
  planted_store.write(
    folder / 'regions',
    sources.open_dataset(folder / 'data', 'train'),
    teacher=vocabulary.load(folder / 'v.npz').teacher,
  )
  return folder / 'regions'
