"""Trains ViLD-text to overfit a few dozen photographs: the fastest run with real pictures and CLIP embeddings.

A small backbone at 512 px without jitter, for 2 CPU cores; the vocabulary has all 1,203 LVIS rows:

  vild-jax prepare --annotations lvis_v1_style_train.json --images train2017 --out data --name photos
  vild-jax embed-text --from-npy lvis_v1_clip_a+cname.npy --classes lvis --teacher-id ViT-B/32 --out data/photos.npz
  vild-jax train configs/vild_text_photos.py --workdir workdir/photos
"""

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
  ProposalNetwork,
  Pyramid,
  RegionHead,
  Train,
)


def get_config() -> Config:
  """Returns a small model, with light heads, and a short training."""
  return Config(
    name='vild_text_photos',
    vocabulary='data/photos.npz',
    model=Model(
      backbone=Backbone(depth=10, width=32),
      pyramid=Pyramid(min_level=3, channels=64),
      anchors=Anchors(size=5.0),
      rpn=ProposalNetwork(
        num_convs=1, channels=64, train_pre_nms_top_k=500, test_pre_nms_top_k=500, max_per_level=250, max_proposals=300
      ),
      region_head=RegionHead(num_convs=1, conv_channels=64, num_fcs=2, fc_channels=512),
      mask_head=MaskHead(num_convs=2, channels=64),
      batch_norm_momentum=0.97,
    ),
    assignment=Assignment(roi_samples=64, mask_samples=16),
    data=Data(
      train='data/photos',
      val='data/photos',
      val_split='train',
      image_size=512,
      scale_range=(1.0, 1.0),
      flip=False,
      max_instances=64,
      batch_size=4,
      workers=0,
    ),
    optimizer=Optimizer(learning_rate=0.04, warmup_learning_rate=0.001, warmup_steps=50, decay_at=(0.8, 0.95)),
    train=Train(steps=1800, log_every=10, checkpoint_every=200, pictures_every=1000),
    evaluation=Evaluation(batch_size=4),
  )
