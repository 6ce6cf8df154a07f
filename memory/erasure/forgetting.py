"""Forgetting by rule, on this machine, and bringing back what was forgotten.

A task looks at the memories once a day. What it forgets gets the status `hidden` and a row in
`faded`: out of the indexes, its record and its text kept, shown by `covey list --status hidden`.
Nothing of it is told to other replicas. Uses are counted in RAM and written once a minute: a crash
loses a minute of a statistic. Source: docs/specs/memory.md, *Forgetting*.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import trio

from memory.bodies import ForgetBody
from memory.erasure.lifecycle import DAY_MS, Standing, crowded_out, unverified
from memory.errors import RefusedError, StoreError
from memory.model import Forgotten
from memory.records.erase import HERE, erase_all
from memory.records.noting import check_id
from memory.records.writing import entry_draft, find_target
from memory.scopes import allows
from memory.storage.sql import blobs, integers, number
from memory.text.cleaning import clean_line
from memory.trust.status import folded_status, hide, replaced_by, restatus, retier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import apsw

    from memory.config import MemoryConfig
    from memory.model import Caller
    from memory.records.replica import Replica
    from memory.records.writing import Target
    from memory.seams import Env, Receipt
    from memory.storage.db import Db
    from memory.storage.txn import Txn

log = logging.getLogger("covey.memory.forgetting")

USES_EVERY_S: Final = 60.0
RULES_EVERY_S: Final = 86_400.0
FIRST_AFTER_S: Final = 600.0
"""The first look comes when the daemon has been up for ten minutes: a start is busy enough."""

PAGE: Final = 2_000
"""Memories looked at in one read."""

BATCH: Final = 200
"""Memories forgotten in one transaction."""

USES_MAX: Final = 50_000
"""Memories whose uses wait to be written; over it they are dropped: it is a statistic."""

IDS_MAX: Final = 256

_STANDING: Final = (
    "SELECT m.id, m.kind, m.role, a.class, m.confirmations > 0 OR m.backed, m.uses, m.used_ms,"
    " m.hlc >> 16 FROM memory m JOIN author a ON a.id = m.author"
)
_SHOWN: Final = " AND m.status IN ('active', 'superseded', 'refuted')"


class Forgetting:
    """Forgets by rule and undoes it.

    Args:
        db: the open database.
        replica: the record store over it.
        env: clocks.
        config: settings `unverified_days` and `scope_memories_max`.
        tell: has replication tell a group what of ours was erased: an undone forget record.
    """

    def __init__(
        self,
        db: Db,
        replica: Replica,
        env: Env,
        config: MemoryConfig,
        tell: Callable[[bytes], Awaitable[object]],
    ) -> None:
        self._db = db
        self._replica = replica
        self._env = env
        self._config = config
        self._tell = tell
        self._uses: dict[bytes, int] = {}

    def note_used(self, ids: Sequence[bytes]) -> None:
        """These memories were in an answer. Returns at once."""
        for record_id in ids:
            if record_id in self._uses or len(self._uses) < USES_MAX:
                self._uses[record_id] = self._uses.get(record_id, 0) + 1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write uses each minute and apply the rules each day, until cancelled."""
        task_status.started()
        due = trio.current_time() + FIRST_AFTER_S
        while True:
            await trio.sleep(USES_EVERY_S)
            try:
                await self.write_uses()
                if trio.current_time() >= due:
                    due = trio.current_time() + RULES_EVERY_S
                    await self.apply_rules()
            except StoreError as exc:
                log.warning("forgetting_waits", extra={"f": {"why": exc.reason}})

    async def write_uses(self) -> None:
        """Write what has gathered.

        Raises:
            StoreError: the database cannot serve.
        """
        if not self._uses:
            return
        uses, self._uses = self._uses, {}
        now_ms = self._env.wall_ms()
        rows = json.dumps([[record_id.hex(), count] for record_id, count in uses.items()])

        def unit(connection: apsw.Connection) -> None:
            connection.execute(
                "UPDATE memory SET uses = uses + u.count, used_ms = max(used_ms, ?1)"
                " FROM (SELECT r.n AS n, value ->> 1 AS count FROM json_each(?2)"
                " JOIN record r ON r.id = unhex(value ->> 0)) u WHERE memory.id = u.n",
                (now_ms, rows),
            )

        await self._db.write(unit)

    # ---- rules

    async def apply_rules(self) -> int:
        """Forget what the rules say now; how many.

        Raises:
            StoreError: the database cannot serve; what was forgotten until then stays forgotten.
        """
        now_ms = self._env.wall_ms()
        await self._begin_waiting(now_ms)
        total = await self._forget("unverified", await self._unverified(now_ms), now_ms)
        for scope in await self._db.read(lambda c: integers(c, "SELECT id FROM scope ORDER BY id")):
            total += await self._forget("crowded", await self._crowded(scope, now_ms), now_ms)
        if total:
            log.info("forgotten_by_rule", extra={"f": {"memories": total}})
        return total

    async def _begin_waiting(self, now_ms: int) -> None:
        """A memory has its 90 days from when it is first seen here, not from its author's date."""

        def unit(connection: apsw.Connection) -> int:
            connection.execute(
                "UPDATE memory SET used_ms = ?1 WHERE id IN"
                " (SELECT id FROM memory WHERE used_ms = 0 LIMIT ?2)",
                (now_ms, PAGE),
            )
            return connection.changes()

        while await self._db.write(unit) == PAGE:
            pass

    async def _unverified(self, now_ms: int) -> list[int]:
        days = self._config.unverified_days
        found: list[int] = []
        after = -1
        while True:
            page = await self._db.read(
                lambda c, after=after: _standings(  # type: ignore[misc]
                    c,
                    " WHERE m.id > ? AND a.class NOT IN ('own', 'own_device')" + _SHOWN,
                    (after, PAGE),
                )
            )
            found += [one.memory for one in page if unverified(one, now_ms, days)]
            if len(page) < PAGE:
                return found
            after = page[-1].memory

    async def _crowded(self, scope: int, now_ms: int) -> list[int]:
        limit = self._config.scope_memories_max
        here = await self._db.read(
            lambda c: number(
                c, "SELECT count(*) FROM memory m WHERE m.scope = ?" + _SHOWN, (scope,)
            )
        )
        if here <= limit:
            return []
        everything = await self._db.read(
            lambda c: _standings(c, " WHERE m.scope = ?" + _SHOWN, (scope, -1))
        )
        return crowded_out(everything, here - limit, now_ms)

    async def _forget(self, why: str, memories: Sequence[int], now_ms: int) -> int:
        def unit(txn: Txn, batch: Sequence[int]) -> int:
            return sum(_fade(txn, memory, why, now_ms) for memory in batch)

        total = 0
        for at in range(0, len(memories), BATCH):
            batch = memories[at : at + BATCH]
            total += await self._replica.transact(partial(unit, batch=batch))
        return total

    # ---- undoing

    async def restore(
        self,
        who: Caller,
        ids: Sequence[str],
        receipt: Receipt[Sequence[Forgotten]] | None = None,
    ) -> list[Forgotten]:
        """Bring forgotten memories back: what a rule or a person forgot here.

        A forget record of this device is erased, so that the memory comes back on all replicas. One
        that another device of the person wrote stays: it is undone there.

        Raises:
            RefusedError: `invalid`.
            StoreError: nothing changed.
        """
        if not 1 <= len(ids) <= IDS_MAX:
            raise RefusedError("invalid", f"ids: 1 to {IDS_MAX} at a time")
        groups: set[bytes] = set()

        def unit(txn: Txn) -> list[Forgotten]:
            groups.clear()
            done = [_restore_one(self._replica, txn, who, written, groups) for written in ids]
            if receipt is not None:
                self._replica.put_receipt(txn, receipt.key, receipt.encode(done))
            return done

        result = await self._replica.transact(unit)
        for group in sorted(groups):
            await self._tell(group)
        return result


