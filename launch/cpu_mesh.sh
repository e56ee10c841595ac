#!/usr/bin/env bash
# Any command of vild-jax on an emulated mesh: CPU devices that share this machine. To try what a mesh means, not its
# speed. Without a command it is the demo.
#   launch/cpu_mesh.sh [COMMAND ...]      e.g.  launch/cpu_mesh.sh train workdir/demo/vild_text/config.json --workdir W
# DEVICES=8 says how many, DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

[[ $# -gt 0 ]] || set -- demo --workdir "$root/workdir/cpu_mesh"
command=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${DEVICES:-8}" "$root/.venv/bin/vild-jax" "$@")
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
"$root/launch/install.sh"
exec "${command[@]}"
