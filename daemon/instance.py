"""One daemon per state folder, and how it tells its starter that it is ready.

Two locks, because the runtime folder differs between a desktop, ssh and cron while the state folder
does not: with one lock, one database could get two writers. Locks are `flock`s: the kernel drops
them when the process dies, however it dies. Source: sd_notify(3), flock(2).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from typing import TYPE_CHECKING, Final

from daemon.errors import ConfigError

if TYPE_CHECKING:
    from daemon.paths import Paths

# SQLite's locks and shared memory do not hold on these (sqlite.org/howtocorrupt.html s.2.1).
NETWORK_FILE_SYSTEMS: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs",
})  # fmt: skip


class AlreadyRunning(Exception):
    """Another daemon holds the lock; the message says which."""


class InstanceLock:
    """Both locks, held until `release` or death.

    Args:
        paths: of the node.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._fds: list[int] = []

    def acquire(self, *, version: str, now_ms: int) -> None:
        """Take both locks and write who we are into the state lock.

        Raises:
            AlreadyRunning: a daemon holds one of them.
        """
        try:
            for path in (self._paths.state_lock, self._paths.runtime_lock):
                self._fds.append(_lock(path, self._paths))
        except AlreadyRunning:
            self.release()
            raise
        text = json.dumps(
            {
                "pid": os.getpid(),
                "start_ms": now_ms,
                "version": version,
                "socket": self._paths.socket,
            }
        )
        os.ftruncate(self._fds[0], 0)
        os.pwrite(self._fds[0], text.encode() + b"\n", 0)

    def release(self) -> None:
        """Let both go; the files stay, since removing a lock file is a race."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _lock(path: str, paths: Paths) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        owner = read_lock(paths.state_lock)
        pid = owner.get("pid", "?")
        raise AlreadyRunning(
            f"a daemon already uses {paths.state} (process {pid}); stop it with `covey down`, or"
            " use another COVEY_HOME"
        ) from None
    return fd


def read_lock(path: str) -> dict[str, object]:
    """What a state lock says of its daemon: pid, start_ms, version, socket; empty if unreadable."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(4096))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_file_system(folder: str) -> None:
    """Refuse a state folder where file locks do not hold.

    Raises:
        ConfigError: it lies on a network file system.
    """
    kind = file_system_of(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigError(
            f"{folder} is on {kind}, where a database breaks sooner or later; set XDG_STATE_HOME or"
            " COVEY_HOME to a local disk"
        )


def file_system_of(folder: str) -> str:
    """Type of the file system that holds `folder`; empty where it cannot be told."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    real = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        head, _, tail = line.partition(" - ")
        point = head.split(" ")[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # A later mount at the same point hides the earlier one.
        if inside and len(point) >= len(best):
            best, kind = point, tail.split(" ")[0]
    return kind


def notify(message: str) -> None:
    """Tell the service manager (or `covey up`) something; nothing happens without one.

    Args:
        message: lines of `KEY=value`, as sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.sendall(message.encode())
        except OSError:
            return  # whoever started us is gone: that is no reason to stop


class RunningMarker:
    """`state/running`: there while a daemon runs, and after one died."""

    def __init__(self, path: str) -> None:
        self._path = path

    def set(self) -> bool:
        """Create it durably; True if one was there, so the last run did not end cleanly."""
        unclean = os.path.exists(self._path)
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return unclean

    def clear(self) -> None:
        """Remove it: this run ended cleanly."""
        if os.path.exists(self._path):
            os.unlink(self._path)
