"""Blobs that local clients are putting, piece by piece.

The daemon opens no file for a client: the client reads its file and sends pieces. An upload
outlives its connection, so that a client may go on after a reconnect; one that nobody continues is
thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from daemon.errors import RpcError
from p2p.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from p2p.blobs.pins import Group
    from p2p.blobs.service import Blobs, Upload
    from p2p.env import Env

UPLOADS_MAX: Final = 16
"""Uploads at once: each holds an open file."""

DONE_MAX: Final = 64
"""Finished ones whose id is told again."""

IDLE_S_MAX: Final = 120.0
"""An upload that nobody continues in this time is thrown away. Guess: a slow disk, a slow person
with a debugger, no longer: its bytes take room."""

SWEEP_S: Final = 30.0

T = TypeVar("T")


@dataclass(slots=True)
class _Open:
    upload: Upload
    agent: str
    touched_s: float
    blob: str = ""
    """Its id once it is done, for a client that asks again."""
    lock: trio.Lock = field(default_factory=trio.Lock)


class Uploads:
    """What is being put.

    Args:
        blobs: where it goes.
        env: clock and names.
    """

    def __init__(self, blobs: Blobs, env: Env) -> None:
        self._blobs = blobs
        self._env = env
        self._open: dict[str, _Open] = {}

    async def begin(self, agent: str) -> str:
        """A new upload; its name.

        Raises:
            RpcError: rate_limited when there are too many.
            DiskFull: no room.
        """
        await self._sweep()
        done = [name for name, one in self._open.items() if one.blob]
        for name in done[: max(0, len(done) - DONE_MAX)]:
            del self._open[name]
        if sum(not one.blob for one in self._open.values()) >= UPLOADS_MAX:
            raise RpcError(
                "rate_limited", "too many uploads at once", data={"retry_ms": int(IDLE_S_MAX * 100)}
            )
        name = self._env.rng.randbytes(16).hex()
        upload = await self._blobs.upload()
        self._open[name] = _Open(upload, agent, self._env.now())
        return name

    async def write(self, name: str, agent: str, offset: int, data: bytes) -> int:
        """Append at `offset`; bytes so far. What came already is not written again.

        Raises:
            RpcError: not_found, or conflict when a piece is missing before this one.
            DiskFull: no room; the upload is over, and takes none any more.
        """
        found = self._find(name, agent)
        async with found.lock:
            size = found.upload.size
            if offset > size or (offset < size and offset + len(data) > size):
                raise RpcError(
                    "conflict", f"the next piece begins at {size}", data={"offset": size}
                )
            if offset == size and data and not found.blob:
                await self._or_end(name, found, found.upload.write(data))
            found.touched_s = self._env.now()
            return found.upload.size

    async def finish(self, name: str, agent: str, group: Group, tag: str | None) -> str:
        """Make it a blob; its id. Durable when this returns.

        Raises:
            RpcError: not_found.
            DiskFull: no room.
        """
        found = self._find(name, agent)
        async with found.lock:
            if not found.blob:
                finishing = self._blobs.finish(found.upload, group, tag=tag)
                found.blob = (await self._or_end(name, found, finishing)).hex()
            return found.blob

    async def _or_end(self, name: str, found: _Open, step: Awaitable[T]) -> T:
        """A step of an upload; if it fails, the upload is over at once: its bytes fill the disk."""
        try:
            return await step
        except TransientError:
            self._open.pop(name, None)
            await found.upload.abort()
            raise

    def _find(self, name: str, agent: str) -> _Open:
        found = self._open.get(name)
        if found is None or found.agent != agent:
            raise RpcError(
                "not_found", "no such upload", remedy="It was idle for long: begin a new one."
            )
        return found

    async def run(self) -> None:
        """Throw away what nobody continues, until cancelled."""
        while True:
            await trio.sleep(SWEEP_S)
            await self._sweep()

    async def _sweep(self) -> None:
        before = self._env.now() - IDLE_S_MAX
        for name, found in list(self._open.items()):
            if found.touched_s < before and not found.lock.locked():
                del self._open[name]
                await found.upload.abort()
