"""A bundle's list of checksums finds every byte that is not as it was exported, and every file too few or too many."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from vild_jax.runtime import files
from vild_jax.train import bundle_files

CONTENTS = {
  'config.json': b'{"a": 1}\n',
  'vocabulary.npz': b'words',
  'variables/_METADATA': b'tree',
  'variables/d/0123': bytes(range(40)),
  'text_tower/model.safetensors': b'\0\1\2',
  'README.md': b'card',
}


@pytest.fixture
def bundle(tmp_path):
  for name, content in CONTENTS.items():
    path = tmp_path / 'bundle' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  bundle_files.seal(tmp_path / 'bundle', {'format': 2, 'name': 'x'})
  return tmp_path / 'bundle'


def damage(folder, **options):
  """The line that `check` raises."""
  with pytest.raises(ValueError, match='expected') as error:
    bundle_files.check(folder, **options)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_every_file_but_the_card_is_listed_with_size_and_sha256(bundle):
  bundle_files.check(bundle)
  about = bundle_files.read_about(bundle)
  assert about['name'] == 'x' and about['files'] == {
    name: {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    for name, content in sorted(CONTENTS.items())
    if name != 'README.md'
  }


def test_every_single_byte_counts(bundle):
  for name in [*CONTENTS, 'bundle.json']:
    path = bundle / name
    content = path.read_bytes()
    for place in range(len(content)):
      flip = (1, 0x2A)[place % 2]  # the second turns a space into a line break, which JSON would not notice
      path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
      if name == 'README.md':
        bundle_files.check(bundle)
      else:
        assert damage(bundle).startswith(f'{path} '), (name, place)
    path.write_bytes(content)
  bundle_files.check(bundle)


def test_the_list_cannot_be_switched_off_by_another_format(bundle):
  path = bundle / 'bundle.json'
  text = path.read_text()
  for version in (1, 3):
    path.write_text(text.replace('"format": 2', f'"format": {version}'))
    assert damage(bundle).startswith(f'{path} ')


def test_a_missing_file_and_one_too_many_are_named(bundle):
  for name in ('config.json', 'variables/d/0123', 'text_tower/model.safetensors'):
    (bundle / name).unlink()
    assert damage(bundle).startswith(f'{bundle / name} is missing')
    (bundle / name).write_bytes(CONTENTS[name])
  for name in ('variables/d/more', 'text_tower/more', 'image_tower/more'):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b'')
    assert damage(bundle).startswith(f'{bundle / name} is not a file of the bundle')
    (bundle / name).unlink()
  (bundle / 'variables' / 'd' / '0123').write_bytes(CONTENTS['variables/d/0123'][:-1])
  assert '0123 has 39 bytes, bundle.json lists 40' in damage(bundle)


@pytest.mark.parametrize('tower', ['text_tower', 'image_tower'])
def test_the_checks_cannot_be_switched_off_by_the_loss_of_the_list(bundle, tower):
  (bundle / 'bundle.json').unlink()
  (bundle / 'text_tower').rename(bundle / tower)
  for weights in (True, False):
    assert damage(bundle, weights=weights).startswith(f'{bundle}/bundle.json is missing, which a bundle with a {tower}')


def test_what_people_put_beside_the_files_of_a_bundle_is_theirs(bundle):
  (bundle / 'evaluation').mkdir()
  for name in ('README.md', 'LICENSE', '.gitattributes', 'evaluation/metrics.json'):
    (bundle / name).write_text('mine')
  bundle_files.check(bundle)


def test_links_to_the_same_content_are_as_good_as_files(bundle, tmp_path):
  """The hub's client makes folders of links."""
  for name in [*CONTENTS, 'bundle.json']:
    (tmp_path / 'links' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'links' / name).symlink_to(bundle / name)
  bundle_files.check(tmp_path / 'links')
  (bundle / 'variables' / '_METADATA').write_bytes(b'Tree')
  assert damage(tmp_path / 'links').startswith(f'{tmp_path}/links/variables/_METADATA is damaged')


def test_without_the_weights_only_the_small_files_are_read(bundle):
  (bundle / 'variables' / '_METADATA').write_bytes(b'Tree')
  bundle_files.check(bundle, weights=False)
  (bundle / 'config.json').write_bytes(b'{"a": 2}\n')
  assert damage(bundle, weights=False).startswith(f'{bundle}/config.json is damaged')


def test_format_1_and_other_folders_have_nothing_to_check(bundle):
  (bundle / 'bundle.json').write_text(json.dumps({'format': 1, 'name': 'old'}))
  bundle_files.check(bundle)
  assert bundle_files.read_about(bundle)['name'] == 'old'
  (bundle / 'bundle.json').unlink()
  shutil.rmtree(bundle / 'text_tower')  # what is left may be a converted checkpoint
  bundle_files.check(bundle)
  shutil.rmtree(bundle)
  bundle_files.check(bundle)


