"""Trains ViLD-text on the toy world, on 2 CPU cores, as `vild-jax demo` does (results: docs/measurements.md)."""

from vild_jax.config import (
  Anchors,
  Assignment,
  Backbone,
  Config,
  Data,
  Evaluation,
  MaskHead,
  Model,
  Optimizer,
  Postprocess,
  ProposalNetwork,
  Pyramid,
  RegionHead,
  Train,
)


def get_config() -> Config:
  """Returns a narrow ResNet-10 with light heads at 128 px, where heads cost more than the backbone."""
  return Config(
    name='vild_text_toy',
    model=Model(
      backbone=Backbone(depth=10, width=32),
      pyramid=Pyramid(channels=64),
      anchors=Anchors(size=4.0),
      rpn=ProposalNetwork(
        num_convs=1, channels=64, train_pre_nms_top_k=200, test_pre_nms_top_k=200, max_per_level=100, max_proposals=150
      ),
      region_head=RegionHead(num_convs=1, conv_channels=64, num_fcs=1, fc_channels=256),
      mask_head=MaskHead(num_convs=2, channels=32),
      postprocess=Postprocess(max_detections=100),
      batch_norm_momentum=0.97,
      temperature=0.05,  # suits the toy teacher, as 0.01 suits CLIP
    ),
    assignment=Assignment(roi_samples=64, mask_samples=12),
    data=Data(image_size=128, scale_range=(0.8, 1.25), max_instances=16, batch_size=8, workers=0),
    # SGD with the paper's settings needs many more steps than a demo has, above all for the distillation loss.
    optimizer=Optimizer(
      rule='muon',
      kernel_factor=25.0,
      learning_rate=0.003,
      warmup_learning_rate=0.0001,
      warmup_steps=15,
      decay_at=(0.75, 0.92),
      weight_decay=0.01,
    ),
    train=Train(steps=350, log_every=25, checkpoint_every=175, pictures_every=350),
    evaluation=Evaluation(batch_size=16),
  )
