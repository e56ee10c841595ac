"""`vild-jax convert`: converts published weights into a folder that the other commands read."""

from __future__ import annotations

import argparse
from pathlib import Path

from vild_jax.commands import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the command."""
  arguments.add_example(parser, 'vild-jax convert tf-vild --from model.ckpt-180000 --out vild_r50')
  parser.add_argument(
    'kind',
    choices=['tf-vild', 'resnet'],
    help='a checkpoint of the reference (needs the extra [tf]), or an ImageNet ResNet of timm, torchvision or '
    'Hugging Face',
  )
  parser.add_argument(
    '--from',
    dest='source',
    metavar='PATH',
    required=True,
    help='tf-vild: the prefix or folder of the checkpoint; resnet: the .safetensors file',
  )
  parser.add_argument('--out', help='a new folder')
  parser.add_argument('--dry-run', action='store_true', help='print the new name of each variable, and write nothing')
  parser.add_argument(
    '--classes', help='tf-vild: the classes that the checkpoint embeds (default: LVIS v1, if there are 1,203)'
  )
  parser.add_argument(
    '--teacher',
    help='tf-vild: folder of the CLIP model whose text tower embedded the classes; needed for new class names',
  )


def run(args: argparse.Namespace) -> None:
  """Converts the weights, or prints the mapping of names."""
  from vild_jax import vocabulary
  from vild_jax.workflows import converting

  arguments.require(args.out or args.dry_run, 'convert takes --out DIR, or --dry-run')
  resnet = args.kind == 'resnet'
  arguments.require(
    not (resnet and (args.classes or args.teacher)), '--classes and --teacher belong to convert tf-vild'
  )
  if args.dry_run:
    print(converting.mapping(args.source, resnet=resnet))
  elif resnet:
    backbone = converting.convert_resnet(args.source, Path(args.out))
    print(f'{args.out}: ResNet-{backbone.depth}; train from it with --train.init_backbone={args.out}')
  else:
    file = converting.convert_tf_vild(args.source, Path(args.out), classes=args.classes, teacher=args.teacher)
    print(
      f'{args.out}: {vocabulary.describe(file)}; evaluate or export it with {Path(args.out) / "config.json"} as CONFIG'
    )
