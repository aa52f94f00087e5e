#!/bin/sh
# Makes .venv in the checkout and installs exactly what the lock file names.
# Usage: scripts/setup.sh runtime|dev      Needs Python >= 3.11; PYTHON chooses one.
set -eu
cd "$(dirname "$0")/.."
lock="requirements/$1.lock"

find_python() {
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: Python 3.11 or newer is needed; install it, or name one with PYTHON=/path/to/python3" >&2
    exit 1
}

make_venv() {
    # Debian's python3 comes without ensurepip; virtualenv brings its own, and needs no root.
    "$1" -m venv .venv 2>/dev/null && return
    rm -rf .venv
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --seed --python "$1" .venv && return
    fi
    if "$1" -m pip --version >/dev/null 2>&1; then
        "$1" -m pip install --quiet --target .venv-bootstrap virtualenv
        PYTHONPATH=.venv-bootstrap "$1" -m virtualenv --quiet .venv && rm -rf .venv-bootstrap && return
    fi
    echo "setup: cannot make a virtual environment; install python3-venv (apt install python3-venv) and run again" >&2
    exit 1
}

scripts/build_native.sh
wanted=$(cat "$lock" pyproject.toml | cksum)
stamp=".venv/.installed-$1"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
[ -x .venv/bin/python ] || make_venv "$(find_python)"
echo "setup: installing the locked packages ($lock)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
echo "$wanted" > "$stamp"
[ "$1" = runtime ] || echo "$(cat requirements/runtime.lock pyproject.toml | cksum)" > .venv/.installed-runtime
