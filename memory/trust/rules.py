"""How far a memory is to be believed: evidence, start values, ceilings, effective trust. Pure.

Trust is never replicated as a number: each node folds what was signed and what it saw itself. T is
the trust of an author, from evidence for it (S) and against it (F); E is what one memory may claim
of it. Source: docs/specs/memory.md, *Trust*.

Theory of operation. A `Fold` takes pieces of evidence in the order of (hlc, id), whatever the order
in which they came, and forgets between them at the pace of the calendar. What a piece weighs
follows from its kind, from how far its voter is trusted, and from the caps below, which bound what
a talkative voter can do: praise is worth less each time, a verdict counts once a day, foreign
owners together move an author only as far as the flow of endorsements from the person reaches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from memory.tiers import LOW, MAIN, NONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PERSON_TRUST: Final = 1.0
"""The person at this machine's terminal: constant, nobody's evidence moves it."""

TRUST_MAX: Final = 0.97
"""No author but the person is ever believed without a rest of doubt."""

START_S: Final = {"own": 16.0, "own_device": 16.0, "invited": 2.0, "other": 0.0}
"""Evidence an author starts with, by relation: T is .86, .86, .53, .30. From simulation."""

S_MAX: Final = 60.0
"""Praise beyond this is not kept, or it would take an author for ever to fall. From simulation."""

DAY_MS: Final = 86_400_000
S_HALF_MS: Final = 180 * DAY_MS
F_HALF_MS: Final = 360 * DAY_MS
"""Half-lives of S above its start and of F. Faults are remembered twice as long as merits."""

CEILING: Final = {"owner": 1.0, "agent": 0.97, "tool": 0.7, "web": 0.5}
"""What a role lends at most: an own agent that stores a web page does not lend it its name."""

UNKNOWN_PARENT_TRUST: Final = 0.3
"""A parent we do not hold is worth a stranger."""

MAIN_ENTER: Final = 0.5
MAIN_LEAVE: Final = 0.45
"""A memory leaves the main index below this, so that one near .5 is not re-indexed every day."""
LOW_ENTER: Final = 0.2

ALARM_FALL: Final = 0.3
"""A fall of T by this much within a day is told."""

# ---- evidence

EvidenceKind = Literal[
    "owner_useful",
    "owner_wrong",
    "agent_useful",
    "agent_wrong",
    "agent_harmful",
    "confirmed",
    "refuted",
    "conflict_won",
    "conflict_lost",
    "quick_erase",
    "injection",
    "secret",
    "quota",
    "fork",
    "endorsed",
    "distrusted",
    "stale",
]
KINDS: Final[frozenset[str]] = frozenset(get_args(EvidenceKind))

# What a piece weighs before its caps: for (p), against (n). Of `confirmed refuted endorsed
# distrusted` by a foreign owner it is that voter's own trust. From simulation (memory.md s.7).
_WEIGHTS: Final[dict[str, tuple[float, float]]] = {
    "owner_useful": (3.0, 0.0),
    "owner_wrong": (0.0, 3.0),
    "agent_useful": (1.5, 0.0),
    "agent_wrong": (0.0, 1.0),
    "agent_harmful": (0.0, 1.5),
    "conflict_won": (0.5, 0.0),
    "conflict_lost": (0.0, 1.2),
    "quick_erase": (0.0, 0.5),
    "injection": (0.0, 0.5),
    "secret": (0.0, 0.5),
    "quota": (0.0, 0.5),
    "fork": (0.0, 0.0),  # not weighed: who forks its log is banned
    "stale": (0.0, 0.0),  # a true thing that is over is nobody's fault
}
VOICES: Final = frozenset({"confirmed", "refuted", "endorsed", "distrusted"})
"""Kinds whose weight is the trust of whoever says it."""

OWNER_VOICE: Final = 3.0
"""What the person's own endorsement or distrust of an owner weighs."""

VOICE_MIN: Final = 0.5
"""A foreign author below this moves nobody."""

DOMAIN_CAP: Final = 1.5
DOMAIN_WINDOW_MS: Final = 180 * DAY_MS
"""What one foreign owner may add to, or take from, one author within half a year."""

FLOW_CAP: Final = 1.5
"""What all foreign owners together may add or take, a unit of flow."""

FAULTS_A_DAY: Final = 3
"""Faults of one kind that count a day: a broken client is not a thousand times a liar."""

FAULTS: Final = frozenset({"quick_erase", "injection", "secret", "quota"})
"""Kinds of which so many count."""


