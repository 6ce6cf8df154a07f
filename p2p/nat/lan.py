"""Finding peers on the local network: the state machine of one interface, and who was heard.

Theory of operation. Every node asks the link by multicast DNS who offers Covey's service, and
answers such questions with its peer id and its addresses on that link. The form is libp2p's (a PTR
record that names an instance, a TXT record with `dnsaddr=` strings), under a service name made of
the network's name, so that nodes of other networks and public libp2p nodes are not met.

Timers: questions go out at 0, 1, 3, 7 s and so on, doubling to an hour, because most nodes are
there already and newcomers ask by themselves; an answer waits 20-120 ms, so that many who answer
one question do not do it at once, and goes out at most once a second, so that a flood of questions
is no amplifier. Own questions come back from the kernel and are answered too: others hear of us
that way.

Nothing heard is believed: it is a hint where to dial, and the handshake proves who answers. Still a
hostile machine on the link may try to make us dial elsewhere, to fill our book, to keep us busy or
to crash us. So a datagram counts only if its sender is on the link, an address only if it lies in a
network of the interface it came by, strangers are learned at 16 a minute (peers we look for are not
among these), a known peer's news are limited too, and datagrams over a rate are dropped unread.
Source: RFC 6762; libp2p specs discovery/mdns.md; docs/specs/lan.md.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p.errors import DecodeError
from p2p.identity import peer_text
from p2p.limits import ADDRS_MAX
from p2p.nat.mdns import (
    AAAA,
    ANY,
    PTR,
    SRV,
    TXT,
    A,
    DnsMessage,
    HostAddress,
    Name,
    Ptr,
    Question,
    Record,
    Srv,
    Txt,
    decode_dns_untrusted,
    encode_dns,
    name_of,
)
from p2p.wire.multiaddr import TcpAddr, scope_of, split_peer_untrusted, tcp_addr_untrusted

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from p2p.identity import PeerId
    from p2p.net.interfaces import IpInterface
    from p2p.wire.multiaddr import IpAddress

MDNS_PORT: Final = 5353
TTL_S: Final = 120
"""How long others may keep an answer. Source: RFC 6762 s.10, for records that name a host."""
QUERY_GAP_MAX_S: Final = 3600.0
"""Longest time between two questions. Source: RFC 6762 s.5.2."""
ANSWER_DELAY_S: Final = (0.02, 0.12)
"""An answer waits so long, drawn anew. Source: RFC 6762 s.6."""
ANSWER_GAP_S: Final = 1.0
"""Least time between two answers on an interface. Source: RFC 6762 s.6."""
NAME_CHARACTERS: Final = 32
"""Length of the instance's random name. Source: libp2p specs discovery/mdns.md, 32 to 63."""
ADDRS_SENT_MAX: Final = 10
"""Addresses in an answer: with up to 120 bytes each it stays below a link's 1,500."""
STRINGS_READ_MAX: Final = 16
"""`dnsaddr=` strings read of a message: an honest one tells of one peer and has at most ten. Each
takes 70 to 140 us, in which nobody else is served."""
NEW_PEERS_PER_MIN: Final = 16
"""Strangers learned a minute, in all: an office starting work at nine, spread over minutes."""
NEWS_PER_MIN: Final = 8
"""News of one known peer passed on a minute: address changes, and an hourly reminder."""
RETELL_S: Final = 60.0
"""What is heard again after this is passed on again: the book may have lost it meanwhile."""
NEIGHBOURS_MAX: Final = 256
"""Peers remembered as heard. Guess: more than an office has."""
HEARD_S: Final = 2 * QUERY_GAP_MAX_S + 60.0
"""A peer unheard for longer is no neighbour: it missed two of our questions."""
DATAGRAMS_PER_S: Final = 50.0
"""Datagrams read a second on an interface; one of 9,000 bytes costs up to 2 ms."""
DATAGRAMS_BURST: Final = 200.0
PORT_MIN: Final = 1024
"""Services of the system live below; no node does."""

