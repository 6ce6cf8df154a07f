#!/usr/bin/env bash
# Put one of the public implementations into build/interop/, each in an environment of its own.
# Idempotent: a stamp of its lock skips it. Usage: tests/interop/install.sh js|py
set -eu
cd "$(dirname "$0")/../.."
. tools/system.sh
what=$1
from="tests/interop/$what"
to="build/interop/$what"
wanted=$(cat "$from"/*lock* "$from"/*.txt tests/interop/install.sh 2>/dev/null | cksum)

mkdir -p "$to"
# The driving script is resolved beside the modules that it imports.
cp "$from"/peer.* "$to/"
[ -f "$to/.installed" ] && [ "$(cat "$to/.installed")" = "$wanted $PWD" ] && exit 0

install_js() {
    command -v npm >/dev/null 2>&1 || system_package npm
    cp "$from/package.json" "$from/package-lock.json" "$from/.npmrc" "$to/"
    # Node itself comes from npm too: the system's may be too old.
    (cd "$to" && npm ci --no-progress </dev/null)
    "$to/node_modules/.bin/node" --version
}

has_gmp() { printf '#include <gmp.h>\n' | cc -E -x c - >/dev/null 2>&1; }

install_py() {
    # fastecdsa, one of its dependencies, is compiled here.
    has_gmp || system_package gcc libc6-dev libgmp-dev
    "${PYTHON:-${VENV:-.venv}/bin/python}" -m venv --clear "$to/venv"
    pip="$to/venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --require-hashes"
    # The pinned builders first: what is compiled is then built with them, without isolation.
    $pip -r "$from/builders.txt" </dev/null
    $pip --no-build-isolation -r "$from/requirements.txt" </dev/null
    "$to/venv/bin/python" -c 'import libp2p, importlib.metadata as m; print("py-libp2p", m.version("libp2p"))'
}

"install_$what"
echo "$wanted $PWD" >"$to/.installed"
