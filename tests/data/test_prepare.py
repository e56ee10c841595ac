from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_set
from vild_jax.data import prepare, sources
from vild_jax.data.schema import DataError
from vild_jax.data.tfds_builders import detection
from vild_jax.runtime import files, locks, owners

_ROOT = Path(__file__).resolve().parents[2]


def _files(folder: Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def _changed(tmp_path: Path, stem: str = 'small_train', **changes) -> tuple[Path, Path]:
  tree = small_set.annotations()
  tree['annotations'][0] |= changes
  return small_set.write(tmp_path, tree, stem=stem)


def test_a_disk_that_takes_nothing_more_is_an_error_that_names_a_place_and_leaves_nothing(tmp_path, monkeypatch):
  given = small_set.write(tmp_path)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # ArrayRecord begins with more
  try:
    with pytest.raises(OSError, match=r'out/small cannot be written: .*File too large'):
      prepare.prepare(*given, tmp_path / 'out')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not (tmp_path / 'out').exists()

  def full(path):
    raise OSError(28, 'No space left on device', str(path))

  monkeypatch.setattr(files, '_flush_tree', full)
  with pytest.raises(OSError, match='No space left'):
    prepare.prepare(*given, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('stem', 'name', 'split'),
  [
    ('lvis_v1_train', 'lvis_v1', 'train'),
    ('instances_val2017', 'instances_2017', 'val'),
    ('photos', 'photos', 'train'),
    ('train', 'dataset', 'train'),
    ('My-Photos.v2', 'my_photos_v2', 'train'),
    ('x_validation', 'x', 'val'),
    ('valves', 'valves', 'train'),
    ('trainees-valid', 'trainees', 'val'),
    ('rivals_training_2', 'rivals_2', 'train'),
  ],
)
def test_name_and_split_come_from_the_stem(tmp_path, stem, name, split):
  version = prepare.prepare(*small_set.write(tmp_path, stem=stem), tmp_path / 'out')
  assert version == tmp_path / 'out' / name / '1.0.0'
  assert sources.open_dataset(version, split).splits == (split,)


@pytest.mark.parametrize(
  ('path', 'split'),
  [
    ('valid/_annotations.coco.json', 'val'),
    ('val2017/photos.json', 'val'),
    ('valid/photos_train.json', 'train'),
    ('valves/photos.json', 'train'),
    ('val_images/photos.json', 'train'),
    ('val/trainval.json', 'train'),
    ('val/labels', 'val'),
  ],
)
def test_the_folder_names_the_split_where_the_file_does_not(path, split):
  assert prepare._default_split(Path(path)) == split


def test_a_name_that_no_data_set_can_have_is_refused_with_the_option(tmp_path):
  with pytest.raises(DataError, match=r"the name '2017' is not a name of a data set; .*--name"):
    prepare.prepare(*small_set.write(tmp_path, stem='2017_val'), tmp_path / 'out')


def test_one_bad_picture_of_one_is_said_in_one_line(tmp_path):
  tree = small_set.annotations()
  tree['images'] = [tree['images'][0] | {'file_name': 'a\nb.jpg'}]
  tree['annotations'] = []
  path, images = small_set.write(tmp_path, tree)
  (images / 'a\nb.jpg').write_bytes(b'no picture')
  with pytest.raises(DataError, match=r"^1 picture: '.*a\\nb\.jpg'.* no readable picture") as error:
    prepare.prepare(path, images, tmp_path / 'out')
  assert '\n' not in str(error.value)


def test_same_content_same_bytes_in_another_process(tmp_path):
  path, images = small_set.write(tmp_path)
  prepare.prepare(path, images, tmp_path / 'a')
  code = 'import sys; from vild_jax.data.prepare import prepare; prepare(*sys.argv[1:])'
  subprocess.run([sys.executable, '-c', code, path, images, tmp_path / 'b'], check=True, cwd=_ROOT)
  assert _files(tmp_path / 'a') == _files(tmp_path / 'b')


def test_a_second_split_is_added_and_the_first_stays(tmp_path):
  path, images = small_set.write(tmp_path)
  version = prepare.prepare(path, images, tmp_path / 'out')
  before = {k: v for k, v in _files(version).items() if 'array_record' in k}
  identity = sources.open_dataset(version, 'train').identity
  val, _ = _changed(tmp_path, 'small_val', area=2.0)
  assert prepare.prepare(val, images, tmp_path / 'out') == version
  assert _files(version).items() >= before.items()
  dataset = sources.open_dataset(version, 'val')
  assert dataset.splits == ('train', 'val')
  assert [dataset[i].image_id for i in range(4)]
  assert sources.open_dataset(version, 'train').identity == identity != dataset.identity
  assert os.listdir(tmp_path / 'out') == ['small']


def test_a_split_with_other_categories_is_refused_before_anything_is_built(tmp_path):
  version = prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out')
  before = _files(version)
  tree = small_set.annotations()
  tree['categories'][1]['frequency'] = 'c'
  path, images = small_set.write(tmp_path, tree, stem='small_val')
  with pytest.raises(DataError, match=r"than the new val: id 1 is 'ant' \(r\) there and 'ant' \(c\) here"):
    prepare.prepare(path, images, tmp_path / 'out')
  assert _files(version) == before


def test_the_same_again_changes_nothing_and_other_content_needs_overwrite(tmp_path):
  path, images = small_set.write(tmp_path)
  version = prepare.prepare(path, images, tmp_path / 'out')
  before = _files(version)
  times = {p: p.stat().st_mtime_ns for p in version.iterdir()}
  assert prepare.prepare(path, images, tmp_path / 'out') == version
  assert {p: p.stat().st_mtime_ns for p in version.iterdir()} == times
  path, images = _changed(tmp_path, category_id=1)
  with pytest.raises(DataError, match=r"has a split 'train' with other content; .* or --overwrite$"):
    prepare.prepare(path, images, tmp_path / 'out')
  assert _files(version) == before
  prepare.prepare(path, images, tmp_path / 'out', overwrite=True)
  dataset = sources.open_dataset(version, 'train')
  example = next(e for e in map(dataset.__getitem__, range(4)) if e.image_id == 11)
  assert example.objects.category_ids.tolist() == [8, 1]
  assert len(list(version.glob('*.array_record-*'))) == len(list(version.glob('*.labels-*'))) == 1
  assert os.listdir(tmp_path / 'out') == ['small']


@pytest.mark.parametrize('calls', [0, 1, 2])
def test_interrupted_while_overwriting_the_old_split_is_whole(tmp_path, monkeypatch, calls):
  path, images = small_set.write(tmp_path)
  version = prepare.prepare(path, images, tmp_path / 'out')
  identity = sources.open_dataset(version, 'train').identity
  path, images = _changed(tmp_path, category_id=1)
  real, done = os.replace, []

  def replace(source, target):
    if Path(target).parent == version:  # TFDS replaces files of its own before
      if len(done) == calls:
        raise KeyboardInterrupt
      done.append(target)
    real(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', replace)
    with pytest.raises(KeyboardInterrupt):
      prepare.prepare(path, images, tmp_path / 'out', overwrite=True)
  dataset = sources.open_dataset(version, 'train')
  assert dataset.identity == identity
  assert sorted(dataset[i].image_id for i in range(4)) == sorted(small_set.SIZES)
  prepare.prepare(path, images, tmp_path / 'out', overwrite=True)
  assert sources.open_dataset(version, 'train').identity != identity


def test_killed_while_writing_it_starts_anew(tmp_path):
  path, images = small_set.write(tmp_path)
  code = textwrap.dedent("""
    import sys, time
    from vild_jax.data import pictures, prepare
    def slow(*_, **__):
      open(sys.argv[4], 'w').close()
      time.sleep(60)
    pictures.stored = slow
    prepare.prepare(*sys.argv[1:4])
  """)
  started = tmp_path / 'started'
  process = subprocess.Popen(
    [sys.executable, '-c', code, path, images, tmp_path / 'out', started], cwd=_ROOT, stderr=subprocess.DEVNULL
  )
  while not started.exists() and process.poll() is None:
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert not (tmp_path / 'out' / 'small').exists()
  version = prepare.prepare(path, images, tmp_path / 'out')
  assert len(sources.open_dataset(version, 'train')) == 4
  assert os.listdir(tmp_path / 'out') == ['small']


def test_killed_before_the_commit_its_build_is_not_taken_for_the_next(tmp_path):
  path, images = small_set.write(tmp_path)
  code = (
    'import os, signal, sys; from vild_jax.data import prepare\n'
    'prepare._commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n'
    'prepare.prepare(*sys.argv[1:])'
  )
  done = subprocess.run([sys.executable, '-c', code, path, images, tmp_path / 'out'], cwd=_ROOT, check=False)
  assert done.returncode == -signal.SIGKILL
  assert list((tmp_path / 'out').glob('.*/small/1.0.0/dataset_info.json'))  # what TFDS takes for a finished data set
  path, images = _changed(tmp_path, category_id=1)
  expected = prepare.prepare(path, images, tmp_path / 'expected')
  assert _files(prepare.prepare(path, images, tmp_path / 'out')) == _files(expected)
  assert os.listdir(tmp_path / 'out') == ['small']


def test_only_the_builds_of_killed_runs_are_removed(tmp_path):
  path, images = small_set.write(tmp_path)
  dead, elsewhere = 2**22 + 5, '0' * 8  # a process number that cannot be, and another machine
  mine = ['.small-train.backup', '.small-val.tmp', f'.small-train.{elsewhere}-{dead}-7-0123abcd.tmp']
  for name in [*mine, f'.small-train.{owners.machine()}-{dead}-7-0123abcd.tmp']:
    (tmp_path / 'out' / name).mkdir(parents=True)
  prepare.prepare(path, images, tmp_path / 'out')
  assert sorted(os.listdir(tmp_path / 'out')) == sorted([*mine, 'small'])


@pytest.mark.parametrize('split', ['train', 'val'])
def test_two_at_once_leave_each_other_alone(tmp_path, split):
  path, images = small_set.write(tmp_path)
  source = sources.JsonSource(path, images)

  class Slow(sources.JsonSource):
    def __getitem__(self, index):
      if index == 0:  # a whole run of another process while this one builds
        code = 'import sys; from vild_jax.data.prepare import prepare; prepare(*sys.argv[1:4], split=sys.argv[4])'
        subprocess.run([sys.executable, '-c', code, path, images, tmp_path / 'out', split], check=True, cwd=_ROOT)
      return source[index]

  version = prepare.store(Slow(path, images), tmp_path / 'out', 'small', 'train')
  for name in {'train', split}:
    dataset = sources.open_dataset(version, name)
    assert sorted(dataset[i].image_id for i in range(len(dataset))) == sorted(small_set.SIZES)
  assert dataset.splits == tuple(sorted({'train', split}))
  assert os.listdir(tmp_path / 'out') == ['small']


def test_only_one_commits_at_a_time(tmp_path, monkeypatch):
  real = prepare._commit

  def commit(*arguments):
    with pytest.raises(locks.FolderInUse), locks.locked(tmp_path / 'out'):
      pass
    real(*arguments)

  monkeypatch.setattr(prepare, '_commit', commit)
  assert prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out').is_dir()
  with locks.locked(tmp_path / 'out'):
    pass


def test_a_build_with_fewer_examples_than_the_source_is_refused(tmp_path, monkeypatch):
  path, images = small_set.write(tmp_path)
  real = detection.Detection._generate_examples
  monkeypatch.setattr(detection.Detection, '_generate_examples', lambda self: list(real(self))[1:])
  with pytest.raises(DataError, match='small/train: 3 examples were stored; expected the 4 of the source'):
    prepare.prepare(path, images, tmp_path / 'deep' / 'out')
  assert not (tmp_path / 'deep').exists()


def _truncated(path: Path) -> None:
  path.write_bytes(path.read_bytes()[:-400])


def _gif(path: Path) -> None:
  import PIL.Image

  PIL.Image.fromarray(np.zeros((33, 21), np.uint8)).save(path, 'gif')


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (_truncated, r'no readable picture \(.*truncated.*\); expected a whole JPEG, PNG, WebP, BMP or TIFF file'),
    (lambda path: path.write_bytes(b''), r'no readable picture \(unknown format\); expected a whole JPEG, PNG, W'),
    (lambda path: path.write_bytes(b'not a picture'), r'no readable picture \(unknown format\)'),
    (_gif, r'no readable picture \(unknown format\); expected a whole JPEG, PNG, WebP, BMP or TIFF'),
    (lambda path: path.write_bytes(small_set.picture(21, 33)), 'is 33 wide and 21 high; expected 21 and 33'),
  ],
)
def test_a_bad_picture_is_one_line_and_nothing_is_written(tmp_path, spoil, message):
  path, images = small_set.write(tmp_path)
  spoil(images / 'train2017' / '000000000005.jpg')
  with pytest.raises(DataError, match='000000000005.jpg:? ' + message) as error:
    prepare.prepare(path, images, tmp_path / 'out')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'out').exists()


