#!/usr/bin/env bash
# Runs a command of vild-jax, and runs it again as long as it exits with 75: it got SIGTERM and has saved.
#   launch/until_done.sh train CONFIG --workdir W           VILD_JAX=PATH runs another vild-jax than that of .venv
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

code=75
while [[ $code -eq 75 ]]; do
  code=0
  "${VILD_JAX:-$root/.venv/bin/vild-jax}" "$@" || code=$?
done
exit "$code"
