"""`vild-jax evaluate`: detects on a data set; writes results, metrics, a table by category and plots."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments
from vild_jax.config import defaults
from vild_jax.runtime import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(
    parser,
    'vild-jax evaluate configs/vild_text_r50_lvis.py --checkpoint workdir/text --out workdir/eval; with '
    '--scores text+clip-crops --teacher clip-vit-base-patch32 it evaluates the ViLD-text + CLIP of the paper',
  )
  arguments.add_config(parser)
  arguments.add_checkpoint(parser)
  arguments.add_step(parser)
  parser.add_argument('--data', help='the prepared data set (default: data.val of the config)')
  parser.add_argument('--split', help='its split (default: data.val_split of the config)')
  parser.add_argument(
    '--vocabulary', help='vocabulary file of the classes to detect (default: the training vocabulary)'
  )
  parser.add_argument(
    '--classes',
    metavar='LIST',
    help='instead: lvis, coco, coco-ovd, voc, objects365 or a text file of names, embedded by the text tower of the '
    'bundle; for a data set that the model was not trained on',
  )
  parser.add_argument(
    '--scores',
    choices=defaults.SCORES,
    default=defaults.MODEL,
    help='scores of the model; of a ViLD-ensemble and, in text_head/ and image_head/, of each of its heads alone; of '
    'the teacher on cropped proposals (with_objectness/ gets the same times objectness); or of ViLD-text and the '
    'teacher on crops together. The last two are slow',
  )
  arguments.add_settings(parser)
  parser.add_argument(
    '--save-logits',
    metavar='DIR',
    help='also keep what post-processing needs of each picture, for `vild-jax calibrate`: two bytes for a region, '
    'class and head',
  )
  arguments.add_teacher(parser, 'the teacher that embeds crops (default: teacher of the config)')
  parser.add_argument(
    '--regions',
    metavar='STORE',
    help='region store for this split: also measure the mean cosine between its embeddings and those of the model',
  )
  parser.add_argument(
    '--out', required=True, help='folder for results.json, metrics.json, report.html, a table by category and plots'
  )
  arguments.takes_buckets(parser, 'out', 'vocabulary', 'data', 'data.val', 'regions')
  arguments.add_compiler(parser)
  arguments.add_processes(parser)
  arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Evaluates and prints the metrics; with several processes, only the first one prints."""
  from vild_jax.workflows import evaluating

  arguments.require(
    args.scores in defaults.BY_CROPS or not args.teacher,
    '--teacher embeds crops; expected --scores clip-crops or text+clip-crops beside it',
  )
  config = arguments.load_config(args)
  metrics = evaluating.evaluate(
    config,
    args.checkpoint,
    args.data or config.data.val,
    args.split or config.data.val_split,
    files.path(args.out),
    vocabulary=args.vocabulary,
    classes=args.classes,
    scores=args.scores,
    teacher=args.teacher or config.teacher,
    regions=args.regions,
    step=args.step,
    save_logits=Path(args.save_logits) if args.save_logits else None,
  )
  if metrics is None:
    return
  print(evaluating.metrics_text(metrics))
  arguments.write_json(args.json, {key: metrics[key] for key in evaluating.METRICS if key in metrics})
