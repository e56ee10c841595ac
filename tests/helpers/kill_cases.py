"""The commands that tests stop, on one toy world; each replaces or adds to something older where it may."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import jax
import safetensors.numpy

from tests.helpers import small_demo, small_resnet, small_set, small_teacher, tiny
from tests.helpers.kills import Command, finish
from vild_jax import config as config_lib
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import checkpoint

PICTURES = 12


class World:
  """A folder of inputs, each made when it is first asked for."""

  def __init__(self, folder: Path):
    self._folder = folder

  @functools.cached_property
  def annotations(self) -> dict[str, Path]:
    """Files by the name of a split; 'other' has other boxes for the pictures of 'val'."""
    tree, self._images = small_set.many(self._folder, [40 + i % 20 for i in range(PICTURES)])
    files = {}
    for split, side in (('train', 20.0), ('val', 22.0), ('other', 24.0)):
      boxes = [[5.0, 6.0, side + i % 9, side] for i in range(PICTURES)]
      tree['annotations'] = [
        {
          'id': i + 1,
          'image_id': i,
          'category_id': (1, 3, 8)[i % 3],
          'bbox': box,
          'area': box[2] * box[3] / 2,
          'segmentation': [[5.0, 6.0, 5.0 + box[2], 6.0, 5.0, 6.0 + box[3]]],
        }
        for i, box in enumerate(boxes)
      ]
      (self._folder / 'train2017').mkdir(exist_ok=True)
      files[split], _ = small_set.write(self._folder / split, tree, stem=f'world_{split}')
    return files

  @property
  def images(self) -> Path:
    return self.annotations and self._images

  def prepare(self, out: object, split: str, annotations: str | None = None) -> list[object]:
    file = self.annotations[annotations or split]
    return [
      'prepare',
      '--annotations',
      file,
      '--images',
      self.images,
      '--out',
      out,
      '--name',
      'world',
      '--split',
      split,
    ]

  @functools.cached_property
  def data(self) -> Path:
    for split in ('train', 'val'):
      finish(*self.prepare(self._folder / 'data', split))
    return self._folder / 'data'

  @functools.cached_property
  def teacher(self) -> Path:
    """Of the detector's dimension of embeddings."""
    made = small_teacher.make('red mug ant tree', sigmoid=True)
    teacher_checkpoint.save_teacher(self._folder / 'teacher', made)
    return self._folder / 'teacher'

  @functools.cached_property
  def vocabulary(self) -> Path:
    words = ['--teacher', self.teacher, '--classes', self.annotations['train'], '--prompts', 'single']
    finish('embed-text', *words, '--out', self._folder / 'v.npz')
    return self._folder / 'v.npz'

  @functools.cached_property
  def config(self) -> Path:
    config = tiny.config(
      *tiny.SHALLOW,
      'mesh.data=1',
      f'vocabulary={self.vocabulary}',
      f'teacher={self.teacher}',
      f'data.train={self.data}',
      f'data.val={self.data}',
      'data.batch_size=4',
      'train.steps=8',
      'train.log_every=1',
      'train.checkpoint_every=2',
      'evaluation.batch_size=4',
      'evaluation.protocol=coco',
    )
    (self._folder / 'config.json').write_text(config_lib.to_text(config))
    return self._folder / 'config.json'

  @functools.cached_property
  def workdirs(self) -> tuple[Path, Path]:
    """Two work directories as if they had been trained: an older one, and one with other weights."""
    config = config_lib.load(self.config)
    made = self._folder / 'old', self._folder / 'new'
    for seed, workdir in enumerate(made):
      checkpoint.claim_workdir(workdir, config)
      shutil.copy(self.vocabulary, workdir / checkpoint.VOCABULARY_FILE)
      checkpoint.save_variables(workdir, jax.device_get(tiny.variables(config, seed, deltas=0.1)))
    return made

  def export(self, workdir: Path, out: object) -> list[object]:
    return ['export', self.config, '--checkpoint', workdir, '--teacher', self.teacher, '--out', out]

  @functools.cached_property
  def bundles(self) -> tuple[Path, Path]:
    made = self._folder / 'bundle-old', self._folder / 'bundle-new'
    for workdir, bundle in zip(self.workdirs, made, strict=True):
      finish(*self.export(workdir, bundle))
    return made

  @functools.cached_property
  def proposals(self) -> Path:
    finish(*self.propose(self._folder / 'proposals'))
    return self._folder / 'proposals'

  def propose(self, out: object) -> list[object]:
    words = ['propose', self.config, '--checkpoint', self.workdirs[1], '--data', self.data, '--max-proposals', 12]
    return [*words, '--images-per-shard', 2, '--out', out]

  @functools.cached_property
  def resnet(self) -> Path:
    safetensors.numpy.save_file(small_resnet.tensors(), self._folder / 'resnet.safetensors')
    return self._folder / 'resnet.safetensors'


