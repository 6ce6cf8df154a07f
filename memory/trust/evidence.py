"""What is known about authors: seen here, signed by others; and the work of folding it anew.

`observe` notes what this daemon saw. The projections keep what was signed: verdicts, confirming
links, endorsements. Both only write rows and name the authors concerned; at the end of the same
transaction `settle` folds those anew (memory/trust/standing.py) and carries the new trust to their
memories, at most a batch of them. What is left stands in tables, so that no transaction is long
and a crash loses none of it: `work` takes the next batch. Source: docs/specs/memory.md, *Trust*.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.storage.sql import blobs, integers, number
from memory.storage.txn import TrustEvent
from memory.trust.rules import (
    ALARM_FALL,
    DAY_MS,
    FAULTS,
    FAULTS_A_DAY,
    KINDS,
    EvidenceKind,
    tier_of,
)
from memory.trust.standing import DEPTH, Standings, weigh_memory
from memory.trust.status import derived_from, refold_one, restatus_judged

if TYPE_CHECKING:
    import apsw

    from memory.bodies import EndorseBody, LinkBody, VerdictBody
    from memory.storage.txn import Txn

__all__ = ["EvidenceKind", "observe", "settle", "work"]

BATCH: Final = 500
"""Memories that take over a new trust in one transaction."""

AUTHORS_INLINE: Final = 32
"""Authors folded in the transaction that concerned them; further ones wait for the next. Guess:
some milliseconds."""

OWNER_MOVED: Final = 1e-4
"""Change of an owner's trust that its agents take over. Time alone moves it in every transaction,
by some 1e-11 a millisecond: were that enough, the agents of an owner that has more of them than a
batch would be folded for ever."""


# ---- what this node saw


def observe(
    txn: Txn,
    *,
    author: int,
    kind: EvidenceKind,
    memory: int | None = None,
    at_ms: int,
    by: bytes | None = None,
) -> None:
    """Note a piece of evidence about an author that this daemon saw, in the writer's transaction.

    Args:
        txn: the writer's unit; trust is folded anew at its end.
        author: row of the author it is about.
        kind: what was seen.
        memory: the memory it was seen on.
        at_ms: when, Unix milliseconds.
        by: owner key of whoever said it, for `confirmed` and `refuted`: their trust is its weight.
    """
    assert kind in KINDS, f"{kind} is no kind of evidence"
    day_ms = at_ms - at_ms % DAY_MS
    if (
        kind in FAULTS
        and number(
            txn.connection,
            "SELECT count(*) FROM evidence WHERE about = ? AND voter IS NULL AND hlc >= ?"
            " AND hlc < ? AND kind = ?",
            (author, day_ms << 16, day_ms + DAY_MS << 16, kind),
        )
        >= FAULTS_A_DAY
    ):
        return  # more of it today would count nothing, and push out what does
    txn.connection.execute(
        "INSERT INTO evidence(about, memory, kind, by, hlc, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (author, memory, kind, by, at_ms << 16, at_ms),
    )
    txn.judged.add(author)
    if memory is not None and by is not None:
        _again(txn.connection, memory)


def fork_found(txn: Txn, device: bytes) -> None:
    """A device's log is proven forked: its authors are banned when they are folded."""
    txn.judged.update(integers(txn.connection, "SELECT id FROM author WHERE device = ?", (device,)))


# ---- what others signed


def keep_verdict(txn: Txn, n: int, hlc: int, voter: int, body: VerdictBody) -> None:
    """Rows of a signed verdict: of an own agent, of the person, or of somebody else."""
    proof, persons = body.evidence is not None, body.basis == "owner"
    _keep(txn, n, hlc, voter, body.target, body.outcome, proof=proof, persons=persons)


def keep_confirmation(txn: Txn, n: int, hlc: int, voter: int, body: LinkBody) -> None:
    """Rows of a link that says: my memory confirms that one."""
    _keep(txn, n, hlc, voter, body.dst, "confirms", proof=False)


