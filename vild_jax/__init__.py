"""vild_jax: train and run open-vocabulary object detectors in JAX.

detector = vild_jax.load('bundle/')
detections = detector.detect('picture.jpg', classes=['red mug', 'toy elephant'])
"""

from typing import Any

__version__ = '0.1.0'
__all__ = ['Config', 'Detector', 'Example', '__version__', 'load']

# Importing the package costs nothing: jax and the rest are imported at the first use of a name (PEP 562).
_HOMES = {
  'load': 'vild_jax.inference.detector',
  'Detector': 'vild_jax.inference.detector',
  'Example': 'vild_jax.inference.examples',
  'Config': 'vild_jax.config',
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  import importlib

  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
