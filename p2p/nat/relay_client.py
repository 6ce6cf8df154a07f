"""Being reached through relays: keeps places at them, and takes the circuits they offer.

While reachability says that nobody can dial us, we keep places at two relays of different networks,
those of our own groups first. A place is a promise of the relay only: a circuit that it offers is
an inbound connection like any other and proves itself end to end.
Source: libp2p specs `relay/circuit-v2.md`; docs/specs/relay.md s.3.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import PeerError, ProtocolError, Unreachable
from p2p.identity import peer_text
from p2p.nat.relay_messages import (
    HOP,
    MESSAGE_BYTES_MAX,
    STOP,
    HopMessage,
    HopType,
    Reservation,
    Status,
    StopMessage,
    StopType,
    decode_hop_untrusted,
    decode_stop_untrusted,
    encode_hop,
    encode_stop,
)
from p2p.net.framed import FramedStream
from p2p.net.seam import PathChanged, PeerDown, PeerIdentified, PeerUp
from p2p.wire.multiaddr import ip_of, is_relayed, split_peer_untrusted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.nat.relay_config import RelayConfig
    from p2p.net.seam import Addr, Fabric, FabricEvent, PeerInfo, Stream

log = logging.getLogger("covey.p2p.relay")

_STOP_STREAMS_MAX: Final = 16
_MINUTE_S: Final = 60.0
_RESERVATION_S_MIN: Final = 60.0
"""A relay that grants less is asked once a minute, not more often."""


@dataclass(frozen=True)
class Place:
    """A reservation of ours."""

    relay: PeerId
    addrs: tuple[Addr, ...]
    """Where we are reached through it: `<relay>/p2p/R/p2p-circuit`."""
    renew_s: float
    """`env.now()` at which to renew it."""
    network: str


@dataclass(frozen=True)
class _Refusal:
    """A relay gave us no place."""

    until_s: float
    wait_s: float


def choose_relays(
    peers: Mapping[PeerId, PeerInfo],
    *,
    speaks_hop: Callable[[PeerId], bool],
    is_member: Callable[[PeerId], bool],
    taken: set[str],
) -> list[PeerId]:
    """Relays to ask, best first: own groups, then the quicker; none of a network in `taken`."""
    candidates = [
        info
        for info in peers.values()
        if info.path != "relay" and speaks_hop(info.peer) and network_of(info.addr) not in taken
    ]
    candidates.sort(key=lambda i: (not is_member(i.peer), i.rtt_s or 0.0, i.peer))
    return [info.peer for info in candidates]


def network_of(addr: Addr) -> str:
    """What fails together: an IPv4 /16 or an IPv6 /32; loopback counts by port, for tests."""
    ip = ip_of(addr)
    if ip is None or ip.is_loopback:
        return addr
    return str(ipaddress.ip_network((ip, 16 if ip.version == 4 else 32), strict=False))


def circuit_addrs(relay: PeerId, reservation: Reservation, dialled: Addr) -> tuple[Addr, ...]:
    """Our addresses through a relay. It may say bare ones or none: then the one we dialled."""
    found: list[Addr] = []
    for addr in reservation.addrs or (dialled,):
        own, named = split_peer_untrusted(addr)
        if not is_relayed(own) and named in (None, relay):
            found.append(f"{own}/p2p/{peer_text(relay)}/p2p-circuit")
    return tuple(dict.fromkeys(found)) or (f"{dialled}/p2p/{peer_text(relay)}/p2p-circuit",)


class RelayClient:
    """Keeps places at relays while `wanted`.

    Args:
        fabric: connections to relays.
        config: how many places, times.
        env: clocks.
        is_member: whether a peer shares a group with us.
        accept: takes over the raw stream of a circuit.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: RelayConfig,
        env: Env,
        *,
        is_member: Callable[[PeerId], bool],
        accept: Callable[[trio.abc.Stream, Addr], Awaitable[None]],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.places: dict[PeerId, Place] = {}
        self._fabric = fabric
        self._config = config
        self._env = env
        self._is_member = is_member
        self._accept = accept
        self._wanted = False
        self._refused: dict[PeerId, _Refusal] = {}
        self._offers: dict[PeerId, deque[float]] = {}
        self._kick = trio.Event()
        fabric.handle(STOP, self._stop, per_peer_max=_STOP_STREAMS_MAX)

    def want(self, wanted: bool) -> None:
        """Whether we need relays: reachability says that nobody can dial us."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._kick.set()

    def network_changed(self) -> None:
        """Our addresses changed: every place must be asked for anew."""
        self.places = {
            relay: Place(place.relay, place.addrs, self._env.now(), place.network)
            for relay, place in self.places.items()
        }
        self._refused.clear()
        self._kick.set()

    def notice(self, event: FabricEvent) -> None:
        """What happened to the connections."""
        match event:
            case PeerDown(peer, _):
                if self.places.pop(peer, None) is not None:
                    log.info("relay_lost", extra={"f": {"relay": peer_text(peer)}})
                    self._tell()
                self._offers.pop(peer, None)
                self._refused.pop(peer, None)
                self._kick.set()
            case PeerUp() | PeerIdentified() | PathChanged():
                self._kick.set()
            case _:
                pass

    def recheck(self) -> None:
        """Events were missed: places at relays that are gone are gone too."""
        connected = self._fabric.peers()
        self.places = {relay: p for relay, p in self.places.items() if relay in connected}
        self._kick.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep places until cancelled."""
        task_status.started()
        while True:
            self._kick = trio.Event()
            if self._wanted:
                await self._fill()
            elif self.places:
                self.places.clear()
                self._tell()
            with trio.move_on_after(self._wait_s()):
                await self._kick.wait()

    def _wait_s(self) -> float:
        now = self._env.now()
        if not self._wanted:
            return float("inf")
        times = [place.renew_s for place in self.places.values()]
        times += [r.until_s for r in self._refused.values() if r.until_s > now]
        return max(0.0, min(times) - now) if times else float("inf")

    async def _fill(self) -> None:
        now = self._env.now()
        for place in list(self.places.values()):
            if now >= place.renew_s and not await self._reserve(place.relay):
                self.places.pop(place.relay, None)
        while len(self.places) < self._config.wanted:
            candidate = self._next_candidate()
            if candidate is None:
                break
            await self._reserve(candidate)
        self._tell()

    def _next_candidate(self) -> PeerId | None:
        found = choose_relays(
            self._fabric.peers(),
            speaks_hop=lambda peer: HOP in self._fabric.protocols(peer),
            is_member=self._is_member,
            taken={place.network for place in self.places.values()},
        )
        now = self._env.now()
        resting = {peer for peer, refusal in self._refused.items() if refusal.until_s > now}
        return next((p for p in found if p not in resting and p not in self.places), None)

    async def _reserve(self, relay: PeerId) -> bool:
        """Ask a relay for a place, or to renew it; whether it was given."""
        info = self._fabric.peers().get(relay)
        if info is None:
            return False
        answer: HopMessage | None = None
        with trio.move_on_after(self._config.talk_s):
            try:
                stream = await self._fabric.open(relay, HOP, direct_only=True)
            except Unreachable:
                return False
            try:
                framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
                await framed.send(encode_hop(HopMessage(type=HopType.RESERVE)))
                answer = decode_hop_untrusted(await framed.receive())
            except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError):
                answer = None
            finally:
                stream.reset()
        reservation = None if answer is None else answer.reservation
        if answer is None or answer.status != Status.OK or reservation is None:
            self._rest(relay)
            self.counters["relay_places_refused"] += 1
            return False
        self._refused.pop(relay, None)
        left_s = reservation.expire_s - self._env.wall_ms() / 1000
        self.places[relay] = Place(
            relay,
            circuit_addrs(relay, reservation, info.addr),
            self._env.now() + max(_RESERVATION_S_MIN, left_s) / 2,
            network_of(info.addr),
        )
        self.counters["relay_places"] += 1
        log.info("relay_place", extra={"f": {"relay": peer_text(relay), "seconds": int(left_s)}})
        return True

    def _rest(self, relay: PeerId) -> None:
        """Leave a relay that refused us alone for a while; a new member's admission may be near."""
        last = self._refused.get(relay)
        wait_s = self._config.retry_min_s if last is None else last.wait_s * 2
        wait_s = min(wait_s, self._config.retry_s)
        self._refused[relay] = _Refusal(self._env.now() + wait_s, wait_s)

    def _tell(self) -> None:
        addrs = [addr for place in self.places.values() for addr in place.addrs]
        self._fabric.set_own_addrs("relay", addrs)

    # --- circuits ---

    async def _stop(self, stream: Stream) -> None:
        """A relay offers a circuit: take it, if we hold a place there."""
        relay = stream.peer
        framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
        message: StopMessage | None = None
        with trio.move_on_after(self._config.talk_s):
            message = decode_stop_untrusted(await framed.receive())
        if message is None:
            stream.reset()
            return
        if message.type is not StopType.CONNECT or message.peer is None:
            raise ProtocolError("relay: a stop message that offers nothing", relay)
        if relay not in self.places or not self._may_offer(relay):
            self.counters["relay_offers_refused"] += 1
            await framed.send(
                encode_stop(StopMessage(type=StopType.STATUS, status=Status.PERMISSION_DENIED))
            )
            return
        await framed.send(encode_stop(StopMessage(type=StopType.STATUS, status=Status.OK)))
        self.counters["relay_offers"] += 1
        circuit = framed.release()
        await self._accept(circuit, self.places[relay].addrs[0])
        await circuit.closed.wait()

    def _may_offer(self, relay: PeerId) -> bool:
        now = self._env.now()
        offers = self._offers.setdefault(relay, deque())
        while offers and now - offers[0] >= _MINUTE_S:
            offers.popleft()
        if len(offers) >= self._config.stops_per_min:
            return False
        offers.append(now)
        return True
