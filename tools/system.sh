# Sourced by the other scripts: install a package of the system, or say how.
#
# as_root CMD...      runs CMD as root: directly, or by sudo when that asks for no password.
# system_package P... installs packages with the system's manager; fails with the command to type.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

system_package() {
    if command -v apt-get >/dev/null 2>&1; then
        if as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@" </dev/null >&2; then
            return 0
        fi
        # The package list may be missing or old: fetch it once, then try again.
        if as_root apt-get update -q </dev/null >&2 \
            && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@" </dev/null >&2; then
            return 0
        fi
        echo "Needs system packages. Please run: sudo apt-get install $*" >&2
    elif command -v dnf >/dev/null 2>&1; then
        if as_root dnf install -y -q "$@" </dev/null >&2; then
            return 0
        fi
        echo "Needs system packages. Please run: sudo dnf install $*" >&2
    else
        echo "Needs these packages from your system's package manager: $*" >&2
    fi
    return 1
}
