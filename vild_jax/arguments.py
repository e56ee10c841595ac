"""The words that `vild-jax` understands: each command's arguments, defaults, help and one example."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from vild_jax import processes


class _Parser(argparse.ArgumentParser):
  """Words that do not fit are one line, as any other bad input."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'{self.prog}: {message}\n')


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
  """Shows defaults where there is one to show."""

  def _get_help_string(self, action: argparse.Action) -> str | None:
    shown = action.default not in (None, False, argparse.SUPPRESS) and '(default' not in (action.help or '')
    return super()._get_help_string(action) if shown else action.help


def parser() -> argparse.ArgumentParser:
  """The parser of the whole program; what it returns has the name of the command in `command`."""
  whole = _Parser(prog='vild-jax', description='Open-vocabulary object detection in JAX (ViLD).')
  commands = whole.add_subparsers(dest='command', required=True, metavar='COMMAND')

  p = _command(commands, 'demo', 'the whole pipeline on the embedded toy world, offline, on a CPU',
               'vild-jax demo --workdir workdir/demo')
  p.add_argument('--workdir', required=True, help='gets data, checkpoints, report.html and report.json')
  p.add_argument('--seed', type=int, default=0, help='of the world, the teacher and the training')
  p.add_argument('--methods', default='vild_text,vild,vild_ensemble', metavar='A,B',
                 help='what to compare, of vild_text, vild, vild_ensemble, vild_image, supervised, clip_crops, '
                      'vild_text_clip_crops; what is there already is not run again')
  p.add_argument('--full', action='store_true', help='compare all of them')
  _add_json(p)

  p = _command(commands, 'prepare', 'LVIS- or COCO-format JSON + pictures -> a TFDS data set in ArrayRecord',
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

  p = _command(commands, 'embed-text', 'class names -> text embeddings of a teacher -> a vocabulary file',
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

  p = _command(commands, 'classify', 'what a teacher takes pictures for, among any names',
               'vild-jax classify cup.jpg --teacher clip-vit-base-patch32 --classes "red mug, toy elephant"')
  p.add_argument('images', nargs='+', metavar='IMAGE')
  p.add_argument('--teacher', required=True, help='folder of a CLIP-family model in the Hugging Face layout')
  p.add_argument('--classes', required=True, help='names separated by commas, or a list as embed-text takes it')
  p.add_argument('--prompts', default='vild', help='vild (63 templates), imagenet (80), single, or a text file')
  p.add_argument('--top', type=int, default=5, metavar='N', help='the best N names of each picture')
  _add_json(p)

  p = _command(commands, 'train', 'train a detector, or resume where it stopped',
               'vild-jax train configs/vild_text_r50_lvis.py --workdir workdir/text --data.batch_size=64; told to end '
               f'(SIGTERM) it saves and exits with {processes.EXIT_PREEMPTED}, and the same command goes on from there')
  _add_config(p)
  p.add_argument('--workdir', required=True, help='gets the config, checkpoints, metrics.jsonl and TensorBoard files')
  p.add_argument('--on-nan', choices=['stop', 'skip'],
                 help='after a step whose loss or gradients are not finite: stop the run, or skip the update and count '
                      'it (default: train.on_nan of the config, which is stop)')
  _add_processes(p)

  p = _command(commands, 'plan', 'whether a training fits devices that are not here: its step, compiled for them',
               'vild-jax plan configs/vild_r50_lvis.py --topology v5e:16x16')
  _add_config(p)
  p.add_argument('--topology', required=True, metavar='KIND:NxN',
                 help='v5e:16x16, v6e:8x8, v5p:4x4x4, ... (needs the extra [tpu]), or cpu:8 for 8 emulated devices')
  p.add_argument('--platform', choices=['tpu', 'cpu'],
                 help='cpu emulates as many devices as the topology has chips (default: by the topology)')
  p.add_argument('--batch', type=int, metavar='N', help='the global batch (default: data.batch_size of the config)')
  p.add_argument('--classes', type=int, default=1203, metavar='C', help='rows of the vocabulary; LVIS has 1203')
  p.add_argument('--fit', action='store_true', help='find the largest batch that fits, by several compilations')
  p.add_argument('--hbm', type=float, metavar='GIB',
                 help='memory that the sum of all parts may take of a device (default: the compiler decides)')
  p.add_argument('--effort', type=float, default=0.0, metavar='E',
                 help='of the compiler: -1 takes the least time, and 0 is its own choice')
  p.add_argument('--cache', metavar='DIR', help='keeps what was measured (default: ~/.cache/vild_jax/plan)')
  _add_json(p)

  p = _command(commands, 'propose',
               'proposals of a checkpoint\'s first stage for every picture of a data set -> a region store',
               'vild-jax propose configs/vild_text_r50_lvis.py --checkpoint workdir/text --data data/lvis --out '
               'workdir/proposals')
  _add_config(p)
  p.add_argument('--checkpoint', required=True, help='a work directory or a bundle')
  _add_step(p)
  p.add_argument('--data', help='the prepared data set (default: data.train of the config)')
  p.add_argument('--split', help='its split (default: data.train_split of the config, which is train)')
  p.add_argument('--out', required=True, help='folder of the store; given again after an interruption, it goes on')
  p.add_argument('--max-proposals', type=int, default=1000, metavar='N', help='keep the best N of each picture')
  p.add_argument('--images-per-shard', type=int, default=256, metavar='N',
                 help='pictures in a file: what an interruption costs, and what processes share')
  _add_processes(p)
  _add_json(p)

  p = _command(commands, 'embed-regions',
               'a teacher\'s embeddings of the 1x and 1.5x crops of proposals -> a region store to distil from',
               'vild-jax embed-regions --teacher clip-vit-base-patch32 --data data/lvis --proposals workdir/proposals '
               '--out workdir/regions')
  p.add_argument('--teacher', help='folder of a CLIP-family model in the Hugging Face layout')
  p.add_argument('--data', required=True, help='the prepared data set')
  p.add_argument('--split', default='train', help='of the data set')
  p.add_argument('--proposals', metavar='STORE', help='what vild-jax propose wrote for it')
  p.add_argument('--out', required=True, help='folder of the store; given again after an interruption, it goes on')
  p.add_argument('--max-regions', type=int, default=300, metavar='N', help='keep the best N of each picture')
  p.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32',
      help='of the image tower\'s arithmetic; bfloat16 is faster on accelerators. Stored is float16')
  p.add_argument('--batch-size', type=int, default=100, metavar='N', help='crops that the tower takes at a time')
  p.add_argument('--images-per-shard', type=int, default=64, metavar='N',
      help='pictures in a file: what an interruption costs, and what processes share')
  p.add_argument('--import', dest='imported', metavar='NPZ_DIR',
      help='instead: a .npz file or a folder of them, each with image_ids [K], boxes [K, M, 4] (y1, x1, y2, x2 in '
           'pixels of the original picture), embeddings [K, M, D], teacher (a text: the identity of the text tower, or '
           'the NAME of embed-text --teacher-id), optionally scores [K, M], valid [K, M] (False for rows that fill up) '
           'and image_teacher; together every picture of the split once, best in its order')
  _add_processes(p)
  _add_json(p)

  p = _command(commands, 'evaluate', 'detections -> results file -> metrics, per-category table, plots',
               'vild-jax evaluate configs/vild_text_r50_lvis.py --checkpoint workdir/text --out workdir/eval; with '
               '--scores text+clip-crops --teacher clip-vit-base-patch32 it is the ViLD-text + CLIP of the paper')
  _add_config(p)
  p.add_argument('--checkpoint', required=True, help='a work directory or a bundle')
  _add_step(p)
  p.add_argument('--data', help='the prepared data set (default: data.val of the config)')
  p.add_argument('--split', help='its split (default: data.val_split of the config)')
  p.add_argument('--vocabulary', help='classes to detect (default: those of training)')
  p.add_argument('--scores', choices=['model', 'clip-crops', 'text+clip-crops'], default='model',
                 help='of the model; of the teacher on cropped proposals, also times objectness in with_objectness/; '
                      'or of ViLD-text and the teacher on crops together. The last two are slow')
  p.add_argument('--teacher', help='folder of the teacher that embeds crops (default: teacher of the config)')
  p.add_argument('--regions', metavar='STORE',
                 help='what embed-regions wrote for this split, to say how near the model comes to the teacher')
  p.add_argument('--out', required=True, help='gets results.json, metrics.json, per_category.csv and plots')
  _add_processes(p)
  _add_json(p)

  p = _command(commands, 'detect', 'pictures of what is found, with any class names',
               'vild-jax detect street.jpg --checkpoint bundle --classes "red mug, toy elephant" --out found')
  p.add_argument('images', nargs='+', metavar='IMAGE')
  p.add_argument('--checkpoint', required=True, help='a work directory or a bundle')
  p.add_argument('--classes', required=True, help='names separated by commas, or a text file with one name a line')
  p.add_argument('--teacher', help='a teacher directory in place of the bundle\'s text tower')
  p.add_argument('--min-score', type=float, default=0.3, help='leave out what scores less')
  p.add_argument('--out', required=True, help='gets a picture for each image, and detections.json')

  p = _command(commands, 'export', 'a self-contained folder that `vild_jax.load` reads anywhere',
               'vild-jax export configs/vild_text_r50_lvis.py --checkpoint workdir/text --out bundle')
  _add_config(p)
  p.add_argument('--checkpoint', required=True, help='a work directory')
  _add_step(p)
  p.add_argument('--out', required=True, help='the bundle')
  p.add_argument('--format', choices=['bundle'], default='bundle')
  p.add_argument('--teacher', help='the teacher whose text tower the bundle keeps (default: teacher of the config)')

  p = _command(commands, 'convert', 'published weights -> a detector, or a backbone to start training from',
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
  return whole


def _command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
  parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + '.',
                               epilog=f'example: {example}', formatter_class=_HelpFormatter)
  parser.add_argument('--debug', action='store_true', help='show where an error came from')
  return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('config', metavar='CONFIG.py',
                      help='a file with get_config(), or a saved config.json; single values are overridden by '
                           '--key.path=value, for example --data.batch_size=64')


def _add_step(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--step', type=int, metavar='N', help='which of its checkpoints (default: the newest)')


def _add_processes(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group(
    'several processes', 'The same command in each, with folders that all see. Cloud TPU, SLURM and indexed Jobs of '
    'Kubernetes are recognised; elsewhere these three, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and '
    'JAX_PROCESS_ID, say who is who.')
  group.add_argument('--coordinator-address', metavar='HOST:PORT', help='where process 0 runs, and a free port there')
  group.add_argument('--num-processes', type=int, metavar='N', help='how many there are')
  group.add_argument('--process-id', type=int, metavar='I', help='which this is, from 0')
  group.add_argument('--heartbeat-seconds', type=int, metavar='S', default=processes.HEARTBEAT_SECONDS,
                     help='a process that is silent for so long counts as dead, and the others end')


def _add_json(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--json', metavar='FILE', help='also write what was measured to this file')
