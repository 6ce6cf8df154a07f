"""Everything that helps peers to reach us, as one part of a node.

    traversal = Traversal(identity, fabric, config, env, is_member=...)
    await nursery.start(traversal.run)

Each part is a module of its own; this one says who tells whom: reachability decides whether we
serve as a relay or look for some, relays and mappings tell the fabric our addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from p2p.nat.observed import Observations
from p2p.nat.punch import Puncher
from p2p.nat.relay import Relay
from p2p.nat.relay_transport import RelayTransport
from p2p.net.identify import REACH_EVERYBODY, addrs_for, reach_of
from p2p.net.seam import PeerDown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.nat.relay import RelayReport
    from p2p.net.seam import Addr, FabricEvent
    from p2p.net.wire_fabric import WireFabric


@dataclass(frozen=True, kw_only=True)
class TraversalReport:
    """How we are reached, a snapshot."""

    relay: RelayReport


class Traversal:
    """The parts and how they are joined.

    Args:
        identity: our key.
        fabric: the real wire.
        config: of the mesh.
        env: clock, wall clock and random numbers.
        is_member: whether a peer shares a group with us.
    """

    def __init__(
        self,
        identity: Identity,
        fabric: WireFabric,
        config: P2pConfig,
        env: Env,
        *,
        is_member: Callable[[PeerId], bool],
    ) -> None:
        self._relay = Relay(
            identity,
            fabric,
            config.relay,
            env,
            is_member=is_member,
            told=lambda seen_at: addrs_for(fabric.addrs(), seen_at, config),
            accept=lambda stream, addr: fabric.accept(stream, addr, path="relay"),
        )
        fabric.add_transport(RelayTransport(fabric, config.relay))
        if config.reachability != "auto":
            self._relay.reachable(config.reachability == "public")
        self._fabric = fabric
        self._observations = Observations(lambda addr: reach_of(addr, config) == REACH_EVERYBODY)
        fabric.on_observed = self._observed
        self._puncher = Puncher(
            fabric,
            config.punch,
            env,
            ours=lambda: [*fabric.addrs(), *self._observations.heard()],
            is_public=lambda addr: reach_of(addr, config) == REACH_EVERYBODY,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the parts until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._relay.run)
            await nursery.start(self._puncher.run)
            task_status.started()
            while True:
                # A channel that we were too slow for is closed: what we missed may be anything.
                async for event in self._fabric.events():
                    self._notice(event)
                self._relay.recheck()

    def _notice(self, event: FabricEvent) -> None:
        if isinstance(event, PeerDown) and self._observations.forget(event.peer):
            self._tell_observed()
        self._relay.notice(event)
        self._puncher.notice(event)

    def _observed(self, peer: PeerId, peer_addr: Addr, observed: Addr) -> None:
        if self._observations.note(peer, peer_addr, observed):
            self._tell_observed()

    def _tell_observed(self) -> None:
        self._fabric.set_own_addrs("observed", self._observations.confirmed())

    def report(self) -> TraversalReport:
        """How we are reached."""
        return TraversalReport(relay=self._relay.report())

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        return {**self._relay.counters(), **self._puncher.counters}
