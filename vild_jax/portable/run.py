"""Detects objects in pictures with the model in this folder; this file stands alone.

  python run.py photo.jpg                          prints what is found, as JSON
  python run.py photo.jpg --classes "mug, chair"   of these names alone
  python run.py *.jpg --vocabulary other.npz --out drawn/

It needs Python 3.11, NumPy, Pillow, and what runs the model: jax and flatbuffers (StableHLO), onnxruntime (ONNX) or
tensorflow (SavedModel). In Python: `Detector(folder).detect([picture], classes)`.
"""

from __future__ import annotations

import argparse
import colorsys
import hashlib
import itertools
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

ABOUT, VOCABULARY, MIN_SCORE = 'model.json', 'vocabulary.npz', 0.05
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')  # never one that starts another program, as EPS does


@dataclass(frozen=True)
class Vocabulary:
  """Holds classes: float32 `embeddings` [C, D], C `names`, bool `is_base` [C], and who embedded them."""

  embeddings: np.ndarray
  names: tuple[str, ...]
  is_base: np.ndarray
  teacher: str
  background: np.ndarray | None = None


Classes = Sequence[str] | Vocabulary | None


@dataclass(frozen=True)
class Found:
  """Holds the detections in one picture, best first, in its own pixels: N boxes (top, left, bottom, right).

  `labels` are rows of `names`, `size` is (height, width), and `mask_logits` [N, M, M] are inside each box, or None.
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  names: tuple[str, ...]
  size: tuple[int, int]
  mask_logits: np.ndarray | None

  def mask(self, index: int) -> np.ndarray:
    """Returns the mask of one detection, bool [H, W]."""
    return paste(self.mask_logits[index], self.boxes[index], *self.size)

  def to_json(self) -> list[dict[str, Any]]:
    """Returns the detections as values that JSON has; masks are COCO's run lengths, down the columns."""
    rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
    told = [{'name': self.names[label], 'score': score, 'box': box} for label, score, box in rows]
    for index, one in enumerate(told if self.mask_logits is not None else []):
      one['mask'] = run_lengths(self.mask(index))
    return told


def open_picture(path: str | Path) -> np.ndarray:
  """Returns uint8 [H, W, 3] RGB of a file, turned as viewers show it. Raises ValueError if it is no picture."""
  try:
    with warnings.catch_warnings(action='ignore'), Image.open(path, formats=FORMATS) as stored:
      picture, tags = ImageOps.exif_transpose(stored), getattr(stored, 'tag_v2', {})
      if picture.mode.startswith('I;16') or (picture.mode == 'I' and stored.format == 'PNG'):
        # The upper 8 of 16 bits, or of a TIFF's 12; Pillow would make white of all above 255.
        grey = (np.asarray(picture) >> ((tags.get(258) or (16,))[0] - 8)).astype(np.uint8)
        return np.repeat((~grey if tags.get(262) == 0 else grey)[:, :, None], 3, axis=2)
      if picture.mode in ('I', 'F'):
        raise ValueError('32-bit grey, of no known range')
      return np.asarray(picture.convert('RGB'))
  except Exception as error:  # Pillow's decoders raise many types
    reason = ' '.join(str(error).split())
    raise ValueError(f'{path} cannot be read as a picture ({reason}); expected one of {", ".join(FORMATS)}') from None


def preprocess(picture: np.ndarray, side: int, mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, ...]:
  """Places a picture in the square of the network: rescaled to fit, normalised, zeros below and to the right.

  Returns (square float32 [side, side, 3], (height, width) of the content [2], scale along (y, x) [2]).
  """
  before = np.array(picture.shape[:2], np.float32)
  after = np.minimum(np.maximum(np.round(before * np.min(np.float32(side) / before)), 1), side)
  (top, bottom, down), (left, right, across) = (_taps(int(n), int(m)) for n, m in zip(before, after, strict=True))
  blend = lambda a, b, weight: a + (b - a) * weight
  # Source position = target position · in / out, without half-pixel centres and without antialiasing.
  rows = blend(picture[top].astype(np.float32), picture[bottom].astype(np.float32), down[:, None, None])
  content = blend(rows[:, left], rows[:, right], across[None, :, None])
  square = np.zeros((side, side, 3), np.float32)
  square[: len(content), : content.shape[1]] = (content / 255 - np.float32(mean)) / np.float32(std)
  return square, after.astype(np.float32), (after / before).astype(np.float32)


