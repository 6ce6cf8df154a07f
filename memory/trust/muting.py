"""Which rollbacks cover a record that arrives: asked as it is projected.

Apart from memory/review/rollback.py, which carries rollbacks out by way of the projection itself.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import apsw

    from memory.storage.txn import Txn

ACTIVE: Final = "('hiding', 'done')"
"""States, as SQL, in which a rollback covers what arrives."""


class Rule(NamedTuple):
    """Whom a rollback is about, and since when.

    Attributes:
        rollback: its row, 0 for one that is only asked about.
        device: the author's device key.
        agent: one agent, None for every agent of the device.
        grp: row of one group, None for all.
        since_ms: Unix milliseconds of the first record covered.
    """

    rollback: int
    device: bytes
    agent: str | None
    grp: int | None
    since_ms: int

    @property
    def since_hlc(self) -> int:
        """The first hlc covered."""
        return self.since_ms << 16


def rules(connection: apsw.Connection) -> list[Rule]:
    """Rollbacks in force."""
    return [
        Rule(*row)
        for row in connection.execute(
            "SELECT id, device, agent, grp, since_ms FROM rollback"
            f" WHERE state IN {ACTIVE} ORDER BY id"
        )
    ]


def mute_late(txn: Txn, n: int, *, device: bytes, agent: str, grp: int, hlc: int) -> bool:
    """Mute a record that a rollback in force covers, before it is projected; whether one does."""
    for rule in txn.once(("rollbacks",), lambda: rules(txn.connection)):
        if (
            rule.device == device
            and rule.agent in (None, agent)
            and rule.grp in (None, grp)
            and hlc >= rule.since_hlc
        ):
            txn.connection.execute(
                "INSERT OR IGNORE INTO muted VALUES (?, ?, 'active')", (n, rule.rollback)
            )
            return True
    return False
