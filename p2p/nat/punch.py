"""Hole punching (DCUtR): from a relayed connection to a direct one.

Theory of operation
-------------------
B accepted a connection from A over a relay; both may be behind NATs. B first simply dials A's
public addresses: perhaps only B is hidden. If that fails, they punch, at most three rounds: B sends
its observed addresses and takes the time until A's answer (one round trip); B sends SYNC and waits
half of it; A dials when SYNC comes, B at that moment. Each NAT sees a packet leave for the other's
address before the other's arrives. A starts the handshake, whoever was accepted
(`p2p.net.punching`).

A success needs no word: the direct connection proves itself, takes over, and the relayed one
drains. A peer can make us dial only public addresses, at most eight, only while a relayed
connection to it lives, and at most three rounds in ten minutes: no weapon against a third.
Source: libp2p specs `relay/DCUtR.md`; docs/specs/punch.md.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p.errors import DecodeError, PeerError, ProtocolError, TransientError
from p2p.identity import peer_text
from p2p.nat.punch_messages import (
    DCUTR,
    MESSAGE_BYTES_MAX,
    PUNCH_ADDRS_MAX,
    PunchMessage,
    PunchType,
    decode_punch_untrusted,
    encode_punch,
)
from p2p.net.framed import FramedStream
from p2p.net.seam import Fabric, PathChanged, PeerDown, PeerIdentified
from p2p.wire.multiaddr import is_relayed, parse_addr_untrusted, split_peer_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.nat.punch_config import PunchConfig
    from p2p.net.seam import Addr, FabricEvent, Stream

log = logging.getLogger("covey.p2p.punch")

_STREAMS_PER_PEER_MAX: Final = 2
_PORT_MIN: Final = 1024
"""Services of the system live below; no node does."""
_PEERS_REMEMBERED_MAX: Final = 4096
"""Peers whose rounds are counted: as many as the gate remembers."""


def may_aim_at(addr: Addr, is_public: Callable[[Addr], bool]) -> bool:
    """Whether a punch may be aimed at `addr` on a peer's word: a public TCP port of no service."""
    ports = [int(value) for name, value in parse_addr_untrusted(addr) if name == "tcp"]
    return bool(ports) and min(ports) >= _PORT_MIN and not is_relayed(addr) and is_public(addr)


class PunchingFabric(Fabric, Protocol):
    """A fabric that can dial beside a connection it has."""

    def known_addrs(self, peer: PeerId) -> list[Addr]:
        """Remembered addresses, best first."""
        ...

    async def dial_direct(self, peer: PeerId, addrs: Sequence[Addr]) -> bool:
        """Dial beside a relayed connection; whether there is a direct one now."""
        ...

    async def punch(
        self, peer: PeerId, addrs: Sequence[Addr], *, initiator: bool, limit_s: float
    ) -> bool:
        """Dial while the peer dials us; whether the two met."""
        ...