def _taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  position = np.arange(after, dtype=np.float32) * (np.float32(before) / np.float32(after))
  lower = np.minimum(position.astype(np.int64), before - 1)
  return lower, np.minimum(lower + 1, before - 1), position - lower.astype(np.float32)


def read_vocabulary(path: str | Path) -> Vocabulary:
  """Reads a vocabulary file, as `vild-jax embed-text` writes it. Raises ValueError if it cannot be used."""
  try:
    with np.load(path, allow_pickle=False) as of:
      if sum(member.file_size for member in of.zip.infolist()) > 2**31:  # a small file can expand to any size
        raise ValueError('more than 2 GiB')
      rows, names, is_base = of['embeddings'].astype(np.float32), np.asarray(of['names']), of['is_base'].view(bool)
      teacher, background = str(of['teacher']), of['background'].astype(np.float32) if 'background' in of else None
  except Exception as e:  # NumPy and zipfile raise many types
    raise ValueError(f'{path} is not a vocabulary ({str(e)[:99]!r}); expected one of `vild-jax embed-text`') from None
  if not (rows.ndim == 2 and rows.size and names.shape == is_base.shape == rows.shape[:1] and np.isfinite(rows).all()):
    raise ValueError(f'{path} has names {names.shape} for embeddings {rows.shape}; expected a finite row for each')
  return Vocabulary(rows, tuple(map(str, names.tolist())), is_base, teacher, background)


def clean_name(name: str) -> str:
  """Returns a name as prompts contain it; two spellings of one name become equal."""
  return ' '.join(name.replace('_', ' ').replace('/', ' or ').lower().split()).rstrip('.')


def suppress(boxes: np.ndarray, valid: np.ndarray, scores: np.ndarray, settings: Mapping) -> tuple[np.ndarray, ...]:
  """Chooses detections from what a model without suppression returns of one picture.

  Within each class a better box drops a worse one that it overlaps; then the best of all classes are taken. Equal
  scores go to the lower class, then to the lower region. `settings` is `suppression` of model.json.
  Takes boxes [R, 4], valid [R] and scores [R, C]; returns (regions [N], labels [N], scores [N]), best first.
  """
  table = np.where(valid[:, None] & (scores > settings['score_threshold']), scores, -np.inf).T
  worse = np.argsort(-table, axis=1, kind='stable')[:, settings['candidates_per_class'] :]
  np.put_along_axis(table, worse, -np.inf, 1)
  order = np.argsort(-table, axis=None, kind='stable')[: np.count_nonzero(table > -np.inf)]
  overlaps = overlap(boxes) >= settings['iou_threshold']
  dropped, chosen = np.zeros(table.shape, bool), []
  for pair in order:
    label, region = divmod(int(pair), table.shape[1])
    if not dropped[label, region]:
      chosen.append((region, label, table[label, region]))
      if len(chosen) == settings['max_detections']:
        break
      dropped[label] |= overlaps[region]
  regions, labels, best = zip(*chosen, strict=True) if chosen else ((), (), ())
  return np.array(regions, int), np.array(labels, int), np.array(best, np.float32)


def overlap(boxes: np.ndarray) -> np.ndarray:
  """Returns the intersection over union [N, N] of boxes [N, 4]; 0 where the union is empty."""
  area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
  sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
  both = np.prod(np.maximum(sides, 0), axis=2)
  union = area[:, None] + area[None, :] - both
  return both / np.where(union > 0, union, 1)


def paste(logits: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
  """Pastes mask logits [M, M] of a box (top, left, bottom, right) into a picture -> bool [height, width]."""
  # The mask gets a border of one zero pixel, and its box grows with it; corners are truncated to whole pixels.
  padded = np.pad(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float32))), 1)
  half = (box[2:] - box[:2]) * np.float32(0.5)
  grown = half * np.float32(len(padded) / len(logits))
  corners = np.concatenate([box[:2] + half - grown, box[:2] + half + grown]).astype(np.int32)
  picture = np.zeros((height, width), bool)
  (top, down), (left, across) = map(_resampled, corners[:2].tolist(), corners[2:].tolist(), padded.shape, picture.shape)
  picture[top : top + len(down), left : left + len(across)] = down @ padded @ across.T > 0.5
  return picture