def _keep(
    txn: Txn,
    n: int,
    hlc: int,
    voter: int,
    target: bytes,
    kind: str,
    *,
    proof: bool,
    persons: bool = False,
) -> None:
    connection = txn.connection
    row = connection.execute(
        "SELECT m.id, m.author FROM record r JOIN memory m ON m.id = r.n WHERE r.id = ?", (target,)
    ).fetchone()
    memory, about = (None, None) if row is None else (int(row[0]), int(row[1]))
    seen = _to_examine(connection, voter, kind, proof=proof)
    connection.execute(
        "INSERT OR IGNORE INTO evidence(about, target, memory, kind, voter, rec, proof, persons,"
        " seen, hlc, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (about, target, memory, kind, voter, n, int(proof), int(persons), seen, hlc, hlc >> 16),
    )
    txn.unsettled = txn.unsettled or seen == "ask"
    if about is not None and memory is not None:
        txn.judged.add(about)
        _again(connection, memory)


def _to_examine(connection: apsw.Connection, voter: int, kind: str, *, proof: bool) -> str:
    """`ask` for a confirmation by an agent of this device: we know what it has been shown."""
    if kind != "confirms" or proof:
        return ""
    relation, agent = connection.execute(
        "SELECT class, agent FROM author WHERE id = ?", (voter,)
    ).fetchall()[0]
    return "ask" if relation == "own" and agent else ""


def target_here(txn: Txn, record_id: bytes, memory: int, author: int) -> None:
    """A memory came after verdicts on it: they count from now on."""
    connection = txn.connection
    connection.execute(
        "UPDATE evidence SET about = ?, memory = ? WHERE target = ? AND about IS NULL",
        (author, memory, record_id),
    )
    if connection.changes():
        txn.judged.add(author)
        _again(connection, memory)


def keep_endorsement(txn: Txn, n: int, hlc: int, voter: int, body: EndorseBody) -> None:
    """Rows of a signed endorsement of an owner."""
    txn.connection.execute(
        "INSERT OR IGNORE INTO endorse VALUES (?, ?, ?, ?, ?, ?)",
        (n, voter, body.subject, body.level, body.until_ms, hlc),
    )
    endorsed_anew(txn, body.subject)


def endorsed_anew(txn: Txn, subject: bytes) -> None:
    """Fold those concerned by a change of an owner's endorsements: it, and whom voices reach."""
    connection = txn.connection
    txn.judged.update(integers(connection, "SELECT id FROM author WHERE owner = ?", (subject,)))
    # Its own voice may now be heard, and those it endorses, so whoever any foreign voice was about.
    connection.execute(
        "INSERT OR IGNORE INTO refold SELECT DISTINCT e.about FROM evidence e"
        " LEFT JOIN author v ON v.id = e.voter WHERE e.about IS NOT NULL"
        " AND (e.by IS NOT NULL OR v.class NOT IN ('own', 'own_device'))"
    )


def restate_voter(txn: Txn, n: int) -> None:
    """A signed verdict, link or endorsement began or ceased to count: fold whom it was about."""
    connection = txn.connection
    found = connection.execute("SELECT about, memory FROM evidence WHERE rec = ?", (n,)).fetchone()
    if found is not None and found[0] is not None:
        txn.judged.add(int(found[0]))
        _again(connection, int(found[1]))
    for subject in blobs(connection, "SELECT subject FROM endorse WHERE rec = ?", (n,)):
        endorsed_anew(txn, subject)


def reowned(txn: Txn, author: int) -> None:
    """An author's owner or relation changed: fold it, and whom it spoke of."""
    txn.judged.add(author)
    connection = txn.connection
    connection.execute(
        "INSERT OR IGNORE INTO refold SELECT DISTINCT about FROM evidence WHERE voter = ?"
        " AND about IS NOT NULL",
        (author,),
    )
    connection.execute(
        "INSERT OR IGNORE INTO retrust SELECT memory FROM evidence WHERE voter = ?"
        " AND memory IS NOT NULL",
        (author,),
    )
    subjects = blobs(connection, "SELECT DISTINCT subject FROM endorse WHERE voter = ?", (author,))
    for subject in subjects:
        endorsed_anew(txn, subject)


