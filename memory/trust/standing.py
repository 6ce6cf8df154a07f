"""How every author, owner and memory stands: from rows to what `memory.trust.rules` folds.

A voice weighs as much as its speaker is trusted, and that trust may rest on other voices. To keep
this free of circles and of the order of arrival, a standing has a depth: at depth 0 only what the
local owner and its agents said and saw counts; at depth k the voices of others weigh as much as
their speakers do at depth k - 1. Two rings of friends that praise each other thus start from what
was seen first-hand. Source: docs/specs/memory.md, *Trust*.
"""

# SQL is put together from this file's own constants; every value is bound.

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.storage.sql import blobs, integers, number
from memory.trust.flow import flow, upstream
from memory.trust.rules import (
    PERSON_TRUST,
    START_S,
    TRUST_MAX,
    VOICE_MIN,
    VOICES,
    Evidence,
    Weighed,
    fold,
    is_ours,
    is_person,
    start_s,
    vouched_trust,
)

if TYPE_CHECKING:
    import apsw

DEPTH: Final = 2
"""Steps from first-hand knowledge: whom a friend of a friend speaks for."""

ENDORSED_LEVEL: Final = 50
"""An endorsement from here on is one; 0 is distrust, between them nothing is said."""

KNOWN_S: Final = 1.5
"""Own evidence from which an owner passes on the person's endorsement without being endorsed."""

LINEAGE_MAX: Final = 64
"""Ancestors looked at for whether a confirmation repeats its target."""

SAID_MAX: Final = 500
"""Pieces of evidence of one voter about one author that are weighed, the newest. As much praise
makes up for any fault, and a foreign owner's share is used up by far fewer."""

SAID_OF_MEMORY_MAX: Final = 32
"""The same of one memory."""

SEEN_MAX: Final = 2_000
"""Pieces seen by this node itself: faults, of which a few a day are noted."""

Subject = tuple[bytes, str]
"""(device, agent), over all groups."""


class Author(NamedTuple):
    """A row of `author`."""

    id: int
    device: bytes
    agent: str
    owner: bytes
    relation: str


class Standing(NamedTuple):
    """How a subject or an owner stands.

    Attributes:
        s: evidence for.
        f: evidence against.
        trust: T; of an author already limited by its owner.
        state: empty, `distrusted` or `banned`.
        flow: how far the person's endorsement reaches those who speak for it.
        limit: what holds T down: `evidence`, `owner`, `distrusted` or `banned`.
        weighed: the evidence, in order.
    """

    s: float
    f: float
    trust: float
    state: str
    flow: float
    limit: str
    weighed: tuple[Weighed, ...]


class MemoryVoices(NamedTuple):
    """What is said of one memory.

    Attributes:
        confirmations: independent owners that confirm it.
        flow: how far the person's endorsement reaches them.
        against: how far it reaches the owners that refute it.
        person: what the person's newest verdict says: `useful`, `wrong` or empty.
    """

    confirmations: int
    flow: int
    against: int
    person: str


# Voters one by one along the index, and of each the newest that count: what one voter says without
# end costs it a record each, and us no more than this.
_EVIDENCE: Final = """
WITH RECURSIVE voters(v) AS (
  SELECT min(voter) FROM evidence WHERE {which} = ?1
  UNION ALL SELECT (SELECT min(voter) FROM evidence WHERE {which} = ?1 AND voter > v)
    FROM voters WHERE v IS NOT NULL),
picked(id) AS (
  SELECT p.id FROM voters JOIN evidence p ON p.id IN (
      SELECT x.id FROM evidence x LEFT JOIN record xr ON xr.n = x.rec
      WHERE x.{which} = ?1 AND x.voter = voters.v AND (x.rec IS NULL OR (xr.state = 'live'
        AND NOT EXISTS (SELECT 1 FROM muted y WHERE y.n = x.rec)))
      ORDER BY x.hlc DESC, x.id DESC LIMIT ?2)
    WHERE v IS NOT NULL
  UNION ALL SELECT * FROM (SELECT id FROM evidence WHERE {which} = ?1 AND voter IS NULL
    ORDER BY hlc DESC, id DESC LIMIT ?3))
SELECT e.id, e.hlc, e.kind, e.at_ms, e.memory, m.cluster, e.by, e.voter, e.proof, e.seen, e.rec,
  e.target, e.about, r.id, e.persons
FROM picked p CROSS JOIN evidence e ON e.id = p.id
LEFT JOIN memory m ON m.id = e.memory LEFT JOIN record r ON r.n = e.rec
"""
_ABOUT: Final = _EVIDENCE.format(which="about")
_OF_MEMORY: Final = _EVIDENCE.format(which="memory")

