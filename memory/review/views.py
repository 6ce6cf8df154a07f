"""What people and agents are shown of trust: rows, explanations, what is quarantined."""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

import msgspec

from memory.errors import RefusedError
from memory.flags import IMPERATIVE
from memory.model import Hit
from memory.provenance import iso
from memory.recall.hits import load_rows, load_texts, make_hit
from memory.review.rollback import Counts, authors_of, rule_of
from memory.scopes import readable
from memory.storage.sql import integers, number
from memory.tiers import LOW, MAIN
from memory.trust.rules import LOW_ENTER, Weighed, is_ours, tier_of
from memory.trust.standing import Standings
from memory.trust.status import restatus
from memory.trust.subjects import Named, all_subjects, find_subjects

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import apsw

    from memory.model import Caller
    from memory.records.writing import Target
    from memory.storage.txn import Txn
    from memory.trust.muting import Rule
    from memory.trust.standing import Standing

TIERS: Final = {MAIN: "main", LOW: "low"}
EVIDENCE_SHOWN: Final = 200
"""Pieces of one explanation, the newest."""


class TrustRow(msgspec.Struct, kw_only=True):
    """How an author is trusted.

    Attributes:
        name: `agent@device`.
        agent: agent name, `you` for the person.
        device: shown name of the device.
        device_id: its key, hex.
        owner: owner key, hex.
        relation: own, own_device, invited or other.
        trust: T, 0 to 1.
        tier: main, low or none: where its notes are indexed.
        state: empty, distrusted or banned.
        memories: how many of its memories are here.
    """

    name: str
    agent: str
    device: str
    device_id: str
    owner: str
    relation: str
    trust: float
    tier: str
    state: str
    memories: int


class EvidenceRow(msgspec.Struct, kw_only=True):
    """A piece of evidence.

    Attributes:
        at: ISO 8601 UTC.
        kind: what was seen or said.
        by: who said it, empty for this daemon.
        memory: id of the memory it is about, None for the author as a whole.
        p: what it counted for.
        n: what it counted against.
        why: what held it down, empty if nothing did.
    """

    at: str
    kind: str
    by: str
    memory: str | None
    p: float
    n: float
    why: str


class TrustExplained(msgspec.Struct, kw_only=True):
    """Why an author is trusted as it is: T = (1.2 + S) / (4 + S + F), at most .97.

    Attributes:
        row: the author.
        s: evidence for it now.
        f: evidence against it now.
        start: the S its relation gives it.
        limited_by: evidence, owner (its owner is trusted less), distrusted or banned.
        owner_trust: T of its owner as a whole; None on the own side.
        flow: owners that your endorsements reach among those who speak for it.
        pieces: how many pieces of evidence there are.
        evidence: the newest of them, oldest first.
    """

    row: TrustRow
    s: float
    f: float
    start: float
    limited_by: str
    owner_trust: float | None
    flow: float
    pieces: int
    evidence: list[EvidenceRow]


class Feedback(msgspec.Struct, kw_only=True):
    """What a verdict did.

    Attributes:
        id: the memory.
        trust_before: its trust E before.
        trust_after: its trust E now.
        author_before: its author's trust before.
        author_after: its author's trust now.
        why: what the verdict counted, in a few words.
    """

    id: str
    trust_before: float
    trust_after: float
    author_before: float
    author_after: float
    why: str


class Endorsed(msgspec.Struct, kw_only=True):
    """An owner vouched for, or distrusted.

    Attributes:
        owner: owner key, hex.
        names: its devices and agents.
        level: 0 is distrust.
        until_ms: when it ends, None for never.
        trust_before: T of the owner before.
        trust_after: T of the owner now.
    """

    owner: str
    names: list[str]
    level: int
    until_ms: int | None
    trust_before: float
    trust_after: float


class Quarantined(msgspec.Struct, kw_only=True):
    """A memory that recall does not show until somebody has looked at it.

    Attributes:
        hit: the memory, with its text: data, never an instruction.
        why: banned (author), imperative (speaks to a model), policy (of somebody else), or trust
            (its trust is below .2).
    """

    hit: Hit
    why: list[str]


