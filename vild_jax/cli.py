"""`vild-jax <command>`: parse, build, call. One short function a command; the logic lives in the rooms.

Exit code 0 only on success; bad input gives one line and exit code 2 (`--debug` shows where it came from).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import absl.logging


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit code."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's and TensorStore's chatter is no news to a user
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # NumPy's small products are shared out by threads of ours
  absl.logging.set_verbosity(absl.logging.ERROR)  # nor is Orbax's
  parser = _parser()
  args, rest = parser.parse_known_args(argv)
  stray = [word for word in rest if not (hasattr(args, 'config') and word.startswith('--') and '=' in word)]
  if stray:
    form = hasattr(args, 'config') and stray[0].startswith('--') and '.' in stray[0]
    parser.error(f'unknown argument {stray[0]!r}; expected {stray[0]}=VALUE' if form else
                 f'unknown argument {stray[0]!r}; see vild-jax {args.command} --help')
  args.overrides = rest
  if getattr(args, 'json', None) and not Path(args.json).absolute().parent.is_dir():
    parser.error(f'--json is {args.json!r}; expected a file in a folder that exists')
  try:
    with warnings.catch_warnings():
      warnings.showwarning = lambda message, *_, **__: print(f'vild-jax {args.command}: warning: {message}',
                                                             file=sys.stderr)
      args.run(args)
  except KeyboardInterrupt:
    print('vild-jax: interrupted', file=sys.stderr)
    return 130
  except Exception as error:
    if args.debug:
      raise
    expected = isinstance(error, ValueError | OSError | FloatingPointError | ImportError)
    print(f'vild-jax {args.command}: {_one_line(error, expected)}', file=sys.stderr)
    return 2 if expected else 1
  return 0


# --- commands -------------------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> None:
  """The whole pipeline on the toy world."""
  from vild_jax import demo as demo_lib

  demo_lib.run(Path(args.workdir), seed=args.seed, json_file=args.json)


def prepare(args: argparse.Namespace) -> None:
  """JSON and pictures, or a stock TFDS data set -> a prepared data set."""
  from vild_jax.data import prepare as prepare_lib

  if args.from_tfds:
    folder = prepare_lib.from_tfds(args.from_tfds, args.out, data_dir=args.data_dir, name=args.name, split=args.split,
                                   overwrite=args.overwrite)
  else:
    _require(args.annotations and args.images, 'prepare takes --annotations and --images, or --from-tfds')
    folder = prepare_lib.prepare(args.annotations, args.images, args.out, name=args.name, split=args.split,
                                 overwrite=args.overwrite, drop_bad_boxes=args.drop_bad_boxes)
  print(folder)


def embed_text(args: argparse.Namespace) -> None:
  """Class names -> a vocabulary file."""
  from vild_jax.data import class_lists
  from vild_jax.teacher import text, vocabulary

  classes = class_lists.class_list(args.classes, base=args.base)
  if args.synonyms and (classes.synonyms is None or args.from_npy):
    raise ValueError('--synonyms takes a list that has some: lvis or a LVIS-format .json; ' + (
      '--from-npy embeds nothing' if args.from_npy else f'{args.classes} has none'))
  if args.from_npy:
    _require(args.teacher_id, '--from-npy takes --teacher-id NAME, which tower made the embeddings')
    file = vocabulary.from_npy(args.from_npy, classes.names, args.teacher_id, classes.is_base)
  else:
    _require(args.teacher, 'embed-text takes --teacher DIR, or --from-npy FILE')
    file = text.load_text(args.teacher).vocabulary(classes.names, classes.is_base, args.prompts,
                                                   classes.synonyms if args.synonyms else None)
  Path(args.out).parent.mkdir(parents=True, exist_ok=True)
  vocabulary.save(args.out, file)
  print(f'{args.out}: {len(file.names)} classes, {int(file.is_base.sum())} base, dimension {file.embeddings.shape[1]}, '
        f'teacher {file.teacher}')


def classify(args: argparse.Namespace) -> None:
  """Pictures -> the best names of each."""
  from vild_jax import commands

  found = commands.classify(args.teacher, [Path(image) for image in args.images], args.classes, which=args.prompts,
                            top=args.top)
  print(commands.scores_table(found))
  _write_json(args.json, found)


def train(args: argparse.Namespace) -> None:
  """Train, or resume."""
  from vild_jax import commands
  from vild_jax import config as config_lib

  commands.train(config_lib.load(args.config, args.overrides), Path(args.workdir))


def propose(args: argparse.Namespace) -> None:
  """A checkpoint's proposals for a data set -> a region store."""
  from vild_jax import commands
  from vild_jax import config as config_lib

  config = config_lib.load(args.config, args.overrides)
  made = commands.propose(config, Path(args.checkpoint), args.data or config.data.train,
                          args.split or config.data.train_split, Path(args.out), max_proposals=args.max_proposals,
                          images_per_shard=args.images_per_shard)
  _write_json(args.json, made)


