#!/usr/bin/env bash
# Runs a command of vild-jax on an emulated mesh: CPU devices that share this machine. This shows what a mesh does, not
# how fast it is. Without a command it runs the demo.
#   launch/cpu_mesh.sh [COMMAND ...]      e.g.  launch/cpu_mesh.sh train workdir/demo/vild_text/config.json --workdir W
# DEVICES=8 sets the number of devices; DRY_RUN=1 prints the command and runs nothing.
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
