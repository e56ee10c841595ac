"""The routes of the service, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vild_jax.serve import bodies, metrics, openapi
from vild_jax.serve.examples import ExamplePicture
from vild_jax.serve.limits import Refused
from vild_jax.serve.service import Service

_PAGE = Path(__file__).with_name('page')
_LEFT = 499  # the status that logs of others have for a client that did not wait; nobody gets it
# The page uses files of its own alone, and no other page may show it in a frame.
_HEADERS = (
  (
    b'content-security-policy',
    b"default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  ),
  (b'x-content-type-options', b'nosniff'),
  (b'referrer-policy', b'no-referrer'),
  (b'cache-control', b'no-cache'),
)


@dataclasses.dataclass(frozen=True)
class About:
  """Holds what `GET /v1/about` says: the bundle's name, its card in Markdown, its vocabulary, and what it can do."""

  name: str
  card: str
  names: Sequence[str]
  classes: int
  masks: bool
  words_allowed: bool
  examples_allowed: bool
  image_size: int
  version: str


def make(
  service: Service, about: About, pictures: Sequence[ExamplePicture] = (), token: str | None = None
) -> Starlette:
  """Returns the application.

  Args:
    service: answers; it is closed when the application shuts down.
    about: the answer of `GET /v1/about`, besides the limits.
    pictures: the example pictures.
    token: what requests to `/v1/` and `/metrics` must bring; None: nothing.
  """
  reader, by_name = bodies.Reader(service.limits), {picture.name: picture for picture in pictures}

  async def detect(request: Request) -> Response:
    kind = bodies.content_type(request)
    service.batcher.check()
    async with reader.read(request) as body:
      text, picture = body, None
      if kind == bodies.MULTIPART:
        found = bodies.parts(body, request.headers['content-type'])
        text, picture = found.pop('request', b'{}'), found.pop('image', None)
        if found:
          raise Refused(422, f'the request has a part {next(iter(found))[:40]!r}; expected image and request')
      answer = await _unless_gone(request, service.answer(text, picture))
    return Response(msgspec.json.encode(answer), media_type=bodies.JSON)

  async def tell(request: Request) -> Response:
    return JSONResponse(dataclasses.asdict(about) | {'limits': dataclasses.asdict(service.limits)})

  async def examples(request: Request) -> Response:
    return JSONResponse(
      [
        {
          'name': one.name,
          'url': f'/v1/examples/{quote(one.name, safe="")}.png',
          'width': one.width,
          'height': one.height,
        }
        for one in pictures
      ]
    )

  async def example(request: Request) -> Response:
    name = request.path_params['name']
    if name not in by_name:
      raise Refused(404, f'there is no example {name[:40]!r}; GET /v1/examples lists them')
    return Response(by_name[name].png, media_type='image/png')

  async def health(request: Request) -> Response:
    if service.batcher.stopping:
      raise Refused(503, 'the service is shutting down')
    return JSONResponse({'status': 'ok'})

  async def counted(request: Request) -> Response:
    return Response(service.metrics.text(service.gauges()), headers={'content-type': metrics.CONTENT_TYPE})

  async def described(request: Request) -> Response:
    return JSONResponse(openapi.document(about.version, token is not None))

  async def page(request: Request) -> Response:
    return FileResponse(_PAGE / 'index.html')

  async def refused(request: Request, error: Refused) -> Response:
    await bodies.discard(request, service.limits.body_seconds)
    return JSONResponse(error.content(), error.status, {'connection': 'close', **error.headers})

  async def other(request: Request, error: HTTPException) -> Response:
    no = Refused(error.status_code, error.detail)
    return JSONResponse(no.content(), no.status, {'connection': 'close', **(error.headers or {})})

  async def failed(request: Request, error: Exception) -> Response:
    no = Refused(500, 'the service failed; its log says how')
    return JSONResponse(no.content(), no.status, {'connection': 'close'})

  async def left(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=_LEFT)

  @contextlib.asynccontextmanager
  async def until_closed(app: Starlette) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(service.close)

  guarded = lambda endpoint: _with_token(endpoint, token)
  routes = [
    Route('/v1/detect', guarded(detect), methods=['POST']),
    Route('/v1/about', guarded(tell)),
    Route('/v1/examples', guarded(examples)),
    Route('/v1/examples/{name}.png', guarded(example)),
    Route('/metrics', guarded(counted)),
    Route('/health', health),
    Route('/openapi.json', described),
    Route('/', page),
    Mount('/static', StaticFiles(directory=_PAGE)),
  ]
  return Starlette(
    routes=routes,
    middleware=[Middleware(_Counted, service=service)],
    exception_handlers={Refused: refused, HTTPException: other, ClientDisconnect: left, Exception: failed},
    lifespan=until_closed,
  )


class _Counted:
  """Counts requests by route and status, and adds headers to all answers."""

  def __init__(self, app: ASGIApp, service: Service):
    self._app, self._service = app, service

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      return await self._app(scope, receive, send)

    async def counted(message: Message) -> None:
      if message['type'] == 'http.response.start':
        route = scope.get('route')
        self._service.metrics.request(route.path if isinstance(route, Route) else 'other', message['status'])
        names = {name for name, _ in message['headers']}
        message['headers'] = [*message['headers'], *(one for one in _HEADERS if one[0] not in names)]
      await send(message)

    await self._app(scope, receive, counted)


def _with_token(endpoint: Callable, token: str | None) -> Callable:
  if token is None:
    return endpoint
  expected = token.encode()

  async def checked(request: Request) -> Response:
    scheme, _, given = request.headers.get('authorization', '').partition(' ')
    if scheme.lower() != 'bearer' or not hmac.compare_digest(given.strip().encode('latin-1'), expected):
      reason = 'expected the header "Authorization: Bearer TOKEN" with the token of this service'
      raise Refused(401, reason, www_authenticate='Bearer')
    return await endpoint(request)

  return checked


async def _unless_gone(request: Request, work: Any) -> Any:
  """Awaits `work`, which is cancelled if the client closes the connection."""

  async def gone() -> None:
    while (await request.receive())['type'] != 'http.disconnect':
      pass

  tasks: Mapping[str, asyncio.Task] = {'work': asyncio.create_task(work), 'gone': asyncio.create_task(gone())}
  try:
    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    if not tasks['work'].done():
      raise ClientDisconnect
    return tasks['work'].result()
  finally:
    for task in tasks.values():
      task.cancel()
