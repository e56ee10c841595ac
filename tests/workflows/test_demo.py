"""The demo on a much smaller world: every stage once, a report that is whole, and nothing done twice."""

from __future__ import annotations

import json

import pytest

from tests.helpers import small_demo
from vild_jax.demo import methods
from vild_jax.workflows import demo


@pytest.fixture(scope='module')
def shrunk():
  with pytest.MonkeyPatch.context() as patch:
    small_demo.shrink(patch.setattr)
    yield


@pytest.fixture(scope='module')
def made(shrunk, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('demo')
  demo.run(workdir, seed=5, methods=('vild_text',))
  return workdir


@pytest.fixture(scope='module')
def compared(made, shrunk):
  """The same demo, asked for more methods later: (report.json, when the stages of the first call ended)."""
  first = json.loads((made / 'stages.json').read_text())['stages']
  demo.run(made, seed=5, methods=('vild_ensemble', 'clip_crops'))
  return json.loads((made / 'report.json').read_text()), first


def test_the_report_is_whole(made):
  report = json.loads((made / 'report.json').read_text())
  assert report['seed'] == 5
  assert list(report['seconds']) == [
    'world',
    'prepare',
    'teacher',
    'embed_text',
    'start',
    'train',
    'evaluate',
    'export',
    'gallery',
  ]
  assert list(report['seconds']) == list(demo._expected(['vild_text']))  # what is announced is what runs
  method = report['methods']['vild_text']
  for kind in ('box', 'mask'):
    assert {'AP', 'AP50', 'APr', 'APc', 'APf', 'AP_base', 'AP_novel', 'AP50_base', 'AP50_novel'} <= set(method[kind])
  assert method['seconds_per_image'] > 0
  page = (made / 'report.html').read_text()
  assert page.count('<figure') > 3 and 'What the annotations said' in page
  assert page.count('data:image/') >= 6 and 'ViLD-text' in page and 'seed' in page.lower()


def test_every_stage_is_announced(made, shrunk, capsys):
  demo.run(made, seed=5, methods=('vild_text',))
  assert '[9/9] gallery: about ' in capsys.readouterr().err


def test_a_finished_demo_is_not_run_again(made, shrunk, monkeypatch):
  before = (made / 'stages.json').stat().st_mtime_ns
  monkeypatch.setattr(demo.toy_teacher, 'train', None)
  demo.run(made, seed=5, methods=('vild_text',))
  assert (made / 'stages.json').stat().st_mtime_ns == before


@pytest.mark.slow  # trains a second detector
def test_methods_share_the_work(compared, made):
  report, first = compared
  heads = ['vild_ensemble_text', 'vild_ensemble_image']
  assert list(report['methods']) == ['vild_text', 'vild_ensemble', *heads, 'clip_crops']
  for kind in ('box', 'mask'):
    assert all('AP50_novel' in report['methods'][head][kind] for head in heads)
  assert list(report['seconds']) == list(demo._expected(['vild_text', 'vild_ensemble', 'clip_crops']))
  stages = json.loads((made / 'stages.json').read_text())['stages']
  assert {name: stages[name] for name in first} == first  # nothing was done twice
  assert set(stages) - set(first) == {
    'propose',
    'embed_regions',
    'train_vild_ensemble',
    'evaluate_vild_ensemble',
    'export_vild_ensemble',
    'evaluate_clip_crops',
  }
  configs = [json.loads((made / name / 'config.json').read_text()) for name in ('vild_text', 'vild_ensemble')]
  flat = [
    {**c, **{f'{k}.{n}': v for k, part in c.items() if isinstance(part, dict) for n, v in part.items()}}
    for c in configs
  ]
  assert {key for key in flat[0] if flat[0][key] != flat[1][key] and not isinstance(flat[0][key], dict)} == {
    'name',
    'model.image_head',
    'distillation.weight',
    'distillation.store',
    'distillation.regions_per_image',
  }
  assert configs[0]['train']['init_first_stage'] == str(made / 'start')
  cosine = report['methods']['vild_ensemble']['teacher_cosine']
  assert cosine['regions']['all'] > 0
  for group, count in cosine['regions'].items():  # after so few steps no region need lie on a novel object
    assert -1 <= cosine[group] <= 1 if count else cosine[group] is None
  assert 'teacher_cosine' not in report['methods']['vild_text']
  page = (made / 'report.html').read_text()
  assert 'ViLD-ensemble, text head alone' in page and 'share a backbone' in page
  assert 'ViLD-ensemble' in page and 'CLIP on cropped regions' in page and 'class="bar0"' in page


@pytest.mark.parametrize(
  ('chosen', 'run'),
  [
    (['vild_ensemble'], ['vild_ensemble']),
    (['vild'], ['vild_text', 'vild']),
    (['clip_crops', 'vild_ensemble'], ['vild_text', 'vild_ensemble', 'clip_crops']),
  ],
)
def test_vild_text_is_run_with_all_but_the_ensemble_alone(chosen, run):
  assert methods.to_run(chosen) == run


def test_unknown_methods_are_one_line(tmp_path):
  with pytest.raises(ValueError, match="--methods has 'vild_txt'; expected some of vild_text, vild, "):
    demo.run(tmp_path / 'w', methods=('vild_txt',))
  assert not (tmp_path / 'w').exists()


def test_other_settings_need_another_folder(made, monkeypatch):
  monkeypatch.setattr(demo, '_PROPOSALS', 47)
  with pytest.raises(ValueError, match=r'holds a demo of a version with other settings .*or another --workdir'):
    demo.run(made, seed=5)


def test_another_seed_needs_another_folder(made):
  with pytest.raises(ValueError, match='holds a demo with seed 5; expected --seed 5 or another --workdir'):
    demo.run(made, seed=6)


def test_the_bundle_answers_for_classes_in_any_words(made):
  import vild_jax

  picture = next((made / 'world' / 'val').glob('*.jpg'))
  found = vild_jax.load(made / 'bundle').detect(picture, classes=['a purple cow', 'bakru'], min_score=0.0)
  assert len(found.scores) and set(found.labels) <= {0, 1}
