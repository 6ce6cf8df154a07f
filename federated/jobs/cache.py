"""Answers of earlier jobs: which are kept, which are served, when they go.

    need = needed(spec, group, kind="named")
    found = await cache.look(hashes, now_ms)
    entry = found.get(row.hash)
    if entry is not None and served(entry, need, bad=quarantined): ...

An entry stands under a row's hash, which names handler, code, params, template, columns and row:
another batch size, another job, another agent find it all the same. It has the level its answer
earned here and the owners that vouch for it; a job takes it only if its own `verify` would have
been content with that, and it goes when all who vouch for it are quarantined. The cache is this
coordinator's own: what a peer says it has is a claim, not an entry.

Answers that depend on the machine or act on the world are never kept. For a kind of handler whose
answers are found too seldom to be worth the looking, it is off for a day at a time.
Source: docs/specs/jobs.md s.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from federated.jobs.verify import (
    LEVEL_AGREED,
    LEVEL_NONE,
    LEVEL_OWN,
    LEVEL_REPUTATION,
    pack_backing,
    parse_policy,
    reopen,
    unpack_backing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import apsw

    from federated.jobs.handlers.base import HandlerInfo
    from federated.jobs.types import JobSpec, Row
    from federated.seams import Db, GroupId

DAY_MS: Final = 86_400_000

# tasks.md s.7. What an expression answers holds as long as code and engine do, and both stand in
# the hash; a year is only so that what nobody asks for goes.
NAMED_MS: Final = 30 * DAY_MS
LLM_MS: Final = 7 * DAY_MS
EXPR_MS: Final = 365 * DAY_MS

CACHE_BYTES_MAX: Final = 512 * 2**20
"""Beyond so much the entries that were used longest ago go (tasks.md s.7)."""
TRIM_TO: Final = 0.9
"""Share that is left after that, so that not each answer trims. Guess."""
TOUCH_MS: Final = 3_600_000
"""An entry that was used in the last hour is not marked as used again: a mark costs a write."""
ENTRY_BYTES: Final = 160
"""What an entry takes besides its value: hash, times, indexes. Measured with `dbstat`."""

LOOKS_MIN: Final = 100
"""Look-ups before a kind's worth is judged (tasks.md s.7)."""
LOOKS_A_JOB: Final = 20
"""A job counts for at most so many: its rows succeed or fail together. Guess."""
OFF_MS: Final = DAY_MS

CACHED: Final = "cached"
"""Reason of a row whose answer an earlier job gave."""

_OFF: Final = "cache_off:"
"""In table `meta`: until when a handler's answers are neither looked for nor kept."""

PUT: Final = (
    "INSERT INTO cache VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET value=excluded.value,"
    " level=excluded.level, owners=excluded.owners, expires_ms=excluded.expires_ms,"
    " used_ms=excluded.used_ms, bytes=excluded.bytes"
    # What was checked further stays until it is too old.
    " WHERE excluded.level > level OR expires_ms <= excluded.used_ms"
    " OR (excluded.level = level AND length(excluded.owners) >= length(owners))"
)
DROP: Final = "DELETE FROM cache WHERE hash=?"


class Need(NamedTuple):
    """What a job asks of an entry: its level, and at level 2 how many owners agree."""

    level: int
    owners: int = 0


class Entry(NamedTuple):
    """An answer of an earlier job.

    Attributes:
        value: canonical JSON.
        level: as of `verify`.
        backing: sets of owners that carry it; at level 3 only for the record.
    """

    value: bytes
    level: int
    backing: frozenset[frozenset[bytes]]


def needed(spec: JobSpec, group: GroupId | None, *, kind: str) -> Need:
    """What an entry must be for a job to take it instead of asking.

    Args:
        spec: its `verify`.
        group: whose members would be asked; None: own devices, so what they would answer has
            level 3, and less is not enough.
        kind: of its handler.
    """
    if group is None:
        return Need(LEVEL_OWN)
    policy = parse_policy(spec.verify)
    if policy is None:
        return Need(LEVEL_AGREED, 2) if kind == "llm" else Need(LEVEL_REPUTATION)
    match policy.kind:
        case "none":
            return Need(LEVEL_NONE)
        case "quorum":
            return Need(LEVEL_AGREED, policy.m)
        case _:
            return Need(LEVEL_REPUTATION)


