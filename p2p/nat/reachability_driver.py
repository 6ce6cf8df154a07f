"""Finds out whether others can dial us, and helps others to find out. Drives `reachability`.

    reach = ReachabilityDriver(fabric, rpc, config, env, observations)
    reach.on_change = lambda state: ...
    await nursery.start_soon(reach.run)

One round at a time, one address a round: servers are asked in turn until it is decided. Servers are
connected peers that say that they serve AutoNAT, members first (they may ask a second one to help),
then those that were not asked for longest. Somebody whose network is the address's own cannot tell
whether strangers get in, so it is neither asked nor believed.
Source: docs/specs/reachability.md s.4.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from p2p.nat.autonat_client import Answer, AutonatClient
from p2p.nat.autonat_messages import DIAL_REQUEST
from p2p.nat.autonat_server import AutonatServer
from p2p.nat.dialback import DialBacks
from p2p.nat.dialback_wire import NonceDialer
from p2p.nat.reachability import AddrReport, CandidateSource, Reach, Reachability
from p2p.net.contacts import host_of
from p2p.net.identify import REACH_EVERYBODY, reach_of
from p2p.net.seam import AddrsChanged, PeerIdentified
from p2p.wire.multiaddr import ip_of, is_relayed, prefix_of, tcp_addr_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.nat.autonat_nonces import Proof
    from p2p.nat.observed import Observations
    from p2p.net.driver import Connection
    from p2p.net.seam import Addr, FabricEvent
    from p2p.net.wire_fabric import WireFabric
    from p2p.rpc import Rpc

log = logging.getLogger("covey.p2p.reachability")

_FORCED = {"public": Reach.PUBLIC, "private": Reach.PRIVATE}


@dataclass(frozen=True, kw_only=True)
class ReachabilityReport:
    """Whether others can dial us, a snapshot for people."""

    state: Reach
    why: str
    """The reason, in a sentence without its full stop."""
    forced: bool
    """Whether the configuration says so, and nothing is checked."""
    addrs: tuple[AddrReport, ...]
    """Each address that is checked."""
    symmetric: bool | None
    """Whether our NAT draws a port for each target; None: too few peers told."""
    servers: int
    """Connected peers that can be asked."""
    checked_s: float | None
    """`env.now()` of the last answer; None: none yet."""


class ReachabilityDriver:
    """Both sides of AutoNAT, the helpers' calls, and the states.

    Args:
        fabric: the real wire.
        rpc: members' calls.
        config: of the mesh.
        env: clocks and random numbers.
        observations: what peers say of our address.
    """

    def __init__(
        self,
        fabric: WireFabric,
        rpc: Rpc,
        config: P2pConfig,
        env: Env,
        observations: Observations,
    ) -> None:
        self.on_change: Callable[[Reach], None] = lambda _: None
        """Called with the new state when it changes."""
        self.machine = Reachability(config.reach)
        self._fabric = fabric
        self._rpc = rpc
        self._config = config
        self._env = env
        self._observations = observations
        self._forced = _FORCED.get(config.reachability)
        self._told: Reach | None = None
        self._networks = 0  # how often the network changed
        self._kick = trio.Event()
        self._asked_s: dict[PeerId, float] = {}
        self._counters: Counter[str] = Counter()
        dialer = NonceDialer(fabric.dial_apart, config, env)
        self._client = AutonatClient(
            fabric, config.reach, env, counts=self._can_tell, proved=self._proved
        )
        self._dialbacks = DialBacks(
            rpc, fabric, dialer, config.reach, env, is_public=self._is_public
        )
        self._server = AutonatServer(
            fabric, dialer, config.reach, env, is_public=self._is_public, reached=self._pass_on
        )
        fabric.on_accepted = self._accepted

    @property
    def state(self) -> Reach:
        """Whether others can dial us."""
        return self._forced or self.machine.state

    async def run(self) -> None:
        """Check until cancelled."""
        self._tell()
        if self._forced is not None:
            return
        while True:
            self._kick = trio.Event()
            self._refresh()
            now = self._env.now()
            addr = self.machine.due(now)
            if addr is not None:
                await self._round(addr)
                continue
            with trio.move_on_after(max(0.0, self.machine.next_timer() - now)):
                await self._kick.wait()

    def notice(self, event: FabricEvent) -> None:
        """A peer told what it serves, or our addresses are others."""
        match event:
            case PeerIdentified(peer):
                if DIAL_REQUEST in self._fabric.protocols(peer):
                    self.machine.new_server(self._env.now())
                    self._kick.set()
            case AddrsChanged():
                self._kick.set()
            case _:
                pass

    def recheck(self) -> None:
        """Something may have changed: look at addresses and servers anew."""
        self.machine.new_server(self._env.now())
        self._kick.set()

    def observed(self) -> None:
        """Peers see us elsewhere than before."""
        self._kick.set()

    def state_of(self, addr: Addr) -> Reach | None:
        """What is known of one address; None if it is not checked."""
        return self.machine.state_of(addr)

    def network_changed(self) -> None:
        """What was seen was seen on another network."""
        self._networks += 1
        self._client.nonces.clear()
        self.machine.network_changed(self._env.now())
        self._tell()
        self._kick.set()

    def report(self) -> ReachabilityReport:
        """Whether others can dial us."""
        rows = self.machine.report()
        checked = [row.checked_s for row in rows if row.checked_s is not None]
        forced = self._forced is not None
        return ReachabilityReport(
            state=self.state,
            why="the configuration says so" if forced else self.machine.why(),
            forced=forced,
            addrs=rows,
            symmetric=self._observations.symmetric(),
            servers=sum(1 for peer in self._fabric.peers() if self._serves(peer)),
            checked_s=max(checked, default=None),
        )

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        return {
            **self._counters,
            **self._client.counters,
            **self._server.counters,
            **self._dialbacks.counters,
        }

    # --- checking ---

    def _refresh(self) -> None:
        """Tell the machine our addresses as they are now."""
        found: dict[Addr, CandidateSource] = {}
        sources: tuple[tuple[CandidateSource, list[Addr]], ...] = (
            ("interface", list(self._fabric.own_addrs("interface"))),
            ("mapped", list(self._fabric.own_addrs("mapped"))),
            ("observed", self._observations.confirmed()),
        )
        for source, addrs in sources:
            for addr in addrs:
                if self._is_public(addr) and tcp_addr_untrusted(addr) is not None:
                    found.setdefault(addr, source)
        self.machine.set_candidates(found, self._env.now())
        self.machine.symmetric = self._observations.symmetric()
        self._tell()

    async def _round(self, addr: Addr) -> None:
        servers = self._servers(addr)
        if not servers:
            self.machine.no_server(addr)
            return
        network, reached, failed = self._networks, 0, 0
        for server in servers[: self._config.reach.servers_max]:
            self._asked_s[server] = self._env.now()
            answer = await self._client.ask(server, addr, helped=self._rpc.is_member(server))
            if network != self._networks:
                return  # what came of it says nothing of where we are now
            reached += answer is Answer.REACHED
            if answer is Answer.FAILED:
                failed += 1
                self.machine.failed(addr)
                self._tell()
            state = self.machine.state_of(addr)
            if state is None:
                return  # it is ours no more
            if (state is Reach.PUBLIC and reached) or (state is Reach.PRIVATE and failed):
                break
        self.machine.round_over(addr, self._env.now(), reached=reached, failed=failed)
        self._tell()

    def _servers(self, addr: Addr) -> list[PeerId]:
        """Whom to ask of `addr`, the best first."""
        connected = self._fabric.peers()
        self._asked_s = {p: at for p, at in self._asked_s.items() if p in connected}
        found = [
            peer
            for peer, info in connected.items()
            if info.path == "direct" and self._can_tell(info.addr, addr) and self._serves(peer)
        ]
        return sorted(
            found,
            key=lambda p: (not self._rpc.is_member(p), self._asked_s.get(p, -math.inf), p),
        )

    def _serves(self, peer: PeerId) -> bool:
        return DIAL_REQUEST in self._fabric.protocols(peer)

    def _can_tell(self, theirs: Addr, ours: Addr) -> bool:
        """Whether somebody at `theirs` sees us as strangers do."""
        there, here = ip_of(theirs), ip_of(ours)
        return (
            there is not None
            and here is not None
            and not is_relayed(theirs)
            and self._is_public(theirs)
            and prefix_of(there) != prefix_of(here)
        )

    def _is_public(self, addr: Addr) -> bool:
        return ip_of(addr) is not None and reach_of(addr, self._config) == REACH_EVERYBODY

    # --- what is seen ---

    def _proved(self, proof: Proof) -> None:
        self.machine.reached(proof.addr, proof.host, self._env.now(), strong=proof.strong)
        self._counters["reach_proofs" if proof.strong else "reach_nonces"] += 1
        self._tell()

    def _accepted(self, connection: Connection) -> None:
        """Somebody connected: a proof, if nobody could have expected it."""
        theirs = ip_of(connection.addr)
        ours = connection.local_ip
        if not connection.unasked or theirs is None:
            return
        for addr in self._fabric.own_addrs("interface"):
            ip = ip_of(addr)
            # A transport that does not tell its addresses has no choice of several.
            if ip is None or ip.version != theirs.version or ours not in (None, ip):
                continue
            if self._is_public(addr) and self._can_tell(connection.addr, addr):
                self._refresh()
                self._counters["reach_unasked"] += 1
                self.machine.reached(addr, host_of(theirs), self._env.now(), strong=True)
                self._tell()
                return

    async def _pass_on(
        self, client: PeerId, addr: Addr, nonce: int, avoided: frozenset[bytes]
    ) -> None:
        if self._rpc.is_member(client):
            await self._dialbacks.pass_on(client, addr, nonce, avoided)

    def _tell(self) -> None:
        state = self.state
        if state is self._told:
            return
        self._told = state
        serving = state is Reach.PUBLIC and self._config.reach.serve
        self._server.serving = self._dialbacks.serving = serving
        log.info("reachability", extra={"f": {"state": state.value, "why": self.report().why}})
        self.on_change(state)