def _standings(connection: apsw.Connection, where: str, bound: tuple[int, ...]) -> list[Standing]:
    sql = _STANDING + where + " ORDER BY m.id LIMIT ?"
    rows = cast(
        "list[tuple[int, str, str, str, int, int, int, int]]",
        connection.execute(sql, bound).fetchall(),
    )
    return [Standing(*row[:4], bool(row[4]), *row[5:]) for row in rows]


def _fade(txn: Txn, memory: int, why: str, now_ms: int) -> int:
    """Forget one memory, unless it changed since it was looked at; 1 if it did."""
    row = txn.connection.execute(
        "SELECT r.id, m.scope FROM memory m JOIN record r ON r.n = m.id WHERE m.id = ?" + _SHOWN,
        (memory,),
    ).fetchone()
    if row is None:
        return 0
    txn.connection.execute("INSERT OR REPLACE INTO faded VALUES (?, ?, ?)", (memory, why, now_ms))
    hide(txn, memory, row[0], row[1])
    return 1


def _restore_one(
    replica: Replica, txn: Txn, who: Caller, written: str, groups: set[bytes]
) -> Forgotten:
    target = find_target(txn.connection, who, written)
    if target is None:
        return Forgotten(id=check_id(written), status="not_found")
    mine = target.relation in ("own", "own_device") and target.agent == clean_line(who.agent)
    may = who.is_owner or (mine and not _withdrawn_by_others(txn.connection, who, target))
    if not may or not allows(who.write, target.scope):
        return Forgotten(id=target.id.hex(), status="not_yours")
    if target.status == "hidden":
        _unhide(txn, target)
    elif target.status == "forgotten":
        _take_back(replica, txn, who, target)
        groups.add(target.grp)
    status = txn.connection.execute("SELECT status FROM memory WHERE id = ?", (target.memory,)).get
    return Forgotten(
        id=target.id.hex(),
        status="forgotten" if status in ("forgotten", "hidden", "quarantined") else "restored",
    )