def prepare(world: World) -> Command:
  """A second split beside one that stays."""
  return Command(
    world.prepare('PLACE/data', 'val'),
    before=lambda place: finish(*world.prepare(place / 'data', 'train')),
    grows=r'data/world/1\.0\.0/(metadata|dataset_info)\.json',
    checked=('data/world/1.0.0',),
  )


def prepare_again(world: World) -> Command:
  """Other content in place of a split."""

  def before(place: Path) -> None:
    for split in ('train', 'val'):
      finish(*world.prepare(place / 'data', split))

  return Command([*world.prepare('PLACE/data', 'val', 'other'), '--overwrite'], before, checked=('data/world/1.0.0',))


def embed_text(world: World) -> Command:
  words = ['embed-text', '--teacher', world.teacher, '--classes', world.annotations['train'], '--out', 'PLACE/v.npz']
  return Command(words, lambda place: shutil.copy(world.vocabulary, place / 'v.npz'), checked=('v.npz',))


def propose(world: World) -> Command:
  return Command(world.propose('PLACE/proposals'))


def embed_regions(world: World) -> Command:
  words = ['embed-regions', '--teacher', world.teacher, '--data', world.data, '--proposals', world.proposals]
  return Command([*words, '--images-per-shard', 2, '--batch-size', 16, '--out', 'PLACE/regions'])


def train(world: World) -> Command:
  """SIGTERM saves a checkpoint of its own: others are kept, and the mean losses of the next one begin there."""
  losses = r'checkpoints/\d/metrics/metrics'
  return Command(
    ['train', world.config, '--workdir', 'PLACE/run'],
    grows=rf'run/(metrics\.jsonl|{losses})',
    told=rf'run/({losses} differs|checkpoints/[1-7]/\S+ is (missing|left over))',
  )


def evaluate(world: World) -> Command:
  of = lambda workdir, out: ['evaluate', world.config, '--checkpoint', workdir, '--out', out]
  old, new = world.workdirs
  return Command(
    of(new, 'PLACE/evaluation'),
    before=lambda place: finish(*of(old, place / 'evaluation')),
    goes=r'evaluation/(?!results\.json).*',  # docs/reliability.md: results without reports, never of two detectors
  )


def detect(world: World) -> Command:
  of = lambda bundle, out: ['detect', world.images, '--checkpoint', bundle, '--classes', 'red mug, ant', '--out', out]
  old, new = world.bundles
  few = ['--batch-size', 2, '--min-score', 0]
  return Command([*of(new, 'PLACE/found'), *few], lambda place: finish(*of(old, place / 'found'), *few))


def export(world: World) -> Command:
  old, new = world.workdirs
  return Command(
    world.export(new, 'PLACE/bundle'), lambda place: finish(*world.export(old, place / 'bundle')), checked=('bundle',)
  )


def convert(world: World) -> Command:
  return Command(
    ['convert', 'resnet', '--from', world.resnet, '--out', 'PLACE/backbone'], checked=('backbone',), once=True
  )


def demo(world: World) -> Command:
  del world
  return Command(
    ['demo', '--workdir', 'PLACE/demo', '--seed', 5, '--methods', 'vild_text'],
    grows=r'demo/(stages\.json|[a-z_]+/metrics\.jsonl)',
    module=small_demo.__name__,
    most=8,
  )


COMMANDS = {
  'prepare': prepare,
  'prepare --overwrite': prepare_again,
  'embed-text': embed_text,
  'propose': propose,
  'embed-regions': embed_regions,
  'train': train,
  'evaluate': evaluate,
  'detect': detect,
  'export': export,
  'convert': convert,
  'demo': demo,
}
