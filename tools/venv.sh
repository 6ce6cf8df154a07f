#!/usr/bin/env bash
# Make the virtual environment that every other command uses. Idempotent: a stamp of the lock's hash
# skips everything when nothing changed. Usage: VENV=.venv [PYTHON=python3.12] tools/venv.sh
set -eu
cd "$(dirname "$0")/.."
. tools/system.sh

venv=${VENV:-.venv}
stamp="$venv/.covey-setup"
wanted=$(cat requirements/dev.lock pyproject.toml tools/venv.sh | cksum)

# The stamp also names the folder: an editable install points into it.
if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted $PWD" ]; then
    exit 0
fi

# A command of this name may exist and still not run (version managers leave such shims): ask it.
in_range='import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 14)))'
runs() { "$1" -c "$in_range" >/dev/null 2>&1; }

python=""
if [ -n "${PYTHON:-}" ]; then
    runs "$PYTHON" || { echo "PYTHON=$PYTHON is not a Python 3.11 to 3.14." >&2; exit 1; }
    python=$PYTHON
else
    for candidate in python3.14 python3.13 python3.12 python3.11 python3 python; do
        if runs "$candidate"; then python=$candidate; break; fi
    done
fi
if [ -z "$python" ]; then
    echo "No Python 3.11 to 3.14 found; installing the system's." >&2
    system_package python3 python3-venv
    runs python3 || { echo "The system's python3 is older than 3.11: install a newer one and set PYTHON=." >&2; exit 1; }
    python=python3
fi

if ! { [ -x "$venv/bin/python" ] && runs "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        # Debian keeps the two in a package of their own.
        system_package "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    echo "Making $venv with $("$python" --version)." >&2
    "$python" -m venv --clear "$venv"
fi

pip="$venv/bin/python -m pip --disable-pip-version-check --no-input"
echo "Installing what requirements/dev.lock names (a minute when it is the first time)." >&2
$pip install --quiet --require-hashes -r requirements/dev.lock </dev/null
# Without isolation: a builder of its own would be fetched unpinned.
$pip install --quiet --no-deps --no-build-isolation -e . </dev/null
echo "$wanted $PWD" >"$stamp"
