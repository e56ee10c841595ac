"""Describes the API in the form of OpenAPI. What questions and answers hold comes from their types."""

from __future__ import annotations

from typing import Any

import msgspec

from vild_jax.serve import bodies
from vild_jax.serve.answers import Answer
from vild_jax.serve.questions import Question

_REFUSALS = {
  '401': 'No token, or another one.',
  '404': 'The picture with this image_id is not held any more: send the picture.',
  '408': 'The body did not come in time.',
  '413': 'More bytes or pixels than allowed.',
  '415': 'Another content type.',
  '422': 'A picture that cannot be read, or a request that is not as described.',
  '429': 'Too many requests wait; Retry-After says when to ask again.',
  '500': 'The detector failed; the log of the service says how.',
  '503': 'No answer in time, or the service is shutting down.',
}
_ERROR = {
  'type': 'object',
  'required': ['error'],
  'properties': {
    'error': {
      'type': 'object',
      'required': ['status', 'reason'],
      'properties': {'status': {'type': 'integer'}, 'reason': {'type': 'string'}},
    }
  },
}


def document(version: str, token: bool) -> dict[str, Any]:
  """Returns the document; `token` says whether requests have to bring one."""
  (question, answer), components = msgspec.json.schema_components(
    [Question, Answer], ref_template='#/components/schemas/{name}'
  )
  error = {'$ref': '#/components/schemas/Error'}
  picture = {'type': 'string', 'contentMediaType': 'application/octet-stream'}
  parts = {'type': 'object', 'required': ['image'], 'properties': {'image': picture, 'request': question}}
  refusals = {status: _response(meaning, error) for status, meaning in _REFUSALS.items() if token or status != '401'}
  detect = {
    'summary': 'Detects classes in a picture. Of the parts of multipart/form-data, request is JSON.',
    'requestBody': {
      'required': True,
      'content': {
        bodies.JSON: {'schema': question},
        bodies.MULTIPART: {'schema': parts, 'encoding': {'request': {'contentType': bodies.JSON}}},
      },
    },
    'responses': {'200': _response('What was found, best first.', answer), **refusals},
  }
  example = {
    'summary': 'An example picture.',
    'parameters': [{'name': 'name', 'in': 'path', 'required': True, 'schema': {'type': 'string'}}],
    'responses': {'200': {'description': 'PNG.', 'content': {'image/png': {}}}, '404': _response('None.', error)},
  }
  found = {
    'openapi': '3.1.0',
    'info': {'title': 'vild_jax', 'version': version},
    'paths': {
      '/v1/detect': {'post': detect},
      '/v1/about': {'get': _get('What the detector is, and the limits of requests.')},
      '/v1/examples': {'get': _get('The example pictures.')},
      '/v1/examples/{name}.png': {'get': example},
      '/metrics': {'get': _get('Counts, in the text format of Prometheus.', 'text/plain')},
      '/health': {'get': {**_get('Whether the service takes requests.'), 'security': []}},
      '/openapi.json': {'get': {**_get('This document.'), 'security': []}},
      '/': {'get': {**_get('The page.', 'text/html'), 'security': []}},
    },
    'components': {'schemas': {**components, 'Error': _ERROR}},
  }
  if token:
    found['components']['securitySchemes'] = {'token': {'type': 'http', 'scheme': 'bearer'}}
    found['security'] = [{'token': []}]
  return found


def _response(meaning: str, schema: dict[str, Any]) -> dict[str, Any]:
  return {'description': meaning, 'content': {bodies.JSON: {'schema': schema}}}


def _get(summary: str, media_type: str = bodies.JSON) -> dict[str, Any]:
  return {'summary': summary, 'responses': {'200': {'description': summary, 'content': {media_type: {}}}}}
