"""A js-libp2p peer inside a namespace, driven like our own: see `tests/interop/js/peer.mjs`."""

from __future__ import annotations

import itertools
import json
import os
from typing import TYPE_CHECKING, cast

from typing_extensions import override

from tests.helpers.netns_peers import ANSWER_S, Peer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.netns import Space
    from tests.helpers.oracle import Json


class JsPeer(Peer):
    """A running js-libp2p.

    Args:
        space: where it runs.
        folder: where it is installed.
        listen: a multiaddr; empty for none.
        roles: what it does besides.
    """

    def __init__(self, space: Space, folder: Path, listen: str, **roles: Json) -> None:
        self.space = space
        self._process = space.popen(
            str(folder / "node_modules/.bin/node"),
            str(folder / "peer.mjs"),
            listen,
            json.dumps(roles),
            env=os.environ,
        )
        self._numbers = itertools.count()
        self._buffer = b""
        self._answers: dict[int, dict[str, Json]] = {}
        self.id = ""
        self.named_addrs: list[str] = []
        """Where it says that it can be dialled, each with its name."""

    @override
    def ready(self) -> None:
        """Wait until it listens, and has its places at relays."""
        ready = cast("dict[str, Json]", self._line(ANSWER_S)["ready"])
        self.id = str(ready["id"])
        self.named_addrs = [str(addr) for addr in cast("list[Json]", ready["addrs"])]

    def paths_to(self, other: Peer) -> set[str]:
        """How it reaches another node now: over which kinds of connection."""
        paths = cast("dict[str, list[str]]", self.act("paths", peer=other.id))["paths"]
        return set(paths)

    @override
    def _line(self, limit_s: float) -> dict[str, Json]:
        while "event" in (line := super()._line(limit_s)):
            pass
        return line
