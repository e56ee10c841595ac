#!/usr/bin/env bash
# A slice of Cloud TPUs: created, set up, and one command of vild-jax run on all its workers at once. It prints the
# commands of gcloud; with EXECUTE=1 it runs them.
#   launch/tpu_pod.sh create                 the slice
#   launch/tpu_pod.sh install                the committed tree and what it needs, on every worker; mounts SHARE
#   launch/tpu_pod.sh run COMMAND ...        e.g.  run train configs/vild_r50_lvis.py --workdir /mnt/share/vild_r50
#   launch/tpu_pod.sh ssh COMMAND ...        anything else on every worker, e.g.  ssh tail -n 3 run.log
#   launch/tpu_pod.sh delete
# NAME, ZONE, TYPE, VERSION and SPOT=1 say which slice (VERSION: v2-alpha-tpuv5-lite, v2-alpha-tpuv5 for v5p,
# v2-alpha-tpuv6e). SHARE=HOST:/EXPORT is an NFS share, of Filestore for one: workers need folders that all of them see.
# What is told to end (SIGTERM) saves and exits with 75, and is started again at once. Of a spot slice that was taken
# away nothing is left: delete, create, install, and the same run goes on from the last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name="${NAME:-vild}" zone="${ZONE:-us-west4-a}"
tpu=(gcloud compute tpus tpu-vm)
on_all=("$name" "--zone=$zone" --worker=all)

run() {
  if [[ -n "${EXECUTE:-}" ]]; then
    "$@"
  else
    printf '%q ' "$@"
    echo
  fi
}

action="${1:-}"
[[ $# -eq 0 ]] || shift
case "$action" in
  create)
    spot=()
    [[ -z "${SPOT:-}" ]] || spot=(--spot)
    run "${tpu[@]}" create "$name" "--zone=$zone" "--accelerator-type=${TYPE:-v5litepod-256}" \
      "--version=${VERSION:-v2-alpha-tpuv5-lite}" "${spot[@]}"
    ;;
  install)
    # The workers' own Python is too old; uv brings one. What is quoted once is for their shells.
    # shellcheck disable=SC2016
    setup='mkdir -p vild_jax && tar -xzf vild_jax.tgz -C vild_jax && python3 -m pip install --quiet --user uv &&
      ~/.local/bin/uv python install --quiet 3.12 &&
      EXTRAS=tpu PYTHON="$(~/.local/bin/uv python find 3.12)" vild_jax/launch/install.sh'
    if [[ -n "${SHARE:-}" ]]; then
      setup+=" && sudo apt-get install --quiet --yes nfs-common && sudo mkdir -p /mnt/share &&
      { mountpoint -q /mnt/share || sudo mount -t nfs $(printf '%q' "$SHARE") /mnt/share; } &&
      sudo chmod a+rwx /mnt/share"
    fi
    archive="${TMPDIR:-/tmp}/vild_jax.tgz"
    run git archive --format=tgz "--output=$archive" HEAD
    run "${tpu[@]}" scp "$archive" "${name}:vild_jax.tgz" "--zone=$zone" --worker=all
    run "${tpu[@]}" ssh "${on_all[@]}" "--command=$setup"
    ;;
  run)
    [[ $# -gt 0 ]] || { printf 'tpu_pod.sh: run takes a command of vild-jax\n' >&2; exit 2; }
    # It outlives the connection; its log is ~/run.log of each worker.
    words="$(printf '%q ' launch/until_done.sh "$@")"
    run "${tpu[@]}" ssh "${on_all[@]}" "--command=cd vild_jax && nohup ${words}>~/run.log 2>&1 </dev/null &"
    ;;
  ssh)
    run "${tpu[@]}" ssh "${on_all[@]}" "--command=$(printf '%q ' "$@")"
    ;;
  delete)
    run "${tpu[@]}" delete "$name" "--zone=$zone"
    ;;
  *)
    printf 'tpu_pod.sh: %s is no action; expected create, install, run, ssh or delete\n' "'$action'" >&2
    exit 2
    ;;
esac