# Of each voter's owner the newest endorsement that counts here, if its time is not over.
_ENDORSEMENTS: Final = """
SELECT v.owner, e.subject, e.level, e.voter, e.hlc, r.id, e.until_ms FROM endorse e
JOIN record r ON r.n = e.rec AND r.state = 'live' JOIN author v ON v.id = e.voter
WHERE NOT EXISTS (SELECT 1 FROM muted x WHERE x.n = e.rec)
ORDER BY e.hlc, r.id
"""


_AUTHOR: Final = "SELECT id, device, agent, owner, class FROM author WHERE "
# The planner would walk every owner to have them in order.
_OUR_OWNERS: Final = (
    "SELECT DISTINCT owner FROM author INDEXED BY author_ours WHERE class IN ('own', 'own_device')"
)
_HAS_RELATION: Final = "SELECT EXISTS (SELECT 1 FROM author WHERE owner = ? AND class = ?)"
_HAS_FORKED: Final = (
    "SELECT EXISTS (SELECT 1 FROM fork f JOIN log l ON l.n = f.log"
    " JOIN author a ON a.device = l.author WHERE a.owner = ?)"
)


class _Endorsement(NamedTuple):
    owner: bytes
    subject: bytes
    level: int
    voter: int
    hlc: int
    id: bytes


class _Row(NamedTuple):
    id: int
    hlc: int
    kind: str
    at_ms: int
    memory: int | None
    cluster: int | None
    by: bytes | None
    voter: int | None
    proof: int
    seen: str
    rec: int | None
    target: bytes | None
    about: int
    rec_id: bytes | None
    persons: int


def _persons(voter: Author, row: _Row) -> bool:
    """Whether a verdict is the person's: at a terminal, or by an agent allowed to act for them."""
    return is_person(voter.relation, voter.agent) or bool(row.persons and is_ours(voter.relation))


