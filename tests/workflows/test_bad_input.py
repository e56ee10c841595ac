"""One clear line and exit code 2 for each kind of bad input of the commands that train, evaluate, export and detect."""

from __future__ import annotations

import json
import shutil

from tests.helpers import bad_input, planted_store, small_set, small_teacher
from tests.helpers.bad_input import BadInput
from tests.helpers.small_experiment import run
from vild_jax import vocabulary
from vild_jax.data import sources
from vild_jax.teacher import checkpoint as teacher_checkpoint

TRAIN = 'train {config} --workdir {out}'
AGAIN = 'train {config} --workdir {tmp}/run'
RESTARTED = 'train {tmp}/run/config.json --workdir {tmp}/run'
EVALUATE = 'evaluate {config} --checkpoint {run} --out {out}'
EXPORT = 'export {config} --checkpoint {run} --out {out}'
DETECT = 'detect {picture} --checkpoint {bundle} --out {out} --classes'


def copied_run(made, tmp_path):
  """A copy of the work directory that may be spoiled."""
  return shutil.copytree(made / 'run', tmp_path / 'run')


def edited_config(made, tmp_path):
  file = copied_run(made, tmp_path) / 'config.json'
  tree = json.loads(file.read_text())
  tree['model']['mask_head']['channels'] = 4
  file.write_text(json.dumps(tree))


def damaged_checkpoint(made, tmp_path):
  for path in (copied_run(made, tmp_path) / 'checkpoints').rglob('d/*'):
    path.write_bytes(b'')


def no_saved_config(made, tmp_path):
  (copied_run(made, tmp_path) / 'config.json').unlink()


def other_data(made, tmp_path):
  """The work directory goes on with other data, to which its vocabulary and a store fit."""
  annotations, images = small_set.write(tmp_path, stem='other_train')
  tree = json.loads(annotations.read_text())
  annotations.write_text(json.dumps({**tree, 'annotations': tree['annotations'][1:]}))
  assert run('prepare', '--annotations', annotations, '--images', images, '--out', tmp_path / 'd') == 0
  file = copied_run(made, tmp_path) / 'config.json'
  saved = json.loads(file.read_text())
  saved['data']['train'] = str(tmp_path / 'd')
  saved['distillation']['store'] = str(store(made, tmp_path, tmp_path / 'd'))
  file.write_text(json.dumps(saved))


def store(made, tmp_path, data, **changed):
  """A region store that fits the data and the vocabulary, up to what is changed of its job."""
  teacher = vocabulary.load(made / 'v.npz').teacher
  return planted_store.write(
    tmp_path / 'regions', sources.open_dataset(data, 'train'), **{'teacher': teacher, **changed}
  )


def regions(name, message, **changed):
  """A training that begins with a region store of another job."""
  return BadInput(
    f'regions {name}',
    f'{TRAIN} --distillation.store={{tmp}}/regions',
    message,
    lambda made, tmp_path: store(made, tmp_path, made / 'data', **changed),
  )


def regions_anew(name, message, **changed):
  """A training that goes on with a region store of another job than it began with."""

  def spoil(made, tmp_path):
    copied_run(made, tmp_path)
    store(made, tmp_path, made / 'data', **changed)

  return BadInput(f'regions {name}', f'{AGAIN} --distillation.store={{tmp}}/regions', message, spoil)


def small_teachers_folder(made, tmp_path):
  teacher_checkpoint.save_teacher(tmp_path / 't', small_teacher.make())


def not_federated(made, tmp_path):
  tree = small_set.annotations()
  tree = {**tree, 'images': [{**image, 'neg_category_ids': []} for image in tree['images']]}
  annotations, images = small_set.write(tmp_path, tree, stem='coco_val')
  assert run('prepare', '--annotations', annotations, '--images', images, '--out', tmp_path / 'd') == 0


def broken_config(made, tmp_path):
  (tmp_path / 'c.py').write_text('from vild_jax.config import Config\n\ndef get_config():\n  return Config(sed=1)\n')