_DNSADDR: Final = b"dnsaddr="


def service_of(network: str) -> Name:
    """The service's name: nodes of other networks have another."""
    digest = hashlib.sha256(b"covey/" + network.encode("utf-8")).digest()
    return name_of(f"_p2p-{digest[:8].hex()}._udp.local")


class TokenBucket:
    """So many at once, and so many a second on average.

    Args:
        per_s: refill.
        burst: content when full; it starts full.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._level = burst
        self._at_s: float | None = None

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        if self._at_s is not None:
            refill = (now - self._at_s) * self._per_s
            self._level = min(self._burst, self._level + refill)
        self._at_s = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


@dataclass(frozen=True)
class Found:
    """A peer said where it is; the handshake will prove it."""

    peer: PeerId
    addrs: tuple[str, ...]
    """Addresses in a network of ours, without `/p2p/...`."""


@dataclass
class Neighbour:
    """A peer heard on the link."""

    peer: PeerId
    addrs: dict[str, None] = field(default_factory=dict)
    """In the order in which they were first heard."""
    heard_s: float = 0.0
    told_s: float = -RETELL_S
    news: TokenBucket = field(default_factory=lambda: TokenBucket(NEWS_PER_MIN / 60, NEWS_PER_MIN))


class Neighbours:
    """Who was heard on all interfaces, and what of it is worth passing on.

    Args:
        us: our peer id, never a neighbour.
        wanted: whether we look for a peer; such peers are not counted among the strangers.
    """

    def __init__(self, us: PeerId, wanted: Callable[[PeerId], bool] = lambda _: False) -> None:
        self.us = us
        self.wanted = wanted
        self.counters: Counter[str] = Counter()
        self._known: dict[PeerId, Neighbour] = {}
        self._strangers = TokenBucket(NEW_PEERS_PER_MIN / 60, NEW_PEERS_PER_MIN)

    def heard(self, peer: PeerId, addrs: Sequence[str], now: float) -> Found | None:
        """A peer's announcement; what to pass on, None if that is nothing new or too much."""
        known = self._known.get(peer)
        if known is None:
            if not self.wanted(peer) and not self._strangers.take(now):
                self.counters["lan_strangers_dropped"] += 1
                return None
            known = self._known[peer] = Neighbour(peer)
            self._make_room()
        known.heard_s = now
        fresh = [addr for addr in addrs if addr not in known.addrs]
        if not fresh and now - known.told_s < RETELL_S:
            return None
        if not known.news.take(now):
            self.counters["lan_news_dropped"] += 1
            return None
        self.counters["lan_found"] += 1
        known.told_s = now
        known.addrs.update(dict.fromkeys(fresh))
        while len(known.addrs) > ADDRS_MAX:
            del known.addrs[next(iter(known.addrs))]
        return Found(peer, tuple(addrs))

    def left(self, peer: PeerId) -> None:
        """A peer said goodbye, or somebody in its name: its addresses stay in the book."""
        self._known.pop(peer, None)

    def forget(self) -> None:
        """The network changed: whoever is heard again is news."""
        self._known.clear()

    def now(self, now: float) -> list[Neighbour]:
        """Peers heard lately, the latest first."""
        live = [one for one in self._known.values() if now - one.heard_s < HEARD_S]
        return sorted(live, key=lambda one: -one.heard_s)

    def _make_room(self) -> None:
        while len(self._known) > NEIGHBOURS_MAX:
            strangers = [peer for peer in self._known if not self.wanted(peer)]
            oldest = min(strangers or self._known, key=lambda peer: self._known[peer].heard_s)
            del self._known[oldest]


