#!/usr/bin/env bash
# Lint and the whole test suite, from nothing but Python >= 3.11 and pip.
#   launch/test.sh [arguments of pytest]       e.g.  launch/test.sh tests/core -k nms
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/install.sh
printf '[test] ruff\n'
.venv/bin/ruff check .
printf '[test] pytest\n'
exec .venv/bin/python -m pytest --durations=10 "$@"
