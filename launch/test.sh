#!/usr/bin/env bash
# Lint and the whole test suite, from nothing but Python >= 3.11 and pip.
#   launch/test.sh [arguments of pytest]       e.g.  launch/test.sh tests/core -k nms
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/install.sh
printf "[test] ruff\n"
.venv/bin/ruff check .
printf '[test] pytest\n'
# Two processes: most of the time is compilation, which uses one core. Tests of a file share what they compiled; the
# order of the files is that of tests/conftest.py, the longest first.
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder --durations=10 "$@"
