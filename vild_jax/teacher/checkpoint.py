"""Reads and writes teachers of the CLIP family in the Hugging Face layout; a parameter without a match is an error.

A directory holds `config.json`, `model.safetensors` (or several with `model.safetensors.index.json`), `tokenizer.json`
and `preprocessor_config.json`. It can be a CLIPModel, SiglipModel (SigLIP, SigLIP 2 at a fixed resolution) or
Siglip2Model (used at the resolution for which its positions were learned) of transformers, or a ViT or ModifiedResNet
with OpenAI's own names of parameters, for which config.json may be missing. transformers reads what is written here,
except a ModifiedResNet, which it does not have. A text tower alone (`text_tower/` of a bundle) is the same without the
parameters of the image tower and without preprocessing; an image tower alone (`image_tower/`) is the same without the
parameters of the text tower and without a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors.numpy

from vild_jax.nn import clip
from vild_jax.runtime import reading
from vild_jax.runtime.messages import shown
from vild_jax.teacher import files, hf_config, parameter_names, tokenizer
from vild_jax.teacher.files import CONFIG, PREPROCESSOR, TOKENIZER, WEIGHTS
from vild_jax.teacher.parameter_names import Source

Params = Mapping[str, Any]
Path_ = tuple[str, ...]
_TOWERS = ('text', 'image')
_BESIDE = {'text': TOKENIZER, 'image': PREPROCESSOR}  # the file that a tower needs besides sizes and weights


@dataclass(frozen=True)
class Teacher:
  """Holds a teacher in memory.

  Attributes:
    config: the sizes of both towers.
    params: float32 parameters of `clip.Clip`: `text`, unless it is an image tower alone, and, unless it is a text tower
      alone, `image` and `logit_scale` (for a sigmoid model also `logit_bias`).
    tokenizer_json: the text of tokenizer.json; empty for an image tower alone.
    preprocessor: the contents of preprocessor_config.json; None for a text tower alone.
  """

  config: clip.ClipConfig
  params: Params
  tokenizer_json: str
  preprocessor: Mapping[str, Any] | None = None

  @cached_property
  def text_identity(self) -> str:
    """Returns `model:hash` of the text tower: a function of its weights, sizes and tokens, with or without images."""
    tokens = tokenizer.parse(self.tokenizer_json).get_vocab()
    facts = [self.config.text, self.config.end_id, sorted(tokens.items())]
    return f'{hf_config.model_name(self.config)}:{_hash(self.params["text"], repr(facts))}'

  @cached_property
  def image_identity(self) -> str:
    """Returns `model:hash` of the image tower and its preprocessing."""
    facts = [self.config.image, json.dumps(self.preprocessor, sort_keys=True)]
    return f'{hf_config.model_name(self.config)}:{_hash(self.params["image"], repr(facts))}'


def load_teacher(directory: str | Path) -> Teacher:
  """Reads a teacher directory, or one of the Hugging Face hub (`files.locate`).

  Raises ValueError, one line that names the file or parameter that does not fit.
  """
  return _load(files.locate(directory), _TOWERS)


def load_text_tower(directory: str | Path) -> Teacher:
  """Reads the text tower of a teacher directory or of a `text_tower/`; weights of the image tower are not read."""
  return _load(files.locate(directory), ('text',))


def load_image_tower(directory: str | Path) -> Teacher:
  """Reads the image tower of a teacher directory or of an `image_tower/`; weights of the text tower are not read."""
  return _load(files.locate(directory), ('image',))


def save_teacher(directory: str | Path, teacher: Teacher) -> None:
  """Writes a teacher directory that `load_teacher` reads, and transformers too unless it is a ModifiedResNet."""
  _save(Path(directory), teacher, _TOWERS)


def save_text_tower(directory: str | Path, teacher: Teacher) -> None:
  """Writes only the text tower and the tokenizer, which a bundle keeps of its teacher."""
  _save(Path(directory), teacher, ('text',))


def save_image_tower(directory: str | Path, teacher: Teacher) -> None:
  """Writes only the image tower and its preprocessing, which a bundle can keep of its teacher."""
  _save(Path(directory), teacher, ('image',))


# --- reading --------------------------------------------------------------------------------------------------------

# Tensors that are not parameters: numbered positions, counters of batches, and the sizes in OpenAI's files.
_NO_PARAMETER = ('position_ids', 'num_batches_tracked', 'input_resolution', 'context_length', 'vocab_size')


def _load(directory: Path, towers: tuple[str, ...]) -> Teacher:
  files.require(directory, WEIGHTS, *(name for tower, name in _BESIDE.items() if tower in towers))
  with files.Weights(directory) as weights:
    original = hf_config.is_original(set(weights.shapes))
    path = directory / CONFIG
    if not original:
      files.require(directory, CONFIG)
    tree = files.read_json(path) if path.is_file() else {}
    if original:
      tree = hf_config.from_shapes(weights.shapes, tree, weights.path)
    config = hf_config.parse(tree, path)
    tokenizer_json, preprocessor = '', None
    if 'text' in towers:
      with reading.parsing(directory / TOKENIZER, 'the tokenizer.json of a teacher'):
        tokenizer_json = (directory / TOKENIZER).read_text(encoding='utf-8')
      _check_tokenizer(tokenizer_json, config, directory / TOKENIZER)
    if 'image' in towers:
      preprocessor = files.read_json(directory / PREPROCESSOR)
    tables = {tower: parameter_names.parameter_table(config, tower, original) for tower in _TOWERS}
    if hf_config.has_flat_patches(tree):
      tables['image'] = parameter_names.with_flat_patches(tables['image'], config)
    return Teacher(config, _read_params(weights, config, tables, towers), tokenizer_json, preprocessor)


def _read_params(
  weights: files.Weights, config: clip.ClipConfig, tables: Mapping[str, Mapping[Path_, Source]], towers: tuple[str, ...]
) -> Params:
  wanted = {ours: source for tower in towers for ours, source in tables[tower].items()}
  known = {source.name for table in tables.values() for source in table.values()}
  unknown = sorted(n for n in weights.shapes.keys() - known if n.rpartition('.')[2] not in _NO_PARAMETER)
  missing = sorted({source.name for source in wanted.values()} - weights.shapes.keys())
  if unknown or missing:
    problem = f'has {shown(unknown[0])}, which fits nothing' if unknown else f'lacks {missing[0]}'
    raise ValueError(
      f'{weights.path} {problem} ({len(unknown)} unknown, {len(missing)} missing); expected the '
      f'parameters of {hf_config.model_name(config)} as its config.json describes it'
    )
  shapes, flat = parameter_names.expected_shapes(config), {}
  for ours, source in wanted.items():
    found, expected = weights.shapes[source.name], source.shape_in_file(shapes[ours])
    if found != expected:
      raise ValueError(f'{weights.path}: {source.name} is {found}; expected {expected}')
    flat[ours] = source.read(weights.read(source.name))
  return flax.traverse_util.unflatten_dict(flat)


def _check_tokenizer(text: str, config: clip.ClipConfig, path: Path) -> None:
  size = tokenizer.parse(text, path).get_vocab_size(with_added_tokens=True)
  if size != config.vocab_size:
    raise ValueError(f'{path} has {size} tokens; expected {config.vocab_size}, the vocab_size of config.json')


# --- writing --------------------------------------------------------------------------------------------------------


def _save(directory: Path, teacher: Teacher, towers: tuple[str, ...]) -> None:
  flat = flax.traverse_util.flatten_dict(teacher.params)
  parts: dict[str, list[np.ndarray]] = {}  # the table has query, key and value of one tensor in that order
  for tower in towers:
    for ours, source in parameter_names.parameter_table(teacher.config, tower).items():
      parts.setdefault(source.name, []).append(source.write(np.asarray(flat[ours], dtype=np.float32)))
  tensors = {name: values[0] if len(values) == 1 else np.concatenate(values) for name, values in parts.items()}
  contents = {
    WEIGHTS: safetensors.numpy.save(tensors, metadata={'format': 'pt'}),
    CONFIG: _to_json(hf_config.write(teacher.config, towers)),
  }
  if 'text' in towers:
    contents[TOKENIZER] = teacher.tokenizer_json.encode()
  if 'image' in towers:
    contents[PREPROCESSOR] = _to_json(teacher.preprocessor)
  files.write(directory, contents)


def _to_json(tree: Mapping[str, Any] | None) -> bytes:
  return (json.dumps(tree, indent=2) + '\n').encode()


# --- identity -------------------------------------------------------------------------------------------------------


def _hash(params: Params, facts: str) -> str:
  digest = hashlib.sha256(facts.encode())
  for path, value in sorted(flax.traverse_util.flatten_dict(params).items()):
    value = np.array(value, dtype=np.float32, order='C')
    digest.update(f'{path}{value.shape}'.encode())
    digest.update(value.data)
  return digest.hexdigest()[:16]
