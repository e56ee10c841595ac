"""Reads the text of a compiled program: how devices exchange data, and which arrays are large.

Sizes are those on one device. Each repetition of a loop counts, if the compiler knows how often the loop runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-broadcast',
  'collective-permute',
  'ragged-all-to-all',
  'reduce-scatter',
)
_NO_BUFFER = (
  'parameter',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'constant',
  'while',
  'conditional',
  'call',
  'optimization-barrier',
  'after-all',
)  # these allocate nothing: they refer to the results of other instructions
_NAME = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?')
_OPCODE = re.compile(r'([a-z][\w\-]*)\(')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|called_computations|true_computation|false_computation|'
  r'branch_computations)=(\{[^}]*\}|%?[\w.\-]+)'
)


@dataclass(frozen=True)
class Array:
  """Describes one array of a type: `bytes` in memory, with the padding of its tiles; `text` such as f32[8,128]."""

  text: str
  bytes: int
  in_hbm: bool = True


@dataclass(frozen=True)
class Instruction:
  """Holds one line of a computation; `shape` is the text of its type, `attributes` the text after the operands."""

  name: str
  computation: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def op_name(self) -> str:
    """Returns where the instruction comes from in the source, '' if the text does not say."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found.group(1).replace('\\', '') if found else ''

  def called(self) -> Iterator[tuple[str, str]]:
    """Yields (role, computation) for each computation that the instruction runs."""
    for found in _CALLED.finditer(self.attributes):
      role = found.group().partition('=')[0]
      yield from ((role, name.strip(' %')) for name in found.group(1).strip('{}').split(','))


@dataclass(frozen=True)
class Program:
  """Holds the computations of a module by name; each has its instructions by name, in order."""

  computations: dict[str, dict[str, Instruction]]
  entry: str
  callers: dict[str, list[Instruction]] = field(default_factory=dict)


@dataclass(frozen=True)
class Collective:
  """Describes one exchange of data between devices, at one place of a program.

  Attributes:
    kind: one of COLLECTIVES.
    bytes: the larger of its input and its output on one device, for one run.
    times: how often one step runs it; a loop whose length the compiler does not know counts once.
    axes: the axes of the mesh along which it exchanges data; None if its groups cannot be read.
    op_name: where it comes from in the source.
    of_state: whether it is computed from parameters and slots of the optimiser alone.
  """

  kind: str
  bytes: int
  times: int
  axes: tuple[str, ...] | None
  op_name: str
  of_state: bool


def parse(text: str) -> Program:
  """Parses the text of a compiled module; raises ValueError if there is no entry computation."""
  computations, entry, current, where = {}, None, None, ''
  for line in text.splitlines():
    if not line.startswith(' '):
      if line.endswith('{') and not line.startswith('HloModule'):
        is_entry, name = line.startswith('ENTRY '), line.removeprefix('ENTRY ').split()[0].lstrip('%')
        current = computations.setdefault(name, {})
        where, entry = name, name if is_entry else entry
    elif current is not None and (found := _NAME.match(line)):
      current[found.group(1)] = _instruction(found.group(1), where, line[found.end() :])
  if entry is None:
    raise ValueError('the text of the compiled program has no ENTRY computation')
  program = Program(computations, entry)
  for instructions in computations.values():
    for instruction in instructions.values():
      for _, name in instruction.called():
        program.callers.setdefault(name, []).append(instruction)
  return program


def _instruction(name: str, computation: str, rest: str) -> Instruction:
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ') - 1
  shape, rest = rest[: end + 1], rest[end + 1 :].lstrip()
  opcode = _OPCODE.match(rest)
  end = _closing(rest, opcode.end() - 1)
  operands = rest[opcode.end() : end]
  if opcode.group(1) in ('constant', 'parameter'):  # the operand is a value, or the number of the parameter
    names = (operands,)
  else:
    names = tuple(re.findall(r'%([\w.\-]+)', operands) or re.findall(r'([\w.\-]+)\s*(?:,|$)', operands))
  return Instruction(name, computation, shape, opcode.group(1), names, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
  """The index of the bracket that closes the bracket at `start`."""
  depth = 0
  for index in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[index], 0)
    if not depth:
      return index
  raise ValueError(f'brackets that do not close in the compiled text: {text[:80]}')