def served(entry: Entry, need: Need, *, bad: Collection[bytes]) -> bool:
    """Whether a job takes an entry.

    Args:
        entry: not expired.
        need: of `needed`.
        bad: owners that are quarantined for its handler.
    """
    if entry.level < need.level:
        return False
    if entry.level == LEVEL_OWN:
        return True
    if need.owners > min((len(owners) for owners in entry.backing), default=0):
        return False
    return bool(entry.backing) and not reopen({0: entry.backing}, bad)


def kept_ms(info: HandlerInfo | None, params: Row) -> int:
    """How long a handler's answers are kept; 0: not at all.

    Args:
        info: what a device of ours says of it; None: none of ours knows it.
        params: of the job.
    """
    if info is None or info.local or info.effect:
        return 0
    if info.kind == "llm":
        return LLM_MS if params.get("temperature", 0.0) == 0 else 0
    if not info.deterministic:
        return 0
    return EXPR_MS if info.kind == "expr" else NAMED_MS


def put_params(
    hashed: bytes, handler: str, value: bytes, level: int, agreed: Collection[bytes],
    backing: frozenset[frozenset[bytes]], *, now_ms: int, keep_ms: int,
) -> tuple[bytes | str | int, ...]:  # fmt: skip
    """Parameters of `PUT`."""
    owners = pack_backing(backing or [frozenset(agreed)])
    size = len(value) + len(owners) + len(handler) + ENTRY_BYTES
    return (hashed, handler, value, level, owners, now_ms + keep_ms, now_ms, size)


class _Kind:
    """What looking has brought for one handler."""

    __slots__ = ("computed", "computed_s", "hits", "look_s", "looks", "off_until_ms")

    def __init__(self) -> None:
        self.looks = 0.0
        self.hits = 0.0
        self.look_s = 0.0
        self.computed = 0
        self.computed_s = 0.0
        self.off_until_ms = 0


