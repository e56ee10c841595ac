#!/usr/bin/env bash
# A command of vild-jax, and again for as long as it was told to end (SIGTERM), has saved, and exits with 75.
#   launch/until_done.sh train CONFIG --workdir W           [VILD_JAX=another vild-jax than that of .venv]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

code=75
while [[ $code -eq 75 ]]; do
  code=0
  "${VILD_JAX:-$root/.venv/bin/vild-jax}" "$@" || code=$?
done
exit "$code"