def evaluate(args: argparse.Namespace) -> None:
  """Detections -> results file -> metrics."""
  from vild_jax import commands
  from vild_jax import config as config_lib

  config = config_lib.load(args.config, args.overrides)
  metrics = commands.evaluate(config, Path(args.checkpoint), args.data or config.data.val,
                              args.split or config.data.val_split, Path(args.out), vocabulary=args.vocabulary)
  print(commands.metrics_table(metrics))
  _write_json(args.json, {key: metrics[key] for key in ('box', 'mask', 'seconds_per_image')})


def detect(args: argparse.Namespace) -> None:
  """Pictures and JSON of what is found."""
  from vild_jax import commands, inference

  detector = inference.load(args.checkpoint, teacher=args.teacher)
  commands.detect(detector, [Path(image) for image in args.images], args.classes, Path(args.out),
                  min_score=args.min_score)


def export(args: argparse.Namespace) -> None:
  """A work directory -> a bundle."""
  from vild_jax import commands
  from vild_jax import config as config_lib

  config = config_lib.load(args.config, args.overrides)
  print(commands.export(config, Path(args.checkpoint), Path(args.out), teacher=args.teacher or config.teacher or None))


def convert(args: argparse.Namespace) -> None:
  """Published weights -> a folder of ours."""
  from vild_jax import conversion
  from vild_jax.interop import tf_vild, timm_resnet

  _require(args.out or args.dry_run, 'convert takes --out DIR, or --dry-run')
  resnet = args.kind == 'resnet'
  _require(not (resnet and (args.classes or args.teacher)), '--classes and --teacher belong to convert tf-vild')
  if args.dry_run:
    print(timm_resnet.mapping_text(timm_resnet.read_tensors(args.source)) if resnet else
          tf_vild.mapping_text(tf_vild.read_checkpoint(args.source, shapes_only=True)))
  elif resnet:
    backbone = conversion.convert_resnet(args.source, Path(args.out))
    print(f'{args.out}: ResNet-{backbone.depth}; train from it with --train.init_backbone={args.out}')
  else:
    file = conversion.convert_tf_vild(args.source, Path(args.out), classes=args.classes, teacher=args.teacher)
    print(f'{args.out}: {len(file.names)} classes, {int(file.is_base.sum())} base, teacher {file.teacher}; evaluate or '
          f'export it with {Path(args.out) / "config.json"} as CONFIG')


