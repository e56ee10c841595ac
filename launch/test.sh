#!/usr/bin/env bash
# Runs ruff (lint and format) and the tests; needs Python >= 3.11 and pip.
#   launch/test.sh [--all] [arguments of pytest]     e.g.  launch/test.sh tests/core -k nms
# Without --all the tests marked `slow` are left out. Those marked `soak` run on request alone:
#   launch/test.sh -m soak --kills 100
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

arguments=()
if [[ "${1:-}" == --all ]]; then
  shift
  arguments+=(-m 'not soak')
fi

launch/install.sh
printf '[test] ruff\n'
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
printf '[test] pytest\n'
# Two processes: most of the time is compilation, which uses one core. The one that has finished takes over tests of the
# other, so that no order of the files has to be kept.
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist worksteal ${arguments[@]+"${arguments[@]}"} "$@"