class Payoff:
    """Whether looking pays, by handler. Pure: times are arguments."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self.fresh: dict[str, int] = {}
        """Handlers that were turned off since they were last kept, and until when."""

    def load(self, off: Mapping[str, int]) -> None:
        """What was off in an earlier run, until when (Unix milliseconds)."""
        for handler, until_ms in off.items():
            self._kinds.setdefault(handler, _Kind()).off_until_ms = until_ms

    def on(self, handler: str, now_ms: int) -> bool:
        """Whether to look, and to keep."""
        found = self._kinds.get(handler)
        return found is None or found.off_until_ms <= now_ms

    def computed(self, handler: str, rows: int, took_s: float) -> None:
        """A peer has computed rows: what a hit would have saved."""
        kind = self._kinds.setdefault(handler, _Kind())
        kind.computed += rows
        kind.computed_s += took_s

    def looked(self, handler: str, looks: int, hits: int, took_s: float, now_ms: int) -> None:
        """A job's rows were looked up; the first job of a handler finds nothing and is no judge.

        Args:
            handler: whose.
            looks: rows looked up.
            hits: rows found.
            took_s: seconds for all of them.
            now_ms: Unix milliseconds.
        """
        kind = self._kinds.setdefault(handler, _Kind())
        if not looks or not kind.computed:
            return
        share = min(1.0, LOOKS_A_JOB / looks)
        kind.looks += looks * share
        kind.hits += hits * share
        kind.look_s += took_s * share
        if kind.looks < LOOKS_MIN:
            return
        saved_s = kind.computed_s / kind.computed
        if kind.hits * saved_s < kind.look_s:
            kind.off_until_ms = self.fresh[handler] = now_ms + OFF_MS
            kind.looks = kind.hits = kind.look_s = 0.0
        elif kind.looks >= 10 * LOOKS_MIN:
            kind.looks, kind.hits, kind.look_s = kind.looks / 2, kind.hits / 2, kind.look_s / 2


class ResultCache:
    """The table of entries.

    Args:
        db: jobs.db.
        bytes_max: beyond so much the oldest go.
    """

    def __init__(self, db: Db, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._db = db
        self._bytes_max = bytes_max
        self._bytes: int | None = None
        """At least what the table holds; None: not counted yet."""
        self.payoff = Payoff()

    async def load(self) -> None:
        """What looking brought in earlier runs."""

        def read(connection: apsw.Connection) -> dict[str, int]:
            rows = connection.execute(
                "SELECT name, value FROM meta WHERE name BETWEEN ? AND ?", (_OFF, _OFF + "~")
            )
            return {str(name)[len(_OFF) :]: int(value) for name, value in rows}

        self.payoff.load(await self._db.read(read))

    async def looked(self, handler: str, looks: int, hits: int, took_s: float, now_ms: int) -> None:
        """A job's rows were looked up; see `Payoff.looked`."""
        self.payoff.looked(handler, looks, hits, took_s, now_ms)
        fresh, self.payoff.fresh = self.payoff.fresh, {}
        if fresh:
            rows = [(_OFF + name, until_ms) for name, until_ms in fresh.items()]
            await self._db.write(
                lambda connection: connection.executemany(
                    "INSERT OR REPLACE INTO meta VALUES (?,?)", rows
                ),
                full=False,
            )

    async def look(
        self, hashes: Sequence[bytes], now_ms: int, wanted: Callable[[Entry], bool]
    ) -> Mapping[bytes, Entry]:
        """The wanted entries under these hashes that are not too old; they count as used now."""
        stale: list[tuple[int, bytes]] = []

        def read(connection: apsw.Connection) -> dict[bytes, Entry]:
            found: dict[bytes, Entry] = {}
            stale.clear()
            for hashed in dict.fromkeys(hashes):
                row = connection.execute(
                    "SELECT value, level, owners, used_ms FROM cache WHERE hash=? AND expires_ms>?",
                    (hashed, now_ms),
                ).fetchone()
                if row is not None:
                    entry = Entry(bytes(row[0]), int(row[1]), unpack_backing(bytes(row[2])))
                    if wanted(entry):
                        found[hashed] = entry
                        if int(row[3]) < now_ms - TOUCH_MS:
                            stale.append((now_ms, hashed))
            return found

        found = await self._db.read(read)
        if stale:

            def touch(connection: apsw.Connection) -> None:
                connection.executemany("UPDATE cache SET used_ms=? WHERE hash=?", stale)

            await self._db.write(touch, full=False)
        return found

    async def grew(self, size: int, now_ms: int) -> None:
        """Entries of so many bytes were kept; those used longest ago go if it is too much."""
        if self._bytes is None:
            self._bytes = await self._db.read(_bytes)
        else:
            self._bytes += size
        if self._bytes > self._bytes_max:
            keep = int(self._bytes_max * TRIM_TO)
            self._bytes = await self._db.write(
                lambda connection: trim(connection, keep, now_ms), full=False
            )


def _bytes(connection: apsw.Connection) -> int:
    row = connection.execute("SELECT coalesce(sum(bytes), 0) FROM cache").fetchone()
    return int(row[0]) if row else 0


def trim(connection: apsw.Connection, keep_bytes: int, now_ms: int) -> int:
    """Delete what is too old, then what was used longest ago; bytes that are left."""
    connection.execute("DELETE FROM cache WHERE expires_ms<=?", (now_ms,))
    total = _bytes(connection)
    gone: list[tuple[bytes]] = []
    for hashed, size in connection.execute("SELECT hash, bytes FROM cache ORDER BY used_ms, rowid"):
        if total <= keep_bytes:
            break
        gone.append((bytes(hashed),))
        total -= int(size)
    connection.executemany(DROP, gone)
    return total


def drop_caught(
    connection: apsw.Connection, caught: Collection[bytes], bad: Callable[[str], Collection[bytes]]
) -> int:
    """Delete the entries that quarantined owners alone vouch for; how many.

    Args:
        connection: in a transaction.
        caught: owners who have just been quarantined.
        bad: every owner that is quarantined for a handler, these included.
    """
    gone: set[bytes] = set()
    for owner in sorted(caught):
        for hashed, handler, owners in connection.execute(
            "SELECT hash, handler, owners FROM cache WHERE level<? AND instr(owners, ?)",
            (LEVEL_OWN, owner),
        ):
            if reopen({0: unpack_backing(bytes(owners))}, bad(str(handler))):
                gone.add(bytes(hashed))
    connection.executemany(DROP, [(hashed,) for hashed in sorted(gone)])
    return len(gone)