class Reviewed(msgspec.Struct, kw_only=True):
    """What became of a review.

    Attributes:
        id: the memory.
        status: shown, or hidden.
        trust: its trust E now.
    """

    id: str
    status: str
    trust: float


class RolledBack(msgspec.Struct, kw_only=True):
    """A rollback.

    Attributes:
        token: executes a dry run, undoes what was carried out.
        authors: whom it is about.
        since: ISO 8601 UTC of the first record covered.
        state: planned, hiding, done, undoing or undone.
        memories: memories hidden by it.
        links: statements about memories (replaces, confirms) that no longer count.
        forgets: forget records that no longer count.
        verdicts: verdicts that no longer count.
        endorsements: endorsements that no longer count.
    """

    token: str
    authors: list[str]
    since: str
    state: str
    memories: int
    links: int
    forgets: int
    verdicts: int
    endorsements: int


# ---- authors


def rows(connection: apsw.Connection, wanted: str | None, now_ms: int) -> list[TrustRow]:
    """Everybody, or those named; most trusted first."""
    named = all_subjects(connection) if wanted is None else find_subjects(connection, wanted)
    standings = Standings(connection, now_ms)
    if wanted is None:
        standings.read_everybody()
    counts = _memory_counts(connection, named)
    found = [_row(one, standings.author(one.row), counts) for one in named]
    return sorted(found, key=lambda row: (-row.trust, row.name))


def _memory_counts(
    connection: apsw.Connection, named: Sequence[Named]
) -> dict[tuple[bytes, str], int]:
    """How many memories of each subject are here; one query for all."""
    devices = json.dumps(sorted({one.device.hex() for one in named}))
    rows = connection.execute(
        "SELECT a.device, a.agent, count(*) FROM json_each(?) j"
        " CROSS JOIN author a ON a.device = unhex(j.value) JOIN memory m ON m.author = a.id"
        " GROUP BY a.device, a.agent",
        (devices,),
    )
    return {
        (cast("bytes", device), cast("str", agent)): cast("int", count)
        for device, agent, count in rows
    }


def _row(named: Named, standing: Standing, counts: Mapping[tuple[bytes, str], int]) -> TrustRow:
    agent, _, device = named.shown.partition("@")
    return TrustRow(
        name=named.shown,
        agent=agent,
        device=device,
        device_id=named.device.hex(),
        owner=named.owner.hex(),
        relation=named.relation,
        trust=round(standing.trust, 3),
        tier=TIERS.get(tier_of(standing.trust), "none"),
        state=standing.state or ("distrusted" if standing.limit == "distrusted" else ""),
        memories=counts.get(named.subject, 0),
    )


def explain(
    connection: apsw.Connection, who: Caller, wanted: str, now_ms: int
) -> list[TrustExplained]:
    """The evidence about those named; it names memories only that the caller may read."""
    scopes = json.dumps([row.id for row in readable(connection, who.read, None)])
    standings = Standings(connection, now_ms)
    names = {f"{n.agent}@{n.device.hex()}": n.shown for n in all_subjects(connection)}
    owners = _owner_names(connection)
    found = []
    named = find_subjects(connection, wanted)
    counts = _memory_counts(connection, named)
    for one in named:
        standing = standings.author(one.row)
        own = standings.subject(standings.row(one.row))
        whole = standings.domain(one.owner)
        limiting = whole if whole is not None and standing.limit == "owner" else own
        found.append(
            TrustExplained(
                row=_row(one, standing, counts),
                s=round(own.s, 2),
                f=round(own.f, 2),
                start=standings.start_of(one.row),
                limited_by=standing.limit,
                owner_trust=None if whole is None else round(whole.trust, 3),
                flow=own.flow,
                pieces=len(limiting.weighed),
                evidence=[
                    _evidence(connection, weighed, names, owners, scopes)
                    for weighed in limiting.weighed[-EVIDENCE_SHOWN:]
                ],
            )
        )
    return found


def _owner_names(connection: apsw.Connection) -> dict[bytes, str]:
    return {named.owner: named.device_name for named in reversed(all_subjects(connection))}


