#!/usr/bin/env bash
# Creates a slice of Cloud TPUs, installs vild-jax on all its workers and runs one command on all of them. The script
# prints the gcloud commands; with EXECUTE=1 it runs them.
#   launch/tpu_pod.sh create                 creates the slice
#   launch/tpu_pod.sh install                installs the committed tree on every worker; mounts SHARE
#   launch/tpu_pod.sh run COMMAND ...        e.g.  run train configs/vild_r50_lvis.py --workdir /mnt/share/vild_r50
#   launch/tpu_pod.sh ssh COMMAND ...        runs any other command on every worker, e.g.  ssh tail -n 3 run.log
#   launch/tpu_pod.sh delete                 deletes the slice
# NAME, ZONE, TYPE, VERSION and SPOT=1 select the slice (VERSION: v2-alpha-tpuv5-lite, v2-alpha-tpuv5 for v5p,
# v2-alpha-tpuv6e). SHARE=HOST:/EXPORT is an NFS share, for example of Filestore: all workers need the same folders.
# A command that gets SIGTERM saves, exits with 75 and is started again at once. A spot slice that was taken away keeps
# nothing: delete, create and install it again, then the same run continues from the last checkpoint.
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
    # The Python of the workers is too old, so uv installs another. Single quotes: the shells of the workers expand it.
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
    [[ $# -gt 0 ]] || { printf 'tpu_pod.sh: run expects a command of vild-jax\n' >&2; exit 2; }
    # nohup keeps it running after the connection ends; the log is ~/run.log on each worker.
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
    printf 'tpu_pod.sh: %s is not an action; expected create, install, run, ssh or delete\n' "'$action'" >&2
    exit 2
    ;;
esac
