"""Keeps a port of the gateway forwarded to us, for as long as we listen behind one.

One task does everything in turn: find the gateway, give each lease (`p2p.nat.portmap.PortLease`)
its work, wait. NAT-PMP is tried first, because it is two datagrams; UPnP takes seconds to find out.
A stop deletes what is held, within a second. Source: docs/specs/portmap.md s.4.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p.errors import Unreachable
from p2p.nat.gateway import Gateway, default_gateway
from p2p.nat.natpmp_client import NatPmpClient
from p2p.nat.portmap import PortLease, Work
from p2p.nat.upnp_client import UpnpClient
from p2p.wire.multiaddr import scope_of, tcp_addr_untrusted

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Awaitable, Callable, Sequence

    from p2p.env import Env
    from p2p.nat.natpmp import AddressReply
    from p2p.nat.portmap import Grant, Kind
    from p2p.nat.portmap_config import MapConfig
    from p2p.net.seam import Addr

log = logging.getLogger("covey.p2p.portmap")

PORTS_MAX: Final = 4
"""Ports mapped; a node listens at one, unless it was told more."""
STOP_S: Final = 1.0
"""Time to delete what is held when we stop."""
LOOK_S: Final = 60.0
"""The gateway is looked for again after this when there was none: a change of network is told."""


@dataclass(frozen=True, kw_only=True)
class MappingReport:
    """One port and what came of it; what `covey doctor net` shows."""

    internal_port: int
    state: str
    kind: str
    """`nat-pmp` or `upnp`; empty while nothing is held."""
    external: Addr
    """Where the gateway says that it is forwarded from; empty while nothing is held."""
    double_nat: bool
    """Whether another NAT is behind the gateway, so that nobody outside reaches that address."""
    problem: str
    """What is wrong; empty when all is well."""
    remedy: str
    """What to do about it."""


class NatPmp(Protocol):
    """What is asked of a gateway by NAT-PMP; each raises Unreachable."""

    async def map(self, internal_port: int, external_port: int, lifetime_s: float) -> Grant:
        """Have a TCP port forwarded to us."""
        ...

    async def external_address(self) -> AddressReply:
        """The gateway's external address and clock."""
        ...

    async def unmap(self, internal_port: int) -> None:
        """End the mapping of a port."""


class Upnp(Protocol):
    """What is asked of a gateway by UPnP; each raises Unreachable."""

    async def map(self, internal_port: int, external_port: int, lifetime_s: float) -> Grant:
        """Have a TCP port forwarded to us."""
        ...

    async def external_address(self) -> ipaddress.IPv4Address | None:
        """The gateway's external address."""
        ...

    async def forwards(self, internal_port: int, external_port: int) -> bool:
        """Whether the mapping is still there and still ours."""
        ...

    async def unmap(self, external_port: int) -> None:
        """End a mapping."""


