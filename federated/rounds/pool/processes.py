"""The pool's door and who comes through it: the socket, its user, and the end of its process.

A process is known by a number of ours: process ids come back, numbers do not. Its end is what frees
its segments, so it is asked of the kernel: a descriptor of the process (pidfd) that becomes
readable when it ends. Without one (macOS) the process id is asked for every second.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from federated.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from federated.rounds.pool.session import Session

BACKLOG: Final = 64
SO_PEERPIDFD: Final = 77
"""Linux 6.5, <asm-generic/socket.h>: the process itself, whatever has its id meanwhile."""
LOCAL_PEERCRED: Final = 1
LOCAL_PEERPID: Final = 2
POLL_S: Final = 1.0
"""Where nobody tells us that a process has ended."""


def bind(path: Path) -> socket.socket:
    """Listen at `path`, which nobody else can reach. What a dead pool left there is removed.

    Raises:
        UsageError: the folder is not ours alone, or a living pool is there already.
        OSError: the socket cannot be made there.
    """
    folder = path.parent.stat()
    if folder.st_uid != os.getuid() or folder.st_mode & 0o077:
        raise UsageError(f"{path.parent} must be yours alone: chmod 700 it")
    _remove_dead(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _remove_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} is in the way and no socket: remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
    raise UsageError(f"another pool serves {path}")


def unlink(path: Path, inode: int) -> None:
    """Remove our socket, unless somebody put another in its place."""
    with suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def peer(sock: socket.socket | trio.socket.SocketType) -> tuple[int, int]:
    """(uid, pid) of the process at the other end, as the kernel says.

    Source: unix(7) SO_PEERCRED; on macOS LOCAL_PEERCRED and LOCAL_PEERPID of <sys/un.h>.

    Raises:
        OSError: it is not connected.
    """
    if sys.platform == "darwin":
        uid = struct.unpack_from("i", sock.getsockopt(0, LOCAL_PEERCRED, 76), 4)[0]
        return uid, sock.getsockopt(0, LOCAL_PEERPID)
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return uid, pid


def open_process(sock: trio.socket.SocketType, pid: int) -> int:
    """A descriptor that is readable when the process at the other end has ended; -1: none here.

    Raises:
        OSError: it has ended already.
    """
    if sys.platform != "linux":
        return -1
    with suppress(OSError):
        fd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        os.set_inheritable(fd, False)
        return fd
    # Before Linux 6.5. The id may be another process's by now: then that one's end is waited for.
    return os.pidfd_open(pid)


@dataclass(eq=False)
class Process:
    """A trainer's process.

    Attributes:
        number: names it in the book.
        pid: its id while it lives.
        fd: its descriptor, or -1.
        sessions: its connections.
        idle: set while there are none.
        watch: the task that waits for its end.
    """

    number: int
    pid: int
    fd: int
    sessions: set[Session] = field(default_factory=set)
    idle: trio.Event = field(default_factory=trio.Event)
    watch: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        if self.fd >= 0:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            return bool(poll.poll(0))
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    async def wait_ended(self) -> None:
        """Return when it has ended."""
        if self.fd >= 0:
            await trio.lowlevel.wait_readable(self.fd)
            return
        while not self.ended:  # noqa: ASYNC110 - nobody tells us
            await trio.sleep(POLL_S)

    def close(self) -> None:
        """Let go of its descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