def arrays(shape: str) -> list[Array]:
  """Returns the arrays of a type; a tuple such as (f32[2]{0}, bf16[3,4]{1,0}) has several."""
  return [
    Array(f'{kind}[{dims}]', _bits(kind) * _padded(dims, layout) // 8, not re.search(r'S\([1-9]', layout))
    for kind, dims, layout in _ARRAY.findall(shape)
  ]


def _bits(kind: str) -> int:
  if kind in ('token', 'opaque'):
    return 0
  if kind == 'pred':
    return 8
  return int(re.search(r'\d+', kind).group())  # f32, bf16, s8, u4, f8e4m3fn, c64


def _padded(dims: str, layout: str) -> int:
  """Number of elements with the padding of tiles: {1,0:T(8,128)} rounds the last two dimensions up to 8 and 128s."""
  sizes = [int(size.strip('<=')) for size in dims.split(',') if size]
  order, _, tiles = layout.partition(':')
  tile = re.search(r'T\((\d+(?:,\d+)*)\)', tiles)
  if tile and sizes and order:
    physical = [sizes[int(axis)] for axis in order.split(',')]  # the fastest-varying dimension first
    for place, size in enumerate(reversed([int(size) for size in tile.group(1).split(',')])):
      if place < len(physical):
        physical[place] = math.ceil(physical[place] / size) * size
    sizes = physical
  return math.prod(sizes)


def collectives(program: Program, mesh_shape: dict[str, int], is_state: str) -> list[Collective]:
  """Returns all collectives of a program on a mesh {axis: size}; a start and its done count as one.

  `is_state` is a regular expression: arguments whose names match it are parameters and slots of the optimiser.
  """
  found = []
  for name, instructions in program.computations.items():
    for instruction in instructions.values():
      kind = instruction.opcode.removesuffix('-start')
      if kind not in COLLECTIVES:
        continue
      size = max(_payload(instruction), sum(a.bytes for a in _operand_arrays(program, instruction)))
      # On a TPU, an all-reduce of which each device keeps only a part is inside a computation with this name.
      scattered = kind == 'all-reduce' and name.startswith('all-reduce-scatter')
      found.append(
        Collective(
          'reduce-scatter' if scattered else kind,
          size,
          times(program, name),
          axes(instruction.attributes, mesh_shape),
          instruction.op_name,
          _only(sources(program, instruction), is_state),
        )
      )
  return found


def _payload(instruction: Instruction) -> int:
  """Bytes of the output; the type of a start is (input, output, ...), except for an all-reduce."""
  shape, opcode = instruction.shape, instruction.opcode
  if opcode.endswith('-start') and shape.startswith('(') and not opcode.startswith('all-reduce'):
    shape = _elements(shape)[1]
  return sum(array.bytes for array in arrays(shape))


def _elements(shape: str) -> list[str]:
  """The parts of the type of a tuple; the parts may be tuples."""
  parts, depth, start = [], 0, 1
  for index, letter in enumerate(shape):
    depth += (letter in '([{') - (letter in ')]}')
    if (letter == ',' and depth == 1) or (letter == ')' and depth == 0):
      parts.append(shape[start:index].strip())
      start = index + 1
  return parts


def _operand_arrays(program: Program, instruction: Instruction) -> list[Array]:
  inside = program.computations[instruction.computation]
  return [array for name in instruction.operands if name in inside for array in arrays(inside[name].shape)]


def times(program: Program, computation: str) -> int:
  """Returns how often one run of the program runs a computation."""
  total = 0
  for caller in program.callers.get(computation, []):
    trips = re.search(r'"?known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', caller.attributes)
    inner = int(trips.group(1)) if trips and caller.opcode == 'while' else 1
    total += inner * times(program, caller.computation)
  return max(total, 1)


def axes(attributes: str, mesh_shape: dict[str, int]) -> tuple[str, ...] | None:
  """Returns the mesh axes along which a collective exchanges data, from its device groups; None if unreadable."""
  groups = _groups(attributes, math.prod(mesh_shape.values()))
  if groups is None:
    return None
  varies = set()
  for group in groups:
    places = np.stack(np.unravel_index(group, tuple(mesh_shape.values())))
    varies |= {axis for axis, row in zip(mesh_shape, places, strict=True) if len(set(row.tolist())) > 1}
  return tuple(axis for axis in mesh_shape if axis in varies)


def _groups(attributes: str, devices: int) -> list[list[int]] | None:
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
  if iota:
    return _iota(devices, iota.group(3), iota.group(4)).reshape(_numbers(iota.group(1, 2))).tolist()
  # The compiler's own notation: a mesh, the order of its devices unless it is 0, 1, 2, ..., the axes of the groups.
  named = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? '
    r"\{((?:'\w+',?\s?)*)\}",
    attributes,
  )
  if named:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
    numbers = _iota(devices, named.group(2) or str(devices), named.group(3)).reshape(tuple(sizes.values()))
    chosen = [list(sizes).index(name) for name in re.findall(r'\w+', named.group(4))]
    others = [place for place in range(len(sizes)) if place not in chosen]
    members = math.prod(numbers.shape[place] for place in chosen)
    return numbers.transpose(others + chosen).reshape(-1, members).tolist()
  listed = re.search(r'(replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}', attributes)
  if not listed:
    return None
  groups = [_numbers(group.split(',')) for group in re.findall(r'\{([\d,]+)\}', listed.group(2))]
  return groups or [list(range(devices))]


