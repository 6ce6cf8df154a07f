"""Range-based reconciliation: exact bytes, bounds on rounds and size, forgeries, hostile input."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from p2p.errors import DecodeError, LimitError, ProtocolError
from p2p.replication import heads, ranges
from p2p.replication.ranges import (
    EMPTY,
    INFINITY,
    Initiator,
    Range,
    RangeSet,
    Responder,
    decode_ranges_untrusted,
)
from tests.helpers.ranges_kit import (
    SALT,
    START_MS,
    AdditiveSet,
    XorSet,
    item,
    packed,
    random_items,
    reconcile,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FORGED = json.loads((Path(__file__).parents[1] / "vectors" / "fingerprints.json").read_text())


def bound(hlc: int, prefix: bytes = b"") -> bytes:
    return hlc.to_bytes(8, "big") + prefix.ljust(32, b"\0")


# --- the layout -----------------------------------------------------------------------------------


def test_a_message_is_the_bytes_the_specification_gives() -> None:
    print_ = b"f" * 16
    one, two = b"shortid1", b"shortid2"
    message = (
        b"\x01\x82\x2d\x00\x00"  # version; 1 + 300, no id bytes, skip
        b"\x01\x02ab\x01"  # the same clock, two id bytes, fingerprint
        + print_
        + b"\x05\x00\x02\x02"  # 4 later, two ids
        + one
        + two
        + b"\x00\x00\x01"  # to infinity
        + print_
    )
    assert decode_ranges_untrusted(message) == [
        Range(bound(300)),
        Range(bound(300, b"ab"), fingerprint=print_),
        Range(bound(304), short_ids=(one, two)),
        Range(INFINITY, fingerprint=print_),
    ]
    out = ranges._Writer()
    out.skip(bound(7))
    out.skip(bound(300))
    out.fingerprint(bound(300, b"ab"), print_)
    out.short_ids(bound(304), [one, two])
    out.fingerprint(INFINITY, print_)
    assert out.message() == message


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x02",
        b"\x01\x05\x00\x00",  # a skip at the end
        b"\x01\x80\x05\x00\x01" + bytes(16),  # leading zero
        b"\x01\x05\x00\x03" + bytes(16),  # unknown mode
        b"\x01\x05\x21" + b"a" * 33 + b"\x01" + bytes(16),  # 33 id bytes
        b"\x01\x05\x01\x00\x01" + bytes(16),  # zero at the end of a bound
        b"\x01\x00\x01a\x01" + bytes(16),  # infinity with an id
        b"\x01\x00\x00\x01" + bytes(16) + b"\x05\x00\x01" + bytes(16),  # above infinity
        b"\x01\x05\x00\x01" + bytes(16) + b"\x01\x00\x01" + bytes(16),  # the same bound again
        b"\x01\x05\x00\x01" + bytes(15),  # short
        b"\x01\x05\x00\x02\x82\x80\x80\x00" + bytes(8),  # more ids than bytes
        b"\x01" + b"\xff" * 10 + b"\x00\x01" + bytes(16),  # a number too long
        b"\x01" + b"\x83" + b"\xff" * 8 + b"\x7f\x00\x01" + bytes(16),  # a clock over 64 bits
        b"\x01\x01\x00\x01" + bytes(16),  # the bound zero
        bytes([1]) * (ranges.MESSAGE_BYTES_MAX + 1),
        b"\x01" + b"\x02\x00\x00" * (ranges.RANGES_MAX + 1),
    ],
    ids=lambda message: f"{message[:8].hex()} {len(message)}",
)
def test_what_is_not_the_one_form_is_refused(message: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_ranges_untrusted(message)


def test_a_fingerprint_is_a_hash_of_salt_number_and_ids_in_order() -> None:
    items = random_items(random.Random(1), 50)
    whole = RangeSet(b"".join(items))
    ids = b"".join(one[8:] for one in items[10:30])
    plain = hashlib.sha256(b"covey/range/1\0" + SALT + (20).to_bytes(8, "big") + ids)
    assert whole.fingerprint(SALT, 10, 30) == plain.digest()[:16]
    assert whole.fingerprint(SALT, 0, 50) == heads.fingerprint(SALT, b"".join(items))
    assert whole.fingerprint(b"another salt....", 10, 30) != whole.fingerprint(SALT, 10, 30)


def test_bounds_fall_between_neighbours_of_one_clock_and_of_two() -> None:
    one, two = item(5, b"\x07" * 32), item(5, b"\x07" * 31 + b"\x08")
    three = item(6, b"\x01" + bytes(31))
    whole = RangeSet(b"".join([one, two, three]))
    assert whole.bound_before(1) == two
    assert whole.bound_before(2) == bound(6 << 16)
    assert [whole.find(b) for b in (one, two, bound(6 << 16), three, INFINITY)] == [0, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="whole items"):
        RangeSet(one + b"x")


# --- how much it costs ----------------------------------------------------------------------------


def apart(items: list[bytes], differing: set[int]) -> tuple[RangeSet, RangeSet]:
    """Two sets: of the differing items each side lacks every second one."""
    ours = [one for at, one in enumerate(items) if at not in differing or at % 2]
    theirs = [one for at, one in enumerate(items) if at not in differing or not at % 2]
    return RangeSet(b"".join(ours)), RangeSet(b"".join(theirs))


@pytest.fixture(scope="module")
def many() -> list[bytes]:
    return random_items(random.Random(4), 100_000)


def test_equal_sets_of_any_size_cost_one_round_trip_and_400_bytes(many: list[bytes]) -> None:
    for count in (0, 1, 31, 32, 5_000, 100_000):
        run = reconcile(RangeSet(b"".join(many[:count])), RangeSet(b"".join(many[:count])))
        assert (run.complete, run.have, run.need, run.rounds) == (True, [], [], 1)
        assert run.bytes <= 400


def test_100_differences_among_100_000_take_two_round_trips_and_65_kb(many: list[bytes]) -> None:
    differing = set(random.Random(5).sample(range(100_000), 100))
    run = reconcile(*apart(many, differing))
    assert len(run.have) + len(run.need) == 100
    assert run.rounds <= 2
    assert run.bytes <= 65_000


def test_100_recent_differences_take_two_round_trips_and_4_kb(many: list[bytes]) -> None:
    run = reconcile(*apart(many, set(range(99_900, 100_000))))
    assert len(run.have) + len(run.need) == 100
    assert run.rounds <= 2
    assert run.bytes <= 4_000


@pytest.mark.slow
def test_100_differences_among_a_million_take_three_round_trips() -> None:
    items = random_items(random.Random(6), 1_000_000)
    run = reconcile(*apart(items, set(random.Random(7).sample(range(1_000_000), 100))))
    assert len(run.have) + len(run.need) == 100
    assert run.rounds <= 3


def test_one_side_empty_learns_everything_in_full_messages() -> None:
    items = random_items(random.Random(8), 20_000)
    run = reconcile(RangeSet(b""), RangeSet(b"".join(items)))
    assert run.complete
    assert set(run.need) == {one[8:] for one in items}
    assert run.rounds <= 6
    other = reconcile(RangeSet(b"".join(items)), RangeSet(b""))
    assert other.complete
    assert set(other.have) == {one[8:] for one in items}


def test_what_a_cap_cuts_the_next_run_goes_on_with() -> None:
    rng = random.Random(9)
    items = random_items(rng, 6_000)
    ours, theirs = set(rng.sample(items, 4_000)), set(rng.sample(items, 4_000))
    runs = 0
    while ours != theirs:
        run = reconcile(
            RangeSet(packed(ours)), RangeSet(packed(theirs)), message_bytes=2048, rounds_max=4
        )
        assert run.have or run.need, "each run brings something"
        theirs |= {one for one in ours if one[8:] in set(run.have)}
        ours |= {one for one in theirs if one[8:] in set(run.need)}
        runs += 1
    assert runs > 2
    assert ours == set(items) & (ours | theirs)


# --- forgeries ------------------------------------------------------------------------------------


def forged(kind: str) -> tuple[bytes, bytes]:
    """Two nodes' items: as many honest ones that the forged lie in one of the pieces compared."""
    seed = FORGED[kind]["seed"].encode()
    base = [item(START_MS, hashlib.sha256(b"honest %d" % n).digest()) for n in range(20_000)]

    def side(numbers: list[int]) -> bytes:
        ids = [hashlib.sha256(seed + str(n).encode()).digest() for n in numbers]
        return packed([*base, *(item(START_MS + 60_000, record_id) for record_id in ids)])

    return side(FORGED[kind]["one"]), side(FORGED[kind]["other"])