def addrs_on_link(listening: Sequence[str], networks: Sequence[IpInterface]) -> list[str]:
    """At which addresses of an interface our doors are found; none for doors elsewhere.

    Args:
        listening: what we are bound to; an unspecified address stands for each of the interface.
        networks: the interface's addresses.
    """
    found: dict[str, None] = {}
    for text in listening:
        tcp = tcp_addr_untrusted(text)
        if tcp is None or tcp.ip is None:
            continue
        for network in networks:
            ip = network.ip
            # A multiaddr cannot name the interface that an IPv6 address of the link needs.
            if ip.version != tcp.ip.version or (ip.version == 6 and ip.is_link_local):
                continue
            if tcp.ip.is_unspecified or tcp.ip == ip:
                found[TcpAddr(tcp.kind, str(ip), tcp.port).text] = None
    return list(found)


class LanLink:
    """The machine of one interface.

    Args:
        service: see `service_of`.
        networks: the interface's addresses with their prefixes.
        addrs: our addresses on it, as multiaddrs.
        neighbours: shared by all interfaces.
        rng: names us, and draws delays.
        now: monotonic seconds.
        discovery: whether to ask, and to pass on what is heard.
        announce: whether to answer.
    """

    def __init__(
        self,
        service: Name,
        networks: Sequence[IpInterface],
        addrs: Sequence[str],
        neighbours: Neighbours,
        rng: random.Random,
        now: float,
        *,
        discovery: bool = True,
        announce: bool = True,
    ) -> None:
        self.counters: Counter[str] = neighbours.counters
        self._service = service
        self._networks = tuple(networks)
        self._addrs = tuple(addrs)[:ADDRS_SENT_MAX]
        self._neighbours = neighbours
        self._rng = rng
        self._discovery = discovery
        self._announce = announce and bool(self._addrs)
        label = f"{rng.getrandbits(NAME_CHARACTERS * 4):0{NAME_CHARACTERS}x}".encode()
        self._instance: Name = (label, *service)
        self._host: Name = (label, b"local")
        self._datagrams = TokenBucket(DATAGRAMS_PER_S, DATAGRAMS_BURST)
        self._query_at_s: float | None = now if discovery else None
        self._query_gap_s = 1.0
        self._answer_at_s: float | None = None
        self._answered_s = now - ANSWER_GAP_S
        self._asked: set[int] = set()
        self._out: list[bytes] = []

    # --- what comes in ---

    def receive(self, data: bytes, source: IpAddress, port: int, now: float) -> list[Found]:
        """Take a datagram.

        Args:
            data: its bytes.
            source: the sender's address.
            port: the sender's port.
            now: monotonic seconds.

        Returns:
            What it told that is worth passing on.
        """
        if not any(source in network.network for network in self._networks):
            self.counters["lan_off_link"] += 1
            return []
        if not self._datagrams.take(now):
            self.counters["lan_flooded"] += 1
            return []
        # Most of what passes is about printers. A label is written out where it stands first, so a
        # message without that of our service or of our host is not about us.
        if self._service[0] not in data.lower() and self._instance[0] not in data.lower():
            return []
        try:
            message = decode_dns_untrusted(data)
        except DecodeError:
            self.counters["lan_malformed"] += 1
            return []
        if message.is_response:
            return self._heard(message, port, now)
        self._take_questions(message.questions, now)
        return []

    def _heard(self, message: DnsMessage, port: int, now: float) -> list[Found]:
        if port != MDNS_PORT or not self._discovery:
            self.counters["lan_wrong_port"] += port != MDNS_PORT
            return []
        told: dict[PeerId, list[str]] = {}
        strings = 0
        for record in message.records:
            if not isinstance(record, Txt) or record.name[1:] != self._service:
                continue
            for string in record.strings:
                if not string.startswith(_DNSADDR):
                    continue
                strings += 1
                if strings > STRINGS_READ_MAX:
                    break
                self._read_addr(string[len(_DNSADDR) :], record.ttl_s, told)
        found = (self._neighbours.heard(peer, addrs, now) for peer, addrs in told.items() if addrs)
        return [one for one in found if one is not None]

    def _read_addr(self, text: bytes, ttl_s: int, told: dict[PeerId, list[str]]) -> None:
        try:
            addr, peer = split_peer_untrusted(text.decode("ascii", "replace"))
            tcp = tcp_addr_untrusted(addr)
        except DecodeError:
            self.counters["lan_malformed"] += 1
            return
        if peer is None or peer == self._neighbours.us:
            return
        if ttl_s == 0:
            self._neighbours.left(peer)
        elif tcp is None or tcp.ip is None or not self._is_near(tcp.ip) or tcp.port < PORT_MIN:
            self.counters["lan_foreign_address"] += 1
        else:
            told.setdefault(peer, []).append(addr)

    def _is_near(self, ip: IpAddress) -> bool:
        near = any(ip in network.network for network in self._networks)
        return near and scope_of(ip) != "never"

    def _take_questions(self, questions: Sequence[Question], now: float) -> None:
        if not self._announce:
            return
        asked = {kind for question in questions for kind in self._answers_to(question)}
        if not asked:
            return
        self._asked |= asked
        if self._answer_at_s is None:
            soon = now + self._rng.uniform(*ANSWER_DELAY_S)
            self._answer_at_s = max(soon, self._answered_s + ANSWER_GAP_S)

    def _answers_to(self, question: Question) -> set[int]:
        """Kinds of records that answer a question; none if it is not about us."""
        kinds: set[int] = set()
        if question.name == self._service:
            kinds = {PTR}
        elif question.name == self._instance:
            kinds = {TXT, SRV}
        elif question.name == self._host:
            kinds = {A, AAAA}
        return kinds if question.kind == ANY else kinds & {question.kind}

    # --- what goes out ---

    def to_send(self) -> list[bytes]:
        """Datagrams for the link, each to be sent once over IPv4 and once over IPv6."""
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float | None:
        """When `on_timer` has something to do; None: not before something comes in."""
        times = [at for at in (self._query_at_s, self._answer_at_s) if at is not None]
        return min(times, default=None)

    def on_timer(self, now: float) -> None:
        """Ask or answer what is due."""
        if self._query_at_s is not None and now >= self._query_at_s:
            self._out.append(encode_dns(DnsMessage(False, (Question(self._service, PTR),))))
            self._query_at_s = now + self._query_gap_s
            self._query_gap_s = min(2 * self._query_gap_s, QUERY_GAP_MAX_S)
        if self._answer_at_s is not None and now >= self._answer_at_s:
            self._answer_at_s = None
            self._answered_s = now
            asked, self._asked = self._asked, set()
            self._out.append(encode_dns(DnsMessage(True, (), self._records(asked, TTL_S))))

    def goodbye(self) -> bytes | None:
        """What to send when we leave; None if nobody was told that we are here."""
        if not self._announce:
            return None
        return encode_dns(DnsMessage(True, (), self._records({PTR}, 0)))

    def _records(self, asked: set[int], ttl_s: int) -> tuple[Record, ...]:
        records: list[Record] = []
        if PTR in asked:
            records.append(Ptr(self._service, self._instance, ttl_s))
        if PTR in asked or TXT in asked:
            us = peer_text(self._neighbours.us)
            strings = (f"dnsaddr={addr}/p2p/{us}".encode("ascii") for addr in self._addrs)
            records.append(Txt(self._instance, tuple(strings), ttl_s))
        hosts = [tcp for tcp in map(tcp_addr_untrusted, self._addrs) if tcp is not None]
        if SRV in asked:
            records.append(Srv(self._instance, hosts[0].port, self._host, ttl_s))
        for tcp in hosts:
            ip = tcp.ip
            if ip is not None and (A if ip.version == 4 else AAAA) in asked:
                records.append(HostAddress(self._host, ip, ttl_s))
        return tuple(records)
