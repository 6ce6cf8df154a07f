"""Reconciliation finds the exact difference, whatever the sets, clocks and sizes of messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.replication.ranges import (
    EMPTY,
    MESSAGE_BYTES_MIN,
    Initiator,
    RangeSet,
    Responder,
    decode_ranges_untrusted,
)
from tests.helpers.ranges_kit import SALT, item, packed, reconcile

# Few clocks and ids with long common beginnings: bounds then need many bytes of an id.
ids = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 400).map(lambda n: bytes(30) + n.to_bytes(2, "big")),
)
items = st.builds(item, st.sampled_from([0, 1, 7, 2**40]), ids)
sets = st.sets(items, max_size=120)


def ids_of(some: set[bytes]) -> set[bytes]:
    return {one[8:] for one in some}


@given(sets, sets, sets, st.integers(MESSAGE_BYTES_MIN, 4096))
def test_two_sets_end_equal(common: set[bytes], a: set[bytes], b: set[bytes], size: int) -> None:
    ours, theirs = common | a, common | b
    run = reconcile(RangeSet(packed(ours)), RangeSet(packed(theirs)), message_bytes=size)
    assert run.complete
    # An id may stand under two clocks: what is compared are items, what is told are ids.
    assert set(run.have) == ids_of(ours) - ids_of(theirs) or ids_of(ours - theirs) >= set(run.have)
    mine = {one for one in theirs if one[8:] in set(run.need)}
    yours = {one for one in ours if one[8:] in set(run.have)}
    assert ids_of(ours | mine) == ids_of(theirs | yours)


@given(
    st.integers(0, 3_000),
    st.sets(st.integers(0, 2_999), max_size=60),
    st.sets(st.integers(0, 2_999), max_size=60),
    st.integers(1, 500),
    st.sampled_from([MESSAGE_BYTES_MIN, 5_000, 65_536]),
)
def test_exactly_what_differs_is_found(
    count: int, without: set[int], lacking: set[int], a_clock: int, size: int
) -> None:
    everything = [
        item(at // a_clock, (at * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + bytes(24))
        for at in range(count)
    ]
    ours = {one for at, one in enumerate(everything) if at not in without}
    theirs = {one for at, one in enumerate(everything) if at not in lacking}
    run = reconcile(RangeSet(packed(ours)), RangeSet(packed(theirs)), message_bytes=size)
    assert run.complete
    assert sorted(run.have) == sorted(ids_of(ours - theirs))
    assert sorted(run.need) == sorted(ids_of(theirs - ours))


@given(st.binary(max_size=200), sets)
def test_any_bytes_are_answered_or_raise_decode_error(data: bytes, some: set[bytes]) -> None:
    for message in (data, EMPTY + data):
        try:
            decode_ranges_untrusted(message)
        except DecodeError:
            continue
        own = RangeSet(packed(some))
        answer = Responder(own, SALT).receive(message)
        decode_ranges_untrusted(answer)
        initiator = Initiator(own, SALT)
        following = initiator.receive(message)
        assert following is None or decode_ranges_untrusted(following)
