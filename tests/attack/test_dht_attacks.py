"""What a hostile node of the DHT may try, as asker, as writer and as the one who answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.dht.config import DhtConfig
from p2p.dht.keys import peer_place, peer_record_key, provider_key, value_key
from p2p.dht.messages import (
    MESSAGE_BYTES_MAX,
    DhtMessage,
    DhtPeer,
    DhtRecord,
    MessageReader,
    MessageType,
    frame,
)
from p2p.dht.records import AHEAD_S_MAX, BEHIND_S_MAX, seal_claim, seal_value
from p2p.dht.recordstore import RecordStore
from p2p.dht.responder import Responder
from p2p.dht.table import Contact, RoutingTable
from p2p.errors import AuthError, DecodeError, LimitError, PeerError, ProtocolError
from p2p.identity import Identity
from p2p.wire.envelope import seal_envelope, seal_peer_record
from p2p.wire.varint import encode_varint
from tests.helpers.det import run_seeded
from tests.helpers.dht_net import DhtNet, DhtNode, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.identity import PeerId
    from p2p.net.seam import Stream

pytestmark = pytest.mark.attack

NOW_MS = 1_700_000_000_000
NOW_S = NOW_MS // 1000
ADDR = "/ip4/192.0.2.7/tcp/15001"
PROTOCOL = "/covey/main/kad/1"


def who(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(4, "big") * 8)


OWNER, THIEF = who(901), who(902)
KEY = value_key(OWNER.id, b"name")
MEETING = provider_key(b"group")


@dataclass
class Server:
    """A responder and what it holds; time stands unless a test moves it."""

    store: RecordStore
    responder: Responder
    now: float = 0.0

    def ask(self, request: DhtMessage, sender: PeerId) -> DhtMessage:
        return self.responder.answer(request, sender, now=self.now, now_ms=NOW_MS)

    def put(self, key: bytes, value: bytes, sender: PeerId = THIEF.id) -> DhtMessage:
        record = DhtRecord(key, value)
        return self.ask(DhtMessage(kind=MessageType.PUT_VALUE, key=key, record=record), sender)

    def provide(self, named: DhtPeer, sender: PeerId, key: bytes = MEETING) -> DhtMessage:
        request = DhtMessage(kind=MessageType.ADD_PROVIDER, key=key, providers=(named,))
        return self.ask(request, sender)


def server(**changes: int) -> Server:
    config = replace(DhtConfig(), **changes)
    table = RoutingTable(
        peer_place(who(99).id), k=20, per_prefix_bucket_max=2, per_prefix_table_max=10
    )
    store = RecordStore(config)
    return Server(store, Responder(config, table, store, own_id=who(99).id, own=lambda: None))


def value(
    signer: Identity = OWNER, seq: int = 7, expires_s: int = NOW_S + 3600, body: bytes = b"body"
) -> bytes:
    return seal_value(signer, b"name", seq, expires_s, body)


def provider(signer: Identity, key: bytes = MEETING) -> DhtPeer:
    record = seal_peer_record(signer, NOW_MS, [ADDR])
    return DhtPeer(signer.id, (), record, seal_claim(signer, key, NOW_S + 3600))


# --- records --------------------------------------------------------------------------------------


def test_a_good_record_is_kept_whoever_brings_it() -> None:
    it = server()
    assert it.put(KEY, value()).record == DhtRecord(KEY, value())
    held = it.store.value(KEY, NOW_MS)
    assert held is not None
    assert held.body == b"body"


def tampered() -> bytes:
    good = bytearray(value())
    good[good.index(b"body")] ^= 1
    return bytes(good)


def oversize() -> bytes:
    import msgspec

    payload = msgspec.msgpack.encode([1, KEY, 7, NOW_S + 3600, bytes(1025)])
    return seal_envelope(OWNER, b"covey-dht-value", b"/covey/kv/1", payload)


def other_domain() -> bytes:
    import msgspec

    payload = msgspec.msgpack.encode([1, KEY, 7, NOW_S + 3600, b"body"])
    return seal_envelope(OWNER, b"covey-provider", b"/covey/kv/1", payload)


BAD_VALUES: dict[str, tuple[Callable[[], bytes], type[PeerError]]] = {
    "unsigned": (lambda: b"body", DecodeError),
    "empty": (lambda: b"", DecodeError),
    "changed on the way": (tampered, AuthError),
    "signed by another": (lambda: value(THIEF), AuthError),
    "signed for another name": (
        lambda: seal_value(OWNER, b"other", 7, NOW_S + 3600, b""),
        DecodeError,
    ),
    "signed as another kind": (other_domain, AuthError),
    "a body over its limit": (oversize, DecodeError),
    "expired": (lambda: value(expires_s=NOW_S), LimitError),
    "for ever": (lambda: value(expires_s=NOW_S + AHEAD_S_MAX + 1), LimitError),
}


@pytest.mark.parametrize("what", BAD_VALUES)
def test_a_bad_value_is_refused_and_nothing_is_kept(what: str) -> None:
    make, error = BAD_VALUES[what]
    it = server()
    it.put(KEY, value(seq=3))
    with pytest.raises(error):
        it.put(KEY, make())
    held = it.store.value(KEY, NOW_MS)
    assert held is not None
    assert held.seq == 3


def test_a_recording_does_not_replace_what_is_newer() -> None:
    it = server()
    it.put(KEY, value(seq=9))
    with pytest.raises(LimitError):
        it.put(KEY, value(seq=8))
    assert it.put(KEY, value(seq=9)).record is not None
    assert it.put(KEY, value(seq=10)).record is not None


BAD_PEER_RECORDS: dict[str, tuple[Callable[[], bytes], type[PeerError]]] = {
    "another's": (lambda: seal_peer_record(THIEF, NOW_MS, [ADDR]), AuthError),
    "two days old": (
        lambda: seal_peer_record(OWNER, NOW_MS - BEHIND_S_MAX * 1000 - 1, [ADDR]),
        LimitError,
    ),
    "from the future": (
        lambda: seal_peer_record(OWNER, NOW_MS + AHEAD_S_MAX * 1000 + 1, [ADDR]),
        LimitError,
    ),
}


@pytest.mark.parametrize("what", BAD_PEER_RECORDS)
def test_a_bad_peer_record_is_refused(what: str) -> None:
    make, error = BAD_PEER_RECORDS[what]
    it = server()
    with pytest.raises(error):
        it.put(peer_record_key(OWNER.id), make())
    assert it.store.entries == 0


@pytest.mark.parametrize("key", [b"/ipns/x", b"/covey/kv/short", b"/covey/peer/x", b"", b"x" * 64])
def test_a_key_of_nobody_is_refused(key: bytes) -> None:
    it = server()
    with pytest.raises(DecodeError):
        it.put(key, value())
    assert it.store.entries == 0


def test_a_put_that_says_two_things_is_refused() -> None:
    it = server()
    record = DhtRecord(value_key(OWNER.id, b"other"), value())
    with pytest.raises(ProtocolError):
        it.ask(DhtMessage(kind=MessageType.PUT_VALUE, key=KEY, record=record), THIEF.id)
    with pytest.raises(ProtocolError):
        it.ask(DhtMessage(kind=MessageType.PUT_VALUE, key=KEY), THIEF.id)


# --- providers ------------------------------------------------------------------------------------


def test_nobody_is_made_a_provider_by_another() -> None:
    it = server()
    named = provider(OWNER)
    with pytest.raises(ProtocolError):
        it.provide(named, THIEF.id)
    stolen = replace(named, peer=THIEF.id)
    with pytest.raises(AuthError):
        it.provide(stolen, THIEF.id)
    own_record = seal_peer_record(THIEF, NOW_MS, [ADDR])
    with pytest.raises(AuthError):
        it.provide(replace(stolen, signed_record=own_record), THIEF.id)
    assert it.store.providers(MEETING, NOW_MS) == []
    it.provide(named, OWNER.id)
    assert [p.peer for p in it.store.providers(MEETING, NOW_MS)] == [OWNER.id]


def test_a_claim_for_another_thing_or_time_is_refused() -> None:
    it = server()
    with pytest.raises(DecodeError):
        it.provide(provider(OWNER, provider_key(b"else")), OWNER.id)
    expired = replace(provider(OWNER), claim=seal_claim(OWNER, MEETING, NOW_S))
    with pytest.raises(LimitError):
        it.provide(expired, OWNER.id)
    with pytest.raises(DecodeError):
        it.provide(replace(provider(OWNER), claim=b""), OWNER.id)
    assert it.store.entries == 0


def test_one_key_takes_so_many_providers_and_they_may_renew() -> None:
    it = server(providers_per_key_max=3)
    for number in range(10, 13):
        it.provide(provider(who(number)), who(number).id)
    with pytest.raises(LimitError):
        it.provide(provider(who(13)), who(13).id)
    it.provide(provider(who(10)), who(10).id)
    assert len(it.store.providers(MEETING, NOW_MS)) == 3


# --- floods ---------------------------------------------------------------------------------------


def flood(it: Server, count: int, *, pause_s: float = 0.0) -> int:
    """Write many values of many owners as one sender; how many were kept."""
    kept = 0
    for number in range(count):
        it.now += pause_s
        owner = who(1000 + number)
        try:
            it.put(value_key(owner.id, b"name"), value(owner))
        except LimitError:
            continue
        kept += 1
    return kept


def test_a_flood_of_writes_is_slowed_and_a_bystander_served() -> None:
    it = server()
    assert flood(it, 100) == 20
    it.put(KEY, value(), OWNER.id)
    it.now += 61
    assert flood(it, 30) == 20  # of them twenty are here already, and it is a new minute


def test_a_patient_flood_fills_its_own_share_only() -> None:
    it = server(store_entries_per_sender_max=30)
    assert flood(it, 50, pause_s=4) == 30
    it.put(KEY, value(), OWNER.id)
    assert it.store.entries == 31


def test_a_full_store_drops_nothing_for_a_newcomer() -> None:
    it = server(store_entries_max=5)
    it.put(KEY, value(), OWNER.id)
    assert flood(it, 10, pause_s=4) == 4
    assert it.store.value(KEY, NOW_MS) is not None
    small = server(store_bytes_max=2000)
    assert 0 < flood(small, 20, pause_s=4) < 6
    assert small.store.bytes <= 2000


# --- the table ------------------------------------------------------------------------------------


def contact(number: int, prefix: str) -> Contact:
    peer = who(number).id
    return Contact(peer, peer_place(peer), (ADDR,), b"record", 1, prefix)


def test_one_network_does_not_fill_a_bucket_or_the_table() -> None:
    table = RoutingTable(
        peer_place(who(0).id), k=20, per_prefix_bucket_max=2, per_prefix_table_max=10
    )
    for number in range(1, 500):
        table.offer(contact(number, "4:c00002"), 0.0)
    per_bucket = [0] * 257
    for entry in table:
        per_bucket[256 - (entry.place ^ peer_place(who(0).id)).bit_length()] += 1
    assert max(per_bucket) == 2
    assert len(table) == 10
    for number in range(500, 540):
        table.offer(contact(number, f"4:{number}"), 0.0)
    assert len(table) > 40


def test_newcomers_do_not_push_out_nodes_that_live() -> None:
    table = RoutingTable(
        peer_place(who(0).id), k=4, per_prefix_bucket_max=None, per_prefix_table_max=None
    )
    for number in range(1, 40):
        table.offer(contact(number, ""), float(number))
    before = {entry.peer for entry in table}
    for number in range(40, 400):
        table.offer(contact(number, ""), 500.0)
    assert before <= {entry.peer for entry in table}


# --- answers --------------------------------------------------------------------------------------


class Liar:
    """A node that serves the DHT and answers what a test likes."""

    def __init__(self, net: DhtNet, number: int, answer: Callable[[DhtMessage], bytes]) -> None:
        self.identity = who(number)
        self.fabric = net.net.fabric(self.identity.id, net.ip(number))
        self.asked = 0
        self._answer = answer
        self.fabric.handle(PROTOCOL, self._serve, per_peer_max=100)

    async def _serve(self, stream: Stream) -> None:
        reader = MessageReader()
        while data := await stream.receive_some():
            reader.feed(data)
            while (request := reader.next_message_untrusted()) is not None:
                self.asked += 1
                await stream.send_all(self._answer(request))

    @property
    def record(self) -> bytes:
        return seal_peer_record(self.identity, NOW_MS, [self.fabric.addr])


async def with_liar(
    answer: Callable[[Liar, DhtMessage], bytes],
    scenario: Callable[[Liar, list[DhtNode]], Awaitable[None]],
) -> None:
    """Four honest nodes and a liar that all of them know."""
    async with trio.open_nursery() as nursery:
        net = DhtNet(nursery)
        liar = Liar(net, 50, lambda request: answer(liar, request))
        await nursery.start(liar.fabric.run)
        first = await net.start(1)
        seeds = (net.seed_of(first),)
        nodes = [first] + [await net.start(number, seeds=seeds) for number in (2, 3, 4)]
        for node in nodes:
            await node.node.fabric.connect(liar.identity.id, [liar.fabric.addr])
        honest = {node.id for node in nodes}

        def joined() -> bool:
            return all(len([c for c in node.dht.table if c.peer in honest]) == 3 for node in nodes)

        await until(joined)
        await scenario(liar, nodes)
        nursery.cancel_scope.cancel()


async def honest_work(_liar: Liar, nodes: list[DhtNode]) -> None:
    """Everything still works, in bounded time."""
    with trio.fail_after(15):
        assert await nodes[1].dht.put(b"n", b"v", keep=False) >= 3
        assert await nodes[2].dht.get(value_key(nodes[1].id, b"n")) == b"v"
        assert await nodes[3].dht.find_peer(nodes[1].id) == nodes[1].node.fabric.addrs()


def forged_value(_liar: Liar, request: DhtMessage) -> bytes:
    forged = seal_value(THIEF, b"n", 1 << 50, NOW_S + 3600, b"forged")
    return frame(replace(request, record=DhtRecord(request.key, forged)))


def forged_peers(_liar: Liar, request: DhtMessage) -> bytes:
    record = seal_peer_record(THIEF, NOW_MS, [ADDR])
    return frame(replace(request, closer=(DhtPeer(OWNER.id, (), record),)))


def itself(liar: Liar, request: DhtMessage) -> bytes:
    return frame(replace(request, closer=(DhtPeer(liar.identity.id, (), liar.record),) * 20))


LIES: dict[str, Callable[[Liar, DhtMessage], bytes]] = {
    "garbage": lambda _liar, _request: b"\x05garba" * 100,
    "a giant": lambda _liar, _request: encode_varint(MESSAGE_BYTES_MAX + 1) + bytes(100_000),
    "another kind": lambda _liar, request: frame(
        replace(request, kind=MessageType((request.kind + 1) % 5))
    ),
    "half a message": lambda _liar, request: frame(request)[:-1],
    "forged values": forged_value,
    "forged peers": forged_peers,
    "itself": itself,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_node_that_answers_lies_harms_nobody(lie: str) -> None:
    run_seeded(with_liar, LIES[lie], honest_work, seed=1)


@pytest.mark.parametrize("lie", ["garbage", "a giant", "another kind", "forged peers"])
def test_a_node_that_answers_lies_is_in_no_table(lie: str) -> None:
    async def gone(liar: Liar, nodes: list[DhtNode]) -> None:
        await honest_work(liar, nodes)
        assert all(liar.identity.id not in node.dht.table for node in nodes)
        assert liar.asked >= len(nodes)

    run_seeded(with_liar, LIES[lie], gone, seed=1)


def test_endless_nearer_peers_end_by_the_limits() -> None:
    made: list[Identity] = []

    def inventing(_liar: Liar, request: DhtMessage) -> bytes:
        fresh = [who(10_000 + len(made) + n) for n in range(20)]
        made.extend(fresh)
        named = [
            DhtPeer(one.id, (), seal_peer_record(one, NOW_MS, ["/ip4/10.200.0.1/tcp/15001"]))
            for one in fresh
        ]
        return frame(replace(request, closer=tuple(named)))

    async def bounded(_liar: Liar, nodes: list[DhtNode]) -> None:
        started_s = trio.current_time()
        assert await nodes[1].dht.put(b"n", b"v", keep=False) >= 3
        assert trio.current_time() - started_s < 15
        with trio.fail_after(15):
            assert await nodes[2].dht.get(value_key(nodes[1].id, b"n")) == b"v"
        assert len(made) > 20
        invented = {one.id for one in made}
        for node in nodes:
            assert not invented & {entry.peer for entry in node.dht.table}

    run_seeded(with_liar, inventing, bounded, seed=1)


def test_a_recording_of_an_old_value_loses_against_the_newer() -> None:
    old: list[bytes] = []

    def replay(_liar: Liar, request: DhtMessage) -> bytes:
        if old and request.kind is MessageType.GET_VALUE:
            return frame(replace(request, record=DhtRecord(request.key, old[0])))
        return frame(request)

    async def newest_wins(_liar: Liar, nodes: list[DhtNode]) -> None:
        old.append(nodes[1].dht._publisher.seal(b"n", b"old"))
        await nodes[1].dht.put(b"n", b"new", keep=False)
        key = value_key(nodes[1].id, b"n")
        assert await nodes[2].dht.get(key) == b"new"

    run_seeded(with_liar, replay, newest_wins, seed=1)


def test_private_addresses_in_a_record_are_not_dialled() -> None:
    from p2p.config import P2pConfig
    from p2p.discovery import usable_addrs

    named = [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/10.0.0.1/tcp/4001",
        "/ip4/192.168.1.1/tcp/4001",
        "/ip4/169.254.1.1/tcp/4001",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip4/8.8.8.8/tcp/22",
        "/dns4/localhost/tcp/4001",
        "/ip6/fe80::1/tcp/4001",
        "/ip4/8.8.8.8/tcp/4001",
    ]
    assert usable_addrs(OWNER.id, named, P2pConfig.wan()) == ["/ip4/8.8.8.8/tcp/4001"]


def test_nobody_is_dialled_on_an_unsigned_word() -> None:
    """A liar names a peer that never asked for visitors, without that peer's record."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            net = DhtNet(nursery)
            decoy = Liar(net, 60, frame)
            signed = Liar(net, 61, frame)
            named = (
                DhtPeer(decoy.identity.id, (decoy.fabric.addr,)),
                DhtPeer(signed.identity.id, (), signed.record),
            )
            liar = Liar(net, 50, lambda request: frame(replace(request, closer=named)))
            for each in (decoy, signed, liar):
                await nursery.start(each.fabric.run)
            node = await net.start(1)
            await node.node.fabric.connect(liar.identity.id, [liar.fabric.addr])
            await until(lambda: liar.identity.id in node.dht.table)
            await node.dht.get(value_key(OWNER.id, b"name"))
            assert signed.asked > 0, "who signed where it is, is asked"
            assert decoy.asked == 0
            assert decoy.identity.id not in node.node.fabric.peers()
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)
