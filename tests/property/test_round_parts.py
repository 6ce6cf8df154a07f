"""Parts and deadlines of rounds, whatever the roster and the arrivals are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from federated.rounds.protocol.deadline import (
    DEADLINE_MAX_S,
    DEADLINE_MIN_S,
    Closing,
    History,
    closing,
    closing_early,
    next_look,
)
from federated.rounds.protocol.topology import ALIGNMENT, REDUCERS_MAX, PeerLink, parts, predicted

rates = st.one_of(st.floats(), st.floats(0, 1e9), st.just(2.5e6))
rosters = st.lists(
    st.tuples(st.booleans(), rates, rates), min_size=1, max_size=REDUCERS_MAX + 6
).map(
    lambda told: [
        PeerLink(number.to_bytes(32, "big"), dialable=dialable, up=up, down=down)
        for number, (dialable, up, down) in enumerate(told)
    ]
)
totals = st.one_of(st.integers(1, 20 * ALIGNMENT), st.integers(1, 10**9))
payloads = st.sampled_from([0, 999_999, 1_000_000, 10**9])
seconds = st.one_of(st.floats(0, 4000), st.floats())


@given(totals, rosters, payloads, st.integers(0, 2**63))
def test_parts_cover_every_element_once_and_are_aligned(
    total: int, roster: list[PeerLink], payload: int, number: int
) -> None:
    cut = parts(total, roster, payload, round_number=number)
    reach = 0
    for part in cut:
        assert part.start == reach
        assert part.start % ALIGNMENT == 0
        assert part.n >= 1
        reach += part.n
    assert reach == total
    reducers = [part.reducer for part in cut]
    assert len(set(reducers)) == len(reducers) <= REDUCERS_MAX
    known = {link.peer: link for link in roster}
    if len(cut) > 1:
        assert all(known[reducer].dialable for reducer in reducers)
    for part in cut:
        assert (part.standby != part.reducer) == (len(roster) > 1)
        assert part.standby in known
    assert cut == parts(total, roster, payload, round_number=number)


@given(rosters, st.integers(1, 10**9))
def test_predicted_phases_are_finite_and_grow_with_the_payload(
    roster: list[PeerLink], payload: int
) -> None:
    cut = parts(10**8, roster, payload)
    first = predicted(cut, roster, payload, payload)
    second = predicted(cut, roster, 2 * payload, 2 * payload)
    for less, more in (
        (first.scatter_s, second.scatter_s),
        (first.gather_s, second.gather_s),
    ):
        assert 0 <= less <= more < 10**9


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=20), st.data())
def test_a_faster_reducer_gets_at_least_as_much_but_for_a_block(
    ups: list[float], data: st.DataObject
) -> None:
    roster = [
        PeerLink(number.to_bytes(32, "big"), dialable=True, up=up, down=up)
        for number, up in enumerate(ups)
    ]
    got = {part.reducer: part.n for part in parts(10_000 * ALIGNMENT, roster, 10**8)}
    one, other = data.draw(st.permutations(roster))[:2]
    if one.rate <= other.rate:
        assert got.get(one.peer, 0) <= got.get(other.peer, 0) + ALIGNMENT


@given(st.lists(seconds, max_size=80), st.integers(1, 64))
def test_a_deadline_is_always_within_its_limits(offsets: list[float], n: int) -> None:
    assert DEADLINE_MIN_S <= History(tuple(offsets)).deadline_s(n) <= DEADLINE_MAX_S


@given(st.lists(st.tuples(st.lists(seconds, max_size=8), st.integers(0, 8), seconds), max_size=6))
def test_a_history_is_bounded(rounds: list[tuple[list[float], int, float]]) -> None:
    history = History()
    for arrived, late, closed in rounds:
        history = history.after(arrived, late=late, closed_s=closed, n=16)
        assert len(history.offsets) <= 3 * 16
        assert all(0 <= offset <= DEADLINE_MAX_S for offset in history.offsets)


@given(st.integers(1, 64), st.data())
def test_time_and_arrivals_never_take_a_closing_back(n: int, data: st.DataObject) -> None:
    quorum = data.draw(st.integers(n // 2 + 1, n))
    deadline = data.draw(st.floats(DEADLINE_MIN_S, DEADLINE_MAX_S))
    now, later = sorted(data.draw(st.tuples(*[st.floats(0, 4 * deadline)] * 2)))
    few, many = sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))
    if closing(now, few, quorum, n, deadline) is Closing.CLOSE:
        assert closing(later, many, quorum, n, deadline) is Closing.CLOSE
    if closing(later, many, quorum, n, deadline) is Closing.BELOW_QUORUM:
        assert closing(later, few, quorum, n, deadline) is Closing.BELOW_QUORUM
    grace = data.draw(st.floats(0, deadline))
    if closing_early(now, few, n, deadline, grace) is Closing.CLOSE:
        assert closing_early(later, many, n, deadline, grace) is Closing.CLOSE


@given(st.integers(1, 64), st.data())
def test_nothing_changes_between_two_looks(n: int, data: st.DataObject) -> None:
    quorum = data.draw(st.integers(n // 2 + 1, n))
    deadline = data.draw(st.floats(DEADLINE_MIN_S, DEADLINE_MAX_S))
    arrived = data.draw(st.integers(0, n))
    now = 0.0
    while True:
        look = next_look(now, deadline)
        until = 5 * deadline if look is None else look
        between = data.draw(st.floats(now, until, exclude_max=True))
        assert closing(between, arrived, quorum, n, deadline) is closing(
            now, arrived, quorum, n, deadline
        )
        if look is None:
            return
        now = look
