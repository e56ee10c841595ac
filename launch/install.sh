#!/usr/bin/env bash
# Makes .venv in the project and installs the tested versions of all packages into it; does nothing if that is done.
# The other launchers call it. PYTHON=/path/to/python sets the interpreter, EXTRAS=tpu or EXTRAS=cuda,test the extras.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[install] %s\n' "$*"; }
fail() { printf '[install] error: %s\n' "$*" >&2; exit 1; }
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

if [[ ! -e .venv ]]; then
  if [[ -z "${PYTHON:-}" ]]; then
    for candidate in python3.12 python3.11 python3; do
      # A name on the PATH may be the shim of a version manager, which may not run; so each one is tried.
      if fits "$candidate"; then PYTHON="$candidate"; break; fi
    done
    [[ -n "${PYTHON:-}" ]] || fail 'no Python >= 3.11 found as python3.12, python3.11 or python3; set PYTHON to one'
  fi
  fits "$PYTHON" || fail "PYTHON is '$PYTHON', which is not a working Python >= 3.11"
  say "creating .venv with Python $(version "$PYTHON")"
  if ! "$PYTHON" -m venv .venv; then
    rm -rf .venv
    fail "'$PYTHON -m venv .venv' failed; on Debian and Ubuntu it needs the package python3-venv"
  fi
fi

python=.venv/bin/python
fits "$python" || fail "$python is not a working Python >= 3.11; remove .venv and start again"
"$python" -m pip --version >/dev/null 2>&1 || fail '.venv has no pip; remove .venv and start again'
found="$(version "$python")"
if [[ -n "${PYTHON:-}" ]] && fits "$PYTHON" && [[ "$(version "$PYTHON")" != "$found" ]]; then
  fail ".venv has Python $found and PYTHON is Python $(version "$PYTHON"); remove .venv or unset PYTHON"
fi

constraints="constraints/py${found/./}.txt"
if [[ ! -f "$constraints" ]]; then
  constraints=/dev/null
  say "constraints/ has no tested versions for Python $found: installing the newest"
fi

# The stamp contains the folder, because a checkout that was moved must be installed again.
extras="${EXTRAS:-test}"
stamp="$(cat setup.py pyproject.toml "$constraints" <(pwd; printf '%s\n' "$extras") | cksum)"
if [[ "$(cat .venv/installed.stamp 2>/dev/null)" == "$stamp" ]]; then
  exit 0
fi

log=.venv/install.log
say "installing vild_jax and its dependencies with pip (about 1 GB, some minutes; log in $log)"
SECONDS=0
# As environment variables, the constraints also apply to the packages that pip installs for the build.
if ! PIP_CONSTRAINT="$constraints" PIP_BUILD_CONSTRAINT="$constraints" PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$python" -m pip install --editable ".[$extras]" >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  fail "pip could not install; see the end of $log above"
fi
printf '%s\n' "$stamp" >.venv/installed.stamp
say "done in $SECONDS s"
