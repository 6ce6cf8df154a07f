"""Votes of owners: what no set of answers, however drawn, makes the judge do."""

from __future__ import annotations

from collections import Counter
from itertools import count

from hypothesis import assume, given
from hypothesis import strategies as st

from federated.jobs.canon import canonical
from federated.jobs.types import Column, Row
from federated.jobs.verify import (
    ADAPTIVE,
    Accepted,
    Answer,
    Disputed,
    Judge,
    NeedArbiter,
    NeedVote,
    NoQuorum,
    Policy,
    Verdict,
    pack_backing,
    reopen,
    unpack_backing,
)

COLUMNS = [Column(name=name) for name in "abc"]
JUDGES = (Judge(COLUMNS), Judge([]))
FEW_OWNERS = [bytes([number]) * 32 for number in range(1, 6)]
FEW_DEVICES = [b"device %d" % number for number in range(6)]

owners, devices = st.sampled_from(FEW_OWNERS), st.sampled_from(FEW_DEVICES)
cells = st.sampled_from("xxxyz")
rows: st.SearchStrategy[Row] = st.fixed_dictionaries(dict.fromkeys("abc", cells))
policies = st.one_of(st.just(ADAPTIVE), st.integers(2, 3).map(lambda m: Policy("quorum", 0.0, m)))
judges = st.sampled_from(JUDGES)


@st.composite
def answer(draw: st.DrawFn, said: st.SearchStrategy[Row] = rows) -> Answer:
    row = draw(st.none() | said)
    overlapped = draw(st.sampled_from((False, False, True)))
    return Answer(draw(owners), draw(devices), 0, row, "" if row else "lost", overlapped)


@st.composite
def in_turn(draw: st.DrawFn, *, least: int = 0) -> list[Answer]:
    """Answers of distinct owners and devices, none of which overlapped another."""
    chosen = draw(st.lists(rows, min_size=least, max_size=5))
    return [
        Answer(owner, owner[:4], number, row)
        for number, owner, row in zip(count(), FEW_OWNERS, chosen, strict=False)
    ]


def voted(
    judge: Judge, answers: list[Answer], policy: Policy, *, alone: bool = False, left: int = 9
) -> Verdict:
    return judge.judge(answers, policy, alone=alone, arbiter=False, owners_left=left)


PLAIN: tuple[Row, ...] = (dict.fromkeys("abc", "x"), {"a": "x", "b": "x", "c": "y"})
crowds = st.lists(answer(st.sampled_from(PLAIN)), min_size=6, max_size=12)


@given(judges, crowds, policies)
def test_an_accepted_row_has_the_votes_of_m_owners_on_m_devices(
    judge: Judge, answers: list[Answer], policy: Policy
) -> None:
    verdict = voted(judge, answers, policy)
    assume(isinstance(verdict, Accepted))
    assert isinstance(verdict, Accepted)
    for name in verdict.row:
        said = [one for one in answers if one.row and one.row[name] == verdict.row[name]]
        assert len({one.owner for one in said}) >= policy.m
        assert len({one.device for one in said}) >= policy.m
    first = next(one for one in answers if one.row)
    whole = {
        one.owner
        for one in answers
        if one.row == verdict.row and (not one.overlapped or one is first)
    }
    assert verdict.agreed <= whole
    assert not verdict.agreed & verdict.lost


@given(judges, st.lists(st.tuples(devices, rows), max_size=6), policies)
def test_the_devices_of_one_owner_never_complete_a_quorum(
    judge: Judge, said: list[tuple[bytes, Row]], policy: Policy
) -> None:
    answers = [Answer(FEW_OWNERS[0], device, 0, row) for device, row in said]
    assert not isinstance(voted(judge, answers, policy), Accepted)
    assert not isinstance(voted(judge, answers, policy, left=0), Accepted)


@given(judges, st.lists(st.tuples(owners, rows), max_size=6), policies)
def test_a_device_that_changes_its_owner_votes_once(
    judge: Judge, said: list[tuple[bytes, Row]], policy: Policy
) -> None:
    answers = [Answer(owner, FEW_DEVICES[0], 0, row) for owner, row in said]
    assert not isinstance(voted(judge, answers, policy), Accepted)


@given(judges, rows, st.lists(st.tuples(owners, devices, rows), max_size=6), policies)
def test_answers_that_overlapped_never_complete_a_quorum(
    judge: Judge, first: Row, said: list[tuple[bytes, bytes, Row]], policy: Policy
) -> None:
    late = [Answer(owner, device, 0, row, overlapped=True) for owner, device, row in said]
    answers = [Answer(b"f" * 32, b"first", 0, first), *late]
    assert not isinstance(voted(judge, answers, policy), Accepted)
    assert not isinstance(voted(judge, late, policy), Accepted)


@given(judges, in_turn(least=2), policies, st.data())
def test_the_order_of_given_votes_does_not_change_the_verdict(
    judge: Judge, answers: list[Answer], policy: Policy, data: st.DataObject
) -> None:
    """Voters in turn are another matter: then fewer are asked once enough agree."""
    other = data.draw(st.permutations(answers))
    one, two = voted(judge, answers, policy), voted(judge, other, policy)
    assert type(one) is type(two)
    if isinstance(one, Accepted) and isinstance(two, Accepted):
        assert (one.row, one.level, one.agreed, one.lost, one.backing) == (
            two.row, two.level, two.agreed, two.lost, two.backing,
        )  # fmt: skip


