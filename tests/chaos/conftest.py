"""What the tests of kills and of full disks share: one toy world."""

from __future__ import annotations

import pytest

from tests.helpers.kill_cases import World


@pytest.fixture(scope='session')
def world(tmp_path_factory) -> World:
  return World(tmp_path_factory.mktemp('world'))
