"""Who holds a record: `sync.holds`, asked of a group's connected members and answered to them.

Source: docs/specs/state.md s.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import trio

from p2p.errors import P2pError
from p2p.identity import PeerId
from p2p.replication.ops import Role
from p2p.replication.shares import record_of
from p2p.rpc_types import Caller, CallStream, Method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.groups import Group

HELD_IDS_MAX: Final = 256
"""Ids one `sync.holds` may ask about."""
HELD_WAIT_S: Final = 2.0
"""Longest wait for one member's answer."""

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class HoldsQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Are these records of a group durable at yours?"""

    group: _Id
    ids: Annotated[list[_Id], msgspec.Meta(max_length=HELD_IDS_MAX)]


class HoldsReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Those that are."""

    held: Annotated[list[_Id], msgspec.Meta(max_length=HELD_IDS_MAX)]


HOLDS: Final = Method("sync.holds", HoldsQuery, HoldsReply, idempotent=True, concurrent_max=4)


@dataclass(frozen=True, slots=True)
class Holders:
    """Which members hold a record.

    Attributes:
        held: by these device keys, ours included.
        missing: asked, and not there yet.
        unknown: not connected, or without an answer.
    """

    held: tuple[bytes, ...]
    missing: tuple[bytes, ...]
    unknown: tuple[bytes, ...]


class Holding:
    """Asks members who holds a record, and answers them.

    Args:
        core: the parts of replication.
        node: the mesh; serves `sync.holds`.
    """

    def __init__(self, core: Core, node: Node) -> None:
        self._core = core
        self._node = node
        node.rpc.serve(HOLDS, self._holds)

    async def holders(self, group: Group, ident: bytes) -> Holders:
        """Ask a group's connected members whether a record is on their disks."""
        me = self._core.me
        here = bool(await self._held(group.id, [ident]))
        held: list[bytes] = [me] if here else []
        missing: list[bytes] = [] if here else [me]
        unknown: list[bytes] = []
        connected = self._node.fabric.peers()

        async def ask(peer: bytes) -> None:
            try:
                with trio.fail_after(HELD_WAIT_S):
                    reply = await self._node.rpc.call(
                        PeerId(peer), HOLDS, HoldsQuery(group.id, [ident])
                    )
            except (P2pError, trio.TooSlowError):
                unknown.append(peer)
            else:
                (held if ident in reply.held else missing).append(peer)

        async with trio.open_nursery() as nursery:
            for member, role in group.standing.members().items():
                if member == me or role < Role.READ:
                    continue
                if member in connected:
                    nursery.start_soon(ask, member)
                else:
                    unknown.append(member)
        return Holders(tuple(sorted(held)), tuple(sorted(missing)), tuple(sorted(unknown)))

    async def _holds(self, caller: Caller, query: HoldsQuery, stream: CallStream) -> HoldsReply:  # noqa: ARG002 - a handler's shape
        group = self._core.groups.get(query.group)
        if group is None or not group.founded or group.role(caller.peer) is None:
            return HoldsReply([])  # a stranger to the group learns nothing of it
        return HoldsReply(await self._held(query.group, list(dict.fromkeys(query.ids))))

    async def _held(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Those of the ids that are records of the group and here with their bodies."""
        rows = await self._core.store.fetch(ids, bodies=True)
        return [
            row.id for row in rows if row.envelope is not None and record_of(row).group == group
        ]
