"""What the tests of kept logits and of calibration share: one folder of them."""

from __future__ import annotations

import pytest

from tests.helpers import small_logits


@pytest.fixture(scope='session')
def kept_logits(tmp_path_factory) -> small_logits.Made:
  """Tests must leave the folder as it is."""
  return small_logits.make(tmp_path_factory.mktemp('logits') / 'kept')
