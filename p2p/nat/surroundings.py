"""What a node does about the network around it: LAN peers, address changes, mapped ports.

The parts know each other only here. All of them are hints and repairs beside the fabric: none is
needed for a connection, so what fails in them is reported and tried again, and never ends the node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from p2p.nat.lan_driver import LanDriver, LanReport
from p2p.nat.portmap_driver import MappingReport, PortMapper
from p2p.net.netwatch import NetWatch
from p2p.wire.multiaddr import scope_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.netwatch import NetworkChange
    from p2p.net.seam import Addr, AddrSource
    from p2p.wire.multiaddr import IpAddress


@dataclass(frozen=True, kw_only=True)
class SurroundingsReport:
    """What the network around us is like, a snapshot for people."""

    lan: LanReport
    gateway: str
    """The IPv4 router that we ask for ports; empty if there is none."""
    mapping: tuple[MappingReport, ...]
    """A row for each port that we want forwarded."""
    mapping_note: str
    """Why no port is asked for at all; empty when one is."""


class Surrounded(Protocol):
    """What this needs of the fabric."""

    @property
    def id(self) -> PeerId:
        """Our own peer id."""
        ...

    def listen_addrs(self) -> list[Addr]:
        """Addresses we are bound to, unspecified ones as they are."""
        ...

    def network_changed(self) -> None:
        """Ask the system anew for our own addresses, and every connection whether it lives."""

    def set_own_addrs(self, source: AddrSource, addrs: Sequence[Addr]) -> None:
        """Replace what one source knows of our own addresses."""

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of a peer."""

    def wants(self, peer: PeerId) -> bool:
        """Whether we keep a peer connected or share a group with it."""
        ...


class Surroundings:
    """LAN discovery, mapped ports and the watch over the network, for one fabric.

    Args:
        fabric: told what is found; its doors are announced.
        config: what to do at all.
        env: clocks and random numbers.
    """

    def __init__(self, fabric: Surrounded, config: P2pConfig, env: Env) -> None:
        self._fabric = fabric
        self._config = config
        self.on_found: Callable[[PeerId], None] = lambda _: None
        """Told of each peer that was found in the local network, after its addresses."""
        self._listeners: list[Callable[[NetworkChange], None]] = []
        self._watch = NetWatch(env, self._network_changed, config.network_check_s)
        self._lan = LanDriver(
            fabric.id,
            config.local_net,
            env,
            network=config.network,
            listening=fabric.listen_addrs,
            found=self._found,
            wanted=fabric.wants,
        )
        self._mapper = PortMapper(
            config.mapping,
            env,
            listening=fabric.listen_addrs,
            mapped=lambda addrs: fabric.set_own_addrs("mapped", addrs),
            is_public=self._is_public,
        )

    def on_change(self, fn: Callable[[NetworkChange], None]) -> None:
        """Call `fn` at each change of the network, after our own addresses were asked anew."""
        self._listeners.append(fn)

    def report(self) -> SurroundingsReport:
        """What the network around us is like."""
        gateway = self._mapper.gateway
        return SurroundingsReport(
            lan=self._lan.report(),
            gateway="" if gateway is None else str(gateway.address),
            mapping=self._mapper.report(),
            mapping_note=self._mapper.note,
        )

    def counters(self) -> dict[str, int]:
        """Counts since the start."""
        return self._lan.counters()

    def pause(self) -> None:
        """Be silent on the local network, and have nothing forwarded, until `resume`."""
        self._lan.pause()
        self._mapper.pause()

    def resume(self) -> None:
        """End `pause`."""
        self._lan.resume()
        self._mapper.resume()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and listen until cancelled; start it when the fabric listens."""
        async with trio.open_nursery() as nursery:
            if self._config.network_check_s:
                await nursery.start(self._watch.run)
            if self._config.local_net.discovery or self._config.local_net.announce:
                await nursery.start(self._lan.run)
            await nursery.start(self._mapper.run)
            task_status.started()

    def _found(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        self._fabric.learn(peer, addrs)
        self.on_found(peer)

    def _network_changed(self, change: NetworkChange) -> None:
        self._fabric.network_changed()
        self._lan.refresh()
        self._mapper.refresh()
        for fn in self._listeners:
            fn(change)

    def _is_public(self, ip: IpAddress) -> bool:
        scope = scope_of(ip)
        return scope == "public" or (self._config.private_is_public and scope == "private")