def first_standing(connection: apsw.Connection, author: int) -> tuple[float, str] | None:
    """(T, state) of an author just made, if something is known that touches it; else None.

    A new name of a known subject or owner begins where that one is, not at its start value.
    """
    known = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM author b WHERE b.device = a.device AND b.agent = a.agent"
        " AND b.id <> a.id) OR EXISTS (SELECT 1 FROM domain d WHERE d.owner = a.owner)"
        " OR EXISTS (SELECT 1 FROM endorse e WHERE e.subject = a.owner)"
        " OR EXISTS (SELECT 1 FROM fork f JOIN log l ON l.n = f.log WHERE l.author = a.device)"
        " FROM author a WHERE a.id = ?",
        (author,),
    ).get
    if not known:
        return None
    now_ms = number(connection, "SELECT max(at_ms) FROM author")
    found = Standings(connection, now_ms).author(author)
    connection.execute(
        "UPDATE author SET s = ?, f = ?, trust = ?, state = ? WHERE id = ?",
        (found.s, found.f, found.trust, found.state, author),
    )
    _later(connection, author)  # as of now, not of the last fold
    return found.trust, found.state


# ---- folding


def settle(txn: Txn, now_ms: int) -> None:
    """At the end of a unit: fold whom it concerned, and carry the trust to their memories.

    Bounded: what exceeds a batch stays in `refold`, `retrust_author` and `retrust` for `work`.
    """
    if not txn.judged:
        return
    _hearers(txn.connection, txn.judged)
    judged = sorted(txn.judged)
    txn.judged.clear()
    for author in judged[AUTHORS_INLINE:]:
        _later(txn.connection, author)
    standings = Standings(txn.connection, now_ms)
    for author in judged[:AUTHORS_INLINE]:
        _fold(txn, standings, author)
    _batch(txn, standings)
    txn.unsettled = txn.unsettled or pending(txn.connection)


def work(txn: Txn, now_ms: int) -> bool:
    """Do a batch of what is left; whether there is more."""
    _batch(txn, Standings(txn.connection, now_ms))
    return pending(txn.connection)


def _batch(txn: Txn, standings: Standings) -> None:
    connection = txn.connection
    authors = integers(connection, "SELECT author FROM refold LIMIT ?", (AUTHORS_INLINE,))
    for author in authors:
        connection.execute("DELETE FROM refold WHERE author = ?", (author,))
        _fold(txn, standings, author)
    _memories(txn, standings, BATCH)


def _later(connection: apsw.Connection, author: int) -> None:
    connection.execute("INSERT OR IGNORE INTO refold VALUES (?)", (author,))


def pending(connection: apsw.Connection) -> bool:
    """Whether trust is still being carried to authors or memories."""
    return bool(
        number(
            connection,
            "SELECT EXISTS (SELECT 1 FROM refold) OR EXISTS (SELECT 1 FROM retrust_author)"
            " OR EXISTS (SELECT 1 FROM retrust)",
        )
    )


def _fold(txn: Txn, standings: Standings, author: int) -> None:
    """Fold one subject in all its groups, and its owner; name what follows from a change."""
    connection = txn.connection
    subject = standings.subject_of(author)
    for row in standings.rows_of(subject):
        found = standings.author(row)
        before = connection.execute(
            "SELECT trust, state, day_ms, day_trust FROM author WHERE id = ?", (row,)
        ).fetchone()
        assert before is not None, "the row was read in this transaction"
        old, old_state, day_ms, day_trust = before
        if standings.now_ms - day_ms >= DAY_MS:
            day_ms, day_trust = standings.now_ms, old
        day_trust = max(day_trust, found.trust)
        connection.execute(
            "UPDATE author SET s = ?, f = ?, trust = ?, state = ?, at_ms = ?, day_ms = ?,"
            " day_trust = ? WHERE id = ?",
            (
                found.s,
                found.f,
                found.trust,
                found.state,
                standings.now_ms,
                day_ms,
                day_trust,
                row,
            ),
        )
        if found.trust == old and found.state == old_state:
            continue
        banned = found.state == "banned" != old_state
        _tell(txn, subject, old, found.trust, day_trust, banned=banned)
        _carry(connection, row)
    _fold_owner(txn, standings, author)


