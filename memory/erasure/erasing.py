"""Erasing memories for a person or an agent: choose, erase, clean up, prove, report.

Theory of operation. One transaction takes a memory out of all tables and puts its id into `erased`
and `erasing`; from then on it is gone for good, whatever happens to this process. What is left is
cleaning: its pages in the write-ahead log, its keys in backups, its rows in the behaviour log. Ids
stay in `erasing` until that is done; a task does it for erasures that came by replication, after a
crash, after a cancelled call, and where another process held the log open: until then an erasure is
`partial`. Last, a search of all files of the node for what the text consisted of (`residue`).

Which memories a call means is in `choosing`, the search in `proving`, what is told in `report`.

What this device wrote itself is also told to the group, by a signed erase record. A peer's memory,
or one that another device of the same person wrote, is erased here alone, unless the person asks as
an admin of the group whose standing is above the author's: then the group is told first, so that a
crash in between loses nothing, and all members erase it a day later. Nobody is told that something
is "deleted everywhere": the report names who may still hold it.
Source: docs/specs/memory.md, *Erasure*.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec
import trio

from memory.bodies import ForgetBody
from memory.erasure import choosing, proving
from memory.erasure.choosing import ERASE_IDS_MAX
from memory.erasure.report import DONE, DRY_RUN, PARTIAL, explain
from memory.errors import RefusedError, StoreError
from memory.records.erase import HERE, erase_all
from memory.records.writing import entry_draft
from memory.storage.sql import blobs
from memory.text.cleaning import clean_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    import apsw

    from memory.erasure.choosing import Choice, Doomed, EraseWhat
    from memory.erasure.report import EraseReport
    from memory.model import Caller
    from memory.records.replica import Replica
    from memory.seams import Env, Offload, Receipt
    from memory.storage.db import Db
    from memory.storage.txn import Txn

log = logging.getLogger("covey.memory.erasing")

BATCH: Final = 50
"""Memories erased in one transaction: secure deletion takes about 2 ms each, and others wait."""

RETRY_S: Final = 2.0
"""Wait before cleaning is tried again while somebody reads the database."""


class Progress(Protocol):
    """Where a running call reports how far it is."""

    async def __call__(self, done: int, total: int | None, message: str) -> None:
        """Send `done` of `total` with a short message."""
        ...


class Ruling(Protocol):
    """What replication lets this device do as an admin (shape of `replication.membership`)."""

    async def erasable(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Those of the records that an admin's word has erased by every member."""
        ...

    async def erase(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Give that word."""
        ...


class Outlets(NamedTuple):
    """What erasing needs of the parts that `memory` does not know.

    Attributes:
        tell: has replication tell a group what of ours was erased; the other members' keys.
        shown: forgets in the behaviour log that these records were ever shown.
        shred: destroys these records' keys in all copies here; how many copies (blocking).
        ruling: gives an admin's word on what others wrote.
        quoted: overwrites what quotes these records elsewhere; whether nothing is left of it.
    """

    tell: Callable[[bytes], Awaitable[Sequence[bytes]]]
    shown: Callable[[Sequence[bytes]], Awaitable[None]] | None = None
    shred: Callable[[Sequence[bytes]], int] | None = None
    ruling: Ruling | None = None
    quoted: Callable[[Sequence[bytes]], Awaitable[bool]] | None = None


class Eraser:
    """Erases.

    Args:
        db: the open database.
        replica: the record store over it.
        env: random numbers of the verifier.
        device: this node's key.
        state_dir: every file below it is searched afterwards.
        offload: where blocking work runs.
        outlets: replication, behaviour log and backups.
    """

    def __init__(
        self,
        db: Db,
        replica: Replica,
        env: Env,
        device: bytes,
        state_dir: Path,
        offload: Offload,
        outlets: Outlets,
    ) -> None:
        self._db = db
        self._replica = replica
        self._env = env
        self._device = device
        self._state_dir = state_dir
        self._offload = offload
        self._outlets = outlets
        self._due = trio.Event()
        self._cleaning = trio.Lock()
        self._calls = 0
        """Calls of `erase` under way."""
        replica.on_erased(self._due_now)

    # ---- cleaning up behind a transaction

    def _due_now(self) -> None:
        self._due.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Finish erasures that nobody waits for, until cancelled."""
        self._due.set()  # of the run before this one
        task_status.started()
        while True:
            await self._due.wait()
            self._due = trio.Event()
            if self._calls:
                continue  # they clean up themselves, and wake us if they do not get to it
            try:
                clean, _ = await self.clean_up()
            except StoreError as exc:
                log.warning("erasure_waits", extra={"f": {"why": exc.reason}})
                clean = False
            if not clean:
                await trio.sleep(RETRY_S)
                self._due.set()

    async def clean_up(self) -> tuple[bool, int]:
        """Take what was erased out of log, backups and behaviour.

        Returns:
            Whether nothing is left, and in how many backups keys were destroyed.

        Raises:
            StoreError: the database cannot serve.
        """
        async with self._cleaning:
            left = await self._db.read(lambda c: blobs(c, "SELECT id FROM erasing ORDER BY id"))
            if not left:
                return True, 0
            copies = 0
            if self._outlets.shred is not None:
                copies = await self._offload.run(partial(self._outlets.shred, left))
            if self._outlets.shown is not None:
                await self._outlets.shown(left)
            if self._outlets.quoted is not None and not await self._outlets.quoted(left):
                return False, copies
            if not await self._db.settle_wal() or self._replica.erased_behind:
                return False, copies

            def unit(connection: apsw.Connection) -> None:
                connection.executemany("DELETE FROM erasing WHERE id = ?", [(one,) for one in left])

            await self._db.write(unit)
            return True, copies

    # ---- erasing

    async def erase(
        self,
        who: Caller,
        what: EraseWhat,
        *,
        dry_run: bool = False,
        for_group: bool = False,
        receipt: Receipt[EraseReport] | None = None,
        progress: Progress | None = None,
    ) -> EraseReport:
        """Erase memories for ever, and say what went where.

        An agent may erase what it wrote itself; the person everything: what this device wrote is
        erased on all replicas, anything else on this machine.

        Args:
            who: the caller; that it may erase at all was checked.
            what: which memories.
            dry_run: list and count only.
            for_group: have what others wrote erased by every member, where this device is an admin
                above its author.
            receipt: kept with the report.
            progress: told how many are done.

        Raises:
            RefusedError: `invalid` or `forbidden`.
            StoreError: nothing more was erased than `progress` heard of.
        """
        choosing.check(who, what)
        choice = await self._db.read(lambda c: choosing.choose(c, who, what))
        if for_group:
            choice = await self._ruled(who, choice)
        report = await self._db.read(lambda c: choosing.count(c, choice))
        if dry_run:
            report.state = DRY_RUN
            return report
        self._calls += 1
        try:
            await self._carry_out(who, choice, report, progress)
        finally:
            self._calls -= 1
            self._due.set()
        if receipt is not None:
            await self._replica.transact(
                lambda txn: self._replica.put_receipt(txn, receipt.key, receipt.encode(report))
            )
        return report

    async def _ruled(self, who: Caller, choice: Choice) -> Choice:
        """Mark what this device may have erased by all members."""
        if not who.is_owner or self._outlets.ruling is None:
            raise RefusedError("forbidden", "only the person erases as an admin")
        allowed: set[bytes] = set()
        for group in sorted({one.group for one in choice.doomed}):
            ids = [one.id for one in choice.doomed if one.group == group and not one.own]
            allowed.update(await self._outlets.ruling.erasable(group, ids))
        doomed = [one._replace(ruled=one.id in allowed) for one in choice.doomed]
        return choice._replace(doomed=doomed)

    async def _rule(self, doomed: Sequence[Doomed]) -> None:
        for group in sorted({one.group for one in doomed if one.ruled}):
            assert self._outlets.ruling is not None, "asked before"
            ids = [one.id for one in doomed if one.ruled and one.group == group]
            await self._outlets.ruling.erase(group, ids)

    async def _carry_out(
        self, who: Caller, choice: Choice, report: EraseReport, progress: Progress | None
    ) -> None:
        needles = await self._db.read(partial(proving.needles_of, choice=choice, env=self._env))
        doomed = choice.doomed
        await self._rule(doomed)
        for at in range(0, len(doomed), BATCH):
            batch = doomed[at : at + BATCH]
            await self._replica.transact(partial(_erase_batch, batch=batch))
            if progress is not None:
                await progress(at + len(batch), len(doomed), "erased")
        self._env.fault("erase.committed")
        await self._tell(report, doomed)
        await self._ask_own_devices(who, report, doomed)
        self._env.fault("erase.told")
        clean, report.backups = await self.clean_up()
        self._env.fault("erase.cleaned")
        await proving.verify(self._db, self._state_dir, report, needles, doomed)
        if report.residue:
            # Another device's copies may have gone at its word meanwhile, and wait to be cleaned.
            clean, _ = await self.clean_up()
            await proving.verify(self._db, self._state_dir, report, needles, doomed)
        # What could not be searched is not known to be gone.
        report.state = DONE if clean and report.residue_bytes == 0 else PARTIAL
        report.items = [msgspec.structs.replace(item, title="") for item in report.items]
        explain(report, clean=clean)
        log.info(
            "erased",
            extra={
                "f": {
                    "memories": report.memories,
                    "state": report.state,
                    "residue": report.residue_bytes,
                }
            },
        )

    async def _tell(self, report: EraseReport, doomed: Sequence[Doomed]) -> None:
        holders: set[bytes] = set()
        for group in sorted({one.group for one in doomed}):
            holders.update(await self._outlets.tell(group))
        report.may_hold = sorted(key.hex() for key in holders)

    async def _ask_own_devices(
        self, who: Caller, report: EraseReport, doomed: Sequence[Doomed]
    ) -> None:
        """What another device of this person wrote is hidden on all replicas: a forget record."""
        theirs = [one for one in doomed if one.relation == "own_device" and not one.ruled]

        def unit(txn: Txn, group: bytes, ids: list[bytes]) -> None:
            body = ForgetBody(clean_line(who.agent), ids, None)
            self._replica.append_in(txn, group, [entry_draft(body)])

        for group in sorted({one.group for one in theirs}):
            ids = sorted(one.id for one in theirs if one.group == group)
            for at in range(0, len(ids), ERASE_IDS_MAX):
                part = ids[at : at + ERASE_IDS_MAX]
                try:
                    await self._replica.transact(partial(unit, group=group, ids=part))
                except RefusedError as exc:
                    report.notes.append(f"its other replicas could not be asked to hide it: {exc}")


def _erase_batch(txn: Txn, batch: Sequence[Doomed]) -> None:
    for one in batch:
        erase_all(txn, one.id, HERE, 0)
