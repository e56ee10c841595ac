"""What is named hf://owner/name is fetched by the hub's client, and nothing else is asked of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers import fake_hub
from vild_jax.runtime import hub


@pytest.fixture
def asked(monkeypatch, tmp_path):
  """A client of the hub that gives `tmp_path` for any of the good names; what it was asked for."""
  return fake_hub.install(monkeypatch, dict.fromkeys(('owner/name', 'a-b/c.d_e'), tmp_path))


@pytest.mark.parametrize(
  ('name', 'repository', 'revision'),
  [
    ('hf://owner/name', 'owner/name', None),
    ('hf://a-b/c.d_e@v1.0', 'a-b/c.d_e', 'v1.0'),
    ('hf://owner/name@refs/pr/1', 'owner/name', 'refs/pr/1'),
  ],
)
def test_a_name_is_asked_for_with_its_revision_and_never_a_pickle(asked, tmp_path, name, repository, revision):
  assert hub.is_name(name) and hub.repository(name) == repository
  assert hub.folder(name, ('*.json',)) == tmp_path
  ((*wanted, never),) = asked
  assert wanted == [repository, revision, ['*.json']]
  assert {'*.bin', '*.pt', '*.pkl', '*.py'} <= set(never)


@pytest.mark.parametrize(
  'name', ['hf://', 'hf://a', 'hf://a/b/c', 'hf:/a/b', 'hf://a/b@', 'hf://../b', Path('hf://a/b')]
)
def test_a_malformed_name_is_one_line(asked, name):
  assert hub.is_name(name)
  with pytest.raises(
    ValueError, match=r'is not a name on the Hugging Face hub; expected the text hf://owner/name'
  ) as e:
    hub.folder(name, ('*',))
  assert '\n' not in str(e.value) and not asked


@pytest.mark.parametrize('place', ['owner/name', 'folder', '/a/hf://b/c', Path('owner/name')])
def test_a_path_is_no_name(place):
  assert not hub.is_name(place)


def test_a_name_is_asked_for_once_in_a_process(monkeypatch, tmp_path):
  cached = hub.folder
  asked = fake_hub.install(monkeypatch, {'owner/once': tmp_path})
  for _ in range(2):
    assert cached('hf://owner/once', ('*',)) == tmp_path
  assert len(asked) == 1
  cached.cache_clear()


def test_an_error_of_the_client_is_one_line(asked):
  with pytest.raises(ValueError, match=r'^the Hugging Face hub did not give hf://a/b: no a/b here; expected .*$'):
    hub.folder('hf://a/b', ('*',))


def test_a_missing_client_is_one_line_that_says_how_to_install_it(asked, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(
    ValueError, match=r'^hf://a/b is on .* not installed; expected `pip install "vild_jax\[hub\]"`.*$'
  ):
    hub.folder('hf://a/b', ('*',))
