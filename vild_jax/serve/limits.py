"""Says what a request may cost, and how the service says no."""

from __future__ import annotations

from dataclasses import dataclass

from vild_jax.config import defaults

_LONGEST_REASON = 300  # characters: a reason may quote what a client has sent


@dataclass(frozen=True)
class Limits:
  """Holds what is allowed. What is over a limit is refused before it costs work or memory.

  Attributes:
    picture_bytes: of an encoded picture.
    pixels: of a picture, which its header states.
    classes: names and examples of a request.
    examples: of a request; each goes through the image tower.
    attributes: of a request.
    name_characters: of a name.
    queue: requests that are accepted and not answered yet.
    seconds: from the acceptance of a request to its answer.
    body_seconds: until the last byte of a request.
    bodies_bytes: of all requests that are being read.
    cached_bytes: of the pictures that are kept, of what the network made of them mostly.
    cached_pictures: how many are kept.
  """

  picture_bytes: int = defaults.SERVE_MEGABYTES * 10**6
  pixels: int = defaults.SERVE_MEGAPIXELS * 10**6
  classes: int = defaults.SERVE_CLASSES
  examples: int = 20
  attributes: int = 100
  name_characters: int = 200
  queue: int = defaults.SERVE_QUEUE
  seconds: float = defaults.SERVE_SECONDS
  body_seconds: float = 20.0
  bodies_bytes: int = 256 * 10**6
  cached_bytes: int = defaults.SERVE_CACHE_MEGABYTES * 10**6
  cached_pictures: int = 32

  @property
  def body_bytes(self) -> int:
    """Returns how many bytes a request may have: a picture in base64, all names, and what stands between them."""
    return self.picture_bytes * 4 // 3 + 4 * self.name_characters * (self.classes + self.attributes) + 100_000


class Refused(Exception):
  """Says that a request is not answered, and why.

  Attributes:
    status: of HTTP.
    reason: one line.
    headers: of the answer.
  """

  def __init__(self, status: int, reason: object, **headers: str):
    self.status, self.reason = status, ' '.join(str(reason).split())[:_LONGEST_REASON]
    self.headers = {name.replace('_', '-'): value for name, value in headers.items()}
    super().__init__(self.reason)

  def content(self) -> dict[str, dict[str, int | str]]:
    """Returns the body of the answer."""
    return {'error': {'status': self.status, 'reason': self.reason}}


def busy(reason: str) -> Refused:
  """Returns the refusal of a request that may come again soon."""
  return Refused(429, f'{reason}; expected the request again a little later', retry_after='1')