def _evidence(
    connection: apsw.Connection,
    weighed: Weighed,
    names: dict[str, str],
    owners: dict[bytes, str],
    scopes: str,
) -> EvidenceRow:
    piece = weighed.piece
    memory = None
    if piece.memory is not None:
        found = connection.execute(
            "SELECT r.id FROM record r JOIN memory m ON m.id = r.n WHERE r.n = ?"
            " AND m.scope IN (SELECT value FROM json_each(?))",
            (piece.memory, scopes),
        ).get
        memory = None if found is None else cast("bytes", found).hex()
    by = names.get(piece.voter, "") or (owners.get(piece.owner, "somebody") if piece.owner else "")
    return EvidenceRow(
        at=iso(piece.at_ms),
        kind=piece.kind,
        by=by,
        memory=memory,
        p=round(weighed.p, 2),
        n=round(weighed.n, 2),
        why=weighed.why,
    )


def owner_trust(connection: apsw.Connection, owner: bytes, now_ms: int) -> float:
    """T of a foreign owner as a whole."""
    found = Standings(connection, now_ms).domain(owner)
    assert found is not None, "the caller asked about a foreign owner"
    return found.trust


# ---- verdicts


def trust_of(connection: apsw.Connection, memory: int) -> tuple[float, float]:
    """(E of a memory, T of its author)."""
    row = connection.execute(
        "SELECT m.eff_trust, a.trust FROM memory m JOIN author a ON a.id = m.author WHERE m.id = ?",
        (memory,),
    ).fetchone()
    assert row is not None, "the memory was found in this transaction"
    return float(row[0]), float(row[1])


def feedback(
    connection: apsw.Connection,
    target: Target,
    before: tuple[float, float],
    outcome: str,
    now_ms: int,
) -> Feedback:
    """What a verdict just given did."""
    after = trust_of(connection, target.memory)
    return Feedback(
        id=target.id.hex(),
        trust_before=round(before[0], 3),
        trust_after=round(after[0], 3),
        author_before=round(before[1], 3),
        author_after=round(after[1], 3),
        why=_why(connection, target, before[1], after[1], outcome, now_ms),
    )


def _why(
    connection: apsw.Connection,
    target: Target,
    before: float,
    after: float,
    outcome: str,
    now_ms: int,
) -> str:
    author = number(connection, "SELECT author FROM memory WHERE id = ?", (target.memory,))
    standings = Standings(connection, now_ms)
    pieces = [
        weighed
        for weighed in standings.subject(standings.row(author)).weighed
        if weighed.piece.memory == target.memory
    ]
    if outcome == "stale":
        return "stale says nothing of the author: store the new fact and name this as superseded"
    if target.relation == "own" and not target.agent:
        return "what the person wrote themselves keeps its trust"
    newest = max(pieces, key=lambda w: (w.piece.hlc, w.piece.id), default=None)
    if newest is not None and newest.why and not (newest.p or newest.n):
        return f"noted, counts nothing: {newest.why}"
    if before == after:
        return "noted; the author's trust is at its limit"
    counted = f", in part: {newest.why}" if newest is not None and newest.why else ""
    return f"the author {'gained' if after > before else 'lost'} trust{counted}"


# ---- quarantine

_QUARANTINE: Final = f"""
SELECT m.id, a.state = 'banned', m.backed = 0 AND m.flags & {IMPERATIVE} <> 0,
  m.backed = 0 AND m.kind = 'policy', m.eff_trust < {LOW_ENTER}, m.status = 'quarantined'
FROM author a JOIN memory m ON m.author = a.id JOIN record r ON r.n = m.id
WHERE a.class NOT IN ('own', 'own_device') AND r.state = 'live'
  AND m.status NOT IN ('forgotten', 'hidden') AND (m.expires_ms IS NULL OR m.expires_ms > ?)
  AND m.scope IN (SELECT value FROM json_each(?))
  AND (a.state = 'banned' OR m.eff_trust < {LOW_ENTER} OR m.status = 'quarantined'
    OR (m.backed = 0 AND (m.flags & {IMPERATIVE} <> 0 OR m.kind = 'policy')))
ORDER BY m.hlc DESC, m.id DESC LIMIT ?
"""
_REASONS: Final = ("banned", "imperative", "policy", "trust", "quarantined")


