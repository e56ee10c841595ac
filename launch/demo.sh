#!/usr/bin/env bash
# Installs the project and runs the whole pipeline on the built-in toy world, on the CPU; needs Python >= 3.11 and pip.
#   launch/demo.sh [WORKDIR] [options of `vild-jax demo`]       e.g.  launch/demo.sh workdir/demo --seed 3
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

workdir="$root/workdir/demo"
if [[ $# -gt 0 && "$1" != -* ]]; then
  workdir="$1"
  shift
fi
"$root/launch/install.sh"
# Pages of 2 MiB for large arrays, where Linux has them on request: a training step touches fresh memory of 150 MB, and
# takes a seventh to a third less time so (docs/scale.md, "On CPUs").
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
printf '[demo] the toy world, from pictures to a report, in %s\n' "$workdir"
exec "$root/.venv/bin/vild-jax" demo --workdir "$workdir" "$@"
