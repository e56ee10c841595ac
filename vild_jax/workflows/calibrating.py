"""Searches settings of post-processing on kept logits, and writes them for `vild-jax evaluate --settings`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vild_jax.data import class_lists
from vild_jax.data.schema import DataError
from vild_jax.inference import calibration
from vild_jax.inference.calibration import Trial
from vild_jax.inference.logits import Logits
from vild_jax.runtime import files

_SETTINGS = 'model.postprocess.'


def calibrate(logits: Path, out: Path, *, held_out: str | None = None) -> dict[str, Any]:
  """Searches temperature, exponents and the threshold of suppression, and writes the best ones.

  Args:
    logits: folder of `vild-jax evaluate --save-logits`, of a detector that was trained without some base classes.
    out: the file to write.
    held_out: those classes, as `class_lists.names` takes them; see `calibration.held_out` for None.

  Returns:
    What the file holds: 'settings', {key of the config: value}; 'held_out', names; 'before' and 'after', with
    'settings' and the box AP of 'base' and 'held_out'; 'trials', the same of all that were tried.

  Raises:
    DataError: the folder cannot be used, or has no base or no held-out classes.
  """
  kept = Logits.open(logits)
  try:
    given = class_lists.names(held_out) if held_out is not None else None
  except ValueError as error:
    raise DataError(str(error).replace('--classes', '--held-out', 1)) from None
  split = calibration.held_out(kept, given)
  names = [category['name'] for category in kept.truth.categories if category['id'] in split.novel]
  rare = [c['name'] for c in kept.truth.categories if c['id'] in split.novel and c.get('frequency') == 'r']
  print(
    f'{len(split.base)} base classes; {len(names)} count as held out: {", ".join(names[:8])}'
    f'{", ..." if len(names) > 8 else ""}',
    file=sys.stderr,
  )
  if rare:
    print(
      f'warning: {rare[0]!r} is a rare class; AP of rare classes is no zero-shot result any more with settings that '
      'were chosen on them (docs/evaluation.md)',
      file=sys.stderr,
    )
  before, after, trials = calibration.search(kept, split)
  content = {
    'settings': {f'{_SETTINGS}{name}': value for name, value in after.settings.items()},
    'held_out': names,
    'before': _told(before),
    'after': _told(after),
    'trials': [_told(trial) for trial in trials],
  }
  files.write(out, json.dumps(content, indent=2) + '\n')
  return content


def _told(trial: Trial) -> dict[str, Any]:
  return {'settings': trial.settings, 'base': trial.base, 'held_out': trial.novel}


def text(found: dict[str, Any]) -> str:
  """Returns lines for the console: each setting before and after, and what that did to box AP."""
  before, after = found['before'], found['after']
  lines = [f'{name:<18} {value:8.4g} -> {after["settings"][name]:.4g}' for name, value in before['settings'].items()]
  lines += [
    f'{title:<18} {100 * before[key]:8.1f} -> {100 * after[key]:.1f}'
    for title, key in (('box AP base', 'base'), ('box AP held out', 'held_out'))
  ]
  return '\n'.join(lines)
