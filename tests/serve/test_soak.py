"""32 clients for two minutes against a bundle with a network: no error, and memory that does not grow."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import service as service_lib
from tests.helpers import small_bundle
from tests.helpers.encoded import encode

CLIENTS, SECONDS = 32, 120
PICTURES = 40  # more than are kept
GROWTH = 200 * 10**6  # bytes between a quarter of the time and its end


def resident(pid: int) -> int:
  status = Path(f'/proc/{pid}/status').read_text()
  return 1000 * int(re.search(r'VmRSS:\s+(\d+) kB', status)[1])


@pytest.mark.soak
def test_32_clients_for_two_minutes(tmp_path):
  """VILD_JAX_SOAK_BUNDLE names another bundle than that of random weights."""
  bundle = os.environ.get('VILD_JAX_SOAK_BUNDLE') or small_bundle.write(
    tmp_path / 'bundle', small_bundle.parts(tmp_path, sigmoid=True)
  )
  words = ('vild_jax', 'serve', '--checkpoint', str(bundle), '--port', '0', '--queue', '64')
  with service_lib.process(*words) as process:
    served = service_lib.Served(int(re.search(r':(\d+),', process.stdout.readline())[1]), None, None)
    while True:
      try:
        names = served.json('/v1/about')['names']
        break
      except ConnectionRefusedError:
        time.sleep(0.1)
    end, memory, taken, wrong = time.monotonic() + SECONDS, [], [], []

    def client(number: int) -> None:
      rng = np.random.default_rng(number)
      while time.monotonic() < end:
        pixels = np.random.default_rng(rng.integers(PICTURES)).integers(0, 256, (100, 120, 3), np.uint8)
        asked = [names[index] for index in rng.integers(0, len(names), rng.integers(1, 20))]
        body = json.dumps({'image': base64.b64encode(encode(pixels)).decode(), 'classes': asked, 'min_score': 0.2})
        start = time.monotonic()
        status, _, content = served.ask('POST', '/v1/detect', body.encode(), {'content-type': 'application/json'})
        taken.append(time.monotonic() - start)
        if status != 200 or json.loads(content)['classes'] != asked:
          wrong.append((status, content[:300]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
      thread.start()
    while time.monotonic() < end:
      memory.append(resident(process.pid))
      time.sleep(1)
    for thread in threads:
      thread.join()
    text = served.ask('GET', '/metrics')[2].decode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
  half, most = np.percentile(taken, [50, 95])
  print(f'{len(taken)} answers, p50 {half:.3f} s, p95 {most:.3f} s; {max(memory) / 1e6:.0f} MB at most')
  print('\n'.join(line for line in text.splitlines() if line.startswith(('vild_pictures', 'vild_held'))))
  assert not wrong, wrong[:3]
  assert len(taken) > CLIENTS
  assert memory[-1] - memory[len(memory) // 4] < GROWTH, memory[:: len(memory) // 10]
