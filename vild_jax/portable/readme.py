"""Writes the README of a portable model: what goes in, what comes out, an example, licence and checksums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vild_jax.portable import run
from vild_jax.vocabulary import VocabularyFile

_FORMS = {'stablehlo': 'StableHLO (an export of JAX)', 'onnx': 'ONNX', 'savedmodel': "TensorFlow's SavedModel"}
_MEANINGS = {
  'image': 'pictures, RGB, rescaled to fit the square, normalised, with zeros below and to the right',
  'size': '(height, width) of the content of each square',
  'embeddings': 'text embeddings of the classes, unit rows; then zeros as padding',
  'is_base': 'which classes were annotated in training; an ensemble weights its heads by it',
  'is_class': 'which rows are classes, and not padding',
  'valid': 'which rows count; of detections the first ones, best first',
  'boxes': 'top, left, bottom, right in pixels of the square',
  'scores': 'in [0, 1]',
  'labels': 'rows of `embeddings`',
  'masks': 'logits of the mask inside each box',
  'logits': 'cosine / temperature of each class, and last that of the background',
  'image_logits': 'the same of the image head, without the background',
}


def text(about: Mapping[str, Any], vocabulary: VocabularyFile) -> str:
  """Returns the README of a folder, given what its model.json says and the training vocabulary."""
  _, needs = run.RUNTIMES[about['format']]
  plain = [name for name in vocabulary.names if not set(name) & set(',"$`\\!')]  # in the quotes of a shell
  names, suppression, pictures = plain[:2], about['suppression'], about['preprocessing']
  models = ', '.join(f'`{of["file"]}`' for of in about['programs'].values())
  return f"""# {about['name']}

An open-vocabulary object detector (ViLD) of vild_jax as {_FORMS[about['format']]}. The classes are an input: rows of
text embeddings of the teacher `{about['teacher']}`.

| file | what |
|---|---|
| {models} | the model, with its weights |
| `vocabulary.npz`, `names.txt` | the {len(vocabulary.names):,} classes of the training: embeddings, names, base flags |
| `run.py` | detects: preprocessing, the model, masks in the picture, JSON, drawings |
| `model.json` | all of this for programs, with the size and SHA-256 of every file here but this one |

Licence of the weights: {about['license'] or 'not stated'}.

## Example

```sh
pip install numpy pillow {needs}
python run.py photo.jpg --classes "{', '.join(names)}" --out drawn/
```

```python
from run import Detector, open_picture

(found,) = Detector('.').detect([open_picture('photo.jpg')], {names!r})
found.boxes, found.scores, found.labels, found.mask(0)
```

Other classes come from another vocabulary file of the same teacher (`vild-jax embed-text`, `--vocabulary`).

## What goes in and comes out

`b` is the number of pictures and `c` that of classes, {about['fewest_classes']} or more with padding.

{''.join(_program(of) for of in about['programs'].values())}
**Preprocessing.** A picture is rescaled to fit {pictures['image_size']} x {pictures['image_size']} pixels
({pictures['resize']}), divided by 255, less the mean {pictures['mean']}, divided by the deviation
{pictures['std']}, and padded at the {pictures['padding']}: `preprocess` in `run.py`.

**Suppression** {'is part of the model' if suppression['done'] else 'is left to you: `suppress` in `run.py`'}. Within a
class a better box drops those with an IoU of {suppression['iou_threshold']} or more; the best
{suppression['max_detections']} of all classes are detections.

Made with {', '.join(f'{name} {version}' for name, version in about['made_with'].items())}.
"""


def _program(of: Mapping[str, Any]) -> str:
  lines = [f'`{of["file"]}`', '', '| | name | type | what |', '|---|---|---|---|']
  for side in ('inputs', 'outputs'):
    for name, array in of[side].items():
      meaning = 'the feature pyramid' if name.startswith('features') else _MEANINGS[name]
      shape = ', '.join(map(str, array['shape']))
      lines.append(f'| {side.removesuffix("s")} | `{name}` | {array["type"]} [{shape}] | {meaning} |')
  return '\n'.join(lines) + '\n\n'
