"""The pure parts around sessions: outboxes, who gets what, and what a peer may cost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from p2p.replication import heads
from p2p.replication.config import ReplicationConfig
from p2p.replication.heads import NOT_COMPARED, Place
from p2p.replication.memstore import MemLogState
from p2p.replication.messages import (
    FrameReader,
    Have,
    HeadEntry,
    Message,
    Records,
    WantBodies,
    WantRange,
)
from p2p.replication.push import Announced, Origins, Outbox, spread
from p2p.replication.quota import GAP_RETRY_S, PEERS_MAX, WITHHELD_S, Quota
from p2p.replication.record import RecordWire
from tests.helpers.chains import digest

CONFIG = ReplicationConfig()
GROUP, OTHER = digest("group"), digest("other")
PEER, ELSE = digest("peer"), digest("else")
LOG = (GROUP, PEER, 1, 1)


def wire(n: int, size: int = 10) -> RecordWire:
    """A record told apart by its number."""
    return RecordWire(b"%d" % n, bytes(64), bytes(size))


def frames(data: bytes) -> list[Message]:
    """Messages of a byte string."""
    reader = FrameReader()
    reader.feed(data)
    found = []
    while (message := reader.next_message_untrusted()) is not None:
        found.append(message[0])
    return found


# --- outbox -----------------------------------------------------------------------------------


def test_an_outbox_sends_questions_first_and_records_by_group() -> None:
    box = Outbox(CONFIG)
    box.put(GROUP, wire(1))
    box.put(OTHER, wire(2))
    box.put(GROUP, wire(3))
    box.announce(GROUP, [PEER])
    box.ask(OTHER, [ELSE, ELSE])
    assert frames(box.take()) == [
        WantBodies(OTHER, (ELSE,)),
        Have(GROUP, (PEER,)),
        Records(GROUP, (wire(1), wire(3))),
        Records(OTHER, (wire(2),)),
    ]
    assert box.empty
    assert box.take() == b""


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, push_queue_records_max=3),
        replace(CONFIG, push_queue_bytes_max=3 * (10 + 1 + 64 + 16)),
    ],
    ids=["records", "bytes"],
)
def test_a_full_outbox_drops_its_oldest_and_says_so(config: ReplicationConfig) -> None:
    box = Outbox(config)
    for n in range(3):
        box.put(GROUP, wire(n))
    assert not box.lagged
    box.put(GROUP, wire(3))
    assert box.lagged
    (message,) = frames(box.take())
    assert message == Records(GROUP, tuple(wire(n) for n in (1, 2, 3)))


def test_what_is_cut_into_frames_at_once_is_bounded() -> None:
    box = Outbox(CONFIG)
    for n in range(100):
        box.put(GROUP, wire(n, 10_000))
    taken = box.take()
    assert len(taken) <= 256 * 1024
    assert not box.empty


def test_clearing_an_outbox_remembers_that_something_was_lost() -> None:
    box = Outbox(CONFIG)
    box.clear()
    assert not box.lagged
    box.announce(GROUP, [PEER])
    box.clear()
    assert box.lagged
    assert box.empty


def test_everyone_gets_records_in_full_up_to_sixteen_then_eight_do() -> None:
    rng = random.Random(1)
    peers = [digest(f"{n}") for n in range(17)]
    assert spread(peers[:16], CONFIG, rng) == (peers[:16], [])
    full, by_id = spread(peers, CONFIG, rng)
    assert len(full) == 8
    assert sorted(full + by_id) == sorted(peers)
    assert spread(peers, CONFIG, rng)[0] != full


def test_the_first_bringer_of_a_record_is_remembered() -> None:
    origins = Origins()
    origins.note(GROUP, PEER)
    origins.note(GROUP, ELSE)
    assert origins.of(GROUP) == PEER
    assert origins.of(OTHER) is None


def test_an_announced_record_is_asked_for_once_and_not_if_it_came() -> None:
    announced = Announced()
    announced.note(GROUP, b"1" * 32, PEER, 1.0)
    announced.note(GROUP, b"2" * 32, PEER, 1.5)
    announced.note(GROUP, b"1" * 32, ELSE, 3.0)
    assert announced.next_ask() == 1.0
    assert announced.due(0.9) == []
    announced.arrived(b"1" * 32)
    assert announced.due(2.0) == [(PEER, GROUP, b"2" * 32)]
    assert announced.due(2.0) == []
    assert announced.next_ask() is None


# --- quota ------------------------------------------------------------------------------------


def test_the_third_refusal_within_an_hour_bans_for_ten_minutes() -> None:
    quota = Quota(CONFIG)
    assert [quota.refuse(PEER, at) for at in (0.0, 10.0)] == [False, False]
    assert not quota.refuse(PEER, 4000.0)  # the first two are forgotten
    assert not quota.refuse(PEER, 4001.0)
    assert quota.refuse(PEER, 4002.0)
    assert quota.banned(PEER, 4002.0)
    assert not quota.banned(ELSE, 4002.0)
    assert not quota.banned(PEER, 4002.0 + CONFIG.ban_s)
    assert quota.refused_total(PEER) == 5


def test_a_peer_that_compares_without_end_is_not_served_for_a_while() -> None:
    quota = Quota(CONFIG)
    assert quota.may_compare(PEER, 1000.0)
    quota.compared(PEER, 64, 1000.0)
    assert quota.may_compare(PEER, 1000.0)
    quota.compared(PEER, 64, 1000.0)
    assert not quota.may_compare(PEER, 1000.0)
    assert not quota.may_compare(PEER, 1059.0)
    assert quota.may_compare(PEER, 1061.0)
    quota.compared(PEER, 0, 10_000.0)
    quota.compared(PEER, 95, 10_000.0)
    assert quota.may_compare(PEER, 10_000.0), "room does not pile up beyond the burst"
    quota.compared(PEER, 1, 10_000.0)
    assert not quota.may_compare(PEER, 10_000.0)


def test_a_rate_refills_and_never_exceeds_its_burst() -> None:
    quota = Quota(replace(CONFIG, records_burst=100, records_per_min=60))
    assert quota.spend(PEER, 99, 0.0)
    assert not quota.spend(PEER, 1, 0.0)
    assert not quota.may_ask(PEER, 0.0)
    assert quota.may_ask(PEER, 2.0)
    assert quota.spend(PEER, 99, 10_000.0)
    assert not quota.spend(PEER, 2, 10_000.0)
    assert quota.may_ask(ELSE, 0.0)


def test_after_five_refused_asks_the_join_door_is_silent_for_an_hour() -> None:
    quota = Quota(CONFIG)
    for at in range(5):
        assert not quota.join_silent(PEER, float(at))
        quota.refuse_join(PEER, float(at))
    assert quota.join_silent(PEER, 10.0)
    assert not quota.join_silent(PEER, 3601.0)


def test_who_withholds_three_times_is_asked_last_for_a_day() -> None:
    quota = Quota(CONFIG)
    assert [quota.withheld(PEER, 0.0) for _ in range(3)] == [False, False, True]
    assert quota.asked_last(PEER, 1.0)
    assert not quota.asked_last(PEER, WITHHELD_S + 1)


def test_a_gap_is_not_asked_of_the_same_peer_for_an_hour() -> None:
    quota = Quota(CONFIG)
    quota.gap_failed(PEER, LOG, 0.0)
    assert quota.skip_gaps(PEER, 1.0) == {LOG}
    assert quota.skip_gaps(ELSE, 1.0) == frozenset()
    assert quota.skip_gaps(PEER, GAP_RETRY_S + 1) == frozenset()


def test_a_stream_of_strangers_leaves_bounded_memory() -> None:
    quota = Quota(CONFIG)
    for n in range(PEERS_MAX + 100):
        quota.refuse_join(n.to_bytes(32, "big"), 0.0)
    assert len(quota._slates) == PEERS_MAX


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"sync_interval_s": 0},
        {"sync_interval_s": -1},
        {"skew_s": float("nan")},
        {"sync_jitter_ratio": 1.0},
        {"upkeep_s": 0.0},
        {"members_max": -1},
    ],
    ids=str,
)
def test_settings_that_would_spin_or_stop_are_refused_by_name(change: dict[str, float]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=name):
        ReplicationConfig(**change)  # type: ignore[arg-type]


# --- heads ------------------------------------------------------------------------------------

SALT = b"s" * 16


def log_state(
    contiguous: int, top: int, *, fork: int | None = None, author: bytes = PEER
) -> MemLogState:
    """A log of the data lane."""
    return MemLogState((GROUP, author, 1, 1), contiguous, top, digest("head"), 1, fork)


def entry(contiguous: int, top: int, *, author: bytes = PEER) -> HeadEntry:
    """The same log at the peer."""
    return HeadEntry(
        heads.short_id(SALT, author), 1, contiguous, top, heads.short_id(SALT, digest("head"))
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        (None, (5, 5), (1, 5)),
        ((5, 5), (5, 5), None),
        ((7, 7), (5, 5), None),
        ((3, 3), (5, 9), (4, 9)),
        ((3, 6), (9, 9), (4, 9)),
        ((3, 6), (4, 4), (4, 4)),
        ((3, 6), (2, 6), (4, 6)),
        ((0, 0), (0, 0), None),
    ],
)
def test_wanted_is_what_lies_above_us_or_in_our_gap(
    ours: tuple[int, int] | None, theirs: tuple[int, int], wanted: tuple[int, int] | None
) -> None:
    logs = [] if ours is None else [log_state(*ours)]
    ranges = heads.wanted_ranges([entry(*theirs)], heads.by_place(SALT, logs), 1)
    assert [(r.first, r.last) for r in ranges] == ([] if wanted is None else [wanted])


def test_a_gap_the_peer_failed_to_fill_is_skipped_and_the_rest_wanted() -> None:
    log = log_state(3, 6)
    ranges = heads.wanted_ranges(
        [entry(9, 9)], heads.by_place(SALT, [log]), 1, frozenset({log.key})
    )
    assert ranges == [WantRange(heads.short_id(SALT, PEER), 1, 1, 7, 9)]


def test_nothing_is_wanted_at_or_above_a_proven_fork() -> None:
    places = heads.by_place(SALT, [log_state(10, 10, fork=4)])
    assert heads.wanted_ranges([entry(20, 20)], places, 1) == []
    behind = heads.by_place(SALT, [log_state(1, 1, fork=4)])
    (wanted,) = heads.wanted_ranges([entry(20, 20)], behind, 1)
    assert (wanted.first, wanted.last) == (2, 3)
    (told,) = heads.head_entries(SALT, [log_state(10, 10, fork=4)], 1)
    assert (told.contiguous, told.max_seq, told.head) == (3, 3, NOT_COMPARED)


def test_heads_are_told_a_lane_at_a_time_in_a_fixed_order() -> None:
    logs = [log_state(1, 1, author=digest(f"{n}")) for n in range(5)]
    assert heads.head_entries(SALT, logs, 1) == heads.head_entries(SALT, logs[::-1], 1)
    assert heads.head_entries(SALT, logs, 0) == []


def test_a_peer_confirms_a_log_when_its_head_is_ours_and_not_by_claiming_more() -> None:
    log = log_state(5, 5)
    assert heads.confirms(SALT, [entry(5, 5)], log)
    assert not heads.confirms(SALT, [entry(6, 6)], log)
    assert not heads.confirms(SALT, [entry(4, 9)], log)
    other = HeadEntry(heads.short_id(SALT, PEER), 1, 5, 5, b"x" * 8)
    assert not heads.confirms(SALT, [other], log)
    assert not heads.confirms(SALT, [], log)


def test_gap_suspects_are_what_both_hold_where_no_head_speaks() -> None:
    places = heads.by_place(SALT, [log_state(3, 8)])
    assert heads.gap_suspects([entry(3, 7)], places, 1) == [((GROUP, PEER, 1, 1), 4, 7)]
    assert heads.gap_suspects([entry(3, 3)], places, 1) == []
    whole = heads.by_place(SALT, [log_state(8, 8)])
    assert heads.gap_suspects([entry(8, 8)], whole, 1) == []
    assert list(places) == [Place(heads.short_id(SALT, PEER), 1, 1)]
