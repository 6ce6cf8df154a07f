"""What keeps an operator's program to itself: the best that this machine offers.

`bubblewrap`: a file system of the system's folders, read-only, and those named; no network, no
other process in sight, no capability; everything inside dies with its parent. `landlock`: the same
folders, read-only, no network, no way out of its process group, no reach to other processes; it has
no scratch folder and sees that other processes are there (`confine`). `limits`: only those of
memory, processor time, processes, open files and file size, set by `runner_main`.

Source: docs/specs/jobs.md s.6.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from federated.jobs.handlers import confine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federated.jobs.types import Row

SandboxKind: TypeAlias = Literal["bubblewrap", "landlock", "limits"]

_PROBE_S: Final = 5.0
CONFINE: Final = confine.__file__
# Files a program makes there are memory that no limit of its own counts.
_SCRATCH_BYTES: Final = 64 * 2**20
_SYSTEM_LINKS: Final = ("/lib", "/lib64", "/lib32", "/bin", "/sbin")
# What programs of the system read to run at all, and to speak TLS where the network is allowed.
_SYSTEM_FILES: Final = (
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives",
    "/etc/localtime", "/etc/mime.types",
)  # fmt: skip
_NETWORK_FILES: Final = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/etc/pki",
    "/etc/ca-certificates",
)  # fmt: skip


@functools.cache
def sandbox_kind() -> SandboxKind:
    """What programs of the operator's run in here; starts a process once, so call it off the loop.

    A bubblewrap that is installed may still not work: in many containers and on some systems
    ordinary users get no namespaces. So it is tried.
    """
    if sys.platform != "linux":
        return "limits"
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is not None and _works([*_wrapping(bubblewrap, read=(), network=False), "true"]):
        return "bubblewrap"
    return "landlock" if _works([sys.executable, "-I", "-S", CONFINE]) else "limits"


def _works(command: Sequence[str]) -> bool:
    try:
        probe = subprocess.run(  # noqa: S603 - nothing of a peer's is in it
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def confinement(kind: SandboxKind, read: Iterable[str], *, network: bool) -> Row | None:
    """What `runner_main` is to give up by itself; None where the sandbox is around it, or none is.

    Args:
        kind: what `sandbox_kind` said.
        read: files and folders it may read besides the system's.
        network: whether it may use the network.
    """
    if kind != "landlock":
        return None
    files = _SYSTEM_FILES + (_NETWORK_FILES if network else ())
    return {"module": CONFINE, "read": [*files, *_outermost(read)], "network": network}


def wrapped(
    command: Sequence[str], *, kind: SandboxKind, read: Iterable[str], network: bool
) -> list[str]:
    """`command` inside the sandbox.

    Args:
        command: fixed by the operator and by us: nothing of a job is in it.
        kind: what `sandbox_kind` said.
        read: folders and files it may read besides the system's.
        network: whether it may use the network.
    """
    if kind != "bubblewrap":
        return list(command)
    bubblewrap = shutil.which("bwrap")
    assert bubblewrap is not None, "the probe found it"
    return [*_wrapping(bubblewrap, read=read, network=network), *command]


def python_folders() -> list[str]:
    """Where this interpreter and its packages are, as far as that is not below /usr."""
    found = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)}
    found |= {sys.prefix, sys.base_prefix}
    return sorted(path for path in found if not path.startswith("/usr/") and path != "/")


def _wrapping(bubblewrap: str, *, read: Iterable[str], network: bool) -> list[str]:
    found = [
        bubblewrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv",
        "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    for link in _SYSTEM_LINKS:
        if os.path.islink(link):  # noqa: PTH114 - text, as bubblewrap takes it
            found += ["--symlink", os.readlink(link), link]  # noqa: PTH115
        elif os.path.isdir(link):  # noqa: PTH112
            found += ["--ro-bind", link, link]
    if network:
        found.append("--share-net")
    for path in _SYSTEM_FILES + (_NETWORK_FILES if network else ()):
        found += ["--ro-bind-try", path, path]
    found += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):  # noqa: S108 - its own, empty and bounded
        found += ["--size", str(_SCRATCH_BYTES), "--tmpfs", folder]
    for path in _outermost(read):
        found += ["--ro-bind", path, path]
    for name, value in ENVIRONMENT.items():
        found += ["--setenv", name, value]
    return [*found, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without those beneath another or the system's: a read-only folder takes no second mount."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{above.rstrip('/')}/") for above in ("/usr", *found)):
            found.append(path)
    return found


ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
"""All that a program of the operator's finds in its environment: no secret of the daemon's."""
