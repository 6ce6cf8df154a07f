"""LAN discovery under a virtual clock: when it asks, when it answers, what it believes."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from itertools import pairwise

import pytest

from p2p.identity import Identity, PeerId, peer_text
from p2p.nat.lan import (
    ADDRS_SENT_MAX,
    ANSWER_GAP_S,
    HEARD_S,
    MDNS_PORT,
    NEIGHBOURS_MAX,
    NEW_PEERS_PER_MIN,
    NEWS_PER_MIN,
    QUERY_GAP_MAX_S,
    RETELL_S,
    STRINGS_READ_MAX,
    TTL_S,
    Found,
    LanLink,
    Neighbours,
    TokenBucket,
    addrs_on_link,
    service_of,
)
from p2p.nat.mdns import (
    AAAA,
    ANY,
    PTR,
    SRV,
    TXT,
    A,
    DnsMessage,
    HostAddress,
    Ptr,
    Question,
    Srv,
    Txt,
    decode_dns_untrusted,
    encode_dns,
)

SERVICE = service_of("main")
NETWORKS = [
    ipaddress.ip_interface("192.168.1.5/24"),
    ipaddress.ip_interface("fd00::5/64"),
    ipaddress.ip_interface("fe80::5/64"),
]
ADDRS = ("/ip4/192.168.1.5/tcp/15001", "/ip6/fd00::5/tcp/15001")
NEAR = ipaddress.ip_address("192.168.1.7")


def peer(number: int) -> PeerId:
    return Identity.from_seed(number.to_bytes(4, "big") * 8).id


US, THEM = peer(1), peer(2)


def link(
    *,
    now: float = 0.0,
    neighbours: Neighbours | None = None,
    discovery: bool = True,
    announce: bool = True,
    addrs: tuple[str, ...] = ADDRS,
) -> LanLink:
    return LanLink(
        SERVICE,
        NETWORKS,
        addrs,
        neighbours or Neighbours(US),
        random.Random(7),
        now,
        discovery=discovery,
        announce=announce,
    )


def answer(who: PeerId, *addrs: str, ttl_s: int = TTL_S) -> bytes:
    instance = (b"0123456789abcdef0123456789abcdef", *SERVICE)
    strings = tuple(f"dnsaddr={addr}/p2p/{peer_text(who)}".encode() for addr in addrs)
    return encode_dns(
        DnsMessage(True, (), (Ptr(SERVICE, instance, ttl_s), Txt(instance, strings, ttl_s)))
    )


def question(kind: int = PTR, name: tuple[bytes, ...] = SERVICE) -> bytes:
    return encode_dns(DnsMessage(False, (Question(name, kind),)))


def run_until(machine: LanLink, until_s: float) -> list[tuple[float, DnsMessage]]:
    """Everything sent by then, with its time."""
    sent: list[tuple[float, DnsMessage]] = []
    while (at_s := machine.next_timer()) is not None and at_s <= until_s:
        machine.on_timer(at_s)
        following = machine.next_timer()
        assert following is None or following > at_s
        sent += [(at_s, decode_dns_untrusted(data)) for data in machine.to_send()]
    return sent


def test_the_service_is_named_after_the_network() -> None:
    assert service_of("main") == (b"_p2p-887f9244ae6849f7", b"_udp", b"local")
    assert service_of("lab") != service_of("main")


def test_it_asks_at_once_and_then_ever_less_often() -> None:
    sent = run_until(link(announce=False), 20_000)
    assert [at_s for at_s, _ in sent[:6]] == [0, 1, 3, 7, 15, 31]
    gaps = [after - before for (before, _), (after, _) in pairwise(sent)]
    assert max(gaps) == gaps[-1] == QUERY_GAP_MAX_S
    assert {message.questions for _, message in sent} == {(Question(SERVICE, PTR),)}


def test_a_question_is_answered_with_id_and_addresses_after_a_short_while() -> None:
    machine = link(discovery=False)
    assert machine.next_timer() is None
    machine.receive(question(), NEAR, MDNS_PORT, 5.0)
    ((at_s, message),) = run_until(machine, 100)
    assert 5.02 <= at_s <= 5.12
    pointer, text = message.records
    assert isinstance(pointer, Ptr)
    assert isinstance(text, Txt)
    assert (pointer.name, pointer.target, pointer.ttl_s) == (SERVICE, text.name, TTL_S)
    assert len(pointer.target[0]) == 32
    assert text.strings == tuple(f"dnsaddr={a}/p2p/{peer_text(US)}".encode() for a in ADDRS)


def test_own_questions_are_answered_so_that_others_hear_of_us() -> None:
    machine = link()
    ((_, asked),) = run_until(machine, 0.0)
    machine.receive(encode_dns(asked), NETWORKS[0].ip, MDNS_PORT, 0.001)
    ((at_s, message),) = run_until(machine, 0.2)
    assert message.is_response
    assert at_s <= 0.121
    # What comes back of it is no news to us.
    assert machine.receive(encode_dns(message), NETWORKS[0].ip, MDNS_PORT, at_s) == []


@pytest.mark.parametrize(
    ("kind", "who", "kinds"),
    [
        (PTR, "service", [Ptr, Txt]),
        (ANY, "service", [Ptr, Txt]),
        (TXT, "service", []),
        (TXT, "instance", [Txt]),
        (SRV, "instance", [Srv]),
        (ANY, "instance", [Txt, Srv]),
        (A, "instance", []),
        (A, "host", [HostAddress]),
        (AAAA, "host", [HostAddress]),
        (ANY, "host", [HostAddress, HostAddress]),
        (PTR, "another", []),
    ],
)
def test_each_record_is_told_when_it_is_asked_for(kind: int, who: str, kinds: list[type]) -> None:
    machine = link(discovery=False)
    machine.receive(question(), NEAR, MDNS_PORT, 0.0)
    ((_, message),) = run_until(machine, 10)
    pointer = message.records[0]
    assert isinstance(pointer, Ptr)
    names = {
        "service": SERVICE,
        "instance": pointer.target,
        "host": (pointer.target[0], b"local"),
        "another": (b"x", *SERVICE),
    }
    machine.receive(question(kind, names[who]), NEAR, MDNS_PORT, 20.0)
    sent = run_until(machine, 30)
    assert [type(record) for _, message in sent for record in message.records] == kinds


def test_answers_go_out_at_most_once_a_second() -> None:
    machine = link(discovery=False)
    sent = []
    for step in range(200):
        machine.receive(question(), NEAR, MDNS_PORT, step / 20)
        sent += run_until(machine, step / 20)
    times = [at_s for at_s, _ in sent]
    assert len(times) >= 9
    assert all(after - before >= ANSWER_GAP_S - 1e-9 for before, after in pairwise(times))


def test_who_only_listens_does_not_answer_and_who_only_answers_does_not_ask() -> None:
    silent = link(announce=False)
    silent.receive(question(), NEAR, MDNS_PORT, 0.0)
    assert not any(message.is_response for _, message in run_until(silent, 100))
    assert silent.goodbye() is None
    assert silent.receive(answer(THEM, "/ip4/192.168.1.7/tcp/15001"), NEAR, MDNS_PORT, 100.0)
    deaf = link(discovery=False)
    assert deaf.receive(answer(THEM, "/ip4/192.168.1.7/tcp/15001"), NEAR, MDNS_PORT, 0.0) == []


def test_without_an_address_on_the_link_nothing_is_announced() -> None:
    machine = link(addrs=())
    machine.receive(question(), NEAR, MDNS_PORT, 0.0)
    assert not any(message.is_response for _, message in run_until(machine, 100))


def test_a_peer_is_passed_on_once_and_again_when_it_has_moved_or_after_a_while() -> None:
    machine = link()
    first = "/ip4/192.168.1.7/tcp/15001"
    assert machine.receive(answer(THEM, first), NEAR, MDNS_PORT, 0.0) == [Found(THEM, (first,))]
    assert machine.receive(answer(THEM, first), NEAR, MDNS_PORT, 1.0) == []
    moved = "/ip4/192.168.1.8/tcp/15001"
    assert machine.receive(answer(THEM, moved), NEAR, MDNS_PORT, 2.0) == [Found(THEM, (moved,))]
    later_s = 2.0 + RETELL_S
    assert machine.receive(answer(THEM, first), NEAR, MDNS_PORT, later_s) == [Found(THEM, (first,))]


def test_neighbours_are_those_heard_lately() -> None:
    neighbours = Neighbours(US)
    machine = link(neighbours=neighbours)
    addr = "/ip4/192.168.1.7/tcp/15001"
    machine.receive(answer(THEM, addr), NEAR, MDNS_PORT, 0.0)
    machine.receive(answer(peer(3), addr), NEAR, MDNS_PORT, 10.0)
    assert [one.peer for one in neighbours.now(10.0)] == [peer(3), THEM]
    assert [one.peer for one in neighbours.now(HEARD_S)] == [peer(3)]
    machine.receive(answer(peer(3), addr, ttl_s=0), NEAR, MDNS_PORT, 20.0)
    assert [one.peer for one in neighbours.now(20.0)] == [THEM]
    neighbours.forget()
    assert neighbours.now(20.0) == []


def test_who_leaves_says_goodbye() -> None:
    neighbours = Neighbours(peer(9))
    hearer = link(neighbours=neighbours)
    hearer.receive(answer(US, ADDRS[0]), NEAR, MDNS_PORT, 0.0)
    goodbye = link().goodbye()
    assert goodbye is not None
    assert hearer.receive(goodbye, NEAR, MDNS_PORT, 1.0) == []
    assert neighbours.now(1.0) == []


def test_an_answer_stays_below_a_links_frame() -> None:
    many = tuple(f"/ip6/2001:db8:1234:5678:9abc:def0:1234:{n:x}/tcp/32767" for n in range(40))
    machine = link(addrs=many, discovery=False)
    machine.receive(question(), NEAR, MDNS_PORT, 0.0)
    machine.on_timer(1.0)
    (data,) = machine.to_send()
    assert len(data) <= 1452, "IPv6 and UDP headers take 48 of 1,500"
    text = decode_dns_untrusted(data).records[1]
    assert isinstance(text, Txt)
    assert len(text.strings) == ADDRS_SENT_MAX


def test_doors_are_announced_where_they_are() -> None:
    listening = ["/ip4/0.0.0.0/tcp/15001", "/ip6/::/tcp/15002", "/ip4/10.0.0.1/tcp/15003"]
    assert addrs_on_link(listening, NETWORKS) == [
        "/ip4/192.168.1.5/tcp/15001",
        "/ip6/fd00::5/tcp/15002",
    ]
    assert addrs_on_link(listening, [ipaddress.ip_interface("10.0.0.1/8")]) == [
        "/ip4/10.0.0.1/tcp/15001",
        "/ip4/10.0.0.1/tcp/15003",
    ]
    assert addrs_on_link(["/dns4/example.org/tcp/1", "/ip4/0.0.0.0/udp/1"], NETWORKS) == []


def test_a_bucket_holds_its_burst_and_refills_with_time() -> None:
    bucket = TokenBucket(2.0, 4)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [bucket.take(1.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(1000.0) for _ in range(5)] == [True] * 4 + [False]


# --- what nobody believes: see also tests/attack/test_lan_attacks.py ------------------------------


@pytest.mark.parametrize(
    "addr",
    [
        "/ip4/192.168.2.7/tcp/15001",
        "/ip4/203.0.113.7/tcp/15001",
        "/ip4/127.0.0.1/tcp/15001",
        "/ip4/224.0.0.251/tcp/15001",
        "/ip4/0.0.0.0/tcp/15001",
        "/ip6/fd01::7/tcp/15001",
        "/ip6/2001:db8::7/tcp/15001",
        "/ip6/::1/tcp/15001",
        "/ip4/192.168.1.7/tcp/22",
        "/ip4/192.168.1.7/udp/15001/quic-v1",
        "/dns4/example.org/tcp/15001",
    ],
)
def test_an_address_elsewhere_is_not_passed_on(addr: str) -> None:
    machine = link()
    assert machine.receive(answer(THEM, addr), NEAR, MDNS_PORT, 0.0) == []
    good = "/ip4/192.168.1.7/tcp/15001"
    found = machine.receive(answer(THEM, addr, good), NEAR, MDNS_PORT, 1.0)
    assert found == [Found(THEM, (good,))]
    assert machine.counters["lan_foreign_address"] == 2


def test_a_relayed_address_is_no_lan_address() -> None:
    relayed = f"/ip4/192.168.1.7/tcp/15001/p2p/{peer_text(peer(3))}/p2p-circuit"
    assert link().receive(answer(THEM, relayed), NEAR, MDNS_PORT, 0.0) == []


def test_strangers_come_in_at_a_rate_and_peers_we_look_for_at_once() -> None:
    wanted = peer(5000)
    neighbours = Neighbours(US, lambda one: one == wanted)
    machine = link(neighbours=neighbours)
    addr = "/ip4/192.168.1.7/tcp/15001"
    found: Counter[int] = Counter()
    for minute in range(3):
        for number in range(40):
            who = peer(1000 + 100 * minute + number)
            now = 60.0 * minute + number
            found[minute] += len(machine.receive(answer(who, addr), NEAR, MDNS_PORT, now))
    assert found[0] <= NEW_PEERS_PER_MIN + 40 * NEW_PEERS_PER_MIN // 60
    assert sum(found.values()) <= 4 * NEW_PEERS_PER_MIN
    while machine.receive(answer(peer(found.total()), addr), NEAR, MDNS_PORT, 179.0):
        found[3] += 1
    assert machine.receive(answer(wanted, addr), NEAR, MDNS_PORT, 179.0)
    assert neighbours.counters["lan_strangers_dropped"] > 0


def test_news_of_one_peer_are_limited() -> None:
    machine = link(neighbours=Neighbours(US, lambda _: True))
    told = [
        machine.receive(answer(THEM, f"/ip4/192.168.1.7/tcp/{2000 + n}"), NEAR, MDNS_PORT, n / 10)
        for n in range(100)
    ]
    assert sum(map(len, told)) <= NEWS_PER_MIN + 2


def test_the_memory_of_neighbours_is_bounded_and_keeps_those_we_look_for() -> None:
    wanted = {peer(n) for n in range(10, 20)}
    neighbours = Neighbours(US, wanted.__contains__)
    addrs = ("/ip4/192.168.1.7/tcp/15001",)
    for one in sorted(wanted):
        neighbours.heard(one, addrs, 0.0)
    for number in range(NEIGHBOURS_MAX + 50):
        neighbours.heard(peer(1000 + number), addrs, 10.0 * number)
    known = {one.peer for one in neighbours.now(HEARD_S - 1)}
    assert len(neighbours.now(0.0)) == NEIGHBOURS_MAX
    assert wanted <= known


def test_of_one_message_a_peers_worth_of_addresses_is_read() -> None:
    many = [f"/ip4/192.168.1.7/tcp/{2000 + n}" for n in range(40)]
    (found,) = link().receive(answer(THEM, *many), NEAR, MDNS_PORT, 0.0)
    assert found.addrs == tuple(many[:STRINGS_READ_MAX])