def _iota(devices: int, shape: str, order: str | None) -> np.ndarray:
  numbers = np.arange(devices).reshape(_numbers(shape.split(',')))
  return numbers.transpose(_numbers(order.split(','))) if order else numbers


def _numbers(words: Iterable[str]) -> list[int]:
  return [int(word) for word in words]


def sources(program: Program, instruction: Instruction) -> set[str]:
  """Returns the names of the program's arguments that an instruction is computed from; '?' for one without a name."""
  found, seen, left = set(), set(), [instruction]
  while left:
    current = left.pop()
    if (current.computation, current.name) in seen:
      continue
    seen.add((current.computation, current.name))
    if current.opcode == 'parameter':
      if current.computation == program.entry:
        found.add(current.op_name or '?')
      for caller in program.callers.get(current.computation, []):
        # A fusion passes its operands in order; a loop passes one tuple, a conditional one of several tuples.
        number = int(current.operands[0])
        direct = caller.opcode in ('fusion', 'call', 'async-start') and number < len(caller.operands)
        left += _operands(program, caller)[number : number + 1] if direct else _operands(program, caller)
    else:
      left += _operands(program, current)
  return found


def _operands(program: Program, instruction: Instruction) -> list[Instruction]:
  inside = program.computations[instruction.computation]
  return [inside[name] for name in instruction.operands if name in inside]


def _only(names: set[str], pattern: str) -> bool:
  return bool(names) and all(re.match(pattern, name) for name in names)


def largest(program: Program, count: int) -> list[tuple[int, str, str]]:
  """Returns (bytes, type, source) of the `count` largest arrays in device memory, each type and source once.

  They need not be in memory at the same time.
  """
  inner = {
    name
    for name, callers in program.callers.items()
    if any(caller.opcode not in ('while', 'conditional', 'call') for caller in callers)
  }
  found: dict[tuple[str, str], int] = {}
  for name, instructions in program.computations.items():
    if name in inner:  # arrays inside a fusion are not stored
      continue
    for instruction in instructions.values():
      named = instruction.opcode in _NO_BUFFER or instruction.opcode.endswith('-start')  # its -done counts
      if named and not _is_argument(program, instruction):
        continue
      for array in arrays(instruction.shape):
        if array.in_hbm and array.bytes:
          found[array.text, instruction.op_name or instruction.opcode] = array.bytes
  ranked = sorted(((size, text, where) for (text, where), size in found.items()), key=lambda row: (-row[0], *row[1:]))
  return ranked[:count]


def _is_argument(program: Program, instruction: Instruction) -> bool:
  return instruction.opcode == 'parameter' and instruction.computation == program.entry


def rematerialised(said: str) -> int:
  """Counts the partitioner's warnings that it gathers an array on every device only to split it in another way."""
  return said.count('Involuntary full rematerialization')


def refused(message: str) -> dict[str, int] | None:
  """Reads bytes needed and available from the TPU compiler's error about memory; returns None for another error."""
  number = r'([\d.]+)([KMGT]?)'
  found = re.search(rf'Used {number} of {number} hbm', message) or re.search(
    rf'Ran out of memory on HBM.*\({number}\) exceeds available HBM \({number}\)', message
  )
  if not found:
    return None
  used, unit, limit, limit_unit = found.groups()
  units = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
  return {'needed': int(float(used) * units[unit]), 'available': int(float(limit) * units[limit_unit])}