def _fold_owner(txn: Txn, standings: Standings, author: int) -> None:
    """The owner's own standing; its other agents are limited by it."""
    connection = txn.connection
    owner = standings.owner_of(author)
    found = standings.domain(owner)
    if found is None:
        return
    old = connection.execute("SELECT trust FROM domain WHERE owner = ?", (owner,)).get
    moved = old is None or abs(cast("float", old) - found.trust) >= OWNER_MOVED
    # Kept while it has not moved, so that small steps add up to one.
    trust = found.trust if moved else old
    connection.execute(
        "INSERT OR REPLACE INTO domain(owner, s, f, trust, flow, state, at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (owner, found.s, found.f, trust, found.flow, found.state, standings.now_ms),
    )
    if moved:
        connection.execute(
            "INSERT OR IGNORE INTO refold SELECT id FROM author WHERE owner = ? AND id <> ?",
            (owner, author),
        )


def _tell(
    txn: Txn, subject: tuple[bytes, str], old: float, new: float, day: float, *, banned: bool
) -> None:
    device, agent = subject
    if tier_of(old) != tier_of(new):
        txn.told.append(TrustEvent("changed", device, agent, old, new))
    if day - new >= ALARM_FALL > day - old:
        txn.told.append(TrustEvent("alarm", device, agent, day, new))
    if banned:
        txn.told.append(TrustEvent("banned", device, agent, old, new))


def _carry(connection: apsw.Connection, author: int) -> None:
    """An author's trust changed: its memories follow."""
    connection.execute("INSERT OR REPLACE INTO retrust_author VALUES (?, 0)", (author,))


_HEARD: Final = """
WITH speaker AS (SELECT DISTINCT owner FROM author WHERE id IN (SELECT value FROM json_each(?1)))
SELECT DISTINCT e.about FROM speaker s JOIN author v ON v.owner = s.owner
  JOIN evidence e ON e.voter = v.id WHERE e.about IS NOT NULL
  AND (v.class NOT IN ('own', 'own_device') OR e.kind = 'confirms')
UNION SELECT e.about FROM evidence e WHERE e.by IN (SELECT owner FROM speaker)
  AND e.about IS NOT NULL
UNION SELECT o.id FROM speaker s JOIN author v ON v.owner = s.owner
  JOIN endorse e ON e.voter = v.id JOIN author o ON o.owner = e.subject
"""
_CONFIRMED: Final = """
INSERT OR IGNORE INTO retrust SELECT e.memory FROM author a JOIN author v ON v.owner = a.owner
  JOIN evidence e ON e.voter = v.id WHERE a.id IN (SELECT value FROM json_each(?1))
  AND e.memory IS NOT NULL AND (v.class NOT IN ('own', 'own_device') OR e.kind = 'confirms')
"""


def _hearers(connection: apsw.Connection, judged: set[int]) -> None:
    """Whoever the voices of these authors reach, in as many steps as standings are deep.

    Not only if an author's trust moved: its standing at a lesser depth may have, and that is what
    its voice weighs.
    """
    reached = set(judged)
    for _ in range(DEPTH):
        connection.execute(_CONFIRMED, (json.dumps(sorted(reached)),))
        reached = set(integers(connection, _HEARD, (json.dumps(sorted(reached)),)))
        for author in sorted(reached - judged):
            _later(connection, author)
        if not reached:
            return


def _again(connection: apsw.Connection, memory: int) -> None:
    connection.execute("INSERT OR IGNORE INTO retrust VALUES (?)", (memory,))


