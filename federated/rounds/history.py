"""Rounds that were, in `jobs.db`: what histories and explanations show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import apsw

    from federated.seams import Db

KEPT_MAX: Final = 10_000
"""Rounds kept; older ones go."""


class MemberReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one member fared."""

    peer: str
    status: str
    reason: str = ""
    arrival_s: float = -1.0
    norm: float = 0.0
    weight: float = 0.0


class PartReport(msgspec.Struct, frozen=True, kw_only=True):
    """One part and who merged it."""

    part: int
    reducer: str
    standby: str
    count: int
    nbytes: int


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """A round as this machine saw it."""

    id: str
    group: str
    kind: str
    name: str
    number: int
    began_ms: int
    seconds: float
    outcome: str
    """`applied` or `failed`."""
    reason: str = ""
    root: str = ""
    view: int = 0
    rule: str = ""
    codec: str = ""
    deadline_s: float = 0.0
    clip: float = 0.0
    privacy: str = ""
    """`masked`, `plain`; empty in rounds from before it was noted."""
    threshold: int = 0
    """Masked: members that had to agree to the sum, T."""
    metrics: dict[str, float] = {}
    members: list[MemberReport] = []
    parts: list[PartReport] = []
    attempts: list[str] = []


class History:
    """The table.

    Args:
        db: jobs.db.
    """

    def __init__(self, db: Db) -> None:
        self._db = db

    async def add(self, report: RoundReport) -> None:
        """Keep a round."""
        body = msgspec.json.encode(report)

        def write(db: apsw.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO fed_round (id, grp, kind, name, number, began_ms, report)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    report.id, report.group, report.kind, report.name, report.number,
                    report.began_ms, body,
                ),
            )  # fmt: skip
            db.execute(
                "DELETE FROM fed_round WHERE seq <= (SELECT max(seq) FROM fed_round) - ?",
                (KEPT_MAX,),
            )

        await self._db.write(write)

    async def last(
        self, *, group: str | None = None, name: str | None = None, limit: int = 20
    ) -> list[RoundReport]:
        """Rounds, newest first."""

        def read(db: apsw.Connection) -> list[bytes]:
            rows = db.execute(
                "SELECT report FROM fed_round WHERE (?1 IS NULL OR grp = ?1)"
                " AND (?2 IS NULL OR name = ?2) ORDER BY seq DESC LIMIT ?3",
                (group, name, limit),
            )
            return [_bytes(row[0]) for row in rows]

        return [msgspec.json.decode(body, type=RoundReport) for body in await self._db.read(read)]

    async def find(self, prefix: str) -> list[RoundReport]:
        """Rounds whose id begins so; two at most, newest first."""

        def read(db: apsw.Connection) -> list[bytes]:
            rows = db.execute(
                "SELECT report FROM fed_round WHERE substr(id, 1, ?) = ? ORDER BY seq DESC LIMIT 2",
                (len(prefix), prefix),
            )
            return [_bytes(row[0]) for row in rows]

        return [msgspec.json.decode(body, type=RoundReport) for body in await self._db.read(read)]


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


async def any_federation(db: Db) -> bool:
    """Whether this machine trains a model with others."""

    def read(connection: apsw.Connection) -> bool:
        return connection.execute("SELECT 1 FROM fed_state LIMIT 1").fetchone() is not None

    return await db.read(read)
