"""Relays from both ends, as one part of a node: places for others, places for us, circuits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from typing_extensions import override

from p2p.nat.relay_client import RelayClient
from p2p.nat.relay_messages import HOP
from p2p.nat.relay_server import _STREAMS_PER_PEER_MAX, RelayServer
from p2p.net.seam import PeerDown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from p2p.env import Env
    from p2p.identity import PeerId, Signer
    from p2p.nat.relay_config import RelayConfig
    from p2p.net.framed import FramedStream
    from p2p.net.seam import Addr, Fabric, FabricEvent


@dataclass(frozen=True, kw_only=True)
class RelayReport:
    """What relays do right now, a snapshot."""

    serving: bool
    """Whether we give places."""
    holders: int
    """Peers that hold a place with us."""
    circuits: int
    """Circuits we carry now."""
    relays: tuple[PeerId, ...]
    """Relays at which we hold a place."""
    addrs: tuple[Addr, ...]
    """Where we are reached through them."""


class _OfferedServer(RelayServer):
    """Is seen by others, and asked, only while it has something to give.

    Places that were given before last on when reachability changes: as long as somebody holds one,
    the protocol is served, and `RelayServer` gives no new ones.
    """

    _offered = True  # as its constructor leaves it

    def update(self) -> None:
        """Something changed that decides whether we are a relay."""
        has_places = self.book.holders() > 0 or self.book.circuits() > 0
        offer = self._config.serve and (self.serving or has_places)
        if offer == self._offered:
            return
        self._offered = offer
        if offer:
            self._fabric.handle(HOP, self._hop, per_peer_max=_STREAMS_PER_PEER_MAX)
        else:
            self._fabric.unhandle(HOP)

    @override
    async def _connect(self, framed: FramedStream, source: PeerId, target: PeerId) -> None:
        try:
            await super()._connect(framed, source, target)
        finally:
            self.update()


class Relay:
    """Serves and uses relays.

    Args:
        signer: our identity.
        fabric: connections.
        config: what is given and wanted.
        env: clocks.
        is_member: whether a peer shares a group with us.
        told: the addresses of ours that a peer connected from an address may be told.
        accept: takes over the raw stream of a circuit to us.
    """

    def __init__(
        self,
        signer: Signer,
        fabric: Fabric,
        config: RelayConfig,
        env: Env,
        *,
        is_member: Callable[[PeerId], bool],
        told: Callable[[Addr], list[Addr]],
        accept: Callable[[trio.abc.Stream, Addr], Awaitable[None]],
    ) -> None:
        self._fabric = fabric
        self._server = _OfferedServer(signer, fabric, config, env, is_member=is_member, told=told)
        self._server.update()
        self._client = RelayClient(fabric, config, env, is_member=is_member, accept=accept)

    def reachable(self, public: bool | None) -> None:
        """What is known of us: others can dial us, cannot, or None as long as nobody knows."""
        self._server.serving = public is True
        self._server.update()
        self._client.want(wanted=public is not True)

    def wait(self) -> None:
        """It is not known yet, and too early to look for relays."""
        self._server.serving = False
        self._server.update()

    def network_changed(self) -> None:
        """Our addresses changed: ask for every place anew."""
        self._client.network_changed()

    def notice(self, event: FabricEvent) -> None:
        """What happened to the connections."""
        if isinstance(event, PeerDown):
            self._server.peer_down(event.peer)
            self._server.update()
        self._client.notice(event)

    def recheck(self) -> None:
        """Events were missed."""
        self._client.recheck()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep places until cancelled."""
        await self._client.run(task_status=task_status)

    def is_ours(self, peer: PeerId) -> bool:
        """Whether we have a place at `peer`."""
        return peer in self._client.places

    def report(self) -> RelayReport:
        """What relays do right now."""
        places = self._client.places.values()
        return RelayReport(
            serving=self._server.serving,
            holders=self._server.book.holders(),
            circuits=self._server.book.circuits(),
            relays=tuple(place.relay for place in places),
            addrs=tuple(addr for place in places for addr in place.addrs),
        )

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        return {**self._server.counters, **self._client.counters}
