"""The DHT's pure parts: keys, table, look-up, size estimate, store, responder, configuration."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest

from p2p.dht.config import DhtConfig
from p2p.dht.estimate import SizeEstimate
from p2p.dht.keys import (
    PeerKey,
    Place,
    ValueKey,
    decode_key_untrusted,
    peer_place,
    peer_record_key,
    place_of,
    provider_key,
    shared_bits,
    value_key,
)
from p2p.dht.lookup import Lookup, LookupLimits
from p2p.dht.messages import DhtMessage, DhtPeer, MessageType
from p2p.dht.records import (
    Verified,
    seal_claim,
    seal_own_record,
    seal_value,
    verify_value,
    with_addrs,
)
from p2p.dht.recordstore import RecordStore
from p2p.dht.responder import Responder
from p2p.dht.table import FAILURES_MAX, Contact, RoutingTable
from p2p.errors import DecodeError, UsageError
from p2p.identity import Identity, PeerId, peer_multihash
from p2p.wire.envelope import open_peer_record_untrusted, seal_peer_record

OWN = Identity.from_seed(bytes(32))
NOW_MS = 1_700_000_000_000


def peer_id(number: int) -> PeerId:
    """An id without a key: places are all that matter here."""
    return PeerId(hashlib.sha256(number.to_bytes(4, "big")).digest())


def contact(number: int, *, prefix: str = "", record: bytes = b"r", seq: int = 1) -> Contact:
    peer = peer_id(number)
    return Contact(peer, peer_place(peer), ("/ip4/192.0.2.7/tcp/15001",), record, seq, prefix)


def table_of(k: int = 20) -> RoutingTable:
    return RoutingTable(
        peer_place(OWN.id), k=k, per_prefix_bucket_max=None, per_prefix_table_max=None
    )


# --- keys -----------------------------------------------------------------------------------------


def test_places_are_hashes_and_share_bits() -> None:
    assert place_of(b"x") == int(hashlib.sha256(b"x").hexdigest(), 16)
    assert peer_place(OWN.id) == place_of(peer_multihash(OWN.id))
    assert shared_bits(Place(0), Place(0)) == 256
    assert shared_bits(Place(0), Place(1)) == 255
    assert shared_bits(Place(0), Place(1 << 255)) == 0


def test_keys_are_read_back() -> None:
    assert decode_key_untrusted(peer_record_key(OWN.id)) == PeerKey(OWN.id)
    assert decode_key_untrusted(value_key(OWN.id, b"n")) == ValueKey(OWN.id, b"n")
    assert decode_key_untrusted(value_key(OWN.id, b"")) == ValueKey(OWN.id, b"")
    assert decode_key_untrusted(provider_key(b"x")) is None
    assert provider_key(b"x") == bytes.fromhex("1220") + hashlib.sha256(b"x").digest()
    with pytest.raises(UsageError):
        value_key(OWN.id, bytes(33))
    for bad in (value_key(OWN.id, b"n")[:-2], value_key(OWN.id, bytes(32)) + b"x"):
        with pytest.raises(DecodeError):
            decode_key_untrusted(bad)


# --- table ----------------------------------------------------------------------------------------


def test_a_table_takes_renews_and_lets_go() -> None:
    table = table_of()
    one = contact(1)
    assert table.offer(one, 0.0) == "added"
    assert table.offer(one, 1.0) == "known"
    assert one.peer in table
    newer = replace(one, record=b"newer", seq=2)
    table.offer(newer, 2.0)
    assert table.get(one.peer) == newer
    table.offer(one, 3.0)
    assert table.get(one.peer) == newer, "an older record does not replace a newer one"
    table.offer(replace(one, record=b"", seq=0), 3.0)
    assert table.get(one.peer) == newer, "nor does none"
    table.remove(one.peer)
    table.remove(one.peer)
    assert (len(table), table.get(one.peer), table.buckets()) == (0, None, [])
    assert table.offer(Contact.of(OWN.id), 0.0) == "self"


def test_a_node_leaves_after_three_silences_in_a_row() -> None:
    table = table_of()
    table.offer(contact(1), 0.0)
    for _ in range(FAILURES_MAX - 1):
        assert not table.failed(peer_id(1))
    table.answered(peer_id(1), 1.0)
    for _ in range(FAILURES_MAX - 1):
        assert not table.failed(peer_id(1))
    assert table.failed(peer_id(1))
    assert not table.failed(peer_id(1))
    assert len(table) == 0


def full_bucket(table: RoutingTable, k: int) -> list[Contact]:
    """Contacts of the far half, one more than fit."""
    far = [c for c in map(contact, range(1, 200)) if shared_bits(peer_place(OWN.id), c.place) == 0]
    for now, each in enumerate(far[:k]):
        assert table.offer(each, float(now)) == "added"
    return far


def test_a_full_bucket_names_its_oldest_and_takes_nobody() -> None:
    table = table_of(k=3)
    far = full_bucket(table, 3)
    assert table.is_full(far[3])
    assert not table.is_full(far[0])
    assert table.offer(far[3], 10.0) == "full"
    assert table.oldest_beside(far[3], before_s=9.0) == far[0]
    assert table.oldest_beside(far[3], before_s=-1.0) is None
    table.answered(far[0].peer, 10.0)
    assert table.oldest_beside(far[3], before_s=9.0) == far[1]
    table.remove(far[1].peer)
    assert table.offer(far[3], 11.0) == "added"
    assert table.oldest_beside(contact(1), before_s=0.0) is None or len(table) == 3


def test_a_node_that_moves_counts_in_its_new_prefix() -> None:
    table = RoutingTable(
        peer_place(OWN.id), k=20, per_prefix_bucket_max=None, per_prefix_table_max=1
    )
    assert table.offer(contact(1, prefix="a"), 0.0) == "added"
    assert table.offer(contact(2, prefix="a"), 0.0) == "prefix"
    assert table.offer(contact(2, prefix="b"), 0.0) == "added"
    assert table.offer(contact(2, prefix="a"), 1.0) == "prefix", "it is out: its place is taken"
    assert peer_id(2) not in table
    assert table.offer(contact(1, prefix="c"), 1.0) == "known"
    assert table.offer(contact(3, prefix="a"), 1.0) == "added"


# --- look-up --------------------------------------------------------------------------------------


class World:
    """Honest nodes, each of which knows some others."""

    def __init__(self, size: int, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.nodes = [contact(number) for number in range(1, size + 1)]
        self.known: dict[PeerId, list[Contact]] = {}
        for node in self.nodes:
            table = RoutingTable(
                node.place, k=20, per_prefix_bucket_max=None, per_prefix_table_max=None
            )
            for other in rng.sample(self.nodes, size):
                table.offer(other, 0.0)
            self.known[node.peer] = list(table)

    def nearest(self, target: Place) -> list[Contact]:
        return sorted(self.nodes, key=lambda c: c.place ^ target)[:20]

    def run(self, look: Lookup, *, dead: frozenset[PeerId] = frozenset()) -> dict[PeerId, int]:
        """Drive a look-up to its end; how often each node was asked."""
        asked: dict[PeerId, int] = {}
        for _ in range(10_000):
            requests = look.next_requests()
            for node in requests:
                asked[node.peer] = asked.get(node.peer, 0) + 1
                if node.peer in dead:
                    look.failed(node.peer)
                    continue
                known = self.known[node.peer]
                look.answered(node, sorted(known, key=lambda c: c.place ^ look.target)[:20])
            if look.done:
                return asked
        raise AssertionError("the look-up does not end")


def test_a_lookup_finds_the_nearest_and_asks_nobody_twice() -> None:
    world = World(400)
    target = place_of(b"target")
    look = Lookup(target, world.nodes[:3], own=OWN.id, limits=LookupLimits())
    asked = world.run(look)
    assert look.nearest() == world.nearest(target)
    assert set(asked.values()) == {1}
    assert look.asked == len(asked) < 150


def test_a_lookup_finds_what_lives_when_a_third_is_dead() -> None:
    world = World(300)
    dead = frozenset(node.peer for node in world.nodes[3::3])
    target = place_of(b"target")
    look = Lookup(target, world.nodes[:3], own=OWN.id, limits=LookupLimits())
    world.run(look, dead=dead)
    alive = sorted(world.nodes, key=lambda c: c.place ^ target)
    expected = [node for node in alive if node.peer not in dead][:20]
    assert len(set(look.nearest()) & set(expected)) >= 19


def test_paths_share_nobody_and_one_liar_spoils_its_own_only() -> None:
    world = World(200)
    target = place_of(b"target")
    liar = world.nodes[0]
    friends = [contact(number) for number in range(10_000, 10_400)]
    nearer = sorted(friends, key=lambda c: c.place ^ target)
    world.known[liar.peer] = nearer[:20]
    for friend in friends:
        world.known[friend.peer] = nearer[:20]
    look = Lookup(target, world.nodes[:3], own=OWN.id, limits=LookupLimits(k=20))
    world.run(look)
    honest = {node.peer for node in world.nearest(target)[:10]}
    one_path = Lookup(target, [liar], own=OWN.id, limits=LookupLimits(paths=1))
    world.run(one_path)
    assert not honest & {node.peer for node in one_path.nearest()}
    # Ranked by distance the liar's friends crowd the result, but every honest node answered.
    assert honest <= set(look._answered)


def test_a_lookup_asks_so_many_at_once_and_in_turn() -> None:
    world = World(100)
    look = Lookup(place_of(b"t"), world.nodes[:60], own=OWN.id, limits=LookupLimits(alpha=7))
    first = look.next_requests()
    assert len(first) == 7
    assert look.next_requests() == []
    assert not look.done
    owners = [look._owner[node.peer] for node in first]
    assert sorted({owners.count(path) for path in range(3)}) == [2, 3]
    look.failed(first[0].peer)
    assert len(look.next_requests()) == 1


def test_a_lookup_skips_ourselves_late_answers_and_crowds_of_one_network() -> None:
    look = Lookup(
        place_of(b"t"), [contact(1)], own=peer_id(2), limits=LookupLimits(per_prefix_max=3)
    )
    assert look.next_requests() == [contact(1)]
    crowd = [contact(number, prefix="a") for number in range(10, 30)]
    look.answered(contact(1), [contact(2), *crowd[:19]])
    look.answered(contact(1), [contact(40)])
    look.failed(peer_id(77))
    asked = look.next_requests()
    assert len(asked) == 3
    assert {node.prefix for node in asked} == {"a"}
    for node in asked:
        look.failed(node.peer)
    assert look.next_requests() == []
    assert look.done
    assert look.nearest() == [contact(1)]


def test_a_lookup_from_nobody_is_done() -> None:
    look = Lookup(place_of(b"t"), [], own=OWN.id, limits=LookupLimits())
    assert look.next_requests() == []
    assert look.done
    assert look.nearest() == []


# --- size estimate --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [60, 1000, 20_000])
def test_the_estimate_is_near_the_truth(size: int) -> None:
    rng = random.Random(size)
    places = [Place(rng.getrandbits(256)) for _ in range(size)]
    estimate = SizeEstimate()
    assert estimate.nodes is None
    for _ in range(64):
        target = Place(rng.getrandbits(256))
        estimate.add(target, sorted(places, key=lambda p: p ^ target)[:20])
    assert estimate.nodes is not None
    assert 0.75 * size < estimate.nodes < 1.25 * size


def test_too_few_nodes_say_nothing() -> None:
    estimate = SizeEstimate()
    estimate.add(Place(0), [Place(1), Place(2)])
    assert estimate.nodes is None
    estimate.add(Place(0), [Place(0)] * 5)
    assert estimate.nodes is None


# --- store and responder --------------------------------------------------------------------------


def test_expired_entries_leave_and_are_counted_off() -> None:
    store = RecordStore(DhtConfig())
    sender = peer_id(1)
    good = Verified(b"value", 1, NOW_MS // 1000 + 10, b"body")
    assert store.put_value(b"k", good, sender, now=0, now_ms=NOW_MS) == "stored"
    assert store.entries == 1
    assert store.value(b"k", NOW_MS + 9_999) == good
    store.drop_expired(100.0, NOW_MS + 10_000)
    assert (store.entries, store.bytes) == (0, 0)
    assert store.value(b"k", NOW_MS + 10_000) is None
    assert not store._writes


def test_a_value_brought_by_another_moves_to_his_account() -> None:
    store = RecordStore(DhtConfig(store_entries_per_sender_max=1))
    one, two = peer_id(1), peer_id(2)
    expires_s = NOW_MS // 1000 + 10
    for seq, sender in ((1, one), (2, two)):
        value = Verified(b"value", seq, expires_s, b"")
        value = replace(value, value=b"value%d" % seq)
        assert store.put_value(b"k", value, sender, now=0, now_ms=NOW_MS) == "stored"
    other = Verified(b"other", 1, expires_s, b"")
    assert store.put_value(b"k2", other, one, now=0, now_ms=NOW_MS) == "stored"
    assert store.put_value(b"k3", other, two, now=0, now_ms=NOW_MS) == "sender"


def responder(table: RoutingTable, *, require_signed: bool = True) -> Responder:
    config = replace(DhtConfig(), require_signed=require_signed)
    own = DhtPeer(OWN.id, (), b"own record")
    return Responder(config, table, RecordStore(config), own_id=OWN.id, own=lambda: own)


def test_closer_peers_are_the_nearest_with_a_record_without_the_asker() -> None:
    table = table_of()
    for number in range(1, 60):
        table.offer(contact(number, record=b"" if number % 5 == 0 else b"r"), 0.0)
    request = DhtMessage(kind=MessageType.FIND_NODE, key=b"key")
    asker = table.nearest(place_of(b"key"), 1)[0].peer
    reply = responder(table).answer(request, asker, now=0, now_ms=NOW_MS)
    assert 10 <= len(reply.closer) <= 20
    assert asker not in {peer.peer for peer in reply.closer}
    assert all(peer.signed_record and not peer.addrs for peer in reply.closer)
    assert (reply.kind, reply.key) == (request.kind, request.key)
    unsigned = responder(table, require_signed=False).answer(request, asker, now=0, now_ms=NOW_MS)
    assert len(unsigned.closer) == 20
    assert all(peer.addrs for peer in unsigned.closer)


def test_asked_for_itself_a_server_names_itself_first() -> None:
    table = table_of()
    for number in range(1, 60):
        table.offer(contact(number), 0.0)
    request = DhtMessage(kind=MessageType.FIND_NODE, key=peer_multihash(OWN.id))
    reply = responder(table).answer(request, peer_id(999), now=0, now_ms=NOW_MS)
    assert reply.closer[0] == DhtPeer(OWN.id, (), b"own record")
    assert len(reply.closer) == 20


def test_without_required_signatures_a_peer_is_named_with_addresses_beside_its_record() -> None:
    addr, key = "/ip4/192.0.2.7/tcp/15001", provider_key(b"x")
    record = seal_own_record(OWN, NOW_MS, [addr])
    named = with_addrs(DhtPeer(OWN.id, (), record))
    assert named == DhtPeer(OWN.id, (addr,), record)
    assert with_addrs(named) is named
    assert with_addrs(DhtPeer(OWN.id)) == DhtPeer(OWN.id)
    claim = seal_claim(OWN, key, NOW_MS // 1000 + 60)
    provider = DhtPeer(OWN.id, (), record, claim)
    add = DhtMessage(kind=MessageType.ADD_PROVIDER, key=key, providers=(provider,))
    ask = DhtMessage(kind=MessageType.GET_PROVIDERS, key=key)
    for require_signed, addrs in ((True, ()), (False, (addr,))):
        server = responder(table_of(), require_signed=require_signed)
        server.answer(add, OWN.id, now=0, now_ms=NOW_MS)
        reply = server.answer(ask, peer_id(1), now=0, now_ms=NOW_MS)
        assert reply.providers == (DhtPeer(OWN.id, addrs, record, claim),)


def test_without_required_signatures_a_foreign_namespace_is_kept() -> None:
    value = verify_value(b"/v/x", b"v", NOW_MS, require_signed=False, lifetime_s=60)
    assert (value.body, value.expires_s) == (b"v", NOW_MS // 1000 + 60)
    key = value_key(OWN.id, b"n")
    with pytest.raises(DecodeError):  # ours stay signed
        verify_value(key, b"v", NOW_MS, require_signed=False, lifetime_s=60)


def test_of_equal_seqs_the_larger_bytes_win() -> None:
    low, high = Verified(b"a", 1, 1, b""), Verified(b"b", 1, 1, b"")
    assert high.beats(low)
    assert not low.beats(high)
    assert not low.beats(low)
    assert low.beats(None)
    assert replace(low, seq=2).beats(high)


def test_what_is_too_long_for_us_is_our_own_fault() -> None:
    with pytest.raises(UsageError):
        seal_value(OWN, b"n", 1, 1, bytes(1025))
    addrs = [f"/dns4/{'a' * 60}.{'b' * 60}.example.org/tcp/{4000 + n}" for n in range(32)]
    assert len(seal_peer_record(OWN, 1, addrs)) > 2048
    record = seal_own_record(OWN, 1, addrs)
    assert len(record) <= 2048
    assert open_peer_record_untrusted(record).addrs[0] == addrs[0]


@pytest.mark.parametrize("change", [{"k": 0}, {"request_s": -1.0}, {"republish_s": 1e6}])
def test_settings_that_cannot_work_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        DhtConfig(**change)  # type: ignore[arg-type]