class Puncher:
    """Turns relayed connections into direct ones.

    Args:
        fabric: has the relayed connections, and dials.
        config: how often, how long.
        env: clocks.
        ours: where others see us, to tell; the most certain first.
        is_public: whether an address can be aimed at.
    """

    def __init__(
        self,
        fabric: PunchingFabric,
        config: PunchConfig,
        env: Env,
        *,
        ours: Callable[[], list[Addr]],
        is_public: Callable[[Addr], bool],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._fabric = fabric
        self._config = config
        self._env = env
        self._ours = ours
        self._is_public = is_public
        self._rounds: dict[PeerId, deque[float]] = {}
        self._busy: set[PeerId] = set()
        self._resting: dict[PeerId, float] = {}
        self._kick = trio.Event()
        self._nursery: trio.Nursery | None = None
        fabric.handle(DCUTR, self._answer, per_peer_max=_STREAMS_PER_PEER_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Punch for as long as it is not cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                while True:
                    self._kick = trio.Event()
                    wake_s = min(self._resting.values(), default=math.inf)
                    with trio.move_on_after(max(0.0, wake_s - self._env.now())):
                        await self._kick.wait()
                    self._wake_rested()
            finally:
                self._nursery = None

    def notice(self, event: FabricEvent) -> None:
        """A relayed connection is ready, or what its peer serves is known, or it is over."""
        match event:
            case PeerIdentified(peer) | PathChanged(peer):
                self._consider(peer)
            case PeerDown(peer):
                self._resting.pop(peer, None)
            case _:
                pass

    def network_changed(self) -> None:
        """Our addresses changed: what failed may work now."""
        self._rounds.clear()
        self._resting.clear()
        for peer in self._fabric.peers():
            self._consider(peer)

    def _wake_rested(self) -> None:
        now = self._env.now()
        rested = [peer for peer, until_s in self._resting.items() if until_s <= now]
        for peer in rested:
            del self._resting[peer]
            self._consider(peer)

    def _consider(self, peer: PeerId) -> None:
        """Begin to upgrade `peer` if it reached us over a relay."""
        info = self._fabric.peers().get(peer)
        wanted = (
            self._config.enabled
            and self._nursery is not None
            and peer not in self._busy
            and peer not in self._resting
            and info is not None
            and info.path == "relay"
            and info.inbound  # the acceptor leads; the other side answers
            and DCUTR in self._fabric.protocols(peer)
            and self._rounds_left(peer) > 0
        )
        if wanted and self._nursery is not None:
            self._busy.add(peer)
            self._nursery.start_soon(self._upgrade, peer)

    # --- B: leads ---

    async def _upgrade(self, peer: PeerId) -> None:
        try:
            if await self._dial_plainly(peer):
                self._met(peer, "dialled")
                return
            while self._rounds_left(peer) > 0 and self._relayed(peer):
                if await self._lead_round(peer):
                    self._met(peer, "punched")
                    return
        finally:
            self._busy.discard(peer)
        if self._relayed(peer):
            self.counters["punch_failed"] += 1
            log.info("punch_failed", extra={"f": {"peer": peer_text(peer)}})
            self._resting[peer] = self._env.now() + self._config.retry_s
            self._kick.set()

    async def _dial_plainly(self, peer: PeerId) -> bool:
        addrs = self._aims(self._fabric.known_addrs(peer))
        met = False
        with trio.move_on_after(self._config.dial_s):
            met = await self._fabric.dial_direct(peer, addrs)
        return met or not self._relayed(peer)

    async def _lead_round(self, peer: PeerId) -> bool:
        """One round as B; whether the two met."""
        self._count_round(peer)
        stream = None
        theirs: list[Addr] = []
        rtt_s = 0.0
        try:
            with trio.fail_after(self._config.talk_s):
                stream = await self._fabric.open(peer, DCUTR)
                framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
                began_s = self._env.now()
                await framed.send(encode_punch(PunchMessage(PunchType.CONNECT, self._told())))
                answer = decode_punch_untrusted(await framed.receive())
                rtt_s = self._env.now() - began_s
                theirs = self._aims(answer.addrs)
                if answer.type is not PunchType.CONNECT or not theirs:
                    return False
                await framed.send(encode_punch(PunchMessage(PunchType.SYNC)))
            await trio.sleep(rtt_s / 2)
            return await self._fabric.punch(
                peer, theirs, initiator=False, limit_s=self._config.round_s
            )
        except (
            PeerError,
            TransientError,
            trio.TooSlowError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ) as error:
            log.debug("punch_round", extra={"f": {"why": str(error)}})
            await trio.sleep(self._config.round_s)
            return False
        finally:
            if stream is not None:
                stream.reset()

    # --- A: answers ---

    async def _answer(self, stream: Stream) -> None:
        """Serve one round as A."""
        peer = stream.peer
        if stream.path != "relay" or not self._config.enabled:
            raise ProtocolError("hole punching outside of a relayed connection", peer)
        if self._rounds_left(peer) <= 0:
            self.counters["punch_refused"] += 1
            stream.reset()
            return
        self._count_round(peer)
        framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
        theirs: list[Addr] = []
        with trio.move_on_after(self._config.talk_s) as talk:
            first = decode_punch_untrusted(await framed.receive())
            if first.type is not PunchType.CONNECT:
                raise ProtocolError("hole punching begins with CONNECT", peer)
            theirs = self._aims(first.addrs)
            await framed.send(encode_punch(PunchMessage(PunchType.CONNECT, self._told())))
            second = decode_punch_untrusted(await framed.receive())
            if second.type is not PunchType.SYNC:
                raise ProtocolError("hole punching goes on with SYNC", peer)
        if talk.cancelled_caught or not theirs:
            return
        if await self._fabric.punch(peer, theirs, initiator=True, limit_s=self._config.round_s):
            self._met(peer, "punched")

    # --- both ---

    def _told(self) -> tuple[Addr, ...]:
        return tuple(self._aims(self._ours()))

    def _aims(self, addrs: Iterable[Addr]) -> list[Addr]:
        """Of what somebody said, the public TCP addresses that we may dial."""
        found: list[Addr] = []
        for text in addrs:
            try:
                addr, _ = split_peer_untrusted(text)
            except DecodeError:
                continue
            if may_aim_at(addr, self._is_public):
                found.append(addr)
        return list(dict.fromkeys(found))[:PUNCH_ADDRS_MAX]

    def _relayed(self, peer: PeerId) -> bool:
        info = self._fabric.peers().get(peer)
        return info is not None and info.path == "relay"

    def _rounds_left(self, peer: PeerId) -> int:
        now = self._env.now()
        rounds = self._rounds.get(peer)
        if rounds is None:
            return self._config.rounds_max
        while rounds and now - rounds[0] >= self._config.window_s:
            rounds.popleft()
        return self._config.rounds_max - len(rounds)

    def _count_round(self, peer: PeerId) -> None:
        self.counters["punch_rounds"] += 1
        self._rounds.setdefault(peer, deque()).append(self._env.now())
        if len(self._rounds) > _PEERS_REMEMBERED_MAX:
            del self._rounds[next(iter(self._rounds))]

    def _met(self, peer: PeerId, how: str) -> None:
        self.counters[f"punch_{how}"] += 1
        log.info("punched", extra={"f": {"peer": peer_text(peer), "how": how}})
