"""Embeddings of names on the disk: found again, whole, and never a reason to fail."""

from __future__ import annotations

import hashlib
import io
from types import SimpleNamespace

import numpy as np
import pytest

from vild_jax.teacher import name_cache


class Tower:
  """Rows that follow from the name alone, in parts of two names; remembers what it was asked for."""

  embedding_dim, dtype = 4, 'float32'

  def __init__(self, identity='tower:1', stops_at=None, meanwhile=None, tokenizer='{}'):
    self.teacher = SimpleNamespace(tokenizer_json=tokenizer)
    self.identity, self.asked, self._stops_at, self._meanwhile = identity, [], stops_at, meanwhile

  def embed_in_parts(self, names, templates):
    for start in range(0, len(names), 2):
      part = list(names[start : start + 2])
      if self._stops_at in part:
        raise KeyboardInterrupt
      if self._meanwhile:
        self._meanwhile()
      self.asked += part
      yield np.array([row(name) for name in part], np.float32)


def row(name):
  drawn = np.random.default_rng(list(hashlib.sha256(name.encode()).digest())).normal(size=4)
  return drawn / np.linalg.norm(drawn)


NAMES = [f'name {i}' for i in range(40)]
TEMPLATES = ('a {}',)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('VILD_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def embedded(names=NAMES, tower=None, templates=TEMPLATES):
  """What the tower was asked for; every row is checked."""
  tower = tower or Tower()
  found = name_cache.embed(tower, names, templates)
  assert found.keys() == set(names)
  for name, vector in found.items():
    np.testing.assert_array_equal(vector, row(name).astype(np.float32))
  return tower.asked


def test_names_are_embedded_once_for_each_tower_and_prompts(cache):
  assert embedded(NAMES[:30]) == NAMES[:30]
  assert embedded() == NAMES[30:] and embedded() == []
  # Of equal tokens, which the identity names, another tokenizer may make other texts.
  assert embedded(tower=Tower(tokenizer='{"normalizer": null}')) == NAMES
  assert embedded(tower=Tower('tower:2')) == NAMES and embedded(templates=('the {}',)) == NAMES
  half = Tower()
  half.dtype = 'bfloat16'
  assert embedded(tower=half) == NAMES
  assert len(list(cache.glob('names/*/*.npz'))) == len(list(cache.rglob('*.*'))) > 4  # nothing else is left there
  assert embedded([]) == []


def _archive(**arrays):
  content = io.BytesIO()
  np.savez(content, **arrays)
  return content.getvalue()


KEY = np.frombuffer(hashlib.sha256(NAMES[0].encode()).digest()[:16], np.uint8)[None]
ROW = row(NAMES[1]).astype(np.float32)[None]  # of another name: it must not be used
DAMAGE = {
  'cut': lambda content: content[: len(content) // 2],
  'flipped': lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
  'empty': lambda content: b'',
  'text': lambda content: b'not an archive',
  'array': lambda content: content[30 + len('names.npy') + 20 :],
  'no names': lambda content: _archive(embeddings=ROW),
  'pickled': lambda content: _archive(names=KEY, embeddings=np.array([{'a': 1}], object)),
  'wider': lambda content: _archive(names=KEY, embeddings=np.ones((1, 5), np.float32)),
  'longer': lambda content: _archive(names=KEY, embeddings=np.concatenate([ROW, ROW])),
  'number': lambda content: _archive(names=KEY, embeddings=np.float32(1)),
  'not unit': lambda content: _archive(names=KEY, embeddings=2 * ROW),
  'not finite': lambda content: _archive(names=KEY, embeddings=np.nan * ROW),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_embedded_and_written_again(cache, damage):
  assert embedded(NAMES[:1]) == NAMES[:1]
  (path,) = cache.rglob('*.npz')
  good = path.read_bytes()
  path.write_bytes(damage(good))
  assert embedded(NAMES[:1]) == NAMES[:1]
  assert embedded(NAMES[:1]) == []


def test_what_was_embedded_before_a_stop_is_kept(monkeypatch):
  monkeypatch.setattr(name_cache, '_SECONDS_BETWEEN_WRITES', -1.0)
  with pytest.raises(KeyboardInterrupt):
    name_cache.embed(Tower(stops_at=NAMES[20]), NAMES, TEMPLATES)
  assert embedded() == NAMES[20:]


def test_names_that_another_process_adds_meanwhile_are_kept():
  assert embedded(NAMES[:2], Tower(meanwhile=lambda: embedded(NAMES[2:]))) == NAMES[:2]
  assert embedded() == []


def test_a_file_holds_the_newest_names(monkeypatch):
  monkeypatch.setattr(name_cache, '_FILES', 1)
  monkeypatch.setattr(name_cache, '_ROWS', 6)
  embedded(NAMES[:4])
  embedded(NAMES[4:8])
  assert embedded(NAMES[2:8]) == []
  assert embedded(NAMES[:2]) == NAMES[:2]


def test_where_it_lies(monkeypatch, tmp_path):
  monkeypatch.setenv('VILD_JAX_CACHE', '')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert name_cache.folder() == tmp_path / 'xdg' / 'vild_jax'
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  assert name_cache.folder() == tmp_path / 'home' / '.cache' / 'vild_jax'
  monkeypatch.setenv('VILD_JAX_CACHE', 'off')
  assert name_cache.folder() is None
  assert embedded() == embedded() == NAMES and not list(tmp_path.iterdir())


def test_a_user_without_a_home_has_no_cache(monkeypatch):
  for name in ('VILD_JAX_CACHE', 'XDG_CACHE_HOME', 'HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr('os.getuid', lambda: 987_654_321)
  assert name_cache.folder() is None
  assert embedded() == embedded() == NAMES


def test_a_folder_that_cannot_be_written_is_one_warning(monkeypatch, tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('VILD_JAX_CACHE', str(tmp_path / 'file' / 'cache'))
  assert embedded() == NAMES
  (warning,) = capsys.readouterr().err.splitlines()
  assert warning.startswith('warning: embeddings of names are not kept (') and 'file/cache' in warning
