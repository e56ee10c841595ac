"""Finds the files of a teacher directory (also on the Hugging Face hub), reads them without unpickling, writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from vild_jax.runtime import files, hub, reading

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
CONFIG, TOKENIZER, PREPROCESSOR = 'config.json', 'tokenizer.json', 'preprocessor_config.json'
_ON_THE_HUB = (WEIGHTS, INDEX, 'model-*-of-*.safetensors', CONFIG, TOKENIZER, PREPROCESSOR)


def locate(teacher: str | Path) -> Path:
  """Returns the folder of a teacher, given its path or, on the Hugging Face hub, `hf://owner/name`.

  Raises ValueError, one line, if it is neither, or if the hub does not give it.
  """
  if hub.is_name(teacher):
    return hub.folder(teacher, _ON_THE_HUB)
  if not Path(teacher).is_dir():
    raise ValueError(
      f'{teacher} is not a folder; expected a teacher directory ({CONFIG}, {WEIGHTS}, ...), or one on the Hugging '
      f'Face hub as {hub.FORM}'
    )
  return Path(teacher)


def require(directory: Path, *names: str) -> None:
  """Raises ValueError, one line that says what to do, if one of the files is missing."""
  for name in names:
    if not any((directory / found).is_file() for found in ((WEIGHTS, INDEX) if name == WEIGHTS else (name,))):
      raise ValueError(f'{directory} is not a teacher directory: it has no {name}; {_remedy(directory, name)}')


def _remedy(directory: Path, name: str) -> str:
  has = lambda *names: all((directory / n).is_file() for n in names)
  resave = f'`AutoTokenizer.from_pretrained("{directory}").save_pretrained("{directory}")`'
  if name == TOKENIZER and has('vocab.json', 'merges.txt'):
    return f'its vocab.json and merges.txt make one: with transformers, {resave}'
  if name == TOKENIZER and has('spiece.model'):
    return (
      'its spiece.model makes one: with transformers and sentencepiece, '
      f'`T5TokenizerFast.from_pretrained("{directory}", extra_ids=0).save_pretrained("{directory}")`'
    )
  return {
    CONFIG: 'expected the Hugging Face layout of CLIP or SigLIP',
    WEIGHTS: 'save the model with transformers, `AutoModel.from_pretrained(...).save_pretrained(...)`'
    + ('; pytorch_model.bin is a pickle, which is never read' if has('pytorch_model.bin') else ''),
    TOKENIZER: 'save one with transformers, `CLIPTokenizerFast.from_pretrained(...).save_pretrained(...)` (for SigLIP '
    '`AutoTokenizer`)',
    PREPROCESSOR: "expected the mean, deviation and size of the teacher's pictures",
  }[name]


class Weights:
  """Reads the tensors of a teacher directory one by one, from one file or several; a context manager.

  Attributes:
    path: the file, or the index of several files.
    shapes: {name: shape} of all tensors.
  """

  def __init__(self, directory: Path):
    self._stack = contextlib.ExitStack()
    whole = directory / WEIGHTS
    self.path = whole if whole.is_file() else directory / INDEX
    listed = None if whole.is_file() else _read_index(self.path)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._files: dict[str, Any] = {}
    try:
      for path in [whole] if listed is None else [directory / name for name in sorted(set(listed.values()))]:
        self._open(path)
      if listed is not None and listed.keys() != self.shapes.keys():
        name = sorted(listed.keys() ^ self.shapes.keys())[0]
        raise ValueError(f'{self.path} and the files it lists disagree about {name}; expected it in both')
    except BaseException:
      self._stack.close()
      raise

  def _open(self, path: Path) -> None:
    with _reading(path):
      # NumPy does not support bfloat16; the framework flax does.
      file = self._stack.enter_context(safetensors.safe_open(path, framework='flax'))
      for name in list(file.keys()):
        self.shapes[name] = tuple(file.get_slice(name).get_shape())
        self._files[name] = (path, file)

  def read(self, name: str) -> np.ndarray:
    """Returns a tensor as float32; raises ValueError if it holds a number that is not finite."""
    path, file = self._files[name]
    with _reading(path):
      value = np.asarray(file.get_tensor(name), dtype=np.float32)
    if not np.isfinite(value).all():
      raise ValueError(f'{path}: {name} holds numbers that are not finite')
    return value

  def __enter__(self) -> Weights:
    return self

  def __exit__(self, *_: object) -> None:
    self._stack.close()


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
  return reading.parsing(path, 'the weights of a teacher', problem='is not a complete safetensors file')


def _read_index(path: Path) -> dict[str, str]:
  listed = read_json(path).get('weight_map')
  plain = isinstance(listed, dict) and all(
    isinstance(name, str) and Path(name).name == name for name in listed.values()
  )
  if not plain:
    raise ValueError(f'{path} has no usable weight_map; expected {{parameter: name of a file beside it}}')
  for name in sorted(set(listed.values())):
    if not (path.parent / name).is_file():
      raise ValueError(f'{path} lists {name}, which is not there; expected all files of this teacher')
  return listed


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object; raises ValueError, one line, if the file does not hold one."""
  return reading.json_object(path, 'a file of a teacher in the Hugging Face layout')


def write(directory: Path, contents: Mapping[str, bytes]) -> None:
  """Writes {file name: content} into a directory; older files are replaced only when all new ones are complete."""
  directory.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:  # it renames in reverse order
    for name, content in reversed(contents.items()):
      stack.enter_context(files.replacing(directory / name)).write_bytes(content)