def test_all_bad_pictures_are_counted(tmp_path):
  path, images = small_set.write(tmp_path)
  for file in (images / 'train2017').iterdir():
    _truncated(file)
  with pytest.raises(DataError, match=r'\(3 more such problems\)$'):
    prepare.prepare(path, images, tmp_path / 'out')


def test_bytes_of_png_and_jpeg_are_kept(tmp_path):
  path, images = small_set.write(tmp_path)
  png = small_set.picture(33, 21, kind='.png')
  (images / 'train2017' / '000000000005.jpg').write_bytes(png)
  padded = small_set.picture(64, 64) + b'\0\0'
  (images / 'train2017' / '000000000007.jpg').write_bytes(padded)
  dataset = sources.open_dataset(prepare.prepare(path, images, tmp_path / 'out'), 'train')
  found = {e.image_id: e.image for e in map(dataset.__getitem__, range(4))}
  assert found[5] == png
  assert found[7] == padded


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'a b'}, "name 'a b'"),
    ({'name': '../x'}, 'name'),
    ({'split': 'all'}, "split 'all'"),
    ({'split': 'train[:1]'}, 'split'),
  ],
)
def test_names_that_cannot_be_are_one_line(tmp_path, options, message):
  with pytest.raises(DataError, match=message):
    prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out', **options)
  assert not (tmp_path / 'out').exists()