@given(st.lists(st.sampled_from(("x", "x ", "y", "y ")), min_size=2, max_size=5), st.data())
def test_nor_does_it_choose_between_spellings_of_one_value(
    said: list[str], data: st.DataObject
) -> None:
    judge = Judge(COLUMNS[:1], lambda _, a, b: str(a).strip() == str(b).strip())
    answers = [
        Answer(owner, owner[:4], 0, {"a": text})
        for owner, text in zip(FEW_OWNERS, said, strict=False)
    ]
    one = voted(judge, answers, ADAPTIVE)
    two = voted(judge, data.draw(st.permutations(answers)), ADAPTIVE)
    assert type(one) is type(two)
    if isinstance(one, Accepted) and isinstance(two, Accepted):
        assert one.row == two.row


@given(in_turn(), policies)
def test_each_cell_of_an_accepted_row_is_the_majority_s(
    answers: list[Answer], policy: Policy
) -> None:
    verdict = voted(JUDGES[0], answers, policy)
    counts = {name: Counter(one.row[name] for one in answers if one.row) for name in "abc"}
    decided = all(
        ranked and ranked[0][1] >= policy.m and (len(ranked) == 1 or ranked[1][1] < ranked[0][1])
        for ranked in (each.most_common(2) for each in counts.values())
    )
    assert isinstance(verdict, Accepted) == decided
    if isinstance(verdict, Accepted):
        assert verdict.row == {name: each.most_common(1)[0][0] for name, each in counts.items()}
        assert {one.column for one in verdict.conflicts} == {
            name for name, each in counts.items() if len(each) > 1
        }


@given(judges, st.lists(answer(), max_size=6), policies, st.booleans(), st.booleans())
def test_missing_is_no_vote(
    judge: Judge, answers: list[Answer], policy: Policy, alone: bool, arbiter: bool
) -> None:
    given = [one for one in answers if one.row is not None]
    with_gaps = judge.judge(answers, policy, alone=alone, arbiter=arbiter, owners_left=3)
    without = judge.judge(given, policy, alone=alone, arbiter=arbiter, owners_left=3)
    assert with_gaps == without
    if not given:
        assert isinstance(with_gaps, NeedVote)


@given(judges, st.lists(answer(), min_size=1, max_size=6), policies, rows)
def test_where_an_own_device_can_decide_no_contradicted_row_is_accepted_without_it(
    judge: Judge, answers: list[Answer], policy: Policy, truth: Row
) -> None:
    verdict = judge.judge(answers, policy, alone=True, arbiter=True, owners_left=3)
    if isinstance(verdict, Accepted):
        assert not verdict.conflicts
    own = Answer(b"o" * 32, b"own", 9, truth, own=True)
    ruled = judge.judge([*answers, own], policy, alone=True, arbiter=True, owners_left=3)
    assert isinstance(ruled, Accepted)
    assert (ruled.row, ruled.level) == (truth, 3)
    first = {one.owner: one for one in reversed(answers) if one.row}
    assert all(first[owner].row is not None for owner in ruled.lost)
    if isinstance(verdict, NeedArbiter):
        assert len({canonical(one.row) for one in answers if one.row}) > 1


@given(judges, policies, st.lists(rows, min_size=7, max_size=7), st.integers(1, 7))
def test_asking_in_turn_ends_with_at_most_two_m_and_one_owners(
    judge: Judge, policy: Policy, said: list[Row], there: int
) -> None:
    answers: list[Answer] = []
    verdict = voted(judge, answers, policy, left=there)
    while isinstance(verdict, NeedVote):
        owner = bytes([len(answers)]) * 32
        assert owner not in verdict.owners
        answers.append(Answer(owner, owner, 0, said[len(answers)]))
        assert verdict.owners == {one.owner for one in answers[:-1]}
        verdict = voted(judge, answers, policy, left=there - len(answers))
    assert len(answers) <= min(there, 2 * policy.m + 1)
    if isinstance(verdict, NoQuorum | Disputed):
        assert len(answers) == min(there, 2 * policy.m + 1)
        assert isinstance(verdict, Disputed) == (len({canonical(a.row) for a in answers}) > 1)
    else:
        assert isinstance(verdict, Accepted)


@given(st.dictionaries(st.integers(0, 30), in_turn(least=2)), st.sets(owners))
def test_the_rows_of_quarantined_owners_reopen_and_no_others(
    table: dict[int, list[Answer]], quarantined: set[bytes]
) -> None:
    policy = Policy("quorum", 0.0, 2)
    accepted: dict[int, Accepted] = {}
    for k, answers in table.items():
        verdict = voted(JUDGES[0], answers, policy)
        if isinstance(verdict, Accepted):
            accepted[k] = verdict
    assume(accepted)
    packed = {k: pack_backing(one.backing) for k, one in accepted.items()}
    found = reopen({k: unpack_backing(data) for k, data in packed.items()}, quarantined)
    for k, verdict in accepted.items():
        carriers = [
            {one.owner for one in table[k] if one.row and one.row[name] == verdict.row[name]}
            for name in "abc"
        ]
        if verdict.agreed:
            assert (k in found) == (verdict.agreed <= quarantined)
        else:
            assert (k in found) == any(some <= quarantined for some in carriers)
        if any(some <= quarantined for some in carriers):
            assert k in found