class Evidence(NamedTuple):
    """A piece of evidence about one author.

    Attributes:
        hlc: when it was signed or seen, milliseconds << 16 | counter.
        id: settles the order of equal times; the record's id, or the row's.
        kind: one of `KINDS`.
        at_ms: Unix milliseconds, for the pace of forgetting.
        memory: the memory it is about, None for the author as a whole.
        group: memories that say the same count once together; the smallest of them, or `memory`.
        owner: owner key of whoever said it, empty for what this node saw itself.
        voter: agent and device of whoever said it.
        weight: how far that voter is trusted, 0 to 1; the person is `None`.
        note: a word about why it may not count, decided before the fold (`own words`, ...).
    """

    hlc: int
    id: bytes
    kind: str
    at_ms: int
    memory: int | None = None
    group: int | None = None
    owner: bytes = b""
    voter: str = ""
    weight: float | None = 1.0
    note: str = ""


class Weighed(NamedTuple):
    """What became of a piece of evidence.

    Attributes:
        piece: the evidence.
        p: what it counted for.
        n: what it counted against.
        why: what held it down, empty if nothing did.
    """

    piece: Evidence
    p: float
    n: float
    why: str


class Fold:
    """S and F of an author, from its evidence in order.

    Args:
        start: S it starts with.
        flow: how much of the person's endorsement reaches those who speak for it.
        flow_against: the same for those who speak against it.
    """

    def __init__(self, start: float, *, flow: float = 0.0, flow_against: float = 0.0) -> None:
        self.s = start
        self.f = 0.0
        self._base = start
        self._at_ms = 0
        self._caps = _Caps(flow, flow_against)

    def add(self, piece: Evidence) -> Weighed:
        """Count the next piece; pieces come in the order of (hlc, id)."""
        p, n, why = self._caps.weigh(piece)
        if p or n:
            self._age(piece.at_ms)
            self._apply(p, n)
        return Weighed(piece, p, n, why)

    def settle(self, now_ms: int) -> None:
        """Forget until now."""
        self._age(now_ms)

    def trust(self) -> float:
        """T."""
        return min(TRUST_MAX, (1.2 + self.s) / (4.0 + self.s + self.f))

    def _age(self, at_ms: int) -> None:
        """Time passes. A clock that goes back makes nothing younger."""
        passed = at_ms - self._at_ms if self._at_ms else 0
        if passed > 0:
            if self.s > self._base:
                self.s = self._base + (self.s - self._base) * 0.5 ** (passed / S_HALF_MS)
            self.f *= 0.5 ** (passed / F_HALF_MS)
        self._at_ms = max(self._at_ms, at_ms)

    def _apply(self, p: float, n: float) -> None:
        if p:
            self.s = min(S_MAX, self.s + p)
            self.f *= 1 - 0.03 * min(1.0, p)
        if n:
            # The start shrinks too: an author that has fallen does not get it back by waiting.
            left = 1 - 0.3 * min(1.0, n)
            self.s *= left
            self._base *= left
            self.f += n


def fold(
    start: float,
    evidence: Iterable[Evidence],
    now_ms: int,
    *,
    flow: float = 0.0,
    flow_against: float = 0.0,
) -> tuple[Fold, list[Weighed]]:
    """Fold evidence in any order of delivery; the fold, and what each piece counted."""
    folded = Fold(start, flow=flow, flow_against=flow_against)
    weighed = [folded.add(piece) for piece in in_order(evidence)]
    folded.settle(now_ms)
    return folded, weighed


def in_order(evidence: Iterable[Evidence]) -> list[Evidence]:
    """By (hlc, id); of the person's verdicts on one memory the newest alone."""
    ordered = sorted(evidence, key=lambda piece: (piece.hlc, piece.id))
    newest = {
        piece.memory: (piece.hlc, piece.id)
        for piece in ordered
        if piece.kind in _PERSONS and piece.memory is not None
    }
    return [
        piece
        for piece in ordered
        if piece.kind not in _PERSONS
        or piece.memory is None
        or newest[piece.memory] == (piece.hlc, piece.id)
    ]


_PERSONS: Final = frozenset({"owner_useful", "owner_wrong"})