class Standings:
    """Standings of one moment, each computed once.

    Args:
        connection: inside a transaction: nothing may change meanwhile.
        now_ms: the moment, Unix milliseconds.
    """

    def __init__(self, connection: apsw.Connection, now_ms: int) -> None:
        self.connection = connection
        self.now_ms = now_ms
        self._authors: dict[int, Author] = {}
        self._by_subject: dict[Subject, list[Author]] = {}
        self._our_owners = frozenset(blobs(connection, _OUR_OWNERS))
        self._forked = frozenset(
            blobs(connection, "SELECT DISTINCT l.author FROM fork f JOIN log l ON l.n = f.log")
        )
        self._subjects: dict[tuple[int, int], Standing] = {}
        self._domains: dict[tuple[bytes, int], Standing] = {}
        self._endorsed: dict[bytes, list[_Endorsement]] | None = None
        self._edges: list[tuple[bytes, bytes]] | None = None
        self._pieces: dict[int, list[_Row]] = {}
        self._first: dict[bytes, bool] = {}

    # ---- who is who

    def subject_of(self, author: int) -> Subject:
        """The subject that an author row is about."""
        row = self.row(author)
        return row.device, row.agent

    def row(self, author: int) -> Author:
        """An author row."""
        known = self._authors.get(author)
        if known is None:
            for found in self.connection.execute(_AUTHOR + "id = ?", (author,)):
                self._authors[author] = Author(*found)
            known = self._authors[author]
        return known

    def start_of(self, author: int) -> float:
        """S that an author's relation gives it."""
        return start_s(self.row(author).relation)

    def owner_of(self, author: int) -> bytes:
        """Owner key of an author row."""
        return self.row(author).owner

    def rows_of(self, subject: Subject) -> list[int]:
        """The subject's rows, one a group it writes in."""
        return [author.id for author in self._rows_of(subject)]

    def _rows_of(self, subject: Subject) -> list[Author]:
        known = self._by_subject.get(subject)
        if known is None:
            found = self.connection.execute(
                _AUTHOR + "device = ? AND agent = ? ORDER BY id", subject
            )
            known = self._by_subject[subject] = [Author(*row) for row in found]
            self._authors.update((author.id, author) for author in known)
        return known

    def read_everybody(self) -> None:
        """Read all authors at once: for whoever asks about each of them."""
        for row in self.connection.execute(_AUTHOR + "1 ORDER BY id"):
            author = Author(*row)
            self._authors[author.id] = author
            self._by_subject.setdefault((author.device, author.agent), []).append(author)

    def _relations_of(self, owner: bytes) -> list[str]:
        """Relations that the owner's authors have."""
        return [
            relation
            for relation in START_S
            if number(self.connection, _HAS_RELATION, (owner, relation))
        ]

    # ---- standings

    def author(self, author: int, depth: int = DEPTH) -> Standing:
        """An author's standing: its own, limited by its owner's."""
        row = self.row(author)
        found = self.subject(row, depth)
        if found.state or is_ours(row.relation):
            return found
        whole = self.domain(row.owner, depth)
        if whole is not None and whole.trust < found.trust:
            limit = whole.limit if whole.state else "owner"
            return found._replace(trust=whole.trust, limit=limit)
        return found

    def subject(self, author: Author, depth: int = DEPTH) -> Standing:
        """A subject's own standing: evidence of all groups, the start that one group gives it."""
        known = self._subjects.get((author.id, depth))
        if known is None:
            known = self._subjects[author.id, depth] = self._fold_subject(author, depth)
        return known

    def domain(self, owner: bytes, depth: int = DEPTH) -> Standing | None:
        """A foreign owner's standing as a whole; None for the local owner, who has none."""
        if owner in self._our_owners:
            return None
        known = self._domains.get((owner, depth))
        if known is None:
            # A member may make up thousands of agents: only those of whom something is known.
            known_of = integers(
                self.connection,
                "SELECT a.id FROM author a WHERE a.owner = ? AND EXISTS"
                " (SELECT 1 FROM evidence e WHERE e.about = a.id) ORDER BY a.id",
                (owner,),
            )
            pieces = [p for a in known_of for p in self._about(self.row(a), depth)]
            pieces += self._endorsements_of(owner, depth)
            start = max(map(start_s, self._relations_of(owner)), default=0.0)
            known = self._standing(start, owner, pieces, depth)
            self._domains[owner, depth] = known
        return known

    def _fold_subject(self, author: Author, depth: int) -> Standing:
        if author.relation == "own" and not author.agent:
            return Standing(0, 0, PERSON_TRUST, "", 0, "evidence", ())
        rows = self._rows_of((author.device, author.agent))
        pieces = [piece for row in rows for piece in self._about(row, depth)]
        ours = is_ours(author.relation)
        if not ours:
            pieces += self._endorsements_of(author.owner, depth)
        found = self._standing(start_s(author.relation), author.owner, pieces, depth)
        if author.device in self._forked and not ours:
            return found._replace(trust=0.0, state="banned", limit="banned")
        return found

    def _standing(self, start: float, owner: bytes, pieces: list[Evidence], depth: int) -> Standing:
        reach = self._flow(pieces, {"confirmed", "endorsed"}) if depth else 0
        against = self._flow(pieces, {"refuted", "distrusted"}) if depth else 0
        folded, weighed = fold(start, pieces, self.now_ms, flow=reach, flow_against=against)
        trust = min(TRUST_MAX, folded.trust())
        limit, state = "evidence", ""
        ceiling = self._persons_limit(owner)
        if ceiling < trust:
            trust, limit, state = ceiling, "distrusted", "distrusted"
        return Standing(folded.s, folded.f, trust, state, reach, limit, tuple(weighed))

    def _persons_limit(self, owner: bytes) -> float:
        """What the person's own distrust leaves of a foreign owner's trust; 1 without one."""
        if owner in self._our_owners:
            return 1.0
        said = [e for e in self._endorsements().get(owner, []) if self._ours(e.voter)]
        if not said or said[-1].level >= ENDORSED_LEVEL:
            return 1.0
        return said[-1].level / 100

    # ---- evidence

    def _about(self, author: Author, depth: int) -> list[Evidence]:
        rows = self._pieces.get(author.id)
        if rows is None:
            found = self.connection.execute(_ABOUT, (author.id, SAID_MAX, SEEN_MAX))
            rows = self._pieces[author.id] = [_Row(*row) for row in found]
        pieces = [self._piece(author, row, depth) for row in rows]
        return [piece for piece in pieces if piece is not None]

    def _piece(self, author: Author, row: _Row, depth: int) -> Evidence | None:
        """A row as evidence about an author; None if it is a voice and voices do not count."""
        if row.voter is None:
            return self._seen(author, row, depth)
        voter = self.row(row.voter)
        kind, weight, note = self._signed(author, voter, row)
        if kind in VOICES and weight is not None and not note:
            if is_ours(voter.relation):
                weight = self.subject(voter, 0).trust
            elif depth == 0:
                return None
            else:
                weight = self.author(voter.id, depth - 1).trust
        return Evidence(
            row.hlc,
            row.rec_id or b"",
            kind,
            row.at_ms,
            row.memory,
            row.cluster or row.memory,
            voter.owner,
            f"{voter.agent}@{voter.device.hex()}",
            weight,
            note,
        )

    def _signed(self, author: Author, voter: Author, row: _Row) -> tuple[str, float | None, str]:
        """(kind, weight to look up or not, why it does not count) of a signed verdict or link."""
        good = row.kind in {"useful", "confirms"}
        if (voter.device, voter.agent) == (author.device, author.agent):
            return self._kind(voter, row), 0.0, "its own words"
        if _persons(voter, row):
            return self._kind(voter, row), None, ""
        if row.kind == "stale":
            return "stale", 0.0, ""
        if not is_ours(voter.relation):
            kind = "confirmed" if good else "refuted"
            if voter.owner == author.owner:
                return kind, 0.0, "its own owner"
            return kind, 0.0, self._dependent(row) if good else ""
        if row.kind != "confirms":
            return self._kind(voter, row), 1.0, ""
        if voter.owner == author.owner:
            return "confirmed", 0.0, "its own owner"
        return "confirmed", 0.0, self._dependent(row)

    def _kind(self, voter: Author, row: _Row) -> str:
        """The kind of a verdict by the local owner's side."""
        if _persons(voter, row):
            said = {"useful": "owner_useful", "confirms": "owner_useful", "stale": "stale"}
            return said.get(row.kind, "owner_wrong")
        if row.kind == "confirms":
            return "confirmed"
        return "stale" if row.kind == "stale" else f"agent_{row.kind}"

    def _dependent(self, row: _Row) -> str:
        """Why a confirmation is none of its own; empty if it is one."""
        if row.kind == "confirms" and row.rec is not None and self._repeats(row.rec, row.target):
            return "repeats it"
        if row.seen == "yes" and not row.proof:
            return "had read it"
        return "not examined yet" if row.seen == "ask" and not row.proof else ""

    def _repeats(self, link: int, target: bytes | None) -> bool:
        """Whether the memory behind a confirming link was derived from its target."""
        found = self.connection.execute("SELECT src FROM link WHERE n = ?", (link,)).get
        waiting = [cast("bytes", found)] if found is not None else []
        if not waiting:
            return True
        seen: set[bytes] = set()
        while waiting and len(seen) < LINEAGE_MAX:
            current = waiting.pop()
            if current == target:
                return True
            if current not in seen:
                seen.add(current)
                waiting += blobs(
                    self.connection,
                    "SELECT p.parent_id FROM record r JOIN parent p ON p.memory = r.n"
                    " WHERE r.id = ?",
                    (current,),
                )
        return bool(waiting)  # a longer line than anybody needs is no confirmation

    def _seen(self, author: Author, row: _Row, depth: int) -> Evidence | None:
        """What this node saw itself, or counted for an owner (`by`)."""
        weight: float | None = 1.0
        note = ""
        if row.kind in VOICES:
            by = row.by or b""
            if by == author.owner:
                note = "its own owner"
            elif by in self._our_owners:
                weight = TRUST_MAX
            elif depth == 0:
                return None
            else:
                whole = self.domain(by, depth - 1)
                weight = 0.0 if whole is None else whole.trust
        ident = row.id.to_bytes(8, "big")
        group = row.cluster or row.memory
        return Evidence(
            row.hlc, ident, row.kind, row.at_ms, row.memory, group, row.by or b"", "", weight, note
        )

    # ---- endorsements

    def _endorsements(self) -> dict[bytes, list[_Endorsement]]:
        """By subject, of each voter's owner the newest, in order."""
        if self._endorsed is None:
            newest: dict[tuple[bytes, bytes], _Endorsement] = {}
            for *fields, until_ms in self.connection.execute(_ENDORSEMENTS):
                one = _Endorsement(*fields)
                newest.pop((one.owner, one.subject), None)
                if until_ms is None or cast("int", until_ms) > self.now_ms:
                    newest[one.owner, one.subject] = one
            self._endorsed = {}
            for one in newest.values():
                self._endorsed.setdefault(one.subject, []).append(one)
        return self._endorsed

    def _ours(self, author: int) -> bool:
        return is_ours(self.row(author).relation)

    def _endorsements_of(self, owner: bytes, depth: int) -> list[Evidence]:
        pieces = []
        for one in self._endorsements().get(owner, []):
            if 0 < one.level < ENDORSED_LEVEL or one.owner == owner:
                continue
            kind = "endorsed" if one.level >= ENDORSED_LEVEL else "distrusted"
            if self._ours(one.voter):
                weight = None
            elif depth == 0:
                continue
            else:
                weight = self.author(one.voter, depth - 1).trust
            pieces.append(
                Evidence(one.hlc, one.id, kind, one.hlc >> 16, None, None, one.owner, "", weight)
            )
        return pieces

    def _flow(self, pieces: list[Evidence], kinds: set[str]) -> int:
        """Flow to the owners whose voices of these kinds are trusted enough to count."""
        owners = {
            piece.owner
            for piece in pieces
            if piece.kind in kinds
            and not piece.note
            and piece.weight is not None
            and piece.weight >= VOICE_MIN
        }
        return self.flow_to(owners)

    def flow_to(self, owners: set[bytes]) -> int:
        """Units of the person's endorsement that reach these owners; the local owner is one."""
        ours = owners & self._our_owners
        foreign = owners - ours
        if not foreign:
            return min(1, len(ours))
        if self._edges is None:
            self._edges = [
                (one.owner, one.subject)
                for said in self._endorsements().values()
                for one in said
                if one.level >= ENDORSED_LEVEL and not self._ours(one.voter)
            ]
        # Only of those from whom something could reach the targets it matters where they stand.
        first = {owner for owner in upstream(self._edges, foreign) if self._is_first(owner)}
        return min(1, len(ours)) + flow(first, self._edges, foreign)

    def _is_first(self, owner: bytes) -> bool:
        """Whether the person endorsed or invited the owner, or knows it from own evidence."""
        known = self._first.get(owner)
        if known is None:
            known = self._first[owner] = owner not in self._our_owners and self._starts(owner)
        return known

    def _starts(self, owner: bytes) -> bool:
        said = [e.level for e in self._endorsements().get(owner, []) if self._ours(e.voter)]
        if said:
            return said[-1] >= ENDORSED_LEVEL
        if number(self.connection, _HAS_FORKED, (owner,)):
            return False
        if number(self.connection, _HAS_RELATION, (owner, "invited")):
            return True
        found = self.domain(owner, 0)
        return found is not None and found.s >= KNOWN_S

    # ---- memories

    def voices(self, memory: int, author: int) -> MemoryVoices:
        """What is said of a memory by the person and by independent owners."""
        about = self.row(author)
        owners: set[bytes] = set()
        refuters: set[bytes] = set()
        person, newest = "", (0, b"")
        for raw in self.connection.execute(_OF_MEMORY, (memory, SAID_OF_MEMORY_MAX, SEEN_MAX)):
            row = _Row(*raw)
            piece = self._piece(about, row, DEPTH)
            if piece is None or piece.note:
                continue
            if piece.kind in {"owner_useful", "owner_wrong"}:
                if (piece.hlc, piece.id) >= newest:
                    newest = (piece.hlc, piece.id)
                    person = "useful" if piece.kind == "owner_useful" else "wrong"
            elif piece.kind in {"confirmed", "refuted"} and (piece.weight or 0.0) >= VOICE_MIN:
                (owners if piece.kind == "confirmed" else refuters).add(piece.owner)
        return MemoryVoices(len(owners), self.flow_to(owners), self.flow_to(refuters), person)