def _memories(txn: Txn, standings: Standings, limit: int) -> None:
    """Carry trust to the next memories: single ones first, then those of changed authors."""
    connection = txn.connection
    left = limit
    while left > 0:
        batch = _next_memories(connection, left)
        if not batch:
            return
        left -= len(batch)
        for memory in batch:
            if weigh_memory(connection, standings, memory) is None:
                continue  # erased meanwhile
            if connection.changes():
                restatus_judged(txn, memory)
            if refold_one(txn, memory):
                for child in derived_from(connection, memory):
                    _again(connection, child)


def _next_memories(connection: apsw.Connection, limit: int) -> list[int]:
    single = integers(connection, "SELECT memory FROM retrust LIMIT ?", (limit,))
    if single:
        connection.executemany("DELETE FROM retrust WHERE memory = ?", [(m,) for m in single])
        return single
    while True:
        row = connection.execute("SELECT author, after FROM retrust_author LIMIT 1").fetchone()
        if row is None:
            return []
        author, after = row
        found = integers(
            connection,
            "SELECT id FROM memory WHERE author = ? AND id > ? ORDER BY id LIMIT ?",
            (author, after, limit),
        )
        if len(found) < limit:
            connection.execute("DELETE FROM retrust_author WHERE author = ?", (author,))
        else:
            connection.execute(
                "UPDATE retrust_author SET after = ? WHERE author = ?", (found[-1], author)
            )
        if found:  # of an author that only ever judged there are none: the next one's turn
            return found


# ---- for the trust desk


def refold_all(connection: apsw.Connection) -> None:
    """Let time pass: fold everybody about whom something is known, when there is leisure."""
    connection.execute(
        "INSERT OR IGNORE INTO refold SELECT about FROM evidence WHERE about IS NOT NULL"
        " UNION SELECT a.id FROM endorse e JOIN author a ON a.owner = e.subject"
    )


def to_examine(connection: apsw.Connection) -> list[tuple[int, str, bytes, int]]:
    """Confirmations by agents of this device: (row, agent, target, when), oldest first."""
    return [
        (int(row), str(agent), bytes(target), int(at_ms))
        for row, agent, target, at_ms in connection.execute(
            "SELECT e.id, a.agent, e.target, e.at_ms FROM evidence e JOIN author a"
            " ON a.id = e.voter WHERE e.seen = 'ask' AND e.target IS NOT NULL ORDER BY e.id"
            " LIMIT ?",
            (BATCH,),
        )
    ]


class Withdrawn(NamedTuple):
    """A note that its own author took back.

    Attributes:
        id: the author's row.
        agent: its agent name.
        memory: the note.
    """

    id: int
    agent: str
    memory: int


def withdrawn_by(connection: apsw.Connection, record: bytes) -> Withdrawn | None:
    """Who took a note back, if it was its author at this device, with nothing in its place."""
    row = connection.execute(
        "SELECT a.id, a.agent, m.id FROM record r JOIN memory m ON m.id = r.n"
        " JOIN author a ON a.id = m.author JOIN forgetting f ON f.target = r.id"
        " JOIN author b ON b.id = f.author AND b.device = a.device AND b.agent = a.agent"
        " WHERE r.id = ?1 AND a.class = 'own' AND a.agent <> '' AND NOT EXISTS"
        " (SELECT 1 FROM link l WHERE l.dst = ?1 AND l.type = 'supersedes') LIMIT 1",
        (record,),
    ).fetchone()
    return None if row is None else Withdrawn(int(row[0]), str(row[1]), int(row[2]))


def examined(txn: Txn, row: int, *, seen: bool) -> None:
    """Whether the voter of a confirmation had been shown its target."""
    found = txn.connection.execute(
        "UPDATE evidence SET seen = ? WHERE id = ? RETURNING about, memory",
        ("yes" if seen else "no", row),
    ).fetchone()
    if found is not None and found[0] is not None:
        txn.judged.add(int(found[0]))
        _again(txn.connection, int(found[1]))