@pytest.mark.parametrize(("kind", "broken"), [("xor", XorSet), ("sum", AdditiveSet)])
def test_sets_forged_against_sums_and_xors_are_told_apart(
    kind: str, broken: Callable[[bytes], RangeSet]
) -> None:
    one, other = forged(kind)
    assert one != other
    assert len(one) == len(other)
    count = len(one) // 40
    assert not set(FORGED[kind]["one"]) & set(FORGED[kind]["other"])
    # The control: what is withstood would have passed.
    mark = broken(one).fingerprint(SALT, 0, count)
    assert mark == broken(other).fingerprint(SALT, 0, count)
    fooled = reconcile(broken(one), broken(other))
    assert fooled.complete
    assert not fooled.have
    assert not fooled.need
    assert RangeSet(one).fingerprint(SALT, 0, count) != RangeSet(other).fingerprint(SALT, 0, count)
    run = reconcile(RangeSet(one), RangeSet(other))
    assert run.complete
    assert len(run.have) == len(run.need) == len(FORGED[kind]["one"])


# --- hostile peers --------------------------------------------------------------------------------


def test_a_responder_that_never_agrees_is_left_after_the_last_round() -> None:
    initiator = Initiator(RangeSet(b"".join(random_items(random.Random(2), 100))), SALT)
    initiator.start()
    answer = b"\x01\x00\x00\x01" + bytes(16)
    rounds = 0
    while initiator.receive(answer) is not None:
        rounds += 1
    assert rounds == ranges.ROUNDS_MAX - 1
    assert not initiator.complete


