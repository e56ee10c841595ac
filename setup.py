"""Packaging of vild_jax. Lower bounds are what the code needs; constraints/ pins the versions the launchers install."""

from setuptools import find_packages, setup

setup(
  name='vild_jax',
  version='0.1.0',
  description='Open-vocabulary object detection by vision and language knowledge distillation (ViLD), in JAX',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  # The configs travel with a wheel as vild_jax.configs: `vild-jax demo` reads one of them.
  packages=[*find_packages(include=['vild_jax', 'vild_jax.*']), 'vild_jax.configs'],
  package_dir={'vild_jax.configs': 'configs'},
  package_data={'vild_jax': ['data/categories/*.json', 'teacher/*.json', 'serve/page/*']},
  entry_points={'console_scripts': ['vild-jax = vild_jax.cli:main']},
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.8.3',
    'clu>=0.0.12',
    'flatbuffers>=24.3',  # jax.export writes with it, and does not declare it
    'flax>=0.12.8',
    'ftfy>=6.2',
    'grain>=0.2.18',
    'hotcoco>=1.3',
    'importlib_resources>=6.0',  # TFDS imports it when it prepares a data set, and does not declare it
    'jax>=0.10.2',
    'jaxtyping>=0.3.0',
    'matplotlib>=3.9',
    'msgspec>=0.19',
    'numpy>=2.0',
    'opencv-python-headless>=4.10.0.84',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'pillow>=10.3',
    'pyyaml>=6.0',
    'safetensors>=0.4.3',
    'tensorboardX>=2.6.2.2',
    'tensorflow-datasets>=4.9.10',  # all that we call of it works without TensorFlow
    'tokenizers>=0.20',
    'tqdm>=4.66',
  ],
  extras_require={
    'tf': ['tensorflow>=2.21'],  # checkpoints of the reference (convert tf-vild)
    'tpu': ['jax[tpu]>=0.10.2'],
    'cuda': ['jax[cuda12]>=0.10.2'],
    # ViLD as a Scenic project, at the commit that it was run in: PyPI's `scenic` is another project. What Scenic and
    # clu's writers need besides, and do not declare, stands here too.
    'scenic': [
      'scenic @ git+https://github.com/google-research/scenic@4a38d475ee89cb821078c0e2bf2065ee030e1535',
      'ml_collections>=1.0',
      'tensorboard>=2.19',
      'tensorflow>=2.21',
    ],
    'supervision': ['supervision>=0.23'],  # `PictureDetections.to_supervision`
    # Runs an export as ONNX. What writes one, jax2onnx, needs an older Orbax and an environment of its own.
    'onnx': ['onnxruntime>=1.20'],
    'gcs': [
      'etils[epath]>=1.15',
      'fsspec>=2026.9',
      'gcsfs>=2026.10',
      'google-crc32c>=1.5',
    ],  # addresses gs://bucket/name
    'hub': ['huggingface_hub>=0.30'],  # teachers and bundles named hf://owner/name, in place of a folder
    'serve': ['python-multipart>=0.0.34', 'starlette>=1.10', 'uvicorn>=0.54'],  # `vild-jax serve`
    'test': [
      'beartype>=0.19',
      'etils[epath]>=1.15',
      'faster-coco-eval>=1.8.0',
      'fsspec>=2026.9',
      'gcp-storage-emulator>=2026.7',
      'gcsfs>=2026.10',
      'pytest>=8.2',
      'pytest-xdist>=3.6.1',
      'python-multipart>=0.0.34',
      'ruff>=0.17',
      'starlette>=1.10',
      'tensorboard>=2.19',
      'uvicorn>=0.54',
    ],
  },
)
