"""The methods every node serves: who are you, are you there, whom do you know.

Source: docs/specs/rpc.md s.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec

from p2p.identity import KEY_BYTES, PeerId
from p2p.rpc_types import Caller, CallStream, Method

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.net.seam import Addr
    from p2p.rpc import Rpc

ECHO_BYTES_MAX: Final = 65_536
ASKED_PEERS_MAX: Final = 64
"""Peers one `mesh.addrs` may ask about: a group's usual size."""

TOLD_ADDRS_MAX: Final = 32
"""Addresses told of one peer. Source: docs/specs/wire.md, addresses."""

ADDR_CHARACTERS_MAX: Final = 256

EchoBody: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=ECHO_BYTES_MAX)]
PeerKey: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
AddrText: TypeAlias = Annotated[str, msgspec.Meta(max_length=ADDR_CHARACTERS_MAX)]


class InfoQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Nothing to ask yet; room for later."""


class Info(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a node says of itself."""

    version: Annotated[str, msgspec.Meta(max_length=64)]
    """Its software; shown, never compared."""
    methods: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=512)
    ]
    """What it serves, ascending; whether we may call is another matter."""


class Echo(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Bytes, and the same bytes back."""

    data: EchoBody


class AddrsQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where are these?"""

    peers: Annotated[list[PeerKey], msgspec.Meta(max_length=ASKED_PEERS_MAX)]


class PeerAddrs(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where a peer was last reached or said to be; only its handshake proves it."""

    peer: PeerKey
    addrs: Annotated[list[AddrText], msgspec.Meta(max_length=TOLD_ADDRS_MAX)]


class AddrsReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Those of the asked peers that we know and may tell."""

    known: Annotated[list[PeerAddrs], msgspec.Meta(max_length=ASKED_PEERS_MAX)]


INFO: Final = Method("mesh.info", InfoQuery, Info, idempotent=True)
ECHO: Final = Method("mesh.echo", Echo, Echo, idempotent=True)
ADDRS: Final = Method("mesh.addrs", AddrsQuery, AddrsReply, idempotent=True, concurrent_max=4)


class MeshMethods:
    """Handlers of the built-in methods.

    Args:
        rpc: where they are served; members only.
        version: what `mesh.info` says.
        known_addrs: remembered addresses of a peer, best first.
        introduces: whether the first peer may learn where the second is: they share a group.
    """

    def __init__(
        self,
        rpc: Rpc,
        *,
        version: str,
        known_addrs: Callable[[PeerId], list[Addr]],
        introduces: Callable[[PeerId, PeerId], bool],
    ) -> None:
        self._rpc = rpc
        self._version = version
        self._known_addrs = known_addrs
        self._introduces = introduces
        rpc.serve(INFO, self._info)
        rpc.serve(ECHO, self._echo)
        rpc.serve(ADDRS, self._addrs)

    async def _info(self, caller: Caller, query: InfoQuery, stream: CallStream) -> Info:  # noqa: ARG002 - a handler's shape
        return Info(self._version, self._rpc.methods()[:512])

    async def _echo(self, caller: Caller, query: Echo, stream: CallStream) -> Echo:  # noqa: ARG002 - a handler's shape
        return query

    async def _addrs(self, caller: Caller, query: AddrsQuery, stream: CallStream) -> AddrsReply:  # noqa: ARG002 - a handler's shape
        known = []
        for key in dict.fromkeys(query.peers):
            peer = PeerId(key)
            if peer != caller.peer and self._introduces(caller.peer, peer):
                addrs = self._known_addrs(peer)[:TOLD_ADDRS_MAX]
                if addrs:
                    known.append(PeerAddrs(key, addrs))
        return AddrsReply(known)