def test_an_initiator_that_never_agrees_is_told_off() -> None:
    responder = Responder(RangeSet(b"".join(random_items(random.Random(2), 100))), SALT)
    for _ in range(ranges.ROUNDS_MAX):
        responder.receive(b"\x01\x00\x00\x01" + bytes(16))
    with pytest.raises(ProtocolError):
        responder.receive(EMPTY)


def test_a_responder_lists_no_more_than_a_session_may(many: list[bytes]) -> None:
    responder = Responder(RangeSet(b"".join(many)), SALT)

    def list_above(at: int) -> None:
        # The own list of what lies above a bound, as long as a message has room.
        out = ranges._Writer()
        out.skip(bound(int.from_bytes(many[at][:8], "big")))
        out.short_ids(INFINITY, [])
        responder.receive(out.message())

    for at in range(0, 64_000, 8_000):
        list_above(at)
    with pytest.raises(LimitError):
        list_above(64_000)


def test_an_initiator_stops_before_the_responder_must() -> None:
    rng = random.Random(3)
    items = random_items(rng, 80_000)
    run = reconcile(RangeSet(b""), RangeSet(b"".join(items)))
    assert not run.complete
    assert 50_000 < len(run.need) <= ranges.LISTED_MAX


def test_ids_that_were_not_listed_resolve_to_nothing() -> None:
    responder = Responder(RangeSet(b"".join(random_items(random.Random(2), 10))), SALT)
    assert responder.resolve([b"unlisted"]) == []


def test_a_message_full_of_ranges_is_answered_in_one_frame(many: list[bytes]) -> None:
    out = ranges._Writer()
    for at in range(1, 1_000):
        out.fingerprint(many[at * 50], bytes(16))
    responder = Responder(RangeSet(b"".join(many)), SALT)
    answer = responder.receive(out.message())
    assert len(answer) <= ranges.MESSAGE_BYTES_MAX
    assert decode_ranges_untrusted(answer)[-1].upper == INFINITY


def test_messages_too_small_to_hold_a_split_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="message_bytes"):
        Initiator(RangeSet(b""), SALT, message_bytes=500)
