#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/dev.lock: hashes of every file, no address of any index.
set -eu
cd "$(dirname "$0")/.."
uv=build/uv/bin/uv
if [ ! -x "$uv" ]; then
    "${VENV:-.venv}/bin/python" -m venv --clear build/uv
    build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 </dev/null
fi
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --extra all --extra dev --extra bench --no-header --no-emit-index-url \
    --output-file requirements/dev.lock "$@" pyproject.toml
