"""Whether a row's answers make it right: votes of owners, cell by cell, and what own devices say.

    judge = Judge(spec.columns)
    verdict = judge.judge(answers, policy, alone=False, arbiter=True, owners_left=3)

An owner has one vote however many devices it runs, and a device has one vote whichever owner it
names. `missing` is no vote. An answer that overlapped another attempt may come first or
contradict, but never completes a quorum: two that hold a row at once can compare before they
answer. Voters are therefore asked in turn, each after the last answer is journalled.

With declared columns each cell is voted on by itself and the accepted row may be one that nobody
gave whole; without any the row is one cell, because nothing says what may be taken apart.
Pure: no clock, no IO; chance is an argument. Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from federated.errors import PlanError
from federated.jobs.canon import canonical
from federated.jobs.columns import equal_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from random import Random

    from federated.jobs.types import Column, Row
    from federated.seams import TrustClass

QUORUM_MAX: Final = 7
OWN_AUDIT: Final = 0.01
ALONE_AUDIT: Final = 0.02

LEVEL_NONE: Final = 0
LEVEL_REPUTATION: Final = 1
LEVEL_AGREED: Final = 2
LEVEL_OWN: Final = 3

OWNER_BYTES: Final = 32
_PARTING: Final = bytes(OWNER_BYTES)
_PLAIN: Final = frozenset({str, int, float, bool})

WHOLE_ROW: Final = ""
"""The name of the one cell of a row without declared columns."""


@dataclass(slots=True)
class Answer:
    """What a device said about a row.

    Attributes:
        owner: whose device it was when the job began.
        device: which device.
        attempt: under which attempt of the task.
        row: the cells, None if it has none.
        reason: why there is no row; empty with one.
        overlapped: whether another attempt was live while this one ran.
        own: whether the device is ours.
    """

    owner: bytes
    device: bytes
    attempt: int
    row: Row | None
    reason: str = ""
    overlapped: bool = False
    own: bool = False


class Policy(NamedTuple):
    """How far answers must be checked.

    Attributes:
        kind: `none` and `spot` take the first answer, `adaptive` asks one owner alone if its past
            allows it and else two, `quorum` always asks m.
        p: share of the rows taken unchecked that an own device recomputes afterwards.
        m: owners that must agree; 0: no other device could know, the answer has level 0.
    """

    kind: Literal["none", "spot", "adaptive", "quorum"]
    p: float
    m: int


UNCHECKED: Final = Policy("none", 0.0, 1)
LOCAL: Final = Policy("none", 0.0, 0)
ADAPTIVE: Final = Policy("adaptive", ALONE_AUDIT, 2)


class Claim(NamedTuple):
    """Who said what about a cell; `value` is None too where the row lacks the column."""

    value: object
    owner: bytes
    device: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A cell that was answered in several ways.

    Attributes:
        column: its name, or `WHOLE_ROW`.
        claims: every vote on it, in the order of arrival.
    """

    column: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The row holds.

    Attributes:
        row: the cells.
        level: 0 unchecked, 1 by reputation, 2 agreed by m owners, 3 computed by an own device.
        agreed: owners whose whole row this is: they won the vote.
        lost: owners who contradicted a cell of it.
        backing: sets of owners, what `reopen` asks: `agreed` alone, or if nobody gave the row
            whole those who carry a cell of it. Empty if an own device computed it.
        conflicts: the cells that were answered in several ways.
    """

    row: Row
    level: int
    agreed: frozenset[bytes]
    lost: frozenset[bytes] = frozenset()
    backing: frozenset[frozenset[bytes]] = frozenset()
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, slots=True)
class NeedVote:
    """One more owner is to be asked, none of these and by none of these devices."""

    owners: frozenset[bytes]
    devices: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class NeedArbiter:
    """An own device is to compute the row; its answer decides."""


@dataclass(frozen=True, slots=True)
class Disputed:
    """The owners contradict each other and nobody is left who could decide."""

    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True, slots=True)
class NoQuorum:
    """Too few owners answered."""


Verdict: TypeAlias = Accepted | NeedVote | NeedArbiter | Disputed | NoQuorum


def parse_policy(text: str) -> Policy | None:
    """What `JobSpec.verify` asks for; None for `auto`, which depends on who answers.

    Raises:
        PlanError: `bad_spec` at `verify`.
    """
    word, colon, number = text.partition(":")
    if not colon:
        if word == "auto":
            return None
        if word == "none":
            return UNCHECKED
        if word == "adaptive":
            return ADAPTIVE
    elif word == "spot":
        return Policy("spot", _share(number), 1)
    elif word == "quorum" and number.isascii() and number.isdecimal() and len(number) < 3:
        m = int(number)
        if 2 <= m <= QUORUM_MAX:
            return Policy("quorum", 0.0, m)
    raise PlanError(
        "bad_spec",
        f"not auto, none, spot:P (0 < P <= 1), adaptive or quorum:M (2 to {QUORUM_MAX})",
        path="verify",
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise PlanError("bad_spec", "spot:P takes a share above 0, at most 1", path="verify")
    return share


def resolve_policy(verify: str, *, trust: TrustClass, kind: str, local: bool) -> Policy:
    """How the answers of a peer are checked.

    Args:
        verify: `JobSpec.verify`.
        trust: what the peer is to us.
        kind: its handler's kind.
        local: whether the answer depends on the device too, so that no other can check it.

    Raises:
        PlanError: `bad_spec` at `verify`.
    """
    policy = parse_policy(verify)
    if local:
        return LOCAL
    if policy is not None:
        return policy
    if trust == "own":
        return Policy("spot", OWN_AUDIT, 1)
    if kind == "llm" and trust == "stranger":
        return Policy("quorum", 0.0, 2)
    return ADAPTIVE


def wants_audit(policy: Policy, rng: Random) -> bool:
    """Whether a row accepted on one answer is recomputed by an own device.

    Drawn once a row, after the answer, so that its peer cannot tell.
    """
    return policy.p > 0.0 and rng.random() < policy.p


def reopen(
    rows: Mapping[int, Iterable[frozenset[bytes]]], quarantined: Collection[bytes]
) -> list[int]:
    """The rows that quarantined owners alone carry, or of which they alone carry a cell, ascending.

    What is left of such a row's answers without theirs is judged anew, with `alone=False`.

    Args:
        rows: `Accepted.backing` by row.
        quarantined: owners.
    """
    bad = frozenset(quarantined)
    return sorted(
        k for k, backing in rows.items() if any(owners and owners <= bad for owners in backing)
    )


def pack_backing(backing: Iterable[frozenset[bytes]]) -> bytes:
    """`Accepted.backing` as bytes for the journal: keys of 32, sets parted by as many zeros."""
    return _PARTING.join(sorted(b"".join(sorted(owners)) for owners in backing))


def unpack_backing(data: bytes) -> frozenset[frozenset[bytes]]:
    """What `pack_backing` packed."""
    found: list[set[bytes]] = [set()]
    for i in range(0, len(data), OWNER_BYTES):
        key = data[i : i + OWNER_BYTES]
        if key == _PARTING:
            found.append(set())
        else:
            found[-1].add(key)
    return frozenset(frozenset(owners) for owners in found if owners)


class Judge:
    """Judges the rows of one job.

    Args:
        columns: its declared columns; none: a row is one cell.
        equal: whether two cells of a column (None: two whole rows) say the same; symmetric, and
            true of what is identical.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        equal: Callable[[Column | None, object, object], bool] = equal_cells,
    ) -> None:
        self._cells: tuple[Column | None, ...] = tuple(columns) or (None,)
        self._equal = equal

    def judge(
        self,
        answers: Sequence[Answer],
        policy: Policy,
        *,
        alone: bool,
        arbiter: bool,
        owners_left: int,
    ) -> Verdict:
        """What follows from a row's answers.

        Args:
            answers: in the order of their arrival.
            policy: how far they must be checked.
            alone: whether the owner of the first is trusted alone.
            arbiter: whether the handler is deterministic and an own device can run it; then what
                an own device answered decides.
            owners_left: how many owners could still be asked.
        """
        votes = _votes(answers)
        if not votes:
            return NeedVote(frozenset(), frozenset()) if owners_left > 0 else NoQuorum()
        if arbiter:
            own = next((vote for vote in votes if vote.own), None)
            if own is not None:
                return self._ruled(own, votes)
            arbiter = not any(answer.own for answer in answers)  # it had no row: do not ask again
        if policy.kind in {"none", "spot"}:
            return self._unchecked(votes, policy)
        conflicts = self._conflicts(votes)
        if policy.kind == "adaptive" and alone and not conflicts:
            return self._taken(votes[0], LEVEL_REPUTATION)
        return self._counted(votes, conflicts, policy.m, arbiter, owners_left)

    def judge_audit(self, given: Answer, audit: Answer) -> Accepted | NoQuorum:
        """What an own device's answer says of one that was accepted alone.

        Returns:
            The row as it must stand, level 3; its owner is among `agreed` or among `lost`. If the
            own device had no row, nothing is known: NoQuorum, and the row stays as it is.
        """
        if audit.row is None or given.row is None:
            return NoQuorum()
        return self._ruled(audit, [given])

    def _unchecked(self, votes: list[Answer], policy: Policy) -> Accepted:
        first = votes[0]
        return self._taken(first, LEVEL_OWN if first.own and policy.m else LEVEL_NONE)

    def _taken(self, vote: Answer, level: int) -> Accepted:
        owners = frozenset((vote.owner,))
        backing = frozenset[frozenset[bytes]]() if level == LEVEL_OWN else frozenset((owners,))
        return Accepted(_row(vote), level, owners, backing=backing)

    def _ruled(self, own: Answer, votes: list[Answer]) -> Accepted:
        """An own device computed it: every other answer is right or wrong by it."""
        conflicts = self._conflicts([*(vote for vote in votes if vote is not own), own])
        lost = frozenset(
            vote.owner
            for vote in votes
            if vote is not own and not all(self._agree(cell, vote, own) for cell in self._cells)
        )
        agreed = frozenset(vote.owner for vote in votes if _completes(votes, vote)) - lost
        return Accepted(_row(own), LEVEL_OWN, agreed, lost, conflicts=conflicts)

    def _counted(
        self,
        votes: list[Answer],
        conflicts: tuple[Conflict, ...],
        m: int,
        arbiter: bool,
        owners_left: int,
    ) -> Verdict:
        if conflicts and arbiter:
            return NeedArbiter()
        accepted = self._elected(votes, conflicts, m)
        if accepted is not None:
            return accepted
        asked = sum(_completes(votes, vote) for vote in votes)
        if owners_left > 0 and asked < 2 * m + 1:
            return NeedVote(
                frozenset(vote.owner for vote in votes), frozenset(vote.device for vote in votes)
            )
        if arbiter:
            return NeedArbiter()
        return Disputed(conflicts) if conflicts else NoQuorum()

    def _elected(
        self, votes: list[Answer], conflicts: tuple[Conflict, ...], m: int
    ) -> Accepted | None:
        """The row of which every cell has m owners and more than any other value."""
        heard = [vote for vote in votes if _completes(votes, vote)]
        if len(heard) < m:
            return None
        chosen: list[Answer] = []
        backing: list[frozenset[bytes]] = []
        lost: set[bytes] = set()
        for cell in self._cells:
            best = self._cell(cell, heard, m)
            if best is None:
                return None
            chosen.append(best)
            against = {vote.owner for vote in votes if not self._agree(cell, vote, best)}
            backing.append(frozenset(vote.owner for vote in heard if vote.owner not in against))
            lost |= against
        agreed = frozenset(vote.owner for vote in heard if vote.owner not in lost)
        own = any(vote.own and vote.owner in agreed for vote in heard)
        return Accepted(
            self._merged(chosen),
            LEVEL_OWN if own else LEVEL_AGREED,
            agreed,
            frozenset(lost),
            frozenset((agreed,) if agreed else backing) if not own else frozenset(),
            conflicts,
        )

    def _cell(self, cell: Column | None, heard: list[Answer], m: int) -> Answer | None:
        """A vote with the winning value.

        Of values within tolerance the one most agree with, then the least by canonical form, so
        that the order of the votes does not matter.
        """
        first = _value(cell, heard[0])
        if all(_identical(first, _value(cell, vote)) for vote in heard):
            return heard[0]
        backers = [sum(self._agree(cell, vote, other) for other in heard) for vote in heard]
        most = max(backers)
        if most < m:
            return None
        best = [vote for vote, n in zip(heard, backers, strict=True) if n == most]
        best.sort(key=lambda vote: canonical(_value(cell, vote)))
        if not all(self._agree(cell, best[0], vote) for vote in best[1:]):
            return None
        return best[0]

    def _merged(self, chosen: list[Answer]) -> Row:
        row: Row = {}
        for cell, vote in zip(self._cells, chosen, strict=True):
            if cell is None:
                return _row(vote)
            given = _row(vote)
            if cell.name in given:
                row[cell.name] = given[cell.name]
        return row

    def _conflicts(self, votes: list[Answer]) -> tuple[Conflict, ...]:
        if len(votes) < 2:
            return ()
        return tuple(
            Conflict(
                cell.name if cell is not None else WHOLE_ROW,
                tuple(
                    Claim(_value(cell, vote), vote.owner, vote.device, vote.attempt)
                    for vote in votes
                ),
            )
            for cell in self._cells
            if not all(self._agree(cell, votes[0], vote) for vote in votes[1:])
        )

    def _agree(self, cell: Column | None, a: Answer, b: Answer) -> bool:
        one, other = _value(cell, a), _value(cell, b)
        return _identical(one, other) or self._equal(cell, one, other)


def _votes(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that count: rows, the first of each owner and of each device."""
    votes: list[Answer] = []
    seen: set[bytes] = set()
    own_seen = False
    for answer in answers:
        if answer.row is None or answer.owner in seen or answer.device in seen:
            continue
        if answer.own and own_seen:
            continue
        own_seen = own_seen or answer.own
        seen.update((answer.owner, answer.device))
        votes.append(answer)
    return votes


def _completes(votes: list[Answer], vote: Answer) -> bool:
    return not vote.overlapped or vote is votes[0]


def _row(vote: Answer) -> Row:
    return vote.row if vote.row is not None else {}


def _value(cell: Column | None, vote: Answer) -> object:
    row = _row(vote)
    return row if cell is None else row.get(cell.name)


def _identical(a: object, b: object) -> bool:
    """Whether two values are equal at a glance: no comparer needs to be asked."""
    kind = type(a)
    return a is b or (kind is type(b) and kind in _PLAIN and a == b)
