"""Damages files at random, but the same way for the same seed: bytes, JSON, and archives whose checksums fit again."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

ODD = [
  *(None, True, False, 0, 1, -1, 0.5, 1e-9, 1e15, 1e300, -1e300, float('nan'), float('inf'), 10**400, 10**9, 2**63, -7),
  *('', ' ', 'x', '5', '\ud800', '\0', 'a\nb', 'a' * 5000, '../../etc/passwd', '/etc/passwd', '\u2028', 'é', '[' * 40),
  *([], [[]], {}, [0], [None], ['a'], [1, 2, 3, 4], {'a': {}}, {'type': 'os.path'}, [{}], [[1e8] * 8]),
]
NESTED = 'nested'  # stands for lists in lists, which are made in the text: Python follows them only so far
_NUMBERS = (b'0', b'-1', b'1e999', b'99999999999', b'1000000', b'9' * 5000, b'NaN', b'null', b'1.5', b'true')


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
  """Flips bits, cuts, repeats or replaces parts, once or a few times."""
  found = bytearray(data)
  for _ in range(min(1 + int(rng.expovariate(0.9)), 8)):
    if not found:
      break
    at, length = rng.randrange(len(found)), min(1 + int(rng.expovariate(0.05)), 4000)
    kind = rng.choice(('flip', 'flip', 'cut', 'drop', 'again', 'noise', 'same', 'splice', 'number'))
    if kind == 'flip':
      for _ in range(rng.choice((1, 1, 1, 8))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    elif kind == 'cut':
      del found[at:]
    elif kind == 'drop':
      del found[at : at + length]
    elif kind == 'again':
      found[at:at] = found[at : at + length]
    elif kind == 'noise':
      found[at : at + length] = rng.randbytes(rng.choice((1, length)))
    elif kind == 'same':
      found[at : at + length] = bytes([rng.choice((0, 255, 0x20, 0x5B, 0x7F))]) * length
    elif kind == 'splice':
      other = rng.randrange(len(data) + 1)
      found[at:] = data[other:]
    elif kind == 'number':
      found[at : at + rng.choice((1, 4, 8))] = rng.choice(
        (*_NUMBERS, struct.pack('<I', 2**31 - 1), struct.pack('<Q', 2**40), struct.pack('>I', 2**31 - 1))
      )
  return bytes(found)


def _places(tree: Any) -> list[tuple[Any, Any]]:
  keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
  return [place for key in keys for place in [(tree, key), *_places(tree[key])]]


def damaged_tree(tree: Any, rng: random.Random) -> Any:
  """Changes values of a JSON tree: odd ones, other types, gone, borrowed from elsewhere, or numbers far off."""
  if rng.random() < 0.02:
    return copy.deepcopy(rng.choice(ODD))
  tree = copy.deepcopy(tree)
  for _ in range(min(1 + int(rng.expovariate(0.8)), 6)):
    places = _places(tree)
    if not places:
      break
    # A place of the top is as likely as one below, of which there are many more.
    holder, key = rng.choice(places) if rng.random() < 0.7 else (tree, rng.choice(list(_keys(tree))))
    value, kind = holder[key], rng.choice(('odd', 'odd', 'drop', 'wrap', 'text', 'borrow', 'number', 'nest', 'rename'))
    if kind == 'odd':
      holder[key] = copy.deepcopy(rng.choice(ODD))
    elif kind == 'drop':
      del holder[key]
    elif kind == 'wrap':
      holder[key] = rng.choice(([value], {'x': value}, [value, value]))
    elif kind == 'text':
      holder[key] = str(value)[:2000]
    elif kind == 'borrow':
      other, place = rng.choice(places)
      if isinstance(other, list) and not place < len(other):
        continue
      holder[key] = copy.deepcopy(other[place]) if not isinstance(other, dict) or place in other else None
    elif kind == 'number' and type(value) in (int, float) and abs(value) < 1e30:
      holder[key] = rng.choice((value + 1, -value, value * 1000, 10**6, 10**9, value + 0.5, float(value), 0))
    elif kind == 'nest':
      holder[key] = NESTED
    elif kind == 'rename' and isinstance(holder, dict):
      holder[rng.choice(('x', '', key.upper(), key + '_'))] = holder.pop(key)
  return tree


def _keys(tree: Any) -> Any:
  return list(tree) if isinstance(tree, dict) else range(len(tree))


def damaged_json(text: bytes, rng: random.Random) -> bytes:
  """Changes values of a JSON text, or now and then its bytes."""
  if rng.random() < 0.25:
    return damaged_bytes(text, rng)
  made = json.dumps(damaged_tree(json.loads(text), rng))
  before, after = rng.choice((('[', ']'), ('{"x": ', '}')))
  depth = rng.choice((1, 5, 95, 105, 850, 990, 5000, 100_000))
  return made.replace(f'"{NESTED}"', before * depth + '1' + after * depth).encode()


def damaged_lines(text: bytes, rng: random.Random) -> bytes:
  """Changes lines of JSON, or bytes."""
  lines = text.split(b'\n')
  for _ in range(rng.randrange(3)):
    at = rng.randrange(len(lines))
    try:
      lines[at] = damaged_json(lines[at], rng)
    except (ValueError, RecursionError):  # it is damaged already
      lines[at] = damaged_bytes(lines[at], rng)
  return damaged_bytes(b'\n'.join(lines), rng) if rng.random() < 0.3 else b'\n'.join(lines)


def damaged_zip(data: bytes, rng: random.Random) -> bytes:
  """Changes a member of an archive and stores it with a checksum that fits, or leaves it out; or bytes."""
  if rng.random() < 0.4:
    return damaged_bytes(data, rng)
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  name = rng.choice(list(members))
  kind = rng.choice(('header', 'header', 'bytes', 'drop', 'swap', 'zeros'))
  if kind == 'header':
    head = members[name][:128]
    members[name] = damaged_bytes(head, rng) + members[name][128:]
  elif kind == 'bytes':
    members[name] = damaged_bytes(members[name], rng)
  elif kind == 'drop':
    del members[name]
  elif kind == 'swap':
    members[name] = members[rng.choice(list(members))]
  elif kind == 'zeros':
    members[name] = _array_header(rng) + b'\0' * rng.choice((0, 64, 2**20))
  made = io.BytesIO()
  with zipfile.ZipFile(made, 'w', rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
    for member, content in members.items():
      archive.writestr(member, content)
  return made.getvalue()


def _array_header(rng: random.Random) -> bytes:
  kind = rng.choice(('<f4', '<f8', '|b1', '<U9', '|O', '<U0', 'V1000000000', '<M8[s]', '<c16', '|S3', '>f2'))
  side = lambda: rng.choice((0, 1, 3, 16, 2**20, 10**9, 2**40, 2**63, -1))
  shape = tuple(side() for _ in range(rng.randrange(4)))
  text = f"{{'descr': '{kind}', 'fortran_order': {rng.choice((True, False))}, 'shape': {shape}, }}".encode()
  return b'\x93NUMPY\x01\0' + struct.pack('<H', len(text) + 1) + text + b'\n'


def damaged_npy(data: bytes, rng: random.Random) -> bytes:
  """Changes an array file, its header above all."""
  kind = rng.randrange(3)
  if kind == 0:
    return _array_header(rng) + data[128:]
  return damaged_bytes(data[:128], rng) + data[128:] if kind == 1 else damaged_bytes(data, rng)


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
  """Changes the header of a file of tensors, which is JSON, and states its new length; or bytes."""
  if rng.random() < 0.4:
    return damaged_bytes(data, rng)
  length = struct.unpack('<Q', data[:8])[0]
  head = damaged_json(data[8 : 8 + length], rng)
  return struct.pack('<Q', len(head)) + head + data[8 + length :]


def damaged_png(data: bytes, rng: random.Random) -> bytes:
  """Changes chunks of a PNG and gives them checksums that fit; or bytes."""
  if rng.random() < 0.4 or not data.startswith(b'\x89PNG'):
    return damaged_bytes(data, rng)
  at, chunks = 8, []
  while at + 12 <= len(data):
    size = struct.unpack('>I', data[at : at + 4])[0]
    chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
    at += 12 + size
  number = rng.randrange(len(chunks))
  name, content = chunks[number]
  chunks[number] = (name, damaged_bytes(content, rng))
  if rng.random() < 0.2:
    chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
  return data[:8] + b''.join(
    struct.pack('>I', len(c)) + n + c + struct.pack('>I', zlib.crc32(n + c)) for n, c in chunks
  )
