"""What a coordinator writes down of parts, updates and words about them."""

from __future__ import annotations

from federated.rounds.protocol.holdings import Holdings
from federated.rounds.protocol.wire import Commit, Have, Signed
from tests.helpers.rounds_kit import by, peers

A, B, C, D = ROSTER = peers(4)
STRANGER = bytes(32)
HEAD = (bytes(32), 1, 0, bytes(32))


def committed(peer: bytes, weight: float = 1.0) -> tuple[Signed, Commit]:
    commit = Commit(*HEAD, (bytes(32),) * 2, 1.0, weight, {})
    return by(peer, commit), commit


def made(*, senders: tuple[bytes, ...] = tuple(ROSTER)) -> Holdings:
    """Two parts, merged by A and B, and the commits of these."""
    holdings = Holdings(ROSTER, [A, B])
    for offset, peer in enumerate(senders):
        holdings.commit(*committed(peer), float(offset))
    return holdings


def say(holdings: Holdings, part: int, *here: bytes, unfit: tuple[bytes, ...] = ()) -> None:
    """The part's reducer says who is here, and who is not fit."""
    words = tuple((peer, "junk") for peer in unfit)
    holdings.have(holdings.reducer(part), Have(*HEAD, part, here, words))


# ---- parts


def test_before_a_plan_nobody_merges_anything() -> None:
    holdings = Holdings()
    assert holdings.parts == ()
    assert holdings.reducers == frozenset()
    assert holdings.whole() == []
    assert not holdings.merges(A, 0)
    assert not holdings.merges(b"", 0)
    assert not holdings.merges(A, 0, 0)


def test_a_part_is_merged_by_whom_the_plan_names_and_then_by_its_standby() -> None:
    holdings = made()
    assert holdings.parts == (0, 1)
    assert holdings.reducers == {A, B}
    assert holdings.merges(A, 0)
    assert holdings.merges(A, 0, 0)
    assert not holdings.merges(A, 0, 1)
    assert not holdings.merges(A, 1)
    assert holdings.move(0, C) == 1
    assert holdings.reducer(0) == C
    assert holdings.merges(C, 0, 1)
    assert not holdings.merges(A, 0)
    assert not holdings.merges(C, 0, 0)
    assert holdings.unmoved([0, 1]) == [1]
    assert holdings.move(0, D) == 2


def test_only_parts_that_never_moved_are_a_reducers_own() -> None:
    holdings = Holdings(ROSTER, [A, B, A])
    holdings.move(1, A)
    assert holdings.unmoved_of(A) == [0, 2]
    assert holdings.unmoved_of(B) == []


def test_who_takes_a_part_over_begins_with_nothing() -> None:
    holdings = made()
    say(holdings, 0, *ROSTER)
    say(holdings, 1, *ROSTER)
    assert holdings.whole() == ROSTER
    holdings.move(0, C)
    assert holdings.came(0) == 0
    assert holdings.whole() == []
    assert holdings.awaited() == set(ROSTER)


# ---- updates


def test_whole_is_who_is_at_every_reducer_in_the_rosters_order() -> None:
    holdings = made()
    say(holdings, 0, D, B, A)
    assert holdings.whole() == []
    say(holdings, 1, C, D)
    say(holdings, 1, B)
    assert holdings.whole() == [B, D]
    assert holdings.awaited() == {A, C}
    assert (holdings.came(0), holdings.came(1)) == (3, 3)
    say(holdings, 1, A)
    assert holdings.least_come() == [0]


def test_parts_without_a_commit_are_not_whole() -> None:
    holdings = made(senders=(A, B))
    say(holdings, 0, *ROSTER)
    say(holdings, 1, *ROSTER)
    assert holdings.whole() == [A, B]
    assert holdings.awaited() == set()


def test_the_first_commit_of_a_member_counts() -> None:
    holdings = made(senders=(A,))
    holdings.commit(*committed(A, weight=9.0), 9.0)
    assert holdings.updates[A].arrival_s == 0.0
    assert holdings.updates[A].commit == committed(A)[1]
    assert holdings.updates[A].signed == committed(A)[0]


def test_strangers_are_not_written_down() -> None:
    holdings = made()
    say(holdings, 0, STRANGER, unfit=(STRANGER,))
    assert holdings.came(0) == 0
    assert holdings.unfit(STRANGER) == ""
    assert holdings.alone() == []


def test_a_reducer_gets_the_commits_of_whom_it_lacks() -> None:
    holdings = made()
    say(holdings, 0, A, C)
    assert list(holdings.unseen(0)) == [(committed(B)[0], committed(D)[0])]
    assert list(holdings.unseen(1)) == [tuple(committed(peer)[0] for peer in ROSTER)]


def test_nothing_is_sent_to_a_reducer_that_lacks_nothing() -> None:
    holdings = made()
    say(holdings, 0, *ROSTER)
    assert list(holdings.unseen(0)) == []


# ---- words


def test_one_word_leaves_a_member_out_and_names_who_said_it() -> None:
    holdings = made()
    say(holdings, 0, *ROSTER, unfit=(C,))
    say(holdings, 1, *ROSTER)
    assert holdings.unfit(C) == f"junk (found by {A[:4].hex()})"
    assert holdings.unfit(D) == ""
    assert holdings.whole() == [A, B, D]
    assert holdings.awaited() == set()


def test_who_alone_calls_others_unfit_is_named_most_often_first() -> None:
    holdings = made()
    say(holdings, 0, unfit=(C,))
    say(holdings, 1, unfit=(A, D))
    assert holdings.alone() == [B, A]
    say(holdings, 0, unfit=(A, D))
    assert holdings.alone() == [A], "of A and D both say it"


def test_who_is_not_believed_has_said_nothing() -> None:
    holdings = made()
    say(holdings, 0, *ROSTER, unfit=(C, D))
    say(holdings, 1, *ROSTER, unfit=(D,))
    holdings.strike_out(A)
    assert holdings.unfit(C) == ""
    assert holdings.unfit(D) == f"junk (found by {B[:4].hex()})"
    assert holdings.whole() == [A, B, C]
    holdings.strike_out(B)
    assert holdings.alone() == []
    assert holdings.whole() == ROSTER
