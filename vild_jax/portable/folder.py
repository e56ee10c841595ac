"""Writes the folder of a portable model: its programs, the vocabulary, a runner, and what people and checks need.

model.json      the form, what goes in and comes out of each program, preprocessing, suppression, licence, checksums
model.*         the program: StableHLO, ONNX or a SavedModel; without suppression also masks.*
vocabulary.npz  the training vocabulary; names.txt has its names, one a line
run.py          detects with all this, in an environment without this package (`vild_jax.portable.run`)
README.md       says the same to people, who may edit it
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.data import transforms
from vild_jax.portable import program, readme, run
from vild_jax.runtime import files, reading
from vild_jax.train import bundle_files

FORMAT_VERSION = 1
NAMES = 'names.txt'


def is_portable(folder: Path) -> bool:
  """Says whether a folder is a portable model, whole or damaged; other programs write a model.json too."""
  try:
    about = reading.json_file(files.path(folder) / run.ABOUT, 'a portable model')
  except ValueError:
    return False
  return isinstance(about, dict) and about.get('format') in [*run.RUNTIMES] and 'programs' in about


def write(
  out: Path,
  form: str,
  source: program.Source,
  vocabulary: Path,
  write_programs: Callable[[Path, program.Source], Mapping[str, str]],
  *,
  license: str | None = None,
) -> Path:
  """Writes the folder of a portable model, which appears, or is replaced, only when it is complete.

  Args:
    out: a folder that does not exist yet, or an older portable model, which is replaced.
    form: 'stablehlo', 'onnx' or 'savedmodel'.
    source: what the model is made of.
    vocabulary: the file of the training vocabulary.
    write_programs: of the module of this form; returns {program: its file in the folder}.
    license: the identifier of a licence of the weights, such as apache-2.0; None: not stated.

  Raises ValueError if `out` exists and is no portable model.
  """
  config, post = source.config, source.config.model.postprocess
  with files.new_folder(out, may_replace=is_portable, marker=run.ABOUT) as folder:
    written = write_programs(folder, source)
    shutil.copyfile(vocabulary, folder / run.VOCABULARY)
    words = vocabulary_lib.load(vocabulary)
    (folder / NAMES).write_text('\n'.join(words.names) + '\n', encoding='utf-8')
    shutil.copyfile(run.__file__, folder / 'run.py')
    about: dict[str, Any] = {
      'version': FORMAT_VERSION,
      'format': form,
      'name': config.name,
      'teacher': words.teacher,
      'license': license,
      'made_with': {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib')},
      'fewest_classes': program.fewest_classes(config.model),
      'preprocessing': transforms.description(config.data.image_size),
      'suppression': {
        'done': source.suppress,
        'iou_threshold': post.nms_threshold,
        'score_threshold': post.score_threshold,
        'candidates_per_class': post.pre_nms_top_k,
        'max_detections': post.max_detections,
      },
      'programs': {
        one.name: {'file': written[one.name], 'inputs': _arrays(one.inputs), 'outputs': _arrays(one.outputs)}
        for one in program.programs(source)
      },
    }
    (folder / bundle_files.CARD_FILE).write_text(readme.text(about, words), encoding='utf-8')
    bundle_files.seal(folder, about, run.ABOUT)
    bundle_files.keep_others(files.path(out), folder, run.ABOUT)
  return files.path(out)


def _arrays(of: program.Arrays) -> dict[str, Any]:
  return {name: {'type': dtype, 'shape': list(shape)} for name, (dtype, shape) in of.items()}
