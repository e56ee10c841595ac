"""Trains, or predicts with, torchvision's Mask R-CNN on given objects; needs torch and torchvision, and no JAX.

Other benchmarks start it in a process of its own. The first line of the standard input is JSON: `side` of the square
pictures, number of `classes`, and for each picture `boxes` (xyxy) and `labels`. The answer has the versions and the
GFLOP of a step. Each further line does one step and is answered with a line of JSON: its wall and CPU seconds, and the
number of regions that got masks. Operations are those of convolutions and matrix products, `gflop` without products
with padding, as `vild_jax.plan.flops` counts, `gflop_with_padding` with them.

Example: echo '{"side": 512, "classes": 90, "boxes": [[[0, 0, 99, 99]]], "labels": [[3]]}' | python torchvision_peer.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

MODELS = {
  'v1': torchvision.models.detection.maskrcnn_resnet50_fpn,
  'v2': torchvision.models.detection.maskrcnn_resnet50_fpn_v2,
}


def products(x, w, _bias, stride, padding, _dilation, transposed, out):
  """Returns the operations of a convolution without products with padding."""
  near, far = (out, x) if transposed else (x, out)
  total = 2 * x[0] * w[0] * w[1]
  for axis, width in enumerate(w[2:]):
    places = (o * stride[axis] + k - padding[axis] for o in range(far[2 + axis]) for k in range(width))
    total *= sum(0 <= place < near[2 + axis] for place in places)
  return total


_WITHOUT_PADDING = {
  torch.ops.aten.convolution: lambda *args, out_shape, **_: products(*args[:7], out_shape),
  torch.ops.aten.convolution_backward: lambda out, *args, **_: sum(args[9][:2]) * products(*args[:7], out),
}


class Steps:
  """Holds the model and its inputs; a call does one step of training, or one prediction."""

  def __init__(self, given: dict, args: argparse.Namespace):
    side, self.device, self.amp, self.predict = given['side'], args.device, args.amp, args.predict
    torch.manual_seed(0)
    self.model = MODELS[args.model](
      weights=None, weights_backbone=None, num_classes=given['classes'] + 1, min_size=side, max_size=side
    ).to(self.device)
    if args.amp:
      self.model = self.model.to(memory_format=torch.channels_last)
    self.model.train(not args.predict)
    # Without weights torchvision trains all layers, with ordinary batch normalisation.
    assert all(p.requires_grad for p in self.model.parameters())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in self.model.modules())
    self.images, self.targets = [], []
    for boxes, labels in zip(given['boxes'], given['labels'], strict=True):
      masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
      for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[round(top) : round(bottom), round(left) : round(right)] = 1
      self.images.append(torch.rand(3, side, side, device=self.device))
      target = {'boxes': torch.tensor(boxes), 'labels': torch.tensor(labels) + 1, 'masks': masks}
      self.targets.append({name: value.to(self.device) for name, value in target.items()})
    self.regions = [0]
    self.model.roi_heads.mask_head.register_forward_pre_hook(lambda _, inputs: self.regions.append(len(inputs[0])))
    # The rate is so low, and the seed the same, that the number of positive regions (and operations) hardly changes.
    self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6, momentum=0.9, weight_decay=4e-5)

  def work(self) -> None:
    """Computes gradients, or predicts."""
    torch.manual_seed(0)
    lower = torch.autocast(self.device, dtype=torch.bfloat16) if self.amp else contextlib.nullcontext()
    if self.predict:
      with torch.no_grad(), lower:
        self.model(self.images)
      return
    self.optimizer.zero_grad()
    with lower:
      loss = sum(self.model(self.images, self.targets).values())
    loss.backward()
    assert math.isfinite(loss.item())

  def __call__(self) -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    self.work()
    if not self.predict:
      self.optimizer.step()
    if self.device == 'cuda':
      torch.cuda.synchronize()
    return {
      'wall': time.perf_counter() - wall,
      'cpu': time.process_time() - cpu,
      'mask_regions': self.regions[-1],
    }

  def gflop(self, formulas: dict) -> float:
    """Returns the operations of a step, counted as it runs."""
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
      self.work()
    return counter.get_total_flops() / 1e9


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', default='v1', choices=tuple(MODELS), help='maskrcnn_resnet50_fpn, or its _v2')
  parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
  parser.add_argument('--amp', action='store_true', help='autocast to bfloat16, channels_last')
  parser.add_argument('--predict', action='store_true', help='predict instead of training')
  args = parser.parse_args()
  answer = lambda **values: print(json.dumps(values), flush=True)
  steps = Steps(json.loads(sys.stdin.readline()), args)
  steps()
  answer(
    torch=torch.__version__,
    torchvision=torchvision.__version__,
    threads=torch.get_num_threads(),
    gflop_with_padding=steps.gflop({}),
    gflop=steps.gflop(_WITHOUT_PADDING),
    counted_mask_regions=steps.regions[-1],
  )
  for _ in sys.stdin:
    peak = {'peak_bytes': torch.cuda.max_memory_allocated()} if args.device == 'cuda' else {}
    answer(**steps(), **peak)


if __name__ == '__main__':
  main()
