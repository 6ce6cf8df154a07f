"""Nodes that keep blobs, over any fabric, and content to move between them."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from p2p.blobs.config import BlobConfig
    from p2p.blobs.service import Blobs
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.node import Node

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