def _resampled(first: int, last: int, before: int, length: int) -> tuple[int, np.ndarray]:
  """Returns the first pixel inside the picture, and bilinear weights [pixels inside, before] of one axis."""
  after = max(last - first + 1, 1)
  inside = np.arange(max(first, 0), max(min(last + 1, length), max(first, 0)))
  position = np.clip((inside - first + 0.5) * (before / after) - 0.5, 0, before - 1)
  return max(first, 0), np.maximum(1 - np.abs(position[:, None] - np.arange(before)), 0).astype(np.float32)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
  """Returns a mask as COCO's run lengths, {'size': [H, W], 'counts': [off, on, off, ...]}, down the columns."""
  flat = np.concatenate([[False], mask.T.reshape(-1)])
  counts = np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0, append=mask.size)
  return {'size': list(mask.shape), 'counts': counts.tolist()}


def draw(picture: np.ndarray, found: Found) -> Image.Image:
  """Draws detections on their picture, uint8 [H, W, 3]."""
  image = Image.fromarray(picture)
  pen = ImageDraw.Draw(image)
  for index, (label, box) in reversed(list(enumerate(zip(found.labels, found.boxes.tolist(), strict=True)))):
    color = tuple(round(255 * x) for x in colorsys.hls_to_rgb((0.58 + 0.618034 * int(label)) % 1, 0.55, 0.8))
    if found.mask_logits is not None:
      image.paste(color, mask=Image.fromarray(found.mask(index).astype(np.uint8) * np.uint8(110)))
    top, left, bottom, right = box
    pen.rectangle((left, top, right, bottom), outline=color, width=2)
    at, text = (left, max(top - 12, 0)), f'{found.names[label]} {found.scores[index]:.2f}'
    pen.rectangle(pen.textbbox(at, text), fill=color)
    pen.text(at, text, fill=(255, 255, 255))
  return image


def check_files(folder: Path, about: Mapping[str, Any]) -> None:
  """Raises ValueError, naming the file, if model.json or one in its list is missing or not as it was exported."""
  content, own = (folder / ABOUT).read_bytes(), str(about.get('sha256')).encode()
  if hashlib.sha256(content.replace(own, b'0' * 64)).hexdigest().encode() != own:  # made with zeros in its own place
    raise ValueError(f'{folder / ABOUT} is damaged: it does not have the checksum that it states')
  parts = {part for name in about['files'] for part in name.split('/')}
  if wrong := {of['file'] for of in about['programs'].values()} - parts | parts & {'', '.', '..'}:
    raise ValueError(f'{folder / ABOUT} has the file {min(wrong)!r}; expected those that it lists, in its folder')
  for name, listed in about['files'].items():
    path = folder / name
    if not path.is_file() or path.stat().st_size != listed['bytes']:
      raise ValueError(f'{path} is missing or has another size than {ABOUT} lists; expected the folder as exported')
    if hashlib.sha256(path.read_bytes()).hexdigest() != listed['sha256']:
      raise ValueError(f'{path} is damaged: it does not have the checksum that {ABOUT} lists')


def _stablehlo(path: Path, program: Mapping[str, Any]) -> Callable[..., Sequence[Any]]:
  import jax
  from jax import export

  return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)


def _onnx(path: Path, program: Mapping[str, Any]) -> Callable[..., Sequence[Any]]:
  import onnxruntime

  onnxruntime.set_default_logger_severity(3)  # errors; it warns of every constant that it does not need
  session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
  single = [of['shape'][0] == 1 for of in program['inputs'].values()]  # one picture at a time
  ask = lambda *row: session.run([*program['outputs']], dict(zip(program['inputs'], row, strict=True)))
  rows = lambda inputs: (x[:, None] if one else itertools.repeat(x) for x, one in zip(inputs, single, strict=True))
  return lambda *inputs: list(map(np.concatenate, zip(*map(ask, *rows(inputs)), strict=True)))


def _savedmodel(path: Path, program: Mapping[str, Any]) -> Callable[..., Sequence[Any]]:
  import tensorflow

  model = tensorflow.saved_model.load(str(path)).signatures['serving_default']

  def run(*inputs: Any) -> list[np.ndarray]:
    found = model(**dict(zip(program['inputs'], map(tensorflow.convert_to_tensor, inputs), strict=True)))
    return [found[name].numpy() for name in program['outputs']]

  return run