def test_it_says_what_was_repaired_and_nothing_else(tmp_path, capfd):
  path, images = _changed(tmp_path, bbox=[-4, 30, 100, 40])
  version = prepare.prepare(path, images, tmp_path / 'out')
  out, err = capfd.readouterr()
  assert out == ''
  lines = [line for line in err.splitlines() if line.strip() and 'prepare small/train' not in line]
  assert lines == ['small/train: 1 box partly outside the picture clipped']
  assert sources.open_dataset(version, 'train').notes == ('1 box partly outside the picture clipped',)


def test_photographs_lose_nothing(shared, tmp_path):
  photos = shared / 'data' / 'coco_photos'
  for stem in ('instances_val2017', 'lvis_v1_style_val'):
    given = json.loads((photos / 'annotations' / f'{stem}.json').read_text())
    version = prepare.prepare(photos / 'annotations' / f'{stem}.json', photos, tmp_path / 'out')
    found, _ = sources.ground_truth(sources.open_dataset(version, 'val'))
    assert [i['id'] for i in found['images']] == sorted(i['id'] for i in given['images'])
    lists = {i['id']: (i['neg_category_ids'], i['not_exhaustive_category_ids']) for i in found['images']}
    for image in given['images']:
      assert lists[image['id']] == (image.get('neg_category_ids', []), image.get('not_exhaustive_category_ids', []))
    assert len(found['annotations']) == len(given['annotations'])
    for a, b in zip(sorted(given['annotations'], key=lambda a: a['id']), found['annotations'], strict=True):
      assert (a['id'], a['image_id'], a['category_id'], a.get('iscrowd', 0)) == (
        b['id'],
        b['image_id'],
        b['category_id'],
        b['iscrowd'],
      )
      np.testing.assert_allclose(b['bbox'], a['bbox'], atol=0.011)
      np.testing.assert_allclose(b['area'], a['area'], rtol=1e-6)
      if isinstance(a['segmentation'], list):
        assert a['segmentation'] == b['segmentation']
      else:
        area = sources.decode_mask(b['segmentation'], *b['segmentation']['size']).sum()
        assert area == sum(a['segmentation']['counts'][1::2])
