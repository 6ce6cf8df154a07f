"""Everything that helps peers to reach us, as one part of a node.

    traversal = Traversal(identity, fabric, rpc, config, env)
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
from p2p.nat.reachability import Reach
from p2p.nat.reachability_driver import ReachabilityDriver
from p2p.nat.relay import Relay
from p2p.nat.relay_transport import RelayTransport
from p2p.net.identify import REACH_EVERYBODY, addrs_for, reach_of
from p2p.net.seam import PeerDown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.nat.reachability_driver import ReachabilityReport
    from p2p.nat.relay import RelayReport
    from p2p.net.netwatch import NetworkChange
    from p2p.net.seam import Addr, FabricEvent
    from p2p.net.wire_fabric import WireFabric
    from p2p.rpc import Rpc


@dataclass(frozen=True, kw_only=True)
class TraversalReport:
    """How we are reached, a snapshot."""

    relay: RelayReport
    reachability: ReachabilityReport


class Traversal:
    """The parts and how they are joined.

    Args:
        identity: our key.
        fabric: the real wire.
        rpc: calls of members, and who is one.
        config: of the mesh.
        env: clock, wall clock and random numbers.
    """

    def __init__(
        self,
        identity: Identity,
        fabric: WireFabric,
        rpc: Rpc,
        config: P2pConfig,
        env: Env,
    ) -> None:
        self.on_state: Callable[[Reach], None] = lambda _: None
        """Called with each new state of reachability, for parts that serve only while public."""
        self._relay = Relay(
            identity,
            fabric,
            config.relay,
            env,
            is_member=rpc.is_member,
            told=lambda seen_at: addrs_for(fabric.addrs(), seen_at, config),
            accept=lambda stream, addr: fabric.accept(stream, addr, path="relay"),
        )
        fabric.add_transport(RelayTransport(fabric, config.relay))
        self._fabric = fabric
        self._config = config
        self._observations = Observations(lambda addr: reach_of(addr, config) == REACH_EVERYBODY)
        fabric.on_observed = self._observed
        self._reach = ReachabilityDriver(fabric, rpc, config, env, self._observations)
        self._reach.on_change = self._state_changed
        self._settled = False
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
            nursery.start_soon(self._reach.run)
            nursery.start_soon(self._settle)
            task_status.started()
            while True:
                # A channel that we were too slow for is closed: what we missed may be anything.
                async for event in self._fabric.events():
                    self._notice(event)
                self._relay.recheck()
                self._reach.recheck()

    async def _settle(self) -> None:
        """Give others the time to reach us, before we ask for places at relays."""
        await trio.sleep(self._config.reach.relays_after_s)
        self._settled = True
        self._want_relays()

    def _state_changed(self, state: Reach) -> None:
        self._tell_observed()
        self._want_relays()
        self.on_state(state)

    def _want_relays(self) -> None:
        match self._reach.state:
            case Reach.PUBLIC:
                self._relay.reachable(True)
            case Reach.PRIVATE:
                self._relay.reachable(False)
            case Reach.UNKNOWN | Reach.LIKELY:
                if self._settled:
                    self._relay.reachable(None)
                else:
                    self._relay.wait()

    def network_changed(self, change: NetworkChange) -> None:
        """Our addresses are others, or we slept: what was agreed before may hold no more."""
        if change.moved:
            self._observations.clear()
            self._fabric.ask_everybody()
            self._reach.network_changed()
            self._tell_observed()
        else:
            self._reach.recheck()
        self._relay.network_changed()
        self._puncher.network_changed()

    def _notice(self, event: FabricEvent) -> None:
        if isinstance(event, PeerDown) and self._observations.forget(event.peer):
            self._tell_observed()
        self._reach.notice(event)
        self._relay.notice(event)
        self._puncher.notice(event)

    def _observed(self, peer: PeerId, peer_addr: Addr, observed: Addr) -> None:
        if self._observations.note(peer, peer_addr, observed):
            self._tell_observed()

    def _tell_observed(self) -> None:
        """Advertise where peers see us, unless it is known that nobody gets in there."""
        seen = self._observations.confirmed()
        found = [addr for addr in seen if self._reach.state_of(addr) is not Reach.PRIVATE]
        self._fabric.set_own_addrs("observed", found)
        self._reach.observed()

    def is_our_relay(self, peer: PeerId) -> bool:
        """Whether we have a place at `peer`."""
        return self._relay.is_ours(peer)

    def report(self) -> TraversalReport:
        """How we are reached."""
        return TraversalReport(relay=self._relay.report(), reachability=self._reach.report())

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        return {
            **self._relay.counters(),
            **self._puncher.counters,
            **self._reach.counters(),
        }