RUNTIMES = {
  'stablehlo': (_stablehlo, "'jax>=0.10.2' flatbuffers"),
  'onnx': (_onnx, 'onnxruntime'),
  'savedmodel': (_savedmodel, 'tensorflow'),
}


class Detector:
  """Runs the model of a folder on pictures; `about` is what model.json says, `vocabulary` that of the training."""

  def __init__(self, folder: str | Path):
    """Loads a model. Raises ValueError if the folder is none, or damaged, or its runtime is not installed."""
    folder = Path(folder)
    try:
      self.about = json.loads((folder / ABOUT).read_text(encoding='utf-8'))
      load, needs = RUNTIMES[self.about['format']]
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{folder / ABOUT} cannot be read ({error!r}); expected a folder of `vild-jax export`') from None
    check_files(folder, self.about)
    self.vocabulary = read_vocabulary(folder / VOCABULARY)
    try:
      self.programs = {name: load(folder / of['file'], of) for name, of in self.about['programs'].items()}
    except Exception as error:  # the runtimes raise many types
      reason = ' '.join(str(error).split())
      raise ValueError(f'{reason}; expected what runs this model: pip install {needs}') from error

  def detect(
    self, pictures: Iterable[np.ndarray], classes: Classes = None, *, min_score: float = MIN_SCORE, batch_size: int = 1
  ) -> Iterator[Found]:
    """Yields the detections in each picture, uint8 [H, W, 3] RGB, of which no more than a batch is kept.

    `classes`: names of the training's vocabulary (None: all), or another vocabulary of its teacher. Raises ValueError
    for what does not fit.
    """
    names, words = self.words(classes)
    pictures = iter(pictures)
    while chunk := list(itertools.islice(pictures, batch_size)):
      squares, sizes, scales = self.prepare(chunk, batch_size)
      found = self.run(squares, sizes, words)
      for row, (picture, scale) in enumerate(zip(chunk, scales, strict=True)):
        keep = found['valid'][row] & (found['scores'][row] >= min_score)
        kept, (height, width) = {key: value[row][keep] for key, value in found.items()}, picture.shape[:2]
        boxes = np.clip(kept['boxes'] / np.tile(scale, 2), 0, np.float32([height, width, height, width]))
        masks = kept['masks'].astype(np.float32) if 'masks' in kept else None
        yield Found(boxes, kept['scores'], kept['labels'], names, (height, width), masks)

  def prepare(self, pictures: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Returns squares [rows, S, S, 3] and content sizes [rows, 2], filled up with zeros, and the scale of each."""
    side, mean, std = map(self.about['preprocessing'].get, ('image_size', 'mean', 'std'))
    squares, sizes, scales = np.zeros((rows, side, side, 3), np.float32), np.zeros((rows, 2), np.float32), []
    for row, picture in enumerate(pictures):
      if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or not picture.size:
        raise ValueError(f'a picture is {picture.dtype} {list(picture.shape)}; expected uint8 [H, W, 3] RGB')
      squares[row], sizes[row], scale = preprocess(picture, side, mean, std)
      scales.append(scale)
    return squares, sizes, scales

  def words(self, classes: Classes = None) -> tuple[tuple[str, ...], tuple[np.ndarray, ...]]:
    """Returns the names, and the inputs (embeddings, is_base, is_class) of the model, padded to 16, 32, 64, ..."""
    of = classes if isinstance(classes, Vocabulary) else self.vocabulary
    if of.teacher != self.vocabulary.teacher:
      raise ValueError(f'the vocabulary is of teacher {of.teacher!r}; expected {self.vocabulary.teacher!r}')
    (_, dim), (fixed, expected) = of.embeddings.shape, self.about['programs']['model']['inputs']['embeddings']['shape']
    if dim != expected:
      raise ValueError(f'the vocabulary has embeddings of dimension {dim}; expected {expected}, that of the model')
    if of.background is not None and not np.array_equal(of.background, self.vocabulary.background):
      raise ValueError('the vocabulary has a background of its own; expected one without, as the model has its own')
    names, rows = of.names, of.embeddings
    if classes is not None and of is not classes:
      many = Counter(map(clean_name, of.names))  # another spelling of two names is that of neither
      place = {name: row for row, name in enumerate(map(clean_name, of.names)) if many[name] == 1}
      place |= {name: row for row, name in enumerate(of.names)}
      names = tuple(name.strip() for name in classes)
      found = [place.get(name, place.get(clean_name(name))) for name in names]
      if None in found:
        raise ValueError(f'{names[found.index(None)]!r} is not in {VOCABULARY}; expected a name of {VOCABULARY}')
      rows = rows[np.array(found, int)]
    if not len(rows):
      raise ValueError('there are no classes; expected one or more names')
    base = {clean_name(self.vocabulary.names[row]) for row in np.flatnonzero(self.vocabulary.is_base)}
    padded = max(self.about['fewest_classes'], 1 << (len(rows) - 1).bit_length()) if fixed == 'c' else fixed
    if len(rows) > padded:
      raise ValueError(f'there are {len(rows)} classes; expected at most {padded}, as the model was exported for')
    missing = padded - len(rows)
    is_base = np.pad([clean_name(name) in base for name in names], (0, missing))
    return names, (np.pad(rows, ((0, missing), (0, 0))), is_base, np.arange(padded) < len(rows))

  def run(self, squares: np.ndarray, sizes: np.ndarray, words: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Returns boxes [B, K, 4] in the square, scores, labels, valid [B, K] and perhaps masks [B, K, M, M]."""
    found = self.call('model', squares, sizes, *words)
    if 'labels' in found:
      return {key: np.asarray(value) for key, value in found.items()}
    boxes, valid, scores = (np.asarray(found[name]) for name in ('boxes', 'valid', 'scores'))
    slots = len(squares), self.about['suppression']['max_detections']
    kinds = {'boxes': ((4,), np.float32), 'scores': ((), np.float32), 'labels': ((), np.int32), 'valid': ((), bool)}
    chosen = {key: np.zeros((*slots, *more), dtype) for key, (more, dtype) in kinds.items()}
    for row in range(len(squares)):
      regions, labels, best = suppress(boxes[row], valid[row], scores[row], self.about['suppression'])
      for key, value in (('boxes', boxes[row][regions]), ('scores', best), ('labels', labels), ('valid', True)):
        chosen[key][row, : len(regions)] = value
    if 'masks' in self.programs:
      features = [found[name] for name in self.about['programs']['masks']['inputs'] if name.startswith('features')]
      chosen['masks'] = np.asarray(self.call('masks', chosen['boxes'], chosen['valid'], *features)['masks'])
    return chosen

  def call(self, program: str, *inputs: Any) -> dict[str, Any]:
    """Returns {name: output} of one program of the model."""
    return dict(zip(self.about['programs'][program]['outputs'], self.programs[program](*inputs), strict=True))


def main(words: Sequence[str] | None = None) -> int:
  """Runs the command line and returns its exit code: 2 for bad input, which one line on stderr explains."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('pictures', nargs='+', metavar='PICTURE')
  either = parser.add_mutually_exclusive_group()
  names = lambda text: [name for name in text.split(',') if name.strip()]
  either.add_argument('--classes', type=names, help='names, with commas between them (default: all of the vocabulary)')
  either.add_argument('--vocabulary', metavar='FILE', help='of `vild-jax embed-text`, by the same teacher')
  parser.add_argument('--min-score', type=float, default=MIN_SCORE, help='of detections (default: %(default)s)')
  parser.add_argument('--out', metavar='DIR', help='also write drawings, PNG, into this folder')
  parser.add_argument('--batch-size', type=int, default=1, help='pictures at a time (default: %(default)s)')
  parser.add_argument('--model', default=str(Path(__file__).parent), help='folder (default: that of this file)')
  args = parser.parse_args(words)
  told, code = [], 0
  try:
    detector = Detector(args.model)
    classes = args.vocabulary and read_vocabulary(args.vocabulary) if args.classes is None else args.classes
    opened, shown = itertools.tee(map(open_picture, args.pictures))  # never more than a batch of them
    founds = detector.detect(opened, classes, min_score=args.min_score, batch_size=max(args.batch_size, 1))
    for path, picture, found in zip(args.pictures, shown, founds, strict=True):
      told.append({'picture': path, 'size': list(found.size), 'detections': found.to_json()})
      if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        draw(picture, found).save(Path(args.out) / f'{len(told)}_{Path(path).stem}.png')
  except (ValueError, OSError) as error:
    print(f'run.py: {error}', file=sys.stderr)
    code = 2
  if told:  # also before a picture that is none
    print(json.dumps(told))
  return code


if __name__ == '__main__':
  sys.exit(main())
