"""A child process on pipes that is gone when we say so.

It leads a process group of its own, and ending it kills the whole group at once: there is nothing
in it that a polite signal could save. It is started in the thread of the loop, because the kernel's
"die with your parent" means the thread that started it, and trio's threads end when they are idle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from federated.errors import HandlerError
from federated.jobs.handlers.sandbox import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Sequence

STDERR_BYTES_MAX: Final = 16_384
REAP_S: Final = 2.0
_BLOCK_BYTES: Final = 65_536
# Where the kernel gives no descriptor of a process, its end is looked for this often.
_POLL_S: Final = 0.01


class Child:
    """A running process.

    Args:
        command: what to run.

    Raises:
        HandlerError: `unavailable`: it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        try:
            self._popen = subprocess.Popen(  # noqa: S603 - the operator's command, and our own
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise HandlerError("unavailable", f"{command[0]} does not start: {error}") from None
        popen = self._popen
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stderr is not None
        self.pid = popen.pid
        self.stdin, self.stdout, self._stderr = (
            _stream(pipe) for pipe in (popen.stdin, popen.stdout, popen.stderr)
        )
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._ended = False

    def alive(self) -> bool:
        """Whether it still runs."""
        return not self._ended and self._popen.poll() is None

    def complaint(self) -> str:
        """The end of what it wrote to standard error."""
        return b"".join(self._ring)[-STDERR_BYTES_MAX:].decode("utf-8", "replace").strip()

    async def drain(self) -> None:
        """Keep the end of its standard error, so that it never waits for a reader."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for block in self._stderr:
                self._ring.append(bytes(block))
                self._ring_bytes += len(block)
                while self._ring_bytes - len(self._ring[0]) >= STDERR_BYTES_MAX:
                    self._ring_bytes -= len(self._ring.popleft())

    async def write(self, data: bytes) -> None:
        """Write to its standard input; it need not read it."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stdin.send_all(data)

    async def read_exactly(self, count: int) -> bytes:
        """`count` bytes of its standard output, fewer at its end."""
        found = bytearray()
        while len(found) < count:
            block = await self.stdout.receive_some(min(_BLOCK_BYTES, count - len(found)))
            if not block:
                break
            found += block
        return bytes(found)

    async def read_all(self, bytes_max: int) -> bytes:
        """Its standard output to the end.

        Raises:
            HandlerError: `output`: more than `bytes_max`; it is not read further.
        """
        found = await self.read_exactly(bytes_max + 1)
        if len(found) > bytes_max:
            raise HandlerError("output", f"more than {bytes_max} bytes")
        return found

    async def exited(self) -> int:
        """Wait until it has ended by itself; its exit status, negative: the signal."""
        if self._popen.poll() is None:
            await self._wait()
        status = self._popen.poll()
        return status if status is not None else 0

    async def aclose(self) -> None:
        """Kill it and what it started, and wait until it is gone."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with trio.move_on_after(REAP_S, shield=True):
            for stream in (self.stdin, self.stdout, self._stderr):
                await stream.aclose()
            await self.exited()

    async def _wait(self) -> None:
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            return
        while self._popen.poll() is None:  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(_POLL_S)


def _stream(pipe: object) -> trio.lowlevel.FdStream:
    """A trio stream of a pipe's descriptor, which the pipe gives up."""
    assert hasattr(pipe, "fileno")
    assert hasattr(pipe, "close")
    stream = trio.lowlevel.FdStream(os.dup(pipe.fileno()))
    pipe.close()
    return stream
