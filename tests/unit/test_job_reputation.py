"""What owners earn by their votes, lose by them, and for how long."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from federated.jobs.reputation import (
    CV_ALONE,
    DAY_MS,
    IDLE_MS,
    Reputation,
    Revote,
    Settled,
    Standing,
    StatRow,
    encode_standing,
)
from federated.jobs.verify import Accepted, Answer, reopen

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

H = "wordcount@1"
ROW = (b"j" * 16, 0)
P, Q, ME = b"p" * 32, b"q" * 32, b"m" * 32


def _answers(*owners: bytes, device: bytes = b"") -> list[Answer]:
    return [Answer(one, device or b"of " + one, 1, {}, own=one == ME) for one in owners]


def _settle(
    reputation: Reputation,
    *,
    agreed: AbstractSet[bytes],
    lost: AbstractSet[bytes] = frozenset(),
    level: int = 2,
    ref: tuple[bytes, int] = ROW,
    deterministic: bool = True,
    wall_ms: int = 0,
    device: bytes = b"",
) -> Settled:
    verdict = Accepted({}, level, frozenset(agreed), frozenset(lost))
    answers = _answers(*agreed, *lost, device=device)
    return reputation.settle(verdict, answers, H, ref, deterministic=deterministic, wall_ms=wall_ms)


def _trusted(cv: int) -> Reputation:
    reputation = Reputation()
    reputation.load([StatRow(P, b"", H, encode_standing(Standing(n=cv, ok=cv, cv=cv)))])
    return reputation


def _share_alone(reputation: Reputation, wall_ms: int = 0) -> float:
    rng = random.Random(1)
    return sum(reputation.trusted_alone(P, H, rng, wall_ms) for _ in range(20_000)) / 20_000


def test_trust_begins_at_ten_and_never_becomes_whole() -> None:
    assert _share_alone(Reputation()) == 0.0
    assert _share_alone(_trusted(9)) == 0.0
    assert abs(_share_alone(_trusted(10)) - 0.9) < 0.01
    assert abs(_share_alone(_trusted(100)) - 0.99) < 0.004
    assert abs(_share_alone(_trusted(100_000)) - 0.99) < 0.004


def test_it_halves_in_thirty_idle_days() -> None:
    reputation = _trusted(40)
    assert reputation.cv(P, H, IDLE_MS - 1) == 40
    assert reputation.cv(P, H, IDLE_MS) == 20
    assert reputation.cv(P, H, 2 * IDLE_MS) == 10
    assert reputation.cv(P, H, 3 * IDLE_MS) < CV_ALONE
    assert reputation.cv(P, H, 10_000 * IDLE_MS) == 0
    _settle(reputation, agreed={P, Q}, wall_ms=IDLE_MS)
    assert reputation.cv(P, H, IDLE_MS) == 21


def test_a_lost_vote_ends_trust_and_calls_back_what_was_given_alone_since_the_last_won() -> None:
    reputation = _trusted(40)
    for k in range(3):
        _settle(reputation, agreed={P}, level=1, ref=(ROW[0], k))
    _settle(reputation, agreed={P, Q})
    for k in range(3, 5):
        _settle(reputation, agreed={P}, level=1, ref=(ROW[0], k))
    settled = _settle(reputation, agreed={Q}, lost={P}, ref=(ROW[0], 9))
    assert settled.revote == (Revote(P, (ROW[0], 3)), Revote(P, (ROW[0], 4)))
    assert settled.quarantined == ()
    assert reputation.cv(P, H, 0) == 0
    assert _settle(reputation, agreed={Q}, lost={P}).revote == ()


def test_a_job_that_is_over_is_not_called_back() -> None:
    reputation = _trusted(40)
    _settle(reputation, agreed={P}, level=1)
    _settle(reputation, agreed={P}, level=1, ref=(b"k" * 16, 0))
    reputation.forget(ROW[0])
    settled = _settle(reputation, agreed={Q}, lost={P}, ref=(b"k" * 16, 5))
    assert settled.revote == (Revote(P, (b"k" * 16, 0)),)


def test_an_own_device_proves_a_lie_and_the_third_binds_every_handler() -> None:
    reputation = Reputation()
    wall_ms = 0
    for time, days in ((1, 7), (2, 14), (3, 28)):
        settled = _settle(reputation, agreed={ME}, lost={P}, level=3, wall_ms=wall_ms)
        assert settled.quarantined == (P,)
        end = wall_ms + days * DAY_MS
        assert reputation.quarantined(P, b"", H, end - 1)
        assert not reputation.quarantined(P, b"", H, end)
        assert reputation.quarantined(P, b"", "other@1", wall_ms) == (time == 3)
        wall_ms = end
    assert not reputation.quarantined(Q, b"", H, 0)


def test_a_quarantine_binds_the_device_whatever_owner_it_names_and_the_owner_s_others() -> None:
    reputation = Reputation()
    _settle(reputation, agreed={ME}, lost={P}, level=3, device=b"box")
    assert reputation.quarantined(Q, b"box", H, 1)
    assert reputation.quarantined(P, b"another box", H, 1)
    assert not reputation.quarantined(Q, b"another box", H, 1)


def test_what_two_colluders_carry_opens_when_the_second_is_caught() -> None:
    reputation = Reputation()
    backing = {7: frozenset({frozenset({P, Q})}), 8: frozenset({frozenset({P})})}
    _settle(reputation, agreed={ME}, lost={P}, level=3)
    assert reopen(backing, reputation.quarantined_owners(H, 1)) == [8]
    _settle(reputation, agreed={ME}, lost={Q}, level=3)
    assert reopen(backing, reputation.quarantined_owners(H, 1)) == [7, 8]
    assert reputation.quarantined_owners("other@1", 1) == frozenset()
    assert reputation.quarantined_owners(H, 7 * DAY_MS) == frozenset()


def test_the_operator_lifts_by_owner_and_by_device_and_the_next_is_longer() -> None:
    for who in (P, b"box"):
        reputation = Reputation()
        _settle(reputation, agreed={ME}, lost={P}, level=3, device=b"box")
        assert reputation.lift(who)
        assert not reputation.lift(who)
        assert not reputation.quarantined(P, b"box", H, 1)
        _settle(reputation, agreed={ME}, lost={P}, level=3, device=b"box")
        assert reputation.quarantined(P, b"", H, 10 * DAY_MS)


def test_votes_alone_quarantine_who_loses_three_and_more_than_a_third() -> None:
    reputation = Reputation()
    assert not any(_settle(reputation, agreed={Q}, lost={P}).quarantined for _ in range(2))
    assert _settle(reputation, agreed={Q}, lost={P}).quarantined == (P,)
    often_right = _trusted(100)
    found = [_settle(often_right, agreed={Q}, lost={P}).quarantined for _ in range(52)]
    assert found[:51] == [()] * 51
    assert found[51] == (P,)


def test_where_answers_may_differ_honestly_a_lost_vote_only_lowers() -> None:
    reputation = _trusted(40)
    for level in (2, 3, 2, 2, 2):
        settled = _settle(reputation, agreed={Q}, lost={P}, level=level, deterministic=False)
        assert settled.quarantined == ()
    assert reputation.cv(P, H, 0) == 1


def test_own_devices_are_not_judged() -> None:
    reputation = Reputation()
    settled = _settle(reputation, agreed={P}, lost={ME}, level=3)
    assert settled.quarantined == ()
    assert [row.owner for row in reputation.rows()] == [P]


def test_the_journal_keeps_everything_but_forgets_nothing_twice() -> None:
    reputation = _trusted(40)
    _settle(reputation, agreed={ME}, lost={P}, level=3, device=b"box")
    _settle(reputation, agreed={Q}, level=1)
    changed = reputation.take_changed()
    assert [(row.owner, row.device) for row in changed] == [(b"", b"box"), (P, b"")]
    assert reputation.take_changed() == []
    again = Reputation()
    again.load([*changed, StatRow(P, b"box", H, b"the scheduler's")], [(Q, H, ROW)])
    assert again.rows() == reputation.rows()
    assert again.quarantined(P, b"", H, 1)
    assert _settle(again, agreed={P}, lost={Q}, ref=(ROW[0], 7)).revote == (Revote(Q, ROW),)
