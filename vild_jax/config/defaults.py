"""Holds the default values that commands, functions and checks share. Imports nothing, not even NumPy."""

from __future__ import annotations

# Data sets (`vild-jax prepare`).
FORMATS = COCO, YOLO, VOC, CVAT = ('coco', 'yolo', 'voc', 'cvat')  # of annotations; `data.formats` reads them
MAX_LAYERS = 100  # of a kind in one part of a model, also scales of anchors: a config may be of others
MAX_IMAGE_SIZE = 16_384  # pixels of a side of the network's input
MAX_MEGAPIXELS = 179  # larger pictures may be files made to fill the memory; also Pillow's limit

# Region stores (`vild-jax propose`, `vild-jax embed-regions`).
MAX_PROPOSALS = 1000  # kept for each picture; the paper's CLIP baseline scores the same number
PROPOSAL_IMAGES_PER_SHARD = 256
# Default of `embed-regions --max-regions` and of `distillation.regions_per_image`. The three constants of 300 in this
# file (MAX_REGIONS, MAX_DETECTIONS, MAX_INSTANCES) are unrelated.
MAX_REGIONS = 300
REGION_IMAGES_PER_SHARD = 64  # a killed process loses at most this many pictures: seconds of an accelerator
CROP_BATCH = 100  # crops that the teacher embeds at a time; 2 x 300 and 2 x 1000 crops fill their batches exactly

# Detection and evaluation.
MAX_DETECTIONS = 300  # of a picture, over all classes: LVIS's limit
COCO_MAX_DETECTIONS = 100  # of a picture and class: COCO's limit
MIN_SCORE = 0.05  # `Detector.detect` leaves out detections with a lower score
TILE_OVERLAP = 0.2  # the share of its side by which a tile overlaps the next; that of sahi
DETECT_BATCH = 8  # pictures that `Detector.detect` gives the network together
DRAWN_MIN_SCORE = 0.3  # drawings leave out detections with a lower score
MAX_INSTANCES = 300  # ground-truth objects of a training picture; more are left out

OWN = 'vild'  # what `vild-jax detect` always writes
DETECTION_FORMATS = (OWN, COCO)

# The service (`vild-jax serve`): what requests may cost.
SERVE_HOST, SERVE_PORT = '127.0.0.1', 8000
SERVE_MEGABYTES, SERVE_MEGAPIXELS = 20, 25  # of a picture
SERVE_CLASSES = 1000
SERVE_QUEUE = 16  # requests that are accepted and not answered yet
SERVE_SECONDS = 60.0
SERVE_CACHE_MEGABYTES = 1000  # of the pictures that are kept for further words

# What `vild-jax export` writes; the others than the bundle run without this package.
BUNDLE = 'bundle'
STABLEHLO, ONNX, SAVEDMODEL = PORTABLE = ('stablehlo', 'onnx', 'savedmodel')

# Teachers and vocabularies.
CLASS_LISTS = ('lvis', 'coco', 'coco-ovd', 'voc', 'objects365')  # that `data.class_lists` has
PROMPTS = 'vild'
CLASSES = 1203  # LVIS v1
EMBEDDING_DIM = 512  # CLIP ViT-B/32
TOP_NAMES = 5  # names that `vild-jax classify` prints for each picture

# How `vild-jax evaluate` scores: by the model, by the model and by each head of a ViLD-ensemble alone, or by one of the
# paper's baselines that encode crops.
MODEL, HEADS, CROPS, TEXT_AND_CROPS = SCORES = ('model', 'heads', 'clip-crops', 'text+clip-crops')
BY_CROPS = (CROPS, TEXT_AND_CROPS)
HEAD_FOLDERS = ('', 'text_head', 'image_head')  # below the output: the results of the ensemble and of its heads
# What `vild-jax score` counts; `eval.protocols` defines each.
PROTOCOLS = ('lvis', 'lvis-fixed', 'coco', 'coco-ovd', 'voc', 'objects365', 'proposals')
EVALUATION_PROTOCOLS = PROTOCOLS[:-1]  # for detections with classes
