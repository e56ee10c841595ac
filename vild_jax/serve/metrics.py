"""Counts what the service does, and writes it in the text format of Prometheus."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Mapping

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAUGES = {
  'vild_queue': 'Requests that are accepted and not answered yet.',
  'vild_held_pictures': 'Pictures that are kept for further words.',
  'vild_held_bytes': 'Bytes that they take, on the host and on the device.',
}


class Metrics:
  """Counts requests by path and status, the seconds of those that were answered, and pictures."""

  def __init__(self):
    self._lock = threading.Lock()
    self._requests: Counter[tuple[str, int]] = Counter()
    self._buckets, self._seconds = [0] * (len(_BOUNDS) + 1), 0.0
    self._pictures: Counter[bool] = Counter()

  def request(self, path: str, status: int) -> None:
    """Counts a request; `path` is one of the routes, so that clients cannot make up new ones."""
    with self._lock:
      self._requests[path, status] += 1

  def answer(self, seconds: float, cached: bool) -> None:
    """Counts an answered question, and whether its picture was held."""
    with self._lock:
      self._buckets[bisect.bisect_left(_BOUNDS, seconds)] += 1
      self._seconds += seconds
      self._pictures[cached] += 1

  def text(self, gauges: Mapping[str, int]) -> str:
    """Returns the text; `gauges` has a value for each name of `_GAUGES`."""
    with self._lock:
      requests = [
        f'vild_requests_total{{path="{path}",status="{status}"}} {count}'
        for (path, status), count in sorted(self._requests.items())
      ]
      held, looked = self._pictures[True], self._pictures[False]
      counts = [sum(self._buckets[: number + 1]) for number in range(len(self._buckets))]
      total = self._seconds
    lines = ['# HELP vild_requests_total Requests.', '# TYPE vild_requests_total counter', *requests]
    name = 'vild_detect_seconds'
    lines += [f'# HELP {name} From the acceptance of a question to its answer.', f'# TYPE {name} histogram']
    bounds = (*map(str, _BOUNDS), '+Inf')
    lines += [f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in zip(bounds, counts, strict=True)]
    lines += [f'{name}_sum {total:.6f}', f'{name}_count {counts[-1]}']
    name = 'vild_pictures_total'
    lines += [f'# HELP {name} Answered questions by whether the picture was held.', f'# TYPE {name} counter']
    lines += [f'{name}{{held="yes"}} {held}', f'{name}{{held="no"}} {looked}']
    for name, meaning in _GAUGES.items():
      lines += [f'# HELP {name} {meaning}', f'# TYPE {name} gauge', f'{name} {gauges[name]}']
    return '\n'.join(lines) + '\n'
