"""The DHT's table keeps its invariants, look-ups end, and stores stay within their limits."""

from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from p2p.dht.config import DhtConfig
from p2p.dht.keys import peer_place, place_of, shared_bits
from p2p.dht.lookup import Lookup, LookupLimits
from p2p.dht.records import Verified
from p2p.dht.recordstore import RecordStore
from p2p.dht.table import Contact, RoutingTable
from p2p.identity import PeerId

NOW_MS = 1_700_000_000_000


def peer_id(number: int) -> PeerId:
    return PeerId(hashlib.sha256(number.to_bytes(4, "big")).digest())


def contact(number: int, prefix: str = "") -> Contact:
    peer = peer_id(number)
    return Contact(peer, peer_place(peer), (), b"r", 1, prefix)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "failed", "answered", "remove"]),
        st.integers(0, 120),
        st.sampled_from(["", "a", "b", "c", "d"]),
    ),
    max_size=300,
)


@given(STEPS)
def test_a_table_keeps_its_invariants(steps: list[tuple[str, int, str]]) -> None:
    own = peer_place(peer_id(0))
    table = RoutingTable(own, k=4, per_prefix_bucket_max=2, per_prefix_table_max=5)
    for now, (what, number, prefix) in enumerate(steps):
        peer = peer_id(number)
        match what:
            case "offer":
                outcome = table.offer(contact(number, prefix), float(now))
                assert (outcome in {"added", "known"}) == (peer in table)
            case "failed":
                table.failed(peer)
            case "answered":
                table.answered(peer, float(now))
            case _:
                table.remove(peer)
                assert peer not in table
        everybody = list(table)
        assert len(everybody) == len(table) == len({c.peer for c in everybody})
        assert peer_id(0) not in table
        buckets = Counter(shared_bits(own, c.place) for c in everybody)
        assert sorted(buckets) == table.buckets()
        assert max(buckets.values(), default=0) <= 4
        named = Counter(c.prefix for c in everybody if c.prefix)
        assert max(named.values(), default=0) <= 5
        pairs = Counter((shared_bits(own, c.place), c.prefix) for c in everybody if c.prefix)
        assert max(pairs.values(), default=0) <= 2
        assert table._prefixes + Counter() == Counter(c.prefix for c in everybody)
        nearest = [c.place ^ own for c in table.nearest(own, 7)]
        assert nearest == sorted(c.place ^ own for c in everybody)[:7]


@given(st.data(), st.integers(1, 5), st.integers(1, 8), st.integers(1, 6))
def test_a_lookup_ends_whatever_it_is_answered(
    data: st.DataObject, paths: int, alpha: int, k: int
) -> None:
    limits = LookupLimits(k=k, alpha=alpha, paths=paths, asked_max=25, per_prefix_max=6)
    numbers = st.integers(0, 80)
    start = [contact(n) for n in data.draw(st.lists(numbers, max_size=10, unique=True))]
    look = Lookup(place_of(b"target"), start, own=peer_id(0), limits=limits)
    waiting: list[Contact] = []
    asked: list[PeerId] = []
    while not look.done:
        fresh = look.next_requests()
        waiting += fresh
        asked += [node.peer for node in fresh]
        assert len(waiting) <= alpha
        assert waiting, "not done, and nobody is asked"
        node = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        if data.draw(st.booleans()):
            named = data.draw(st.lists(st.tuples(numbers, st.sampled_from("abc")), max_size=12))
            look.answered(node, [contact(n, prefix) for n, prefix in named])
        else:
            look.failed(node.peer)
    assert len(asked) == len(set(asked)) <= 25
    assert peer_id(0) not in asked
    assert len(look.nearest()) <= k


WRITES = st.lists(
    st.tuples(
        st.integers(0, 6),  # key
        st.integers(0, 3),  # sender
        st.integers(0, 5),  # seq
        st.integers(1, 40),  # life, s
        st.integers(0, 200),  # size
        st.integers(0, 30),  # time that passes, s
    ),
    max_size=60,
)


@given(WRITES)
def test_a_store_stays_within_its_limits(
    writes: list[tuple[int, int, int, int, int, int]],
) -> None:
    config = DhtConfig(
        store_entries_max=5,
        store_bytes_max=1500,
        store_entries_per_sender_max=3,
        store_writes_per_min=6,
    )
    store = RecordStore(config)
    now = 0
    for key, sender, seq, life_s, size, passed_s in writes:
        now += passed_s
        now_ms = NOW_MS + now * 1000
        name = b"k%d" % key
        before = store.value(name, now_ms)
        value = Verified(bytes(size), seq, now_ms // 1000 + life_s, b"")
        verdict = store.put_value(name, value, peer_id(sender), now=now, now_ms=now_ms)
        held = store.value(name, now_ms)
        if verdict == "stored":
            assert held is not None
            assert held.value == value.value
        else:
            assert held == before
        assert store.entries == len(store._values) <= 5
        assert 0 <= store.bytes <= 1500
        assert max(store._per_sender.values(), default=0) <= 3
        assert sum(store._per_sender.values()) == store.entries
    store.drop_expired(now + 1000.0, NOW_MS + (now + 1000) * 1000)
    assert (store.entries, store.bytes, dict(store._per_sender)) == (0, 0, {})
