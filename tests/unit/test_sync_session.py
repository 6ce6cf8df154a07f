"""The session machine: every pair of state and input, any cut of the bytes, any two sets."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2p.errors import LimitError, ProtocolError, UsageError, VersionError
from p2p.replication import exchange_tails as ex
from p2p.replication import exchange_types as types
from p2p.replication import session as se
from p2p.replication.config import ReplicationConfig
from p2p.replication.exchange import Exchange
from p2p.replication.exchange_types import AdmitResult, GroupState, Input
from p2p.replication.messages import (
    FRAME_BYTES_MAX,
    Ask,
    Counts,
    Done,
    Erased,
    Error,
    FrameReader,
    Groups,
    Have,
    Heads,
    Hello,
    Message,
    Recon,
    Records,
    State,
    Want,
    WantBodies,
    WantIds,
    WantRange,
    encode_frame,
)
from tests.helpers.chains import Chain, build, digest
from tests.helpers.pairs import Side, now, run_pair, wires_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.record import Record

GROUP = digest("group")
OTHER = digest("other group")
ALICE, BOB, CAROL = digest("alice"), digest("bob"), digest("carol")
A, B = digest("side a"), digest("side b")
TAG = bytes(16)

MESSAGES: dict[str, Message] = {
    "State": State(TAG, bytes(32), bytes(32)),
    "Records": Records(TAG, ()),
    "Heads": Heads(TAG, 0, ()),
    "Want": Want(TAG, ()),
    "Recon": Recon(TAG, 1, b""),
    "WantIds": WantIds(TAG, ()),
    "WantBodies": WantBodies(TAG, ()),
    "Erased": Erased(TAG, ()),
    "Done": Done(TAG, bytes(32), Counts(0, 0)),
}


def pair(groups: tuple[bytes, ...] = (GROUP,)) -> tuple[Side, Side]:
    """Two sides that share the groups."""
    return Side(A, groups), Side(B, groups)


# --- tables -----------------------------------------------------------------------------------


class NullPort:
    """A port that swallows everything."""

    salt = b"s" * 16
    side, other_side = b"i", b"r"
    me = A
    reconciles = verifies = False

    def send(self, message: object) -> None: ...
    def ask_roots(self, group: object, then: object) -> None: ...
    def ask_logs(self, group: object, then: object) -> None: ...
    def ask_ranges(self, group: object, then: object) -> None: ...
    def ask_ids(self, group: object, places: object, then: object) -> None: ...
    def admit(self, group: object, wires: object, then: object) -> None: ...
    def serve(self, exchange: object, job: object) -> None: ...
    def finished(self, report: object) -> None: ...


def test_every_pair_of_group_state_and_input_is_decided_by_the_table() -> None:
    pairs = list(itertools.product(GroupState, Input))
    assert len(pairs) == 9 * 18
    for state, event in pairs:
        machine = Exchange(GROUP, TAG, NullPort())  # type: ignore[arg-type]
        machine.state = state
        following = types.TRANSITIONS.get((state, event))
        if following is None:
            with pytest.raises(ProtocolError):
                machine._move(event)
            assert machine.state is state
        else:
            machine._move(event)
            assert machine.state is following


def test_every_message_in_every_group_state_is_taken_or_a_protocol_error() -> None:
    assert set(MESSAGES) == set(types.INPUT_OF)
    pairs = list(itertools.product(GroupState, MESSAGES))
    assert len(pairs) == 9 * 9
    for state, name in pairs:
        machine = Exchange(GROUP, TAG, NullPort())  # type: ignore[arg-type]
        machine.state = state
        allowed = (state, types.INPUT_OF[name]) in types.TRANSITIONS
        try:
            machine.receive(MESSAGES[name])
        except ProtocolError:
            continue  # The table forbids it, or the state's own progress does.
        assert allowed, f"{name} was taken in {state}"


def test_ranges_are_not_taken_before_both_sides_agreed_on_them() -> None:
    entries = [key for key, to in types.TRANSITIONS.items() if to is GroupState.RECONCILE]
    assert {event for _, event in entries} == {Input.RECONCILE_AGREED, Input.RECV_RECON}
    for name in ("Recon", "WantIds"):
        for state in (GroupState.RECONCILE, GroupState.TRANSFER):
            machine = Exchange(GROUP, TAG, NullPort())  # type: ignore[arg-type]
            machine.state = state
            with pytest.raises(ProtocolError):
                machine.receive(MESSAGES[name])


def test_every_pair_of_session_state_and_input_is_decided_by_the_table() -> None:
    pairs = list(itertools.product(se.SessionState, se.SessionInput))
    assert len(pairs) == 4 * 6
    for state, event in pairs:
        side = Side(A, (GROUP,))
        side.begin(initiator=True)
        side.session.state = state
        following = se.TRANSITIONS.get((state, event))
        if following is None:
            with pytest.raises(ProtocolError):
                side.session._move(event)
        else:
            side.session._move(event)
            assert side.session.state is following


@pytest.mark.parametrize("initiator", [True, False])
def test_every_message_in_every_session_state_ends_well_or_closes(initiator: bool) -> None:
    others: list[Message] = [
        Hello(1, 1, (), b"x" * 16),
        Groups(()),
        Error(2, "why", 1, 1),
        Ask(GROUP, GROUP),
        Have(TAG, ()),
    ]
    messages = [*MESSAGES.values(), *others]
    count = 0
    for state, message in itertools.product(se.SessionState, messages):
        side = Side(A, (GROUP,))
        side.begin(initiator=initiator)
        side.session.state = state
        side.carry(side.session.receive(encode_frame(message), 1.0), 1.0)
        count += 1
        if state is se.SessionState.CLOSED:
            assert side.closed is None
        elif isinstance(message, Error):
            assert side.closed is not None
    assert count == 4 * 14


# --- equal sets -------------------------------------------------------------------------------


def test_equal_sets_are_over_in_one_round_trip_of_300_bytes() -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE).many(50) + Chain(GROUP, ALICE, lane=0).many(5)
    a.hold(records)
    b.hold(records)
    there, back = run_pair(a, b)
    assert there + back <= 300
    for side in (a, b):
        assert side.reports[GROUP].equal
        assert side.reports[GROUP].received == 0
        assert side.closed == se.Close("done")


def test_empty_groups_are_equal() -> None:
    a, b = pair()
    run_pair(a, b)
    assert a.reports[GROUP].equal
    assert b.reports[GROUP].equal


def test_only_common_groups_are_compared_and_the_others_told_to_nobody() -> None:
    a, b = Side(A, (GROUP, OTHER)), Side(B, (GROUP,))
    a.hold(Chain(GROUP, ALICE).many(3))
    a.hold(Chain(OTHER, ALICE).many(3))
    run_pair(a, b)
    assert set(a.reports) == set(b.reports) == {GROUP}
    assert a.index(GROUP) == b.index(GROUP)
    assert b.index(OTHER) == (b"", b"")
    assert a.unshared == (OTHER,)


def test_without_a_common_group_the_session_ends_at_once() -> None:
    a, b = Side(A, (GROUP,)), Side(B, (OTHER,))
    run_pair(a, b)
    assert a.closed == b.closed == se.Close("done")
    assert a.reports == b.reports == {}
    assert a.unshared == (GROUP,)
    assert b.unshared == (OTHER,)


# --- unequal sets -----------------------------------------------------------------------------


def both_hold_the_union(a: Side, b: Side, group: bytes = GROUP) -> None:
    """Sets and reports after a good session."""
    assert a.index(group) == b.index(group)
    for side in (a, b):
        assert side.reports[group].equal, side.reports[group]
        assert side.closed == se.Close("done")


def test_each_side_gets_what_it_lacks() -> None:
    a, b = pair()
    common = Chain(GROUP, ALICE)
    shared = common.many(10)
    a.hold([*shared, *common.many(7)])
    b.hold([*shared, *Chain(GROUP, BOB).many(400), *Chain(GROUP, BOB, lane=0).many(3)])
    a.hold(Chain(GROUP, CAROL, lane=0).many(4))
    run_pair(a, b)
    both_hold_the_union(a, b)
    assert a.reports[GROUP].received == 403
    assert b.reports[GROUP].received == 11
    assert a.reports[GROUP].sent == 11


def test_gaps_are_filled() -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE).many(30)
    a.hold(records[:10] + records[20:])
    b.hold(records)
    run_pair(a, b)
    both_hold_the_union(a, b)


def test_a_big_difference_comes_in_many_frames() -> None:
    a, b = pair()
    chain = Chain(GROUP, ALICE)
    b.hold([chain.next(bytes([n % 251]) * 3000) for n in range(700)])
    there, back = run_pair(a, b)
    both_hold_the_union(a, b)
    assert there < 2000
    assert back > 700 * 3000


def test_one_want_covers_a_bounded_number_of_places() -> None:
    queue = [WantRange(b"a" * 8, 1, 1, 1, 10), WantRange(b"b" * 8, 1, 1, 5, 2**62)]
    first = ex.cut_ranges(queue)
    assert [(r.first, r.last) for r in first] == [(1, 10), (5, 4 + ex.WANT_RECORDS_MAX - 10)]
    second = ex.cut_ranges(queue)
    assert [r.first for r in second] == [first[1].last + 1]
    assert sum(r.last - r.first + 1 for r in second) == ex.WANT_RECORDS_MAX
    many = [WantRange(b"c" * 8, n, 1, 1, 1) for n in range(1, 1500)]
    assert len(ex.cut_ranges(many)) == 1024
    assert len(many) == 1499 - 1024


def test_a_peer_that_claims_endless_logs_costs_rounds_and_no_more() -> None:
    a, b = pair()
    far = build((GROUP, ALICE, 1, 1), 2**62, b"p" * 32, 1 << 40, b"far")
    b.hold([far])
    a.features = ()
    run_pair(a, b)
    assert a.reports[GROUP].rounds == ex.ROUNDS_MAX
    assert not a.reports[GROUP].equal
    assert "goes on" in a.reports[GROUP].reason


records_strategy = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 1), st.integers(1, 12), st.booleans(), st.booleans()
    ),
    max_size=6,
    unique_by=lambda part: part[:2],
)


@settings(max_examples=150)
@given(records_strategy, st.integers(0, 2**32))
@example([(0, 1, 3, True, False), (0, 0, 2, False, True)], 1)
def test_any_two_prefixes_of_any_logs_become_equal_whatever_the_cuts(
    parts: list[tuple[int, int, int, bool, bool]], seed: int
) -> None:
    rng = random.Random(seed)
    a, b = pair()
    for author, lane, length, in_a, in_b in parts:
        chain = Chain(GROUP, digest(f"author {author}"), lane=lane)
        records = chain.many(length, f"{author}/{lane}/")
        a.hold(records[: rng.randint(0, length)] if in_a else [])
        b.hold(records[: rng.randint(0, length)] if in_b else [])
    run_pair(a, b, rng=rng)
    both_hold_the_union(a, b)


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_any_subsets_with_gaps_become_equal(seed: int) -> None:
    rng = random.Random(seed)
    a, b = pair()
    for author in range(rng.randint(1, 3)):
        records = Chain(GROUP, digest(f"author {author}")).many(rng.randint(1, 20), f"{author}/")
        a.hold([r for r in records if rng.random() < 0.6])
        b.hold([r for r in records if rng.random() < 0.6])
    run_pair(a, b, rng=rng)
    assert a.index(GROUP) == b.index(GROUP)


def test_byte_by_byte_is_the_same_session() -> None:
    class One(random.Random):
        def randint(self, a: int, b: int) -> int:  # noqa: ARG002
            return a

    def sides() -> tuple[Side, Side]:
        a, b = pair()
        a.hold(Chain(GROUP, ALICE).many(20))
        b.hold(Chain(GROUP, BOB).many(20))
        return a, b

    whole, cut = sides(), sides()
    assert run_pair(*whole) == run_pair(*cut, rng=One())
    assert whole[0].reports == cut[0].reports


@pytest.mark.parametrize("bytes_max", [1, 50, 200, 1000, 5000, 20_000])
def test_a_cut_session_loses_nothing_and_the_next_goes_on(bytes_max: int) -> None:
    a, b = pair()
    a.hold(Chain(GROUP, ALICE).many(200))
    b.hold(Chain(GROUP, BOB).many(200))
    run_pair(a, b, bytes_max=bytes_max)
    for side in (a, b):
        assert side.closed is not None
        report = side.reports.get(GROUP)
        assert report is None or report.equal or report.reason
    run_pair(a, b)
    both_hold_the_union(a, b)


def test_more_logs_than_one_frame_of_heads() -> None:
    a, b = pair()
    for n in range(1100):
        (record,) = Chain(GROUP, digest(f"author {n}")).many(1)
        (a if n % 2 else b).hold([record])
    run_pair(a, b)
    both_hold_the_union(a, b)


# --- forks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("common", [0, 1, 63, 64, 65, 500])
@pytest.mark.parametrize(("left", "right"), [(1, 1), (3, 40), (200, 1), (150, 150)])
def test_the_first_difference_of_a_forked_log_is_found(common: int, left: int, right: int) -> None:
    a, b = pair()
    chain = Chain(GROUP, ALICE)
    shared = chain.many(common)
    twin = chain.fork()
    a.hold([*shared, *chain.many(left, "left")])
    b.hold([*shared, *twin.many(right, "right")])
    run_pair(a, b)
    found = [s for side in (a, b) for s in side.suspects if s.first]
    assert found
    assert {s.seq for s in found} == {common + 1}
    assert not a.reports[GROUP].equal
    assert not b.reports[GROUP].equal
    assert a.reports[GROUP].forks + b.reports[GROUP].forks >= 1
    assert max(a.reports[GROUP].rounds, b.reports[GROUP].rounds) <= ex.ROUNDS_MAX
    # The proof settles it: both leave the branch out of the set, and are equal.
    log = chain.log
    for side in (a, b):
        fork = [(log, common + 1, digest("x"), digest("y"))]
        now(side.store.settle(GROUP, fork=fork))
    run_pair(a, b)
    both_hold_the_union(a, b)


def test_a_forked_control_log_is_found_too() -> None:
    a, b = pair()
    chain = Chain(GROUP, ALICE, lane=0)
    shared = chain.many(5)
    twin = chain.fork()
    a.hold([*shared, *chain.many(3, "left")])
    b.hold([*shared, *twin.many(3, "right")])
    run_pair(a, b)
    assert {s.seq for side in (a, b) for s in side.suspects if s.first} == {6}
    assert a.reports[GROUP].control_incomplete
    assert not a.reports[GROUP].equal


def test_a_branch_above_a_gap_shows_in_the_roots_and_is_looked_for() -> None:
    a, b = pair()
    chain = Chain(GROUP, ALICE)
    shared = chain.many(3)
    chain.many(2)  # nobody has these
    twin = chain.fork()
    a.hold([*shared, chain.next(b"left")])
    b.hold([*shared, twin.next(b"right")])
    run_pair(a, b)
    assert {s.seq for side in (a, b) for s in side.suspects} == {6}
    for side in (a, b):
        assert not side.reports[GROUP].equal
        assert side.reports[GROUP].reason


# --- ranges -----------------------------------------------------------------------------------


def lose(side: Side, records: Sequence[Record]) -> None:
    """Rows vanish while the logs still claim them: what no head shows."""
    for record in records:
        del side.store.disk.rows[record.id]
        key = (record.group, record.author, record.incarnation, record.lane)
        del side.store.disk.logs[key].ids[record.seq]
    side.store._indexes.clear()


@pytest.mark.parametrize("lane", [0, 1])
def test_what_was_lost_below_a_head_is_repaired_on_both_sides(lane: int) -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE, lane=lane).many(300)
    a.hold(records)
    b.hold(records)
    lose(a, records[10:40])
    lose(b, records[100:103])
    run_pair(a, b)
    assert a.index(GROUP) == b.index(GROUP)
    report = a.reports[GROUP]
    assert (report.equal, report.reconciled, report.compared_all) == (True, True, True)
    assert (report.received, report.sent) == (30, 3)
    assert (report.only_there, report.only_here) == (30, tuple(r.id for r in records[100:103]))
    assert b.reports[GROUP].equal


def test_a_peer_of_the_first_version_is_served_without_ranges() -> None:
    for old in (0, 1):
        sides = pair()
        sides[old].features = ()
        records = Chain(GROUP, ALICE).many(30)
        for side in sides:
            side.hold(records)
        lose(sides[0], records[10:20])
        run_pair(*sides)
        for side in sides:
            assert side.closed == se.Close("done")
            assert not side.reports[GROUP].equal
            assert not side.reports[GROUP].reconciled


def test_more_than_one_frame_of_short_ids_is_asked_for() -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE).many(5_000)
    a.hold(records)
    b.hold(records)
    lose(a, records[:3_000])
    run_pair(a, b)
    assert a.reports[GROUP].equal
    assert a.reports[GROUP].received == 3_000


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_any_damage_is_repaired_whatever_the_cuts(seed: int) -> None:
    rng = random.Random(seed)
    a, b = pair()
    for author, lane in itertools.product(range(rng.randint(1, 3)), (0, 1)):
        name = digest(f"author {author}")
        records = Chain(GROUP, name, lane=lane).many(rng.randint(1, 60), f"{author}/{lane}/")
        for side in (a, b):
            side.hold(records[: rng.randint(1, len(records))])
            held = [record for record in records if record.id in side.store.disk.rows]
            lose(side, rng.sample(held, rng.randint(0, len(held) // 2)))
    everything = {*a.store.disk.rows, *b.store.disk.rows}
    run_pair(a, b, rng=rng)
    assert set(a.store.disk.rows) == set(b.store.disk.rows) == everything
    assert a.reports[GROUP].equal
    assert b.reports[GROUP].equal


@pytest.mark.parametrize("bytes_max", [500, 2_000, 9_000, 30_000])
def test_a_cut_repair_loses_nothing_and_the_next_session_goes_on(bytes_max: int) -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE).many(400)
    a.hold(records)
    b.hold(records)
    lose(a, records[50:150])
    lose(b, records[200:300])
    run_pair(a, b, bytes_max=bytes_max)
    run_pair(a, b)
    assert a.index(GROUP) == b.index(GROUP)
    assert a.reports[GROUP].equal


def test_verifying_counts_what_differs_and_changes_nothing() -> None:
    a, b = pair()
    shared = Chain(GROUP, ALICE).many(200)
    mine, theirs = Chain(GROUP, BOB).many(3), Chain(GROUP, CAROL).many(5)
    a.hold([*shared, *mine])
    b.hold([*shared, *theirs])
    before = a.index(GROUP), b.index(GROUP)
    run_pair(a, b, verify=True)
    assert (a.index(GROUP), b.index(GROUP)) == before
    report = a.reports[GROUP]
    assert (report.equal, report.compared_all, report.reason) == (False, True, "they differ")
    assert set(report.only_here) == {record.id for record in mine}
    assert report.only_there == 5
    assert report.records == 203
    run_pair(a, b)
    run_pair(a, b, verify=True)
    assert a.reports[GROUP].equal
    assert a.reports[GROUP].records == 208


def test_short_ids_listed_and_not_brought_are_reported() -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE).many(50)
    a.hold(records)
    b.hold(records)
    lose(a, records[10:20])
    b.refuse_by_id = frozenset(record.id for record in records)
    run_pair(a, b)
    report = a.reports[GROUP]
    assert (report.equal, report.withheld, report.missing) == (False, True, 10)


# --- lies and limits --------------------------------------------------------------------------


def test_what_a_peer_lists_and_does_not_bring_is_reported() -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE).many(10)
    b.hold(records)
    b.refuse = b.refuse_by_id = frozenset(record.id for record in records[4:])
    run_pair(a, b)
    report = a.reports[GROUP]
    assert not report.equal
    assert report.withheld
    assert report.missing == 6
    assert report.received == 4


def test_withheld_control_records_are_flagged() -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE, lane=0).many(4)
    b.hold(records)
    b.refuse = b.refuse_by_id = frozenset(record.id for record in records)
    run_pair(a, b)
    assert a.reports[GROUP].control_incomplete
    assert not a.reports[GROUP].equal


def test_more_of_our_own_log_than_we_have_is_fetched_as_any() -> None:
    a, b = pair()
    chain = Chain(GROUP, A)
    records = chain.many(6)
    a.hold(records[:2])
    b.hold(records)
    run_pair(a, b)
    both_hold_the_union(a, b)


def test_a_member_that_holds_our_control_log_confirms_it() -> None:
    a, b = pair()
    records = Chain(GROUP, A, lane=0).many(3)
    a.hold(records)
    run_pair(a, b)
    assert not a.reports[GROUP].confirmed or b.index(GROUP)[0]
    a.hold(Chain(GROUP, BOB).many(2))
    run_pair(a, b)
    assert a.reports[GROUP].confirmed


def test_another_version_is_refused_with_ours_named() -> None:
    side = Side(A, (GROUP,))
    side.begin(initiator=False)
    side.carry(side.session.receive(encode_frame(Hello(2, 9, (), b"x" * 16)), 0.0), 0.0)
    assert side.closed is not None
    assert isinstance(side.closed.error, VersionError)
    reader = FrameReader()
    reader.feed(side.session.to_send(FRAME_BYTES_MAX + 4))
    messages = []
    while (found := reader.next_message_untrusted()) is not None:
        messages.append(found[0])
    assert isinstance(messages[-1], Error)
    assert (messages[-1].v_min, messages[-1].v_max) == (1, 1)


def test_an_echoed_nonce_is_refused() -> None:
    side = Side(A, (GROUP,))
    side.begin(initiator=True)
    side.carry(side.session.receive(encode_frame(Hello(1, 1, (), b"i" * 16)), 0.0), 0.0)
    assert side.closed is not None
    assert isinstance(side.closed.error, ProtocolError)


def test_silence_ends_a_session_at_the_idle_limit_and_activity_moves_it() -> None:
    config = ReplicationConfig()
    side = Side(A, (GROUP,))
    side.begin(initiator=True, config=config)
    assert side.session.next_timer() == config.session_idle_s
    assert side.session.on_timer(config.session_idle_s - 1) == []
    side.session.receive(b"\0", 10.0)
    assert side.session.next_timer() == 10.0 + config.session_idle_s
    side.carry(side.session.on_timer(10.0 + config.session_idle_s), 0.0)
    assert side.closed is not None
    assert side.closed.reason == "idle"
    assert side.session.next_timer() is None


def test_a_session_has_a_longest_time() -> None:
    config = ReplicationConfig()
    side = Side(A, (GROUP,))
    side.begin(initiator=True, config=config)
    for at in range(0, int(config.session_s), 20):
        side.session.receive(b"", float(at))
        due = side.session.next_timer()
        assert due is not None
        assert due > at
    side.carry(side.session.on_timer(config.session_s), 0.0)
    assert side.closed is not None
    assert "goes on" in side.closed.reason


def test_a_session_has_a_largest_size_and_the_next_goes_on() -> None:
    from dataclasses import replace

    config = replace(ReplicationConfig(), session_bytes_max=100_000)
    a, b = pair()
    chain = Chain(GROUP, ALICE)
    b.hold([chain.next(bytes(900)) for _ in range(300)])
    sessions = 0
    while a.index(GROUP) != b.index(GROUP):
        run_pair(a, b, config=config)
        sessions += 1
        assert sessions < 20
    assert 3 <= sessions <= 10


def test_little_is_read_from_the_store_while_much_is_unsent() -> None:
    side = Side(A, (GROUP,))
    chain = Chain(GROUP, ALICE)
    side.hold([chain.next(bytes([n % 7]) * 4000) for n in range(1000)])
    side.begin(initiator=False)
    start(side)
    wants = tuple(
        WantRange(se.heads.short_id(side.session.salt, ALICE), 1, 1, 1, 1000) for _ in range(20)
    )
    tag = se.heads.group_tag(side.session.salt, GROUP)
    side.carry(side.session.receive(encode_frame(Want(tag, wants)), 0.0), 0.0)
    assert side.session.unsent_bytes < 2 * se.SERVE_BELOW_BYTES + se.TAIL_BYTES


def test_too_many_ranges_at_once_end_the_session() -> None:
    side = Side(A, (GROUP,))
    chain = Chain(GROUP, ALICE)
    side.hold([chain.next(bytes(4000)) for _ in range(200)])
    side.begin(initiator=False)
    start(side)
    author = se.heads.short_id(side.session.salt, ALICE)
    tag = se.heads.group_tag(side.session.salt, GROUP)
    want = encode_frame(Want(tag, (WantRange(author, 1, 1, 1, 200),) * 1024))
    for _ in range(70):
        side.carry(side.session.receive(want, 0.0), 0.0)
    assert side.closed is not None
    assert isinstance(side.closed.error, LimitError)


def start(side: Side) -> None:
    """Bring a responder to TAILS, the peer having nothing."""

    def receive(message: Message) -> None:
        side.carry(side.session.receive(encode_frame(message), 0.0), 0.0)

    receive(Hello(1, 1, (), b"i" * 16))
    tag = se.heads.group_tag(side.session.salt, GROUP)
    receive(Groups((tag,)))
    empty = se.heads.fingerprint(side.session.salt, b"")
    root = se.heads.bound_root(side.session.salt, b"i", empty)
    receive(State(tag, root, root))
    receive(Heads(tag, 1, ()))
    assert side.closed is None


def test_a_peer_over_its_refusals_ends_the_session() -> None:
    class Strict(Side):
        def admit(self, event: se.Admit) -> AdmitResult:
            return AdmitResult(refused=len(event.wires), close="3 records refused")

    a, b = Strict(A, (GROUP,)), Side(B, (GROUP,))
    b.hold(Chain(GROUP, ALICE).many(3))
    run_pair(a, b)
    assert a.closed is not None
    assert isinstance(a.closed.error, LimitError)


def test_a_peer_over_its_rate_is_asked_for_nothing_more() -> None:
    class Full(Side):
        def admit(self, event: se.Admit) -> AdmitResult:
            result = super().admit(event)
            return AdmitResult(stored=result.stored, throttled=True)

    a, b = Full(A, (GROUP,)), Side(B, (GROUP,))
    chain = Chain(GROUP, ALICE, lane=0)
    b.hold(chain.many(2))
    b.hold(Chain(GROUP, ALICE).many(10))
    run_pair(a, b)
    assert a.closed == se.Close("done")
    assert a.reports[GROUP].reason == "rate"
    assert not a.reports[GROUP].withheld


def test_cited_records_are_asked_for_by_id_once() -> None:
    class Citing(Side):
        asked = 0

        def admit(self, event: se.Admit) -> AdmitResult:
            result = super().admit(event)
            self.asked += 1
            return AdmitResult(stored=result.stored, missing=(beside.id, digest("nowhere")))

    a, b = Citing(A, (GROUP,)), Side(B, (GROUP,))
    (beside,) = Chain(GROUP, BOB, lane=0).many(1)
    b.hold([beside])
    b.refuse = frozenset({beside.id})  # not among its heads' records, but served by id
    b.hold(Chain(GROUP, ALICE).many(3))
    run_pair(a, b)
    assert a.closed == se.Close("done")
    assert now(a.store.known([beside.id])) == {beside.id: "live"}
    assert a.asked == 2


def test_an_answer_nobody_waits_for_is_our_bug() -> None:
    side = Side(A, (GROUP,))
    side.begin(initiator=True)
    with pytest.raises(UsageError):
        side.session.answer(17, None, 0.0)
    with pytest.raises(UsageError):
        side.session.to_send(100)


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_end_in_a_close_or_nothing(data: bytes, initiator: bool) -> None:
    side = Side(A, (GROUP,))
    side.begin(initiator=initiator)
    side.carry(side.session.receive(data, 0.0), 0.0)
    side.carry(side.session.end_of_file(), 0.0)
    assert side.closed is not None


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_a_session_with_a_flipped_byte_ends_without_an_exception(seed: int) -> None:
    rng = random.Random(seed)
    a, b = pair()
    a.hold(Chain(GROUP, ALICE).many(5))
    b.hold(Chain(GROUP, BOB).many(5))
    a.begin(initiator=True)
    b.begin(initiator=False)
    at = rng.randint(0, 60)
    for turn in range(80):
        one, other = ((a, b), (b, a))[turn % 2]
        out = bytearray(one.session.to_send(256 * 1024))
        if turn == at and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        one.carry(one.session.sent(0.0), 0.0)
        if out and other.closed is None:
            other.carry(other.session.receive(bytes(out), 0.0), 0.0)


def test_wires_survive_the_trip_unchanged() -> None:
    a, b = pair()
    records = Chain(GROUP, ALICE).many(3)
    b.hold(records)
    run_pair(a, b)
    rows = now(a.store.fetch([r.id for r in records], bodies=True))
    assert tuple(se.wire_of(row) for row in rows) == wires_of(records)
