"""`vild-jax <command>`: parse, build, call. One short function a command; the logic lives in the rooms.

Exit code 0 only on success; bad input gives one line and exit code 2 (`--debug` shows where it came from).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import absl.logging


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit code."""
  from vild_jax import arguments, processes

  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's and TensorStore's chatter is no news to a user
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # NumPy's small products are shared out by threads of ours
  absl.logging.set_verbosity(absl.logging.ERROR)  # nor is Orbax's
  parser = arguments.parser()
  args, rest = parser.parse_known_args(argv)
  stray = [word for word in rest if not (hasattr(args, 'config') and word.startswith('--') and '=' in word)]
  if stray:
    form = hasattr(args, 'config') and stray[0].startswith('--') and '.' in stray[0]
    parser.error(f'unknown argument {stray[0]!r}; expected {stray[0]}=VALUE' if form else
                 f'unknown argument {stray[0]!r}; see vild-jax {args.command} --help')
  args.overrides = rest
  if getattr(args, 'json', None) and not Path(args.json).absolute().parent.is_dir():
    parser.error(f'--json is {args.json!r}; expected a file in a folder that exists')
  joined = False
  try:
    with warnings.catch_warnings():
      warnings.showwarning = lambda message, *_, **__: print(f'vild-jax {args.command}: warning: {message}',
                                                             file=sys.stderr)
      if hasattr(args, 'num_processes'):
        joined = processes.join(args.coordinator_address, args.num_processes, args.process_id,
                                heartbeat_seconds=args.heartbeat_seconds, saves_on_sigterm=args.command == 'train')
      COMMANDS[args.command](args)
  except KeyboardInterrupt:
    print('vild-jax: interrupted', file=sys.stderr)
    return _alone(130) if joined else 130
  except processes.Preempted as error:
    print(f'vild-jax {args.command}: {error}', file=sys.stderr)
    return processes.EXIT_PREEMPTED
  except Exception as error:
    if args.debug:
      traceback.print_exc()
    expected = isinstance(error, ValueError | OSError | FloatingPointError | ImportError)
    others = '; if another process ended before, its output says why' if joined and not expected else ''
    print(f'vild-jax {args.command}: {_one_line(error, expected)}{others}', file=sys.stderr)
    code = 2 if expected else 1
    # What is not finite is so in all processes at once; any other error may be in this one alone.
    return _alone(code) if joined and not isinstance(error, FloatingPointError) else code
  return 0


def _alone(code: int) -> int:
  """Ends a process of several without waiting for the others, who may wait for it: they learn by its silence."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


# --- commands -------------------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> None:
  """The whole pipeline on the toy world."""
  from vild_jax import demo as demo_lib

  methods = demo_lib.METHODS if args.full else [name.strip() for name in args.methods.split(',')]
  demo_lib.run(Path(args.workdir), seed=args.seed, methods=methods, json_file=args.json)


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

  overrides = args.overrides + ([f'--train.on_nan={args.on_nan}'] if args.on_nan else [])
  commands.train(config_lib.load(args.config, overrides), Path(args.workdir))


def plan(args: argparse.Namespace) -> None:
  """The train step, compiled for devices that are not here."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '1'  # the partitioner's warnings are news here
  from vild_jax import config as config_lib
  from vild_jax import plan as plan_lib
  from vild_jax.train import topology

  overrides = args.overrides + ([] if args.batch is None else [f'--data.batch_size={args.batch}'])
  config, target = config_lib.load(args.config, overrides), topology.target(args.topology, args.platform)
  _require(args.classes > 0, f'--classes is {args.classes}; expected a positive number')
  _require(args.hbm is None or 0 < args.hbm < math.inf, f'--hbm is {args.hbm}; expected a positive number of GiB')
  _require(-1 <= args.effort <= 1, f'--effort is {args.effort}; expected a number from -1 to 1')
  cache = Path(args.cache or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'vild_jax' / 'plan')
  found = plan_lib.planned(config, target, fit=args.fit, classes=args.classes, effort=args.effort, cache=cache,
                           hbm=None if args.hbm is None else int(args.hbm * 2**30))
  print(plan_lib.report(found))
  _write_json(args.json, found)


def propose(args: argparse.Namespace) -> None:
  """A checkpoint's proposals for a data set -> a region store."""
  from vild_jax import commands
  from vild_jax import config as config_lib

  config = config_lib.load(args.config, args.overrides)
  made = commands.propose(config, Path(args.checkpoint), args.data or config.data.train,
                          args.split or config.data.train_split, Path(args.out), max_proposals=args.max_proposals,
                          images_per_shard=args.images_per_shard, step=args.step)
  _write_json(args.json, made)


def embed_regions(args: argparse.Namespace) -> None:
  """The teacher's embeddings of a store's regions -> another region store."""
  from vild_jax import commands

  if args.imported and (args.teacher or args.proposals):
    raise ValueError('--import brings boxes, embeddings and the name of the teacher with it; expected no --teacher and '
                     'no --proposals')
  if not args.imported and not (args.teacher and args.proposals):
    raise ValueError('embed-regions takes --teacher and --proposals, or --import')
  made = commands.embed_regions(args.teacher, args.data, args.split, args.proposals, Path(args.out),
                                max_regions=args.max_regions, dtype=args.dtype, batch_size=args.batch_size,
                                images_per_shard=args.images_per_shard, imported=args.imported)
  _write_json(args.json, made)


def evaluate(args: argparse.Namespace) -> None:
  """Detections -> results file -> metrics."""
  from vild_jax import commands
  from vild_jax import config as config_lib

  _require(args.scores != 'model' or not args.teacher, '--teacher embeds crops; expected --scores clip-crops or '
           'text+clip-crops beside it')
  config = config_lib.load(args.config, args.overrides)
  metrics = commands.evaluate(config, Path(args.checkpoint), args.data or config.data.val,
                              args.split or config.data.val_split, Path(args.out), vocabulary=args.vocabulary,
                              scores=args.scores, teacher=args.teacher or config.teacher, regions=args.regions,
                              step=args.step)
  if metrics is None:
    return  # the first process has them
  print(commands.metrics_table(metrics))
  if 'with_objectness' in metrics:
    print(f'the same times objectness\n{commands.metrics_table(metrics["with_objectness"])}')
  if cosine := metrics.get('teacher_cosine'):
    print('mean cosine to the teacher: ' + ', '.join(
      f'{group} {value:.3f}' for group, value in cosine.items() if isinstance(value, float)))
  _write_json(args.json, {key: metrics[key] for key in commands.METRICS if key in metrics})


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
  print(commands.export(config, Path(args.checkpoint), Path(args.out), teacher=args.teacher or config.teacher or None,
                        step=args.step))


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


COMMANDS = {
  'demo': demo,
  'prepare': prepare,
  'embed-text': embed_text,
  'classify': classify,
  'train': train,
  'plan': plan,
  'propose': propose,
  'embed-regions': embed_regions,
  'evaluate': evaluate,
  'detect': detect,
  'export': export,
  'convert': convert,
}


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