def _withdrawn_by_others(connection: apsw.Connection, who: Caller, target: Target) -> bool:
    """Whether somebody but the agent took its note out: the person, by a review or a rollback too.

    An agent brings back what a rule forgot, or it itself: else it could undo that it was judged.
    """
    if target.status == "hidden":
        return not number(
            connection,
            "SELECT EXISTS (SELECT 1 FROM faded WHERE memory = ?1)"
            " AND NOT EXISTS (SELECT 1 FROM muted WHERE n = ?1)",
            (target.memory,),
        )
    return bool(
        number(
            connection,
            "SELECT EXISTS (SELECT 1 FROM forgetting f JOIN author a ON a.id = f.author"
            " WHERE f.target = ? AND a.agent <> ?)",
            (target.id, clean_line(who.agent)),
        )
    )


def _unhide(txn: Txn, target: Target) -> None:
    connection = txn.connection
    connection.execute("DELETE FROM faded WHERE memory = ?", (target.memory,))
    row = connection.execute(
        "SELECT a.owner, m.hlc FROM memory m JOIN author a ON a.id = m.author WHERE m.id = ?",
        (target.memory,),
    ).fetchone()
    assert row is not None, "find_target found it in this transaction"
    status = folded_status(connection, target.id, row[0], row[1])
    # Its time to be confirmed or used begins anew, or tomorrow's look would forget it again.
    connection.execute(
        "UPDATE memory SET status = ?, used_ms = 0 WHERE id = ?", (status, target.memory)
    )
    txn.events.append(("restored" if status == "active" else status, target.id, target.scope_row))
    retier(txn, target.memory)
    for dst in replaced_by(connection, target.id):
        restatus(txn, dst)


def _take_back(replica: Replica, txn: Txn, who: Caller, target: Target) -> None:
    """Erase this device's forget records about a memory; their other targets stay forgotten."""
    connection = txn.connection
    records = blobs(
        connection,
        "SELECT r.id FROM forgetting f JOIN record r ON r.n = f.n JOIN author a ON a.id = f.author"
        " WHERE f.target = ? AND a.class = 'own'",
        (target.id,),
    )
    rest: dict[bytes, None] = {}
    for record_id in records:
        others = blobs(
            connection,
            "SELECT f.target FROM forgetting f JOIN record r ON r.n = f.n WHERE r.id = ?",
            (record_id,),
        )
        rest.update(dict.fromkeys(other for other in others if other != target.id))
    if rest:
        body = ForgetBody(clean_line(who.agent), sorted(rest), None)
        replica.append_in(txn, target.grp, [entry_draft(body)])
    for record_id in records:
        erase_all(txn, record_id, HERE, 0)


__all__ = ["DAY_MS", "Forgetting"]