def other_teacher(made, tmp_path):
  file = vocabulary.load(made / 'v.npz')
  vocabulary.save(tmp_path / 'v.npz', vocabulary.VocabularyFile(file.embeddings, file.names, file.is_base, 'x', ''))


def damaged_bundle(made, tmp_path):
  shutil.copytree(made / 'bundle', tmp_path / 'b')
  shutil.rmtree(tmp_path / 'b' / 'variables')


def file_of(name, content):
  """Writes a file into the empty folder."""
  return lambda made, tmp_path: (tmp_path / name).write_bytes(content)


def own_folder(made, tmp_path):
  (tmp_path / 'mine').mkdir()


@bad_input.each(
  BadInput('unknown key', f'{TRAIN} --model.backbon.depth=18', "nearest valid one is 'model.backbone.depth'"),
  BadInput('no config', 'train {tmp}/none.py --workdir {out}', 'none.py is not a file'),
  BadInput('no data', f'{TRAIN} --data.train={{tmp}}', '{tmp}'),
  BadInput('no vocabulary', f'{TRAIN} --vocabulary=', 'vocabulary is empty'),
  BadInput('dimension', f'{TRAIN} --model.region_head.embedding_dim=32', 'dimension 16; expected 32'),
  BadInput('other config', 'train {config} --workdir {run} --seed=7', 'made with another config: seed: 0 and 7'),
  BadInput('other data', RESTARTED, 'expected the same data, or', other_data),
  BadInput('edited config', RESTARTED, 'is of another architecture: ', edited_config),
  BadInput('damaged checkpoint', AGAIN, 'has 0 bytes, digests.json lists', damaged_checkpoint),
  BadInput('no whole checkpoint', f'{AGAIN} --fallback', 'none of the checkpoints in {tmp}/run is', damaged_checkpoint),
  BadInput('no saved config', AGAIN, 'holds checkpoints/ but no config.json', no_saved_config),
  BadInput(
    'image tower of no teacher', f'{EXPORT} --image-tower', '--image-tower keeps a tower of the teacher; expected'
  ),
  BadInput('teacher of an export', f'{EXPORT} --teacher {{tmp}}/none', 'none is not a folder'),
  BadInput(
    'no distillation', f'{TRAIN} --distillation.store=', 'the data holds no regions with embeddings of the teacher'
  ),
  BadInput('unknown class', f"{DETECT} 'trees, zebra'", "'trees' is not in the stored vocabulary"),
  BadInput(
    'teacher of another dimension',
    f'{EXPORT} --teacher {{tmp}}/t',
    "{tmp}/t is of teacher 'clip-vit-1x16-patch8-8d:",
    small_teachers_folder,
  ),
  regions('of other data', 'is of a data set with identity other, and', dataset='other'),
  regions('without embeddings', 'is a store of proposals without embeddings', kind='proposals'),
  regions('of another teacher', "regions has embeddings of teacher 'other', and", teacher='other'),
  regions('of another dimension', 'has embeddings of dimension 8; expected 16', dim=8),
  regions('of fewer pictures', 'holds the regions of 3 pictures; expected 4', images=3),
  regions_anew('made anew', 'was trained on proposals with identity', each=9),
  regions_anew('embedded anew', 'was trained on a region store with identity', recipe={'crops': 'other'}),
  BadInput(
    'vocabulary folder',
    'embed-text --from-npy {made}/rows.npy --classes {made}/small_val.json --teacher-id x --out {made}',
    '{made}: Is a directory',
  ),
  BadInput(  # before the teacher is read, which may take long
    'unwritable vocabulary',
    'embed-text --teacher {tmp}/none --classes {made}/small_val.json --out {made}',
    '{made}: Is a directory',
  ),
  BadInput('not federated', f'{EVALUATE} --data {{tmp}}/d --split val', 'evaluation.protocol=coco', not_federated),
  BadInput(
    'no backbone',
    f'{TRAIN} --train.init_backbone={{tmp}}',
    'holds no variables/; expected a folder of `vild-jax convert',
  ),
  BadInput(
    'no first stage',
    f'{TRAIN} --train.init_first_stage={{tmp}}',
    'holds no checkpoint; expected a work directory',
  ),
  BadInput('no start', f'{TRAIN} --train.init={{tmp}}', 'holds no checkpoint; expected a work directory'),
  BadInput(
    'another backbone',
    f'{TRAIN} --train.init={{bundle}} --model.backbone.width=16',
    'train.init: the checkpoint {bundle}/variables is of another architecture',
  ),
  BadInput('nothing to freeze', f'{TRAIN} --train.freeze=neck/*', "train.freeze: 'neck/*' matches no parameter"),
  BadInput('all is frozen', f'{TRAIN} --train.freeze=*', 'train.freeze is *, which is every parameter'),
  BadInput('no store', f'{EVALUATE} --regions {{data}}', '{data} is not a region store'),
  BadInput('top level', f'{TRAIN} --model.pyramid.max_level=7', 'data.image_size is 64; expected a multiple of 128'),
  BadInput('broken config', 'train {tmp}/c.py --workdir {out}', 'c.py, line 4: TypeError', broken_config),
  BadInput('unwritable', 'train {config} --workdir {tmp}/file/w', 'Not a directory', file_of('file', b'')),
  BadInput(
    'architecture',
    f'{EVALUATE} --data {{data}} --model.mask_head.channels=4',
    'was trained with another model: model.mask_head.channels',
  ),
  BadInput(
    'other meaning',
    f'{EXPORT} --model.anchors.size=5',
    'was trained with another model: model.anchors.size: 4.0 and 5.0',
  ),
  BadInput('other teacher', f'{EVALUATE} --vocabulary {{tmp}}/v.npz', "is of teacher 'x'", other_teacher),
  BadInput('empty classes', f"{DETECT} ' , '", 'expected names separated by commas'),
  BadInput(
    'no picture',
    'detect {tmp}/p.jpg --checkpoint {bundle} --out {out} --classes tree',
    'p.jpg',
    file_of('p.jpg', b'no picture'),
  ),
  BadInput('no name on the hub', f'{EXPORT} --teacher hf://a', 'hf://a is not a name on the Hugging Face hub'),
  *(
    BadInput(f'no name on the hub: {what}', line.replace('{run}', 'hf://a/b/c'), 'hf://a/b/c is not a name on the')
    for what, line in (
      ('evaluate', EVALUATE),
      ('export', EXPORT),
      ('propose', EVALUATE.replace('evaluate', 'propose')),
      ('detect', f'{DETECT} tree'.replace('{bundle}', '{run}')),
      ('train', f'{TRAIN} --train.init={{run}}'),
    )
  ),
  BadInput('no bundle', 'detect {picture} --checkpoint {tmp} --out {out} --classes tree', 'holds no config.json'),
  BadInput(
    'damaged bundle',
    'detect {picture} --checkpoint {tmp}/b --out {out} --classes tree',
    'holds no checkpoint',
    damaged_bundle,
  ),
  BadInput(
    'no json', 'prepare --annotations {tmp}/a.json --images {made} --out {out}', 'JSON', file_of('a.json', b'{')
  ),
  BadInput(
    'export over a folder',
    'export {config} --checkpoint {run} --out {tmp}/mine',
    'exists and is not a bundle',
    own_folder,
  ),
)
def test_bad_input_gets_one_line_and_exit_code_2(made, tmp_path, capsys, case):
  if case.spoil:
    case.spoil(made, tmp_path)
  paths = {
    'made': made,
    'config': made / 'config.json',
    'run': made / 'run',
    'bundle': made / 'bundle',
    'data': made / 'data',
    'picture': made / 'picture.png',
    'tmp': tmp_path,
    'out': tmp_path / 'out',
  }
  before = {path: path.stat().st_mtime_ns for path in made.rglob('*') if path.is_file()}
  bad_input.assert_one_line(capsys, case, paths)
  assert {path: path.stat().st_mtime_ns for path in made.rglob('*') if path.is_file()} == before
  assert not (tmp_path / 'out').exists() and not list(tmp_path.glob('.*'))