class PortMapper:
    """Maps the ports we listen at.

    Args:
        config: whether, and for how long at a time.
        env: clock and random numbers.
        listening: addresses we are bound to, asked anew at each change.
        mapped: told the addresses outside whenever they change; empty when there are none.
        is_public: whether an address may be dialled from everywhere.
        gateway: finds the default gateway.
        natpmp: makes a client for one.
        upnp: makes a client for one.
    """

    def __init__(
        self,
        config: MapConfig,
        env: Env,
        *,
        listening: Callable[[], Sequence[Addr]],
        mapped: Callable[[Sequence[Addr]], None],
        is_public: Callable[[ipaddress.IPv4Address], bool] = lambda ip: scope_of(ip) == "public",
        gateway: Callable[[], Awaitable[Gateway | None]] = default_gateway,
        natpmp: Callable[[Gateway], NatPmp] = NatPmpClient,
        upnp: Callable[[Gateway], Upnp] | None = None,
    ) -> None:
        self._config = config
        self._env = env
        self._listening = listening
        self._mapped = mapped
        self._is_public = is_public
        self._find_gateway = gateway
        self._make_natpmp = natpmp
        self._make_upnp = upnp or (lambda found: UpnpClient(found, env.rng))
        self._leases: dict[int, PortLease] = {}
        self._gateway: Gateway | None = None
        self._natpmp: NatPmp | None = None
        self._upnp: Upnp | None = None
        self._told: tuple[Addr, ...] = ()
        self._note = "not looked for yet"
        self._changed = trio.Event()
        self._paused = False

    def refresh(self) -> None:
        """The network changed, or we slept: look at everything now. Never blocks."""
        self._changed.set()

    def pause(self) -> None:
        """Have nothing forwarded until `resume`."""
        self._paused = True
        self.refresh()

    def resume(self) -> None:
        """End `pause`."""
        self._paused = False
        self.refresh()

    @property
    def gateway(self) -> Gateway | None:
        """The gateway we ask, if there is one."""
        return self._gateway

    @property
    def note(self) -> str:
        """Why nothing is asked for at all; empty when something is."""
        return self._note

    def report(self) -> tuple[MappingReport, ...]:
        """What came of each port."""
        return tuple(self._report_of(lease) for lease in self._leases.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Map until cancelled; then delete what is held."""
        task_status.started()
        if not self._config.enabled:
            self._note = "switched off: [p2p.mapping] enabled = false"
            return
        try:
            while True:
                self._changed = trio.Event()
                await self._settle()
                while await self._work_once():
                    self._tell()
                self._tell()
                with trio.move_on_after(self._wait_s()):
                    await self._changed.wait()
                now = self._env.now()
                for lease in self._leases.values():
                    if self._changed.is_set():
                        lease.look_now(now)
                    lease.on_timer(now)
        finally:
            with trio.move_on_after(STOP_S, shield=True):
                await self._release_all()

    # --- what to map ---

    async def _settle(self) -> None:
        """Bring the leases in line with the gateway there is and the ports we listen at."""
        gateway = None if self._paused else await self._find_gateway()
        ports = [] if gateway is None else self._ports_behind(gateway)
        self._note = ""
        if self._paused:
            self._note = "paused: working offline"
        elif gateway is None:
            self._note = "no IPv4 gateway: nothing to ask"
        elif scope_of(gateway.own) == "public":
            ports, self._note = [], f"{gateway.own} is public: no port has to be mapped"
        elif not ports:
            self._note = f"we do not listen at {gateway.own}"
        if gateway != self._gateway:
            if self._paused or gateway is None or self._gateway is None:
                await self._release_all()
            self._leases.clear()
            self._gateway = gateway
            self._natpmp = None if gateway is None else self._make_natpmp(gateway)
            self._upnp = None if gateway is None else self._make_upnp(gateway)
        for port in [port for port in self._leases if port not in ports]:
            await self._release(self._leases.pop(port))
        for port in ports:
            if port not in self._leases:
                lease = PortLease(
                    port, self._config.lease_s, self._env.rng, is_public=self._is_public
                )
                lease.want()
                self._leases[port] = lease

    def _ports_behind(self, gateway: Gateway) -> list[int]:
        """Ports at which the gateway's network reaches us."""
        ports: dict[int, None] = {}
        for text in self._listening():
            tcp = tcp_addr_untrusted(text)
            if tcp is None or tcp.ip is None or tcp.ip.version != 4:
                continue
            if tcp.ip.is_unspecified or tcp.ip == gateway.own:
                ports[tcp.port] = None
        return list(ports)[:PORTS_MAX]

    # --- work ---

    async def _work_once(self) -> bool:
        """Do the work of one lease that has some; whether there was any. Ends at a change."""
        for lease in self._leases.values():
            match lease.work:
                case Work.MAP:
                    await self._map(lease)
                    return True
                case Work.CHECK:
                    await self._check(lease)
                    return True
                case None:
                    continue
        return False

    async def _map(self, lease: PortLease) -> None:
        held = lease.lease
        wanted = lease.internal_port if held is None else held.external_port
        kinds: tuple[Kind, ...] = ("nat-pmp", "upnp")
        if held is not None and held.kind == "upnp":
            kinds = ("upnp", "nat-pmp")
        problems: list[str] = []
        for kind in kinds:
            try:
                grant = await self._ask(kind, lease.internal_port, wanted)
            except Unreachable as error:
                problems.append(str(error))
            else:
                lease.granted(grant, self._env.now())
                if lease.candidate is not None:
                    log.info("port_mapped", extra={"f": {"kind": kind, "addr": lease.candidate}})
                return
        lease.refused("; ".join(problems), self._env.now())
        log.info("port_not_mapped", extra={"f": {"why": lease.problem}})

    async def _ask(self, kind: Kind, internal_port: int, external_port: int) -> Grant:
        client = self._natpmp if kind == "nat-pmp" else self._upnp
        assert client is not None
        return await client.map(internal_port, external_port, self._config.lease_s)

    async def _check(self, lease: PortLease) -> None:
        held = lease.lease
        assert held is not None
        assert self._natpmp is not None
        assert self._upnp is not None
        try:
            if held.kind == "nat-pmp":
                told = await self._natpmp.external_address()
                lease.checked(told.usable, self._env.now(), epoch_s=told.epoch_s)
            else:
                address = await self._upnp.external_address()
                forwards = await self._upnp.forwards(held.internal_port, held.external_port)
                lease.checked(address, self._env.now(), forwards=forwards)
        except Unreachable as error:
            lease.refused(str(error), self._env.now())

    async def _release_all(self) -> None:
        """Delete what is held, all at once."""
        leases, self._leases = list(self._leases.values()), {}
        self._tell()
        async with trio.open_nursery() as nursery:
            for lease in leases:
                nursery.start_soon(self._release, lease)

    async def _release(self, lease: PortLease) -> None:
        held = lease.lease
        lease.drop()
        if held is None or self._natpmp is None or self._upnp is None:
            return
        try:
            if held.kind == "nat-pmp":
                await self._natpmp.unmap(held.internal_port)
            else:
                await self._upnp.unmap(held.external_port)
        except Unreachable as error:
            # It ends by itself when its time is over.
            log.info("port_not_released", extra={"f": {"why": str(error)}})

    # --- telling and waiting ---

    def _tell(self) -> None:
        found = (lease.candidate for lease in self._leases.values())
        addrs = tuple(addr for addr in found if addr is not None)
        if addrs != self._told:
            self._told = addrs
            self._mapped(addrs)

    def _wait_s(self) -> float:
        timers = [lease.next_timer() for lease in self._leases.values()]
        times = [at_s for at_s in timers if at_s is not None]
        if not times:
            return LOOK_S
        return max(0.0, min(times) - self._env.now())

    def _report_of(self, lease: PortLease) -> MappingReport:
        held = lease.lease
        return MappingReport(
            internal_port=lease.internal_port,
            state=lease.state.value,
            kind="" if held is None else held.kind,
            external="" if held is None else held.addr or "",
            double_nat=lease.double_nat,
            problem=lease.problem,
            remedy=self._remedy_for(lease),
        )

    def _remedy_for(self, lease: PortLease) -> str:
        if not lease.problem:
            return ""
        if lease.double_nat:
            return (
                "Put the inner router into bridge mode, or ask the provider for a public address;"
                " peers outside reach you by hole punching and relays meanwhile."
            )
        if lease.lease is not None:
            return "The mapping holds until its time is over; it is tried again."
        own = self._gateway.own if self._gateway is not None else "this machine"
        return (
            "Switch on NAT-PMP or UPnP in the router's settings, or forward TCP port"
            f" {lease.internal_port} to {own} there; peers outside reach you by hole punching and"
            " relays meanwhile."
        )