def weigh_memory(
    connection: apsw.Connection, standings: Standings, memory: int
) -> MemoryVoices | None:
    """Write what is said of a memory into its row; None if it is gone."""
    row = connection.execute("SELECT author FROM memory WHERE id = ?", (memory,)).fetchone()
    if row is None:
        return None
    said = standings.voices(memory, int(row[0]))
    # The person's word shows it; that of two independent owners too, unless the person objects.
    backed = said.person == "useful" or (said.flow >= 2 and said.person != "wrong")
    # Nobody refutes what the person here said, nor for them what the person says is useful.
    about = standings.row(int(row[0]))
    denied = said.against >= 2 and said.against > said.flow and said.person != "useful"
    denied = denied and not is_person(about.relation, about.agent)
    vouched = vouched_trust(said.flow) if backed else 0.0
    if said.person == "useful":
        vouched = max(vouched, PERSONS_VOUCH)
    connection.execute(
        "UPDATE memory SET backed = ?1, confirmations = ?2, vouched = ?3, denied = ?5 WHERE id = ?4"
        " AND (backed <> ?1 OR confirmations <> ?2 OR vouched <> ?3 OR denied <> ?5)",
        (int(backed), said.confirmations, vouched, memory, int(denied)),
    )
    return said


PERSONS_VOUCH: Final = 0.5
"""E of what the person says is useful, at least: it belongs into the main index."""
