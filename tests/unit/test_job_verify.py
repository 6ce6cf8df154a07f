"""What the judge of a job's rows decides from given answers."""

from __future__ import annotations

from itertools import permutations

import pytest

from federated.errors import PlanError
from federated.jobs.types import Column, Row
from federated.jobs.verify import (
    ADAPTIVE,
    LOCAL,
    UNCHECKED,
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
    parse_policy,
    reopen,
    resolve_policy,
    unpack_backing,
)

QUORUM = Policy("quorum", 0.0, 2)
JUDGE = Judge([Column(name="a"), Column(name="b")])


def _answer(
    who: str, a: str | None, b: str = "x", *, overlapped: bool = False, own: bool = False
) -> Answer:
    row: Row | None = None if a is None else {"a": a, "b": b}
    return Answer(who.encode(), who.encode() + b"'s", 1, row, "", overlapped, own)


def _judge(*answers: Answer, policy: Policy = QUORUM, **more: bool) -> Verdict:
    return JUDGE.judge(
        answers,
        policy,
        alone=more.get("alone", False),
        arbiter=more.get("arbiter", False),
        owners_left=5 if more.get("left", True) else 0,
    )


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("auto", None),
        ("none", UNCHECKED),
        ("adaptive", ADAPTIVE),
        ("spot:.1", Policy("spot", 0.1, 1)),
        ("quorum:3", Policy("quorum", 0.0, 3)),
    ],
)
def test_the_words_of_a_spec(text: str, policy: Policy | None) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text", ["", "most", "none:1", "spot", "spot:0", "spot:nan", "spot:2", "quorum:1", "quorum:8"]
)
def test_other_words_are_refused_where_they_stand(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_policy(text)
    assert (caught.value.reason, caught.value.path) == ("bad_spec", "verify")


def test_auto_goes_by_trust_and_kind() -> None:
    assert resolve_policy("auto", trust="own", kind="named", local=False) == ("spot", 0.01, 1)
    assert resolve_policy("auto", trust="friend", kind="llm", local=False) == ADAPTIVE
    assert resolve_policy("auto", trust="stranger", kind="named", local=False) == ADAPTIVE
    assert resolve_policy("auto", trust="stranger", kind="llm", local=False) == QUORUM
    assert resolve_policy("quorum:3", trust="stranger", kind="memory", local=True) == LOCAL


def test_two_owners_make_a_row_and_one_does_not() -> None:
    assert _judge(_answer("p", "1")) == NeedVote(frozenset({b"p"}), frozenset({b"p's"}))
    verdict = _judge(_answer("p", "1"), _answer("q", "1"))
    assert isinstance(verdict, Accepted)
    assert verdict.level == 2
    assert verdict.agreed == {b"p", b"q"}


def test_cells_are_voted_on_by_themselves() -> None:
    verdict = _judge(_answer("p", "1", "y"), _answer("q", "2", "x"), _answer("r", "1", "x"))
    assert isinstance(verdict, Accepted)
    assert verdict.row == {"a": "1", "b": "x"}
    assert verdict.agreed == {b"r"}
    assert verdict.lost == {b"p", b"q"}
    assert [conflict.column for conflict in verdict.conflicts] == ["a", "b"]
    assert verdict.backing == {frozenset({b"r"})}


def test_a_row_that_nobody_gave_whole_reopens_for_each_cell() -> None:
    judge = Judge([Column(name=name) for name in "abc"])
    rows = {"p": "yxx", "q": "xyx", "r": "xxy"}
    answers = [
        Answer(who.encode() * 32, who.encode(), 1, dict(zip("abc", cells, strict=True)))
        for who, cells in rows.items()
    ]
    verdict = judge.judge(answers, QUORUM, alone=False, arbiter=False, owners_left=0)
    assert isinstance(verdict, Accepted)
    assert verdict.row == {"a": "x", "b": "x", "c": "x"}
    assert verdict.agreed == frozenset()
    p, q, r = (who.encode() * 32 for who in rows)
    kept = unpack_backing(pack_backing(verdict.backing))
    assert kept == verdict.backing == {frozenset({q, r}), frozenset({p, r}), frozenset({p, q})}
    backing = {3: kept, 9: frozenset({frozenset({p, b"s" * 32})}), 4: unpack_backing(b"")}
    assert reopen(backing, [r, b"s" * 32]) == []
    assert reopen(backing, [p, r, b"s" * 32]) == [3, 9]


def test_one_is_enough_if_trusted_alone_and_not_contradicted() -> None:
    verdict = _judge(_answer("p", "1"), policy=ADAPTIVE, alone=True)
    assert isinstance(verdict, Accepted)
    assert verdict.level == 1
    contradicted = (_answer("p", "1"), _answer("q", "2", overlapped=True))
    assert isinstance(_judge(*contradicted, policy=ADAPTIVE, alone=True), NeedVote)


def test_an_own_device_decides_and_names_who_was_wrong() -> None:
    pair = (_answer("p", "1"), _answer("q", "2"))
    assert _judge(*pair, arbiter=True) == NeedArbiter()
    verdict = _judge(*pair, _answer("me", "2", own=True), arbiter=True)
    assert isinstance(verdict, Accepted)
    assert (verdict.row["a"], verdict.level, verdict.backing) == ("2", 3, frozenset())
    assert verdict.lost == {b"p"}
    silent = (*pair, _answer("me", None, own=True))
    assert isinstance(_judge(*silent, arbiter=True), NeedVote)


def test_an_answer_that_overlapped_completes_nothing_but_may_contradict() -> None:
    late = _answer("q", "1", overlapped=True)
    assert isinstance(_judge(_answer("p", "1"), late), NeedVote)
    assert isinstance(_judge(late, _answer("p", "1")), Accepted)
    assert _judge(_answer("p", "2"), late, arbiter=True) == NeedArbiter()


def test_where_nobody_is_left_the_row_ends() -> None:
    assert _judge(_answer("p", "1"), left=False) == NoQuorum()
    assert _judge(_answer("p", None), left=False) == NoQuorum()
    assert isinstance(_judge(_answer("p", "1"), _answer("q", "2"), left=False), Disputed)
    assert _judge(_answer("p", "1"), left=False, arbiter=True) == NeedArbiter()
    each = [_answer(who, who) for who in "pqrst"]
    assert isinstance(_judge(*each), Disputed)


@pytest.mark.parametrize(
    ("column", "same", "other"),
    [
        (Column(name="a"), ("New  York ", "New York"), "York"),
        (Column(name="a", type="int"), (3, 3), 4),
        (Column(name="a", type="float"), (1.0, 1.0000001), 1.001),
        (Column(name="a", type="float", tol=0.1), (100, 109.5), 130),
        (Column(name="a", type="date", tol=2), ("2026-03-01", "2026-02-28"), "2026-03-04"),
        (Column(name="a", type="list[str]"), (["x", "y"], ["y", "x"]), ["x"]),
        (Column(name="a", required=False), (None, None), "None"),
    ],
)
def test_what_says_the_same_by_its_column_is_one_vote_however_it_is_spelt(
    column: Column, same: tuple[object, object], other: object
) -> None:
    judge = Judge([column])
    votes = [
        Answer(who, who, 1, {"a": cell})
        for who, cell in zip((b"p", b"q", b"r"), (*same, other), strict=True)
    ]
    rows = []
    for order in permutations(votes):
        verdict = judge.judge(order, QUORUM, alone=False, arbiter=False, owners_left=3)
        assert isinstance(verdict, Accepted)
        assert verdict.lost == {b"r"}
        rows.append(verdict.row)
    assert len(rows) == 6
    assert all(row == rows[0] for row in rows)


def test_an_audit_tells_who_was_wrong_unless_it_has_no_row() -> None:
    given = _answer("p", "1")
    wrong = JUDGE.judge_audit(given, _answer("me", "2", own=True))
    assert isinstance(wrong, Accepted)
    assert wrong.row["a"] == "2"
    assert wrong.lost == {b"p"}
    assert JUDGE.judge_audit(given, _answer("me", None, own=True)) == NoQuorum()
