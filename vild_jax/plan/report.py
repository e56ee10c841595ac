"""Formats the result of a plan as text for the console."""

from __future__ import annotations

from typing import Any

from vild_jax.plan.compile import SMALL


def report(found: dict[str, Any]) -> str:
  """Returns the result of `plan` as text of several lines."""
  memory, lines = found['memory'], []
  mesh = ' x '.join(f'{size} {axis}' for axis, size in found['mesh'].items())
  lines.append(f'{found["config"]} on {found["topology"]} ({found["platform"]}), mesh {mesh}')
  lines.append(f'batch            {found["batch"]}, {found["batch_per_device"]:g} on a device; {found["rate"]}')
  lines.append(f'memory needed    {verdict(found)}')
  if found['compiled']:
    lines.append(
      '                 '
      + ', '.join(
        f'{name} {_size(memory[name])}' for name in ('peak', 'arguments', 'results', 'shared', 'temporaries', 'code')
      )
    )
    lines.append(f'FLOPs of a step  model {found["model_flops"]:.3e}, XLA {found["xla_flops"]:.3e}, all devices')
    lines.append(f'bytes accessed   {_size(found["bytes_accessed"])} on a device')
    for c in found['collectives']:
      axes = 'axes not known' if c['axes'] is None else ' x '.join(c['axes']) or 'no axis'
      small = f', none over {_size(SMALL)}' if c['small'] else ''
      lines.append(f'{c["kind"]:<16} {_size(c["bytes"])} in {c["times"]} a step, over {axes}{small}')
    lines += [f'large            {_size(row["bytes"])} {row["type"]} {row["from"][-60:]}' for row in found['largest']]
    lines += [
      f'WARNING          all-gather of an array that is not a parameter, {_size(c["bytes"])}: {c["op_name"][-60:]}'
      for c in found['gathered']
    ]
    if number := found['rematerialised_by_the_partitioner']:
      lines.append(f'WARNING          involuntary full rematerialisation by the partitioner, {number} times')
  if 'largest_batch' in found:
    lines.append(f'largest batch    {found["largest_batch"]}')
  kept = ' (kept result)' if found['cached'] else ''
  lines.append(f'compiled in      {found["compile_seconds"]:.0f} s{kept}, lowered in {found["lowering_seconds"]:.0f} s')
  return '\n'.join(lines)


def verdict(found: dict[str, Any]) -> str:
  """Returns the memory needed, the memory available and whether it is enough, as text."""
  memory = found['memory']
  available = 'an unknown size (set --hbm GIB)' if memory['available'] is None else _size(memory['available'])
  word = {True: 'fits', False: 'does NOT fit', None: 'cannot tell whether it fits'}[found['fits']]
  # The compiler may accept a sum a little above the limit, because not all parts are in memory at the same time.
  says = ', according to the compiler' if found['judge'] == 'compiler' else ''
  return f'{_size(memory["needed"])} of {available}: {word}{says}'


def _size(number: float) -> str:
  return f'{number / 2**30:.2f} GiB' if number >= 2**30 else f'{number / 2**20:.2f} MiB'
