"""Lists the methods that the demo compares: their names, what each changes in the config, and how it is scored.

Imports the defaults only, so that `vild-jax demo --help` lists the methods without delay.
"""

from __future__ import annotations

from dataclasses import dataclass

from vild_jax.config import defaults


@dataclass(frozen=True)
class Method:
  """Describes one row of the comparison.

  Attributes:
    title: its name in the paper.
    changes: overrides of `configs/vild_text_toy.py`; empty for methods that use the checkpoint of ViLD-text.
    scores: how `evaluate` scores (`defaults.SCORES`). A method that does not have `model` here is not trained; it uses
      the checkpoint of ViLD-text.
  """

  title: str
  changes: tuple[str, ...] = ()
  scores: str = defaults.MODEL

  @property
  def trained(self) -> bool:
    """Tells whether the method has a checkpoint of its own."""
    return self.scores == defaults.MODEL


# The paper's weight is 0.5 at D = 512. The loss is a sum over D and grows with √D: at D = 64, 1.4 would be equal.
_DISTILS = ('distillation.weight=1.0', 'distillation.regions_per_image=24')
# All start from the same first stage with the same steps, and see the same pictures in the same order, except the
# supervised one, which sees rare categories more often. The keys are those of report.json.
METHODS = {
  'vild_text': Method('ViLD-text'),
  'vild': Method('ViLD', _DISTILS),
  'vild_ensemble': Method('ViLD-ensemble', (*_DISTILS, 'model.image_head=true')),
  'vild_image': Method('ViLD-image', (*_DISTILS, 'model.background=false')),
  'supervised': Method('Supervised', ('assignment.novel_labels=true', 'data.repeat_threshold=0.05')),
  'clip_crops': Method('CLIP on cropped regions', scores=defaults.CROPS),
  'vild_text_clip_crops': Method('ViLD-text + CLIP', scores=defaults.TEXT_AND_CROPS),
}
DEFAULT = ('vild_text', 'vild', 'vild_ensemble')