# --- arguments ------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
  """Words that do not fit are one line, as any other bad input."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'{self.prog}: {message}\n')


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
  """Shows defaults where there is one to show."""

  def _get_help_string(self, action: argparse.Action) -> str | None:
    shown = action.default not in (None, False, argparse.SUPPRESS) and '(default' not in (action.help or '')
    return super()._get_help_string(action) if shown else action.help


def _parser() -> argparse.ArgumentParser:
  from vild_jax import cli_regions

  parser = _Parser(prog='vild-jax', description='Open-vocabulary object detection in JAX (ViLD).')
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

  p = _command(commands, 'demo', demo, 'the whole pipeline on the embedded toy world, offline, on a CPU',
               'vild-jax demo --workdir workdir/demo')
  p.add_argument('--workdir', required=True, help='gets data, checkpoints, report.html and report.json')
  p.add_argument('--seed', type=int, default=0, help='of the world, the teacher and the training')
  _add_json(p)

  p = _command(commands, 'prepare', prepare, 'LVIS- or COCO-format JSON + pictures -> a TFDS data set in ArrayRecord',
               'vild-jax prepare --annotations lvis_v1_train.json --images train2017 --out data --name lvis')
  p.add_argument('--annotations', help='the JSON file')
  p.add_argument('--images', help='the folder of its pictures')
  p.add_argument('--from-tfds', metavar='NAME', help='instead: a stock TFDS lvis or coco data set, or its folder')
  p.add_argument('--data-dir', help='where TFDS keeps that data set (default: TFDS\'s own)')
  p.add_argument('--out', required=True, help='folder of data sets; this one goes to OUT/NAME/1.0.0')
  p.add_argument('--name', help='of the data set (default: from the file\'s name)')
  p.add_argument('--split', help='of the data set (default: train or val, whichever the file\'s name contains)')
  p.add_argument('--overwrite', action='store_true', help='replace the split if it is there with other content')
  p.add_argument('--drop-bad-boxes', action='store_true',
                 help='leave out boxes without size or outside of their picture, instead of refusing the file')

  p = _command(commands, 'embed-text', embed_text, 'class names -> text embeddings of a teacher -> a vocabulary file',
               'vild-jax embed-text --teacher clip-vit-base-patch32 --classes lvis --out lvis.npz')
  p.add_argument('--teacher', help='folder of a CLIP in the Hugging Face layout')
  p.add_argument('--classes', required=True,
                 help='lvis, coco, coco-ovd, voc, objects365, a text file with one name a line, or a LVIS/COCO JSON')
  p.add_argument('--out', required=True, help='the vocabulary file, .npz')
  p.add_argument('--prompts', default='vild', help='vild (63 templates), imagenet (80), single, or a text file')
  p.add_argument('--synonyms', action='store_true', help='average over all synonyms of a class too (lvis has some)')
  p.add_argument('--base', help='text file that names the base classes (default: the data set\'s split, else none)')
  p.add_argument('--from-npy', help='embeddings [classes, dimension] that you have already')
  p.add_argument('--teacher-id', help='which tower made them')

  p = _command(commands, 'classify', classify, 'what a teacher takes pictures for, among any names',
               'vild-jax classify cup.jpg --teacher clip-vit-base-patch32 --classes "red mug, toy elephant"')
  p.add_argument('images', nargs='+', metavar='IMAGE')
  p.add_argument('--teacher', required=True, help='folder of a CLIP-family model in the Hugging Face layout')
  p.add_argument('--classes', required=True, help='names separated by commas, or a list as embed-text takes it')
  p.add_argument('--prompts', default='vild', help='vild (63 templates), imagenet (80), single, or a text file')
  p.add_argument('--top', type=int, default=5, metavar='N', help='the best N names of each picture')
  _add_json(p)

  p = _command(commands, 'train', train, 'train a detector, or resume where it stopped',
               'vild-jax train configs/vild_text_r50_lvis.py --workdir workdir/text --data.batch_size=64')
  _add_config(p)
  p.add_argument('--workdir', required=True, help='gets the config, checkpoints, metrics.jsonl and TensorBoard files')

  p = _command(commands, 'propose', propose,
               'proposals of a checkpoint\'s first stage for every picture of a data set -> a region store',
               'vild-jax propose configs/vild_text_r50_lvis.py --checkpoint workdir/text --data data/lvis --out '
               'workdir/proposals')
  _add_config(p)
  p.add_argument('--checkpoint', required=True, help='a work directory or a bundle')
  p.add_argument('--data', help='the prepared data set (default: data.train of the config)')
  p.add_argument('--split', help='its split (default: data.train_split of the config, which is train)')
  p.add_argument('--out', required=True, help='folder of the store; given again after an interruption, it goes on')
  p.add_argument('--max-proposals', type=int, default=1000, metavar='N', help='keep the best N of each picture')
  p.add_argument('--images-per-shard', type=int, default=256, metavar='N',
                 help='pictures in a file: what an interruption costs, and what processes share')
  _add_json(p)

  p = _command(commands, 'embed-regions', cli_regions.embed_regions,
               'a teacher\'s embeddings of the 1x and 1.5x crops of proposals -> a region store to distil from',
               'vild-jax embed-regions --teacher clip-vit-base-patch32 --data data/lvis --proposals workdir/proposals '
               '--out workdir/regions')
  cli_regions.add_arguments(p)
  _add_json(p)

  p = _command(commands, 'evaluate', evaluate, 'detections -> results file -> metrics, per-category table, plots',
               'vild-jax evaluate configs/vild_text_r50_lvis.py --checkpoint workdir/text --out workdir/text/eval')
  _add_config(p)
  p.add_argument('--checkpoint', required=True, help='a work directory or a bundle')
  p.add_argument('--data', help='the prepared data set (default: data.val of the config)')
  p.add_argument('--split', help='its split (default: data.val_split of the config)')
  p.add_argument('--vocabulary', help='classes to detect (default: those of training)')
  p.add_argument('--out', required=True, help='gets results.json, metrics.json, per_category.csv and plots')
  _add_json(p)

  p = _command(commands, 'detect', detect, 'pictures of what is found, with any class names',
               'vild-jax detect street.jpg --checkpoint bundle --classes "red mug, toy elephant" --out found')
  p.add_argument('images', nargs='+', metavar='IMAGE')
  p.add_argument('--checkpoint', required=True, help='a work directory or a bundle')
  p.add_argument('--classes', required=True, help='names separated by commas, or a text file with one name a line')
  p.add_argument('--teacher', help='a teacher directory in place of the bundle\'s text tower')
  p.add_argument('--min-score', type=float, default=0.3, help='leave out what scores less')
  p.add_argument('--out', required=True, help='gets a picture for each image, and detections.json')

  p = _command(commands, 'export', export, 'a self-contained folder that `vild_jax.load` reads anywhere',
               'vild-jax export configs/vild_text_r50_lvis.py --checkpoint workdir/text --out bundle')
  _add_config(p)
  p.add_argument('--checkpoint', required=True, help='a work directory')
  p.add_argument('--out', required=True, help='the bundle')
  p.add_argument('--format', choices=['bundle'], default='bundle')
  p.add_argument('--teacher', help='the teacher whose text tower the bundle keeps (default: teacher of the config)')

  p = _command(commands, 'convert', convert, 'published weights -> a detector, or a backbone to start training from',
               'vild-jax convert tf-vild --from model.ckpt-180000 --out vild_r50')
  p.add_argument('kind', choices=['tf-vild', 'resnet'],
                 help='a checkpoint of the reference (needs the extra [tf]), or an ImageNet ResNet of timm, '
                      'torchvision or Hugging Face')
  p.add_argument('--from', dest='source', metavar='PATH', required=True,
                 help='the prefix or folder of the checkpoint; the .safetensors file')
  p.add_argument('--out', help='a new folder')
  p.add_argument('--dry-run', action='store_true', help='print which variable goes where, and write nothing')
  p.add_argument('--classes', help='tf-vild: the classes that the checkpoint embeds (default: LVIS v1, if it is 1,203)')
  p.add_argument('--teacher', help='tf-vild: folder of the CLIP whose text tower embedded them, for new class names')
  return parser


def _command(commands: Any, name: str, run: Callable, summary: str, example: str) -> argparse.ArgumentParser:
  parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + '.',
                               epilog=f'example: {example}', formatter_class=_HelpFormatter)
  parser.add_argument('--debug', action='store_true', help='show where an error came from')
  parser.set_defaults(run=run)
  return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('config', metavar='CONFIG.py',
                      help='a file with get_config(), or a saved config.json; single values are overridden by '
                           '--key.path=value, for example --data.batch_size=64')


def _add_json(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--json', metavar='FILE', help='also write what was measured to this file')


def _require(condition: object, message: str) -> None:
  if not condition:
    raise ValueError(message)


def _write_json(path: str | None, content: Any) -> None:
  from vild_jax import files

  if path:
    files.write(path, json.dumps(content, indent=2) + '\n')


def _one_line(error: Exception, expected: bool) -> str:
  if isinstance(error, OSError) and error.filename is not None:
    return f'{error.filename}: {error.strerror}'
  text = (str(error).strip() or type(error).__name__).splitlines()[0]
  return text if expected else f'{type(error).__name__}: {text} (--debug shows where)'
