"""Serves a detector that takes two seconds a picture; prints the port. Run by a test that sends SIGTERM."""

from __future__ import annotations

import sys

from tests.helpers import service as service_lib
from tests.helpers.fake_detector import FakeDetector
from vild_jax.serve import app, server
from vild_jax.serve.limits import Limits
from vild_jax.serve.service import Service

if __name__ == '__main__':
  service = Service(FakeDetector(seconds=float(sys.argv[1])), Limits(), 1)
  listener = server.bind('127.0.0.1', 0)
  print(listener.getsockname()[1], flush=True)
  server.server(service, app.make(service, service_lib.ABOUT)).run(sockets=[listener])
