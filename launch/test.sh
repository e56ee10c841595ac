#!/usr/bin/env bash
# Installs the project, then runs ruff and the whole test suite; needs Python >= 3.11 and pip.
#   launch/test.sh [arguments of pytest]       e.g.  launch/test.sh tests/core -k nms
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/install.sh
printf "[test] ruff\n"
.venv/bin/ruff check .
printf '[test] pytest\n'
# Two processes, because most of the time is compilation, which uses one core. The tests of one file share what they
# compiled. tests/conftest.py sets the order of the files: the longest first.
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder --durations=10 "$@"
