"""Lists the methods that the demo compares: their names, what each changes in the config, and how it is scored.

Imports the defaults only, so that `vild-jax demo --help` lists the methods without delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vild_jax.config import defaults


@dataclass(frozen=True)
class Method:
  """Describes one row of the comparison.

  Attributes:
    title: its name in the paper.
    changes: overrides of `configs/vild_text_toy.py`; empty for methods that use the checkpoint of ViLD-text.
    scores: how `evaluate` scores (`defaults.SCORES`). A method that scores by crops is not trained; it uses the
      checkpoint of ViLD-text.
  """

  title: str
  changes: tuple[str, ...] = ()
  scores: str = defaults.MODEL

  @property
  def trained(self) -> bool:
    """Tells whether the method has a checkpoint of its own."""
    return self.scores not in defaults.BY_CROPS


# The paper's weight is 0.5 at D = 512. The loss is a sum over D and grows with √D: at D = 64, 1.4 would be equal.
_REGIONS = 'distillation.regions_per_image=24'
_DISTILS = ('distillation.weight=1.0', _REGIONS)
# The ensemble's image head has parameters of its own, and Muon's steps do not grow with the loss: a smaller weight
# takes little from that head and leaves the backbone to the labels (docs/measurements.md, "The demo: the weight of
# distillation").
_DISTILS_BESIDE = ('distillation.weight=0.1', _REGIONS)
# All start from the same first stage with the same steps, and see the same pictures in the same order, except the
# supervised one, which sees rare categories more often. The keys are those of report.json.
METHODS = {
  'vild_text': Method('ViLD-text'),
  'vild': Method('ViLD', _DISTILS),
  'vild_ensemble': Method('ViLD-ensemble', (*_DISTILS_BESIDE, 'model.image_head=true'), defaults.HEADS),
  'vild_image': Method('ViLD-image', (*_DISTILS, 'model.background=false')),
  'supervised': Method('Supervised', ('assignment.novel_labels=true', 'data.repeat_threshold=0.05')),
  'clip_crops': Method('CLIP on cropped regions', scores=defaults.CROPS),
  'vild_text_clip_crops': Method('ViLD-text + CLIP', scores=defaults.TEXT_AND_CROPS),
}
DEFAULT = ('vild_ensemble',)
# Each head of the ViLD-ensemble alone, by its folder below the evaluation: (key in report.json, name on the page).
HEADS = {
  'text_head': ('vild_ensemble_text', 'ViLD-ensemble, text head alone'),
  'image_head': ('vild_ensemble_image', 'ViLD-ensemble, image head alone'),
}


def to_run(chosen: Sequence[str]) -> list[str]:
  """Returns the methods to run for those chosen, in the order of `METHODS`.

  ViLD-text is run with any other than the ViLD-ensemble alone, because the report compares them with it.
  """
  with_text = set(chosen) != {'vild_ensemble'}
  return [method for method in METHODS if method in chosen or (with_text and method == 'vild_text')]