class _Caps:
    """What bounds a piece's weight, given those before it."""

    def __init__(self, flow: float, flow_against: float) -> None:
        self._limits = (FLOW_CAP * flow, FLOW_CAP * flow_against)
        self._spent = [0.0, 0.0]
        self._praised: dict[int | None, int] = {}
        self._said: set[tuple[int | None, str, bool, int]] = set()
        self._faults: dict[tuple[str, int], int] = {}
        self._owners: dict[tuple[bytes, bool], list[tuple[int, float]]] = {}
        self._groups: set[tuple[bytes, bool, int]] = set()

    def weigh(self, piece: Evidence) -> tuple[float, float, str]:
        """(p, n, why it is less than its kind is worth)."""
        if piece.note:
            return 0.0, 0.0, piece.note
        if piece.kind in VOICES:
            return self._voice(piece)
        p, n = _WEIGHTS.get(piece.kind, (0.0, 0.0))
        day = piece.at_ms // DAY_MS
        if piece.kind in FAULTS:
            seen = self._faults.get((piece.kind, day), 0)
            self._faults[piece.kind, day] = seen + 1
            return (p, n, "") if seen < FAULTS_A_DAY else (0.0, 0.0, "enough of that today")
        if piece.kind in _AGENTS:
            said = (piece.memory, piece.voter, p > 0, day)
            if said in self._said:
                return 0.0, 0.0, "said that already today"
            self._said.add(said)
        if piece.kind == "agent_useful":
            k = self._praised[piece.memory] = self._praised.get(piece.memory, 0) + 1
            return p / k, n, "" if k == 1 else f"praise number {k} of this memory"
        return p, n, ""

    def _voice(self, piece: Evidence) -> tuple[float, float, str]:
        against = piece.kind in {"refuted", "distrusted"}
        if piece.weight is None:
            weight, why = OWNER_VOICE, ""
        else:
            weight, why = self._foreign(piece, against, piece.weight)
        return (0.0, weight, why) if against else (weight, 0.0, why)

    def _foreign(self, piece: Evidence, against: bool, weight: float) -> tuple[float, str]:
        if weight < VOICE_MIN:
            return 0.0, "its voice is not trusted enough"
        if piece.group is not None:
            group = (piece.owner, against, piece.group)
            if group in self._groups:
                return 0.0, "said that of this memory already"
            self._groups.add(group)
        recent = self._owners.setdefault((piece.owner, against), [])
        since = piece.at_ms - DOMAIN_WINDOW_MS
        left = DOMAIN_CAP - sum(amount for at, amount in recent if at > since)
        room = self._limits[against] - self._spent[against]
        counted = max(0.0, min(weight, left, room))
        recent.append((piece.at_ms, counted))
        self._spent[against] += counted
        if counted == weight:
            return counted, ""
        return counted, "one owner's share" if left <= room else "the flow of endorsements"


_AGENTS: Final = frozenset({"agent_useful", "agent_wrong", "agent_harmful"})

# ---- of authors and memories


def author_trust(relation: str, agent: str, s: float, f: float) -> float:
    """T of an author from evidence for (s) and against (f)."""
    if relation == "own" and not agent:
        return PERSON_TRUST
    return min(TRUST_MAX, (1.2 + s) / (4.0 + s + f))


def start_s(relation: str) -> float:
    """Evidence an author of this relation starts with; an unknown relation is a stranger's."""
    return START_S.get(relation, 0.0)


def is_ours(relation: str) -> bool:
    """Whether an author is the local owner's: one of this person's devices."""
    return relation in ("own", "own_device")


def is_person(relation: str, agent: str) -> bool:
    """Whether an author is the person, at one of their machines."""
    return is_ours(relation) and not agent


def vouched_trust(flow: float) -> float:
    """What independent confirmations raise a memory's E to; 0 below a flow of 2."""
    return min(0.8, 0.5 + 0.1 * (flow - 2)) if flow >= 2 else 0.0


def effective(
    trust: float, role: str, parents: Sequence[float | None], vouched: float = 0.0
) -> tuple[float, str]:
    """E of a memory and what limits it: `author`, `role` or `parent`; `vouched` if that raised it.

    Args:
        trust: T of its author.
        role: owner, agent, tool or web.
        parents: E of each memory it was derived from, None for one that is not here.
        vouched: what others' confirmations raise it to at least.
    """
    best, reason = trust, "author"
    ceiling = CEILING.get(role, CEILING["web"])
    if ceiling < best:
        best, reason = ceiling, "role"
    for parent in parents:
        value = UNKNOWN_PARENT_TRUST if parent is None else parent
        if value < best:
            best, reason = value, "parent"
    return (vouched, "vouched") if vouched > best else (best, reason)


def tier_of(trust: float, now: int = NONE) -> int:
    """The index a memory of effective trust E belongs to.

    Args:
        trust: E.
        now: the tier it is in; leaving the main tier takes a lower E than entering it.
    """
    if trust >= (MAIN_LEAVE if now == MAIN else MAIN_ENTER):
        return MAIN
    return LOW if trust >= LOW_ENTER else NONE
