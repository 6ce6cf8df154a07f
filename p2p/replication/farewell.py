"""Telling a device that it was taken out: the limits on it, and what these cite.

Nobody serves a removed device anything of the group, so by itself it would go on in the belief that
it is a member whom nobody answers. It is shown its own removal, once it is connected: the standing
limits that name it with the operations these cite, so that it can check them. Nothing younger, no
data, no keys; and not again for a while, whatever it asks. Source: docs/specs/sync.md s.6.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import TransientError
from p2p.identity import PeerId
from p2p.replication import push
from p2p.replication.groups import STATE_MEMBER
from p2p.replication.record import decode_header_untrusted
from p2p.replication.talk import FramedTalk
from p2p.replication.wires import records_frames, wire_of

if TYPE_CHECKING:
    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.groups import Group

log = logging.getLogger("covey.p2p.replication")

AGAIN_S: Final = 600.0
"""So long a device is not told again. It costs up to 4,096 operations, some 2 MB."""
TELL_S: Final = 30.0
"""Longest time for telling one device."""


class Farewell:
    """Tells removed devices of their removal.

    Args:
        core: the parts that decide.
        node: the mesh.
    """

    def __init__(self, core: Core, node: Node) -> None:
        self._core = core
        self._node = node
        self._told: dict[tuple[bytes, bytes], float] = {}
        """(group, device) -> until when it is not told again. Former members only, so bounded."""

    def owed(self, peer: bytes) -> list[Group]:
        """Groups that took a device out and have not told it lately."""
        now = self._core.env.now()
        return [
            group
            for group in self._core.groups.all()
            if group.state == STATE_MEMBER
            and group.founded
            and group.role(peer) is None
            and group.role(self._core.me) is not None
            and now >= self._told.get((group.id, peer), 0.0)
            and group.standing.limits_on(peer)
        ]

    async def tell(self, peer: bytes) -> None:
        """Show a device why it is out, in each group that owes it that."""
        for group in self.owed(peer):
            self._told[group.id, peer] = self._core.env.now() + AGAIN_S
            rows = await self._core.store.fetch(group.standing.shown_to(peer), bodies=True)
            wires = sorted(map(wire_of, rows), key=lambda w: decode_header_untrusted(w.header).hlc)
            try:
                with trio.fail_after(TELL_S):
                    stream = await self._node.fabric.open(PeerId(peer), push.PROTOCOL)
                    async with stream:
                        for frame in records_frames(group.id, wires):
                            await FramedTalk(stream).send(frame)
                        await stream.send_eof()
            except (
                TransientError,
                trio.TooSlowError,
                trio.BrokenResourceError,
                trio.ClosedResourceError,
            ):
                self._told.pop((group.id, peer), None)  # when it comes back
                log.info("removal_untold", extra={"f": {"peer": peer.hex()[:16]}})
