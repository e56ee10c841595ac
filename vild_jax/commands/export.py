"""`vild-jax export`: writes a bundle, or a model that runs without this package, from a work directory or a bundle."""

from __future__ import annotations

import argparse

from vild_jax.commands import arguments
from vild_jax.config import defaults
from vild_jax.runtime import files

# The options that not every format has.
_OF_FORMATS = {
  'teacher': (defaults.BUNDLE,),
  'metrics': (defaults.BUNDLE,),
  'image_tower': (defaults.BUNDLE,),
  'without_nms': defaults.PORTABLE,
  'classes': (defaults.ONNX,),
  'onnx_python': (defaults.ONNX,),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(parser, 'vild-jax export configs/vild_text_r50_lvis.py --checkpoint workdir/text --out bundle')
  arguments.add_config(parser)
  arguments.add_checkpoint(parser)
  arguments.add_step(parser)
  arguments.add_settings(parser)
  parser.add_argument('--out', required=True, help='folder of the bundle or model')
  arguments.takes_buckets(parser, 'out')
  parser.add_argument(
    '--format',
    choices=[defaults.BUNDLE, *defaults.PORTABLE],
    default=defaults.BUNDLE,
    help='the others than the bundle run without this package, with the vocabulary as an input',
  )
  parser.add_argument(
    '--without-nms',
    action='store_true',
    help='of a portable model: give all regions with their scores, and leave the choice of detections to the caller',
  )
  group = parser.add_argument_group('--format onnx')
  group.add_argument(
    '--classes',
    type=int,
    metavar='N',
    help='the most classes that the model takes, if more than the training vocabulary has',
  )
  group.add_argument(
    '--onnx-python', metavar='PYTHON', help='the interpreter of an environment with jax2onnx (default: this one)'
  )
  arguments.add_teacher(
    parser,
    'the teacher whose text tower the bundle keeps (default: that in a bundle of --checkpoint, else of the config)',
  )
  parser.add_argument(
    '--license',
    metavar='ID',
    help='licence of the weights, such as apache-2.0, for the model card (default: not stated)',
  )
  parser.add_argument(
    '--metrics',
    metavar='FILE',
    help='metrics.json of an evaluation, for the model card (default: those of these weights in folders of the work '
    'directory)',
  )
  parser.add_argument(
    '--image-tower',
    action='store_true',
    help="keep the teacher's image tower too, so that example pictures can be asked for (that of a bundle given as "
    '--checkpoint stays in any case)',
  )


def run(args: argparse.Namespace) -> None:
  """Writes the bundle and prints its folder."""
  from vild_jax.workflows import exporting

  config, out = arguments.load_config(args), files.path(args.out)
  for option, formats in _OF_FORMATS.items():
    if getattr(args, option) and args.format not in formats:
      raise ValueError(f'--{option.replace("_", "-")} is not of --format {args.format}; expected {", ".join(formats)}')
  arguments.require(args.classes is None or args.classes > 0, f'--classes is {args.classes}; expected 1 or more')
  if args.format == defaults.BUNDLE:
    made = exporting.export(
      config,
      args.checkpoint,
      out,
      teacher=args.teacher,
      image_tower=args.image_tower,
      step=args.step,
      license=args.license,
      metrics=args.metrics,
    )
  else:
    made = exporting.export_portable(
      config,
      args.checkpoint,
      out,
      args.format,
      suppress=not args.without_nms,
      step=args.step,
      license=args.license,
      classes=args.classes,
      onnx_python=args.onnx_python,
    )
  print(made)
