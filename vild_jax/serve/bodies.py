"""Reads the bodies of requests into memory: not beyond a number of bytes, and not for longer than some seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from python_multipart import exceptions
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vild_jax.serve.limits import Limits, Refused, busy

JSON, MULTIPART = TYPES = ('application/json', 'multipart/form-data')
_MOST_PARTS = 8


class Reader:
  """Reads bodies, all of which together stay below a number of bytes."""

  def __init__(self, limits: Limits):
    self._limits, self._held = limits, 0

  @contextlib.asynccontextmanager
  async def read(self, request: Request) -> AsyncIterator[bytes]:
    """Yields the body; raises Refused for one that is too long or too slow, or if too much is read at the time."""
    most, held, parts = self._limits.body_bytes, 0, []
    too_long = Refused(413, f'the request has more than {most} bytes; expected at most that')
    declared = request.headers.get('content-length', '')
    if declared.isdecimal() and int(declared) > most:
      raise too_long
    try:
      async with asyncio.timeout(self._limits.body_seconds):
        async for part in request.stream():
          held += len(part)
          self._held += len(part)
          parts.append(part)
          if held > most:
            raise too_long
          if self._held > self._limits.bodies_bytes:
            raise busy(f'requests of {self._held} bytes are being read')
      body = b''.join(parts)
      parts.clear()
      yield body
    except TimeoutError:
      seconds = self._limits.body_seconds
      raise Refused(408, f'{held} bytes of the request came in {seconds:g} s; expected all of it') from None
    finally:
      self._held -= held


async def discard(request: Request, seconds: float) -> None:
  """Reads what is left of a body and forgets it.

  A connection that is closed with bytes on the way is reset, and the client would not see why it was refused.
  """
  if request.headers.get('expect', '').lower() == '100-continue':
    return  # the client waits for the answer before it sends
  with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last: there is nothing left
    async with asyncio.timeout(seconds):
      async for _ in request.stream():
        pass


def content_type(request: Request) -> str:
  """Returns which of `TYPES` a body has; raises Refused for others."""
  found = parse_options_header(request.headers.get('content-type'))[0].decode('latin-1')
  if found not in TYPES:
    raise Refused(415, f'the content type is {found!r}; expected {" or ".join(TYPES)}')
  return found


def parts(body: bytes, header: str) -> dict[str, bytes]:
  """Returns {name: content} of multipart/form-data, in memory alone.

  Args:
    body: of the request.
    header: its Content-Type.

  Raises Refused if it is damaged.
  """
  boundary = parse_options_header(header)[1].get(b'boundary')
  if not boundary:
    raise Refused(422, 'the multipart request names no boundary')
  found: dict[str, bytes] = {}
  headers: dict[bytes, bytes] = {}
  field, value, content = bytearray(), bytearray(), bytearray()
  ended = False

  def begin() -> None:
    for buffer in (field, value, content):
      buffer.clear()
    headers.clear()

  def end_header() -> None:
    headers[bytes(field).lower()] = bytes(value)
    field.clear()
    value.clear()

  def end_part() -> None:
    name = parse_options_header(headers.get(b'content-disposition'))[1].get(b'name', b'').decode('utf-8', 'replace')
    if not name or name in found or len(found) == _MOST_PARTS:
      raise Refused(422, f'a part of the request is called {name!r}; expected each of image and request once')
    found[name] = bytes(content)

  def end() -> None:
    nonlocal ended
    ended = True

  def into(buffer: bytearray) -> Callable[[bytes, int, int], None]:
    return lambda data, start, stop: buffer.extend(data[start:stop])

  callbacks = {
    'on_part_begin': begin,
    'on_header_field': into(field),
    'on_header_value': into(value),
    'on_header_end': end_header,
    'on_part_data': into(content),
    'on_part_end': end_part,
    'on_end': end,
  }
  try:
    MultipartParser(boundary, callbacks).write(body)
  except exceptions.FormParserError as error:
    raise Refused(422, f'the multipart request is damaged: {error}') from None
  if not ended:
    raise Refused(422, 'the multipart request has no end; expected the boundary after the last part')
  return found
