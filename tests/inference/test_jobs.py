"""What decides detections, as the hashes of an unfinished job."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.helpers import tiny
from vild_jax.inference import jobs
from vild_jax.vocabulary import VocabularyFile


def test_a_background_row_makes_another_job():
  plain = VocabularyFile(np.eye(2, 16), ('ant', 'tree'), np.array([True, False]), 'made up', '')
  fixed, other = (dataclasses.replace(plain, background=row) for row in np.eye(16)[:2])
  of = lambda classes, trained_on: jobs.description(tiny.config(), {}, classes, trained_on, [1])
  found = [of(plain, plain), of(fixed, plain), of(other, plain), of(plain, fixed)]
  assert of(dataclasses.replace(fixed), plain) == found[1]
  assert all(a != b for i, a in enumerate(found) for b in found[:i])