@pytest.mark.parametrize('content', [b'{', b'\xff\xfe\xfd', b'[]', b'3', b'{"format": "2"}', b''])
def test_what_is_no_bundle_json_is_one_line(bundle, content):
  (bundle / 'bundle.json').write_bytes(content)
  assert damage(bundle).startswith(f'{bundle}/bundle.json ')


def test_the_card_is_a_file_of_the_bundle_and_no_link_to_one_of_this_machine(bundle, tmp_path, monkeypatch):
  assert bundle_files.card(bundle) == 'card'
  monkeypatch.setattr(bundle_files, 'MOST_CARD', 2)
  assert bundle_files.card(bundle) == 'ca'
  (tmp_path / 'secret').write_text('of the user')
  (bundle / 'README.md').unlink()
  assert bundle_files.card(bundle) == ''
  (bundle / 'README.md').symlink_to('../secret')
  assert bundle_files.card(bundle) == ''


def test_the_card_of_a_bundle_in_the_cache_of_the_hub_is_a_link_of_its_repository(tmp_path):
  revision = tmp_path / 'models--a--b' / 'snapshots' / '1f'
  for blobs in (tmp_path / 'models--a--b' / 'blobs', tmp_path / 'models--x--y' / 'blobs'):
    blobs.mkdir(parents=True)
    (blobs / '2e').write_text('card')
  revision.mkdir(parents=True)
  card = revision / 'README.md'
  card.symlink_to('../../blobs/2e')
  assert bundle_files.card(revision) == 'card'
  card.unlink()
  card.symlink_to('../../../models--x--y/blobs/2e')
  assert bundle_files.card(revision) == ''


def test_what_people_put_beside_the_files_goes_over_to_the_next_bundle(bundle, tmp_path):
  (bundle / 'examples').mkdir()
  (bundle / 'examples' / 'a.png').write_bytes(b'mine')
  (bundle / 'notes').write_text('mine')
  (bundle / 'old_file').write_text('of the older bundle')
  bundle_files.seal(bundle, {'format': 2})  # lists all of these
  (bundle / 'examples').rename(bundle / 'more')
  (bundle / 'mine').write_text('later')
  (bundle / 'link').symlink_to('../nowhere')
  new = tmp_path / 'new'
  new.mkdir()
  (new / 'config.json').write_text('new')
  bundle_files.keep_others(bundle, new)
  names = sorted(path.relative_to(new).as_posix() for path in new.rglob('*'))
  assert names == ['config.json', 'link', 'mine', 'more', 'more/a.png'] and (new / 'link').is_symlink()
  (bundle / 'bundle.json').write_text('damaged')
  bundle_files.keep_others(bundle, new)
  assert (new / 'notes').read_text() == 'mine'
  assert (new / 'config.json').read_text() == 'new' and not (new / 'README.md').exists()
  bundle_files.keep_others(tmp_path / 'none', new)


def test_so_it_does_in_a_bucket(bundle, bucket, tmp_path):
  old = files.path(f'{bucket}/people')
  bundle_files.seal(bundle, {'format': 2})
  for path in bundle.rglob('*'):
    if path.is_file():
      files.write(old / path.relative_to(bundle).as_posix(), path.read_bytes())
  files.write(old / 'examples/a.png', b'mine')

  def replace(folder):
    (folder / 'bundle.json').write_text('{}')
    bundle_files.keep_others(old, folder)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())

  with files.new_folder(old, may_replace=bundle_files.is_bundle, marker='bundle.json') as new:
    assert replace(new) == ['bundle.json', 'examples/a.png']
  assert sorted(files.sizes(old)) == ['bundle.json', 'examples/a.png']
  files.write(old / '.unfinished', '')  # of one that was killed while it replaced the bundle
  (old / 'bundle.json').unlink()
  with files.new_folder(old, may_replace=bundle_files.is_bundle, marker='bundle.json') as new:
    assert replace(new) == ['bundle.json', 'examples/a.png']
  assert (old / 'examples/a.png').read_bytes() == b'mine'


def test_a_bundle_that_another_replaces_meanwhile_is_refused(bundle, tmp_path):
  check_same = bundle_files.watched(bundle)
  check_same()
  bundle_files.seal(bundle, {'format': 2, 'name': 'y'})
  with pytest.raises(ValueError, match=r'bundle was replaced while it was read; expected one bundle'):
    check_same()
  check_same = bundle_files.watched(tmp_path)  # a work directory has none
  check_same()
