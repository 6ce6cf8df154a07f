"""Nodes that keep blobs, over any fabric, and content to move between them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import trio
from typing_extensions import override

from p2p.blobs.manifest import Manifest, chunk_bytes_for
from p2p.blobs.messages import (
    GET,
    HAVE,
    MANIFEST,
    GetQuery,
    GetReply,
    HaveQuery,
    HaveReply,
    Held,
    ManifestQuery,
    ManifestReply,
    Piece,
)
from p2p.env import SeededEnv

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from p2p.blobs.config import BlobConfig
    from p2p.blobs.service import Blobs
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.node import Node
    from p2p.rpc_types import Caller, CallStream

T = TypeVar("T")

GROUP = hashlib.sha256(b"group").digest()
OTHER_GROUP = hashlib.sha256(b"other group").digest()


class Inline:
    """Blocking work at once and in turn: under a virtual clock, threads would race with time."""

    async def run(self, fn: Callable[[], T]) -> T:
        """Give way once, then run `fn`."""
        await trio.lowlevel.checkpoint()
        return fn()


class Threads:
    """Blocking work in threads, as in the daemon."""

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` in a thread."""
        return await trio.to_thread.run_sync(fn)


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere, the same for the same seed."""
    return random.Random(f"blob/{seed}").randbytes(size)


def keep_blobs(
    node: Node,
    folder: Path,
    env: Env,
    *,
    config: BlobConfig | None = None,
    threads: bool = False,
    reads: Callable[[bytes | None, PeerId], bool] | None = None,
) -> Blobs:
    """Have a node keep blobs; every peer is in `GROUP` unless `reads` says otherwise."""
    offload = Threads() if threads else Inline()
    blobs = node.keep_blobs(folder, env, offload, config)
    blobs.set_readers(reads or (lambda group, _peer: group == GROUP))
    return blobs


class FaultyEnv(SeededEnv):
    """A simulated world in which named points fail as often as a test says.

    Args:
        seed: of its numbers.
        component: whose they are.
    """

    def __init__(self, seed: int, component: str) -> None:
        super().__init__(seed, component, trio.current_time)
        self.failing: set[str] = set()
        self.reached: Counter[str] = Counter()

    @override
    def fault(self, name: str) -> bool:
        """Whether a test made this point fail."""
        self.reached[name] += 1
        return name in self.failing


class Source:
    """A peer that has one blob and answers as a test wants.

    Args:
        node: running, without blobs of its own.
        data: the blob's bytes.

    A test replaces `held`, `manifest` or `give` to lie.
    """

    def __init__(self, node: Node, data: bytes) -> None:
        size = len(data)
        step = chunk_bytes_for(size)
        hashes = b"".join(
            hashlib.sha256(data[at : at + step]).digest() for at in range(0, size, step)
        )
        self.peer = node.id
        self.true_manifest = Manifest(size, hashes)
        self.id = self.true_manifest.id
        self.data = data
        self.held: Held | None = Held(size, b"")
        self.manifest: Callable[[CallStream], Awaitable[None]] = self.send_manifest
        self.give: Callable[[GetQuery, CallStream], Awaitable[None]] = self.send_chunks
        self.asked: Counter[str] = Counter()
        self.at_once = 0
        self.at_once_max = 0
        node.rpc.serve(HAVE, self._have)
        node.rpc.serve(MANIFEST, self._manifest)
        node.rpc.serve(GET, self._get)

    async def send_manifest(self, stream: CallStream) -> None:
        """The right one."""
        await stream.send(self.true_manifest.encode())

    async def send_chunks(self, query: GetQuery, stream: CallStream) -> None:
        """The right ones."""
        for index in query.indices:
            offset, size = self.true_manifest.span(index)
            await stream.send(Piece(index, 0, self.data[offset : offset + size]))

    async def _have(self, caller: Caller, query: HaveQuery, stream: CallStream) -> HaveReply:  # noqa: ARG002 - a handler's shape
        self.asked["have"] += 1
        return HaveReply([self.held if one == self.id else None for one in query.ids])

    async def _manifest(
        self,
        caller: Caller,  # noqa: ARG002 - a handler's shape
        query: ManifestQuery,  # noqa: ARG002
        stream: CallStream,
    ) -> ManifestReply:
        self.asked["manifest"] += 1
        await self.manifest(stream)
        return ManifestReply(0)

    async def _get(self, caller: Caller, query: GetQuery, stream: CallStream) -> GetReply:  # noqa: ARG002 - a handler's shape
        self.asked["get"] += 1
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            await self.give(query, stream)
        finally:
            self.at_once -= 1
        return GetReply(len(query.indices))