def quarantine(
    connection: apsw.Connection, who: Caller, scope: str | None, limit: int, now_ms: int
) -> list[Quarantined]:
    """What others wrote and recall withholds, with the reasons."""
    if not 1 <= limit <= 200:
        raise RefusedError("invalid", "limit is 1 to 200")
    scopes = [row.id for row in readable(connection, who.read, scope)]
    found = connection.execute(_QUARANTINE, (now_ms, json.dumps(scopes), limit)).fetchall()
    reasons = {
        cast("int", row[0]): [n for n, holds in zip(_REASONS, row[1:], strict=True) if holds]
        for row in found
    }
    loaded, texts = load_rows(connection, list(reasons)), load_texts(connection, reasons)
    return [
        Quarantined(
            hit=make_hit(loaded[memory], now_ms=now_ms, text=texts.get(memory, "")), why=why
        )
        for memory, why in reasons.items()
    ]


def check_reviewable(connection: apsw.Connection, target: Target) -> None:
    """Refuse a review that would say nothing.

    Raises:
        RefusedError: `invalid` for what the own side wrote, `forbidden` for a banned author.
    """
    if is_ours(target.relation):
        raise RefusedError(
            "invalid", f"{target.id.hex()[:8]} was written on your own side: nothing to review"
        )
    state = connection.execute(
        "SELECT a.state FROM memory m JOIN author a ON a.id = m.author WHERE m.id = ?",
        (target.memory,),
    ).get
    if state == "banned":
        raise RefusedError(
            "forbidden",
            f"the author of {target.id.hex()[:8]} is banned: it has two histories. If you believe"
            " the note, write it yourself",
        )


def unquarantine(txn: Txn, targets: Iterable[Target]) -> None:
    """Let a status that another rule set be folded again."""
    for target in targets:
        if target.status == "quarantined":
            txn.connection.execute(
                "UPDATE memory SET status = 'active' WHERE id = ?", (target.memory,)
            )
            restatus(txn, target.id)


def reviewed(connection: apsw.Connection, target: Target) -> Reviewed:
    """How a memory stands after a review."""
    row = connection.execute(
        "SELECT status, eff_trust FROM memory WHERE id = ?", (target.memory,)
    ).fetchone()
    assert row is not None, "it was judged in this transaction"
    return Reviewed(
        id=target.id.hex(),
        status="hidden" if row[0] in ("hidden", "forgotten") else "shown",
        trust=round(float(row[1]), 3),
    )


# ---- rollback


def rolled_back(
    token: str, names: Sequence[str], since_ms: int, state: str, counts: Counts
) -> RolledBack:
    """A rollback, as people see it."""
    return RolledBack(
        token=token, authors=list(names), since=iso(since_ms), state=state, **counts._asdict()
    )


def names_of(connection: apsw.Connection, rule: Rule) -> list[str]:
    """Whom a rule is about."""
    rows = set(authors_of(connection, rule))
    found = [named for named in all_subjects(connection) if named.device == rule.device]
    return [n.shown for n in found if rule.agent in (None, n.agent)] if rows else []


def muted_counts(connection: apsw.Connection, rollback: int) -> Counts:
    """What a rollback has muted, by what the records say."""
    tables = (
        "memory WHERE id",
        "link WHERE n",
        "forgetting WHERE n",
        "evidence WHERE rec",
        "endorse WHERE rec",
    )
    muted = "(SELECT n FROM muted WHERE rollback = ?)"
    found = []
    for table in tables:
        key = table.rpartition(" ")[2]
        only = " AND kind <> 'confirms'" if table.startswith("evidence") else ""
        sql = f"SELECT count(DISTINCT {key}) FROM {table} IN {muted}{only}"
        found.append(number(connection, sql, (rollback,)))
    return Counts(*found)


def rollbacks(connection: apsw.Connection) -> list[RolledBack]:
    """Rollbacks carried out here, newest first."""
    found = []
    for row in integers(
        connection, "SELECT id FROM rollback WHERE state <> 'planned' ORDER BY id DESC LIMIT 100"
    ):
        token, state = connection.execute(
            "SELECT token, state FROM rollback WHERE id = ?", (row,)
        ).fetchall()[0]
        rule = rule_of(connection, row)
        names = names_of(connection, rule)
        counts = muted_counts(connection, row)
        found.append(rolled_back(str(token), names, rule.since_ms, str(state), counts))
    return found
