"""One client on the local socket: lines in, lines out, within limits.

Reading hands out whole lines. Writing never blocks the caller: lines go into a queue, and one task
sends all that wait in one go. A client that lets 8 MiB of answers lie is not reading; it is cut
off, because whoever waits for it would wait for ever.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

import trio

from daemon.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable

UNSENT_BYTES_MAX: Final = 8 * 2**20
"""Answers a client may let lie (daemon.md s.5)."""

READ_BYTES: Final = 64 * 1024
"""Of one read: the usual size of a Unix socket's buffer."""

EOF_GRACE_S: Final = 2.0
"""How long answers are still worked on after the client closed its side (daemon.md s.6)."""


def peer_credentials(sock: trio.socket.SocketType) -> tuple[int, int]:
    """(uid, pid) of the process at the other end, as the kernel says; pid 0 where unknown.

    Source: unix(7) SO_PEERCRED; on macOS LOCAL_PEERCRED of <sys/un.h>.
    """
    if sys.platform == "darwin":
        raw = sock.getsockopt(0, 1, 76)
        return struct.unpack_from("i", raw, 4)[0], 0
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return uid, pid


class Connection:
    """Lines over a socket.

    Args:
        stream: the socket; owned from now on.
        number: of the connection since the start of the daemon.
        line_bytes_max: longest line a client may send; dialects change it after the hello.
        on_dead: called once when the connection must end (it does not read, or it broke).
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        *,
        number: int,
        line_bytes_max: int,
        on_dead: Callable[[str], None],
    ) -> None:
        self._stream = stream
        self.number = number
        self.line_bytes_max = line_bytes_max
        self._on_dead = on_dead
        self._input = bytearray()
        self._searched = 0
        self._output: list[bytes] = []
        self._unsent = 0
        self._news = trio.Event()
        self._drained = trio.Event()
        self._drained.set()
        self._dead = False

    @property
    def unsent_bytes(self) -> int:
        """Bytes queued or on their way."""
        return self._unsent

    async def receive_line(self) -> bytes | None:
        """The next line without its newline; None at the end of the input.

        Raises:
            RpcError: too_large; the rest of the line is still in the way, so end the connection.
        """
        while True:
            end = self._input.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._input[:end])
                del self._input[: end + 1]
                self._searched = 0
                self._check_size(len(line))
                return line
            self._searched = len(self._input)
            self._check_size(self._searched)
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._input += data

    def _check_size(self, size: int) -> None:
        if size > self.line_bytes_max:
            raise RpcError(
                "too_large",
                f"a line may hold {self.line_bytes_max} bytes",
                data={"limit": self.line_bytes_max},
            )

    async def send_line(self, line: bytes) -> None:
        """Queue one line; see `queue`."""
        self.queue(line)

    def queue(self, line: bytes, *, at_once: bool = False) -> None:
        """Queue one line without blocking.

        Args:
            line: without its newline.
            at_once: whether no other line is expected soon: then it is written right away if the
                kernel takes it, which saves the writer's turn (a third of a small call's time).

        Raises:
            trio.BrokenResourceError: the client is gone, or was just cut off for not reading.
        """
        if self._dead:
            raise trio.BrokenResourceError("the client is gone")
        if self._unsent + len(line) + 1 > UNSENT_BYTES_MAX:
            self._die("unread")
            raise trio.BrokenResourceError("the client does not read")
        if at_once and not self._unsent:
            line = self._write_now(line + b"\n")
            if not line:
                return
            line = line[:-1]
        self._output += (line, b"\n")
        self._unsent += len(line) + 1
        self._drained = trio.Event()
        self._news.set()

    def _write_now(self, data: bytes) -> bytes:
        """Write what the kernel takes without waiting; what is left."""
        try:
            return data[os.write(self._stream.socket.fileno(), data) :]
        except BlockingIOError:
            return data
        except OSError:
            # Gone: the reader or the writer notices in its turn.
            return data

    def _die(self, why: str) -> None:
        if not self._dead:
            self._dead = True
            self._output.clear()
            self._news.set()
            self._drained.set()
            self._on_dead(why)

    async def write_loop(self) -> None:
        """Send what is queued, until cancelled or the client is gone."""
        while not self._dead:
            await self._news.wait()
            self._news = trio.Event()
            data = b"".join(self._output)
            self._output.clear()
            if not data:
                continue
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._die("gone")
                return
            self._unsent -= len(data)
            if not self._unsent:
                self._drained.set()

    async def flush(self) -> None:
        """Until everything queued is sent, or the client is gone."""
        if self._unsent and not self._dead:
            await self._drained.wait()

    async def aclose(self) -> None:
        """Close the socket."""
        self._dead = True
        await trio.aclose_forcefully(self._stream)
