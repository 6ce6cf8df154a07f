"""The trust desk: verdicts, who is trusted and why, quarantine; rollback is in `rollbacks`.

Everything a person or an agent does about trust on purpose; what the daemon sees by itself comes in
through `memory.trust.evidence.observe`. Verdicts and endorsements are signed records, so the
person's other machines follow; rollbacks are this machine's own.
Source: docs/specs/memory.md, *Trust*.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import trio

from memory.bodies import EndorseBody, VerdictBody
from memory.errors import RefusedError, StoreError
from memory.records.backfill import backfill
from memory.records.ingest import project_kept
from memory.records.noting import check_line
from memory.records.scanning import scan_own
from memory.records.writing import entry_draft, find_target
from memory.review import views
from memory.review.rollbacks import Rollbacks
from memory.review.views import (
    Endorsed,
    Feedback,
    Quarantined,
    Reviewed,
    TrustExplained,
    TrustRow,
)
from memory.scopes import find_group
from memory.storage.sql import blobs, integers
from memory.trust.evidence import (
    examined,
    observe,
    pending,
    refold_all,
    settle,
    to_examine,
    withdrawn_by,
    work,
)
from memory.trust.rules import DAY_MS, FAULTS_A_DAY
from memory.trust.status import hide
from memory.trust.subjects import one_owner

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Sequence

    import apsw

    from memory.bodies import Basis, Outcome
    from memory.model import Caller
    from memory.records.replica import Replica
    from memory.records.writing import Target
    from memory.seams import Env, Receipt
    from memory.storage.behaviour import Behaviour
    from memory.storage.db import Db
    from memory.storage.txn import MemoryEvent, TrustEvent, Txn

log = logging.getLogger("covey.memory.trusting")

REVIEW_IDS_MAX: Final = 50
QUARANTINE_PAGE: Final = 50
ENDORSE_LEVEL: Final = 80
"""Level of an endorsement that names none."""

ENDORSE_GROUPS_MAX: Final = 8
"""Groups that one endorsement is written to: those where the endorsed owner writes."""

QUICK_MS: Final = 3_600_000
"""A note taken back within this time of another's use was not meant to last."""

WITHDRAWN_MAX: Final = 1_000
"""Notes taken back that wait to be looked at; three a day count, so more are not worth a place."""

READ_WINDOW_MS: Final = 30 * 86_400_000
"""An agent that was shown a memory within this time repeats it rather than confirms it."""

REFOLD_EVERY_S: Final = 6 * 3600.0
"""Time alone moves trust, in half-lives of months. Guess: a few times a day is plenty."""

RETRY_S: Final = 30.0
"""Wait after a transaction that could not be committed, such as on a full disk."""


class TrustDesk:
    """Trust, as people and agents handle it.

    Args:
        db: the open database.
        replica: the record store over it.
        env: clocks and random numbers.
        device: this node's 32-byte key.
        behaviour: what agents have been shown; None: nobody knows.
        may_write: whether what we write into a scope counts for the others of its group.

    Attributes:
        rollbacks: hiding what an author wrote since a time.
    """

    def __init__(
        self,
        db: Db,
        replica: Replica,
        env: Env,
        device: bytes,
        behaviour: Behaviour | None = None,
        *,
        may_write: Callable[[str], bool] = lambda _scope: True,
    ) -> None:
        self._db = db
        self._replica = replica
        self._env = env
        self._device = device
        self._behaviour = behaviour
        self._may_write = may_write
        self._over_quota: dict[tuple[bytes, int], int] = {}
        self.rollbacks = Rollbacks(db, replica, env, self.settle)
        self._work = trio.Event()
        self._withdrawn: list[bytes] = []
        replica.on_unsettled(self._wake)
        replica.on_event(self._on_event)

    def _on_event(self, event: MemoryEvent) -> None:
        if event.name == "forgotten" and self._behaviour is not None:
            room = WITHDRAWN_MAX - len(self._withdrawn)
            self._withdrawn += [bytes.fromhex(written) for written in event.ids[:room]]
            self._wake()

    def _wake(self) -> None:
        self._work.set()

    # ---- in the background

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry trust on, finish interrupted rollbacks, let time pass; until cancelled."""
        task_status.started()
        while True:
            self._work = trio.Event()
            try:
                await self.catch_up()
                await self._replica.transact(lambda txn: refold_all(txn.connection))
                await self.settle()
            except StoreError as error:
                log.warning("trust_waits", extra={"f": {"why": error.reason}})
                await trio.sleep(RETRY_S)
                continue
            with trio.move_on_after(REFOLD_EVERY_S):
                while True:
                    await self._work.wait()
                    self._work = trio.Event()
                    await self.settle()

    async def catch_up(self) -> None:
        """After a start: what an older version could not read, what a crash interrupted."""
        await self._replica.transact(project_kept)
        while await self._replica.transact(backfill):
            pass  # each batch its own transaction: other writers come in between
        await self.rollbacks.resume()

    async def settle(self) -> None:
        """Carry trust to everybody and everything that waits for it."""
        await self._examine()
        await self._look_at_withdrawn()
        while await self._db.read(pending):
            await self._replica.transact(self._settle_batch)

    def _settle_batch(self, txn: Txn) -> None:
        work(txn, self._env.wall_ms())

    async def _examine(self) -> None:
        """Look up whether agents of ours had been shown what they confirm."""
        for row, agent, record, at_ms in await self._db.read(to_examine):
            since = at_ms - READ_WINDOW_MS
            # Without a log nobody can say that the agent came to it by itself.
            seen = self._behaviour is None or record in await self._behaviour.shown_to(
                agent, [record], since
            )
            await self._replica.transact(partial(examined, row=row, seen=seen))

    async def _look_at_withdrawn(self) -> None:
        """Authors that took a note back after another had seen it, and put nothing in its place."""
        now_ms = self._env.wall_ms()
        while self._withdrawn:
            record = self._withdrawn.pop()
            author = await self._db.read(lambda c, record=record: withdrawn_by(c, record))  # type: ignore[misc]
            assert self._behaviour is not None, "without a log nothing is looked at"
            since = now_ms - QUICK_MS
            if author is not None and await self._behaviour.shown_to_others(
                record, author.agent, since
            ):
                await self._replica.transact(
                    partial(
                        observe,
                        author=author.id,
                        kind="quick_erase",
                        memory=author.memory,
                        at_ms=now_ms,
                    )
                )

    def subscribe(self, fn: Callable[[TrustEvent], None]) -> None:
        """Call `fn` with what becomes of authors' trust, after the commit that did it."""
        self._replica.on_trust(fn)

    # ---- verdicts

    async def feedback(
        self,
        who: Caller,
        memory_id: str,
        outcome: Outcome,
        note: str = "",
        evidence: str = "",
        receipt: Receipt[Feedback] | None = None,
    ) -> Feedback:
        """Say what became of relying on a memory: a signed verdict, evidence about its author.

        Args:
            who: the caller; its agent name is signed.
            memory_id: id or unique prefix.
            outcome: `useful`, `wrong`, `stale` (true once: says nothing of the author), `harmful`.
            note: why, for the history.
            evidence: SHA-256 in hex of a test run or document that shows it.
            receipt: kept with the verdict, in the same transaction.

        Raises:
            RefusedError: `not_found` or `invalid`.
            StoreError: nothing was stored.
        """
        line = check_line(note, "note", 512) or None
        said = VerdictBody("", bytes(32), outcome, "outcome", None, line)
        line = scan_own(self._replica.scanner, said, person=who.is_owner)[0].note
        proof = _sha256(evidence)

        def unit(txn: Txn) -> Feedback:
            target = self._target(txn.connection, who, memory_id)
            before = views.trust_of(txn.connection, target.memory)
            self._judge(txn, who, target, outcome, line, proof, persons=who.is_owner)
            settle(txn, self._env.wall_ms())
            done = views.feedback(txn.connection, target, before, outcome, self._env.wall_ms())
            if receipt is not None:
                self._replica.put_receipt(txn, receipt.key, receipt.encode(done))
            return done

        done = await self._replica.transact(unit)
        if self._behaviour is not None and not who.is_owner:
            await self._behaviour.outcome(bytes.fromhex(done.id), who.agent, outcome)
        return done

    def _target(self, connection: apsw.Connection, who: Caller, written: str) -> Target:
        target = find_target(connection, who, written)
        if target is None or target.state != "live":
            raise RefusedError("not_found", f"no memory {written[:12]} that you may read")
        return target

    def _judge(
        self,
        txn: Txn,
        who: Caller,
        target: Target,
        outcome: Outcome,
        note: str | None,
        proof: bytes | None,
        *,
        persons: bool,
    ) -> None:
        basis: Basis = "owner" if persons else "outcome" if proof is None else "evidence"
        agent = check_line(who.agent, "agent", 64)
        body = VerdictBody(agent, target.id, outcome, basis, proof, note)
        # Where we may only read, the verdict goes to our own devices.
        group = target.grp
        if not self._may_write(target.scope):
            group = find_group(txn.connection, "")[1]
        self._replica.append_in(txn, group, [entry_draft(body)])

    async def quota_reached(self, group: bytes, device: bytes) -> None:
        """A group is full: held against a foreign device that filled it beyond its share."""
        now_ms = self._env.wall_ms()
        today = (device, now_ms // DAY_MS)
        if self._over_quota.get(today, 0) >= FAULTS_A_DAY:
            return  # what no longer counts is not worth a transaction

        def unit(txn: Txn) -> None:
            for author in _fillers(txn.connection, group, device):
                observe(txn, author=author, kind="quota", at_ms=now_ms)

        await self._replica.transact(unit)
        self._over_quota = {key: n for key, n in self._over_quota.items() if key[1] == today[1]}
        self._over_quota[today] = self._over_quota.get(today, 0) + 1

    # ---- who is trusted, and why

    async def show(self, wanted: str | None = None) -> builtins.list[TrustRow]:
        """Everybody who has written here, or those whom `wanted` names.

        Raises:
            RefusedError: `not_found`, with the nearest names.
        """
        now_ms = self._env.wall_ms()
        return await self._db.read(lambda c: views.rows(c, wanted, now_ms))

    async def explain(self, who: Caller, wanted: str) -> builtins.list[TrustExplained]:
        """Why somebody is trusted as it is: evidence with dates, and what limits it.

        Raises:
            RefusedError: `not_found`, with the nearest names.
        """
        now_ms = self._env.wall_ms()
        return await self._db.read(lambda c: views.explain(c, who, wanted, now_ms))

    async def endorse(
        self,
        who: Caller,
        wanted: str,
        level: int = ENDORSE_LEVEL,
        until_ms: int | None = None,
        receipt: Receipt[Endorsed] | None = None,
    ) -> Endorsed:
        """Vouch for an owner, or (level 0) distrust it: signed, so that other members can follow.

        Args:
            who: the caller.
            wanted: a name of the owner: of any device or agent of it.
            level: 1 to 100; from 50 on it passes on your trust, below it limits the owner to
                level / 100; 0 is distrust.
            until_ms: when it ends, Unix milliseconds; None for never.
            receipt: kept in the same transaction.

        Raises:
            RefusedError: `not_found`, or `invalid` (own side, several owners, a date that is over).
        """
        if not 0 <= level <= 100:
            raise RefusedError("invalid", "level is 0 to 100")
        if until_ms is not None and until_ms <= self._env.wall_ms():
            raise RefusedError("invalid", "until is over already")

        def unit(txn: Txn) -> Endorsed:
            owner, everybody = one_owner(txn.connection, wanted)
            before = views.owner_trust(txn.connection, owner, self._env.wall_ms())
            body = EndorseBody(check_line(who.agent, "agent", 64), owner, level, until_ms)
            groups = blobs(
                txn.connection,
                "SELECT DISTINCT g.id FROM author a JOIN grp g ON g.n = a.grp WHERE a.owner = ?"
                " ORDER BY g.n LIMIT ?",
                (owner, ENDORSE_GROUPS_MAX),
            )
            for group in groups:
                self._replica.append_in(txn, group, [entry_draft(body)])
            settle(txn, self._env.wall_ms())
            done = Endorsed(
                owner=owner.hex(),
                names=[named.shown for named in everybody],
                level=level,
                until_ms=until_ms,
                trust_before=round(before, 3),
                trust_after=round(views.owner_trust(txn.connection, owner, self._env.wall_ms()), 3),
            )
            if receipt is not None:
                self._replica.put_receipt(txn, receipt.key, receipt.encode(done))
            return done

        return await self._replica.transact(unit)

    async def distrust(
        self, who: Caller, wanted: str, receipt: Receipt[Endorsed] | None = None
    ) -> Endorsed:
        """Trust nothing of an owner any more, until it is endorsed again.

        Raises:
            RefusedError: `not_found` or `invalid`.
        """
        return await self.endorse(who, wanted, 0, None, receipt)

    # ---- quarantine

    async def quarantine_list(
        self, who: Caller, scope: str | None = None, limit: int = QUARANTINE_PAGE
    ) -> builtins.list[Quarantined]:
        """What others wrote and recall does not show, newest first, with the reason.

        Raises:
            RefusedError: `forbidden` or `invalid` scope.
        """
        now_ms = self._env.wall_ms()
        return await self._db.read(lambda c: views.quarantine(c, who, scope, limit, now_ms))

    async def quarantine_release(
        self, who: Caller, ids: Sequence[str], receipt: Receipt[Sequence[Reviewed]] | None = None
    ) -> builtins.list[Reviewed]:
        """Let recall show quarantined memories: a signed verdict that each is useful.

        Raises:
            RefusedError: `not_found`, `invalid`, or `forbidden` for what a banned author wrote.
        """
        return await self._review(who, ids, "useful", receipt)

    async def quarantine_reject(
        self, who: Caller, ids: Sequence[str], receipt: Receipt[Sequence[Reviewed]] | None = None
    ) -> builtins.list[Reviewed]:
        """Hide quarantined memories for good: a signed verdict that each is harmful.

        Raises:
            RefusedError: `not_found` or `invalid`.
        """
        return await self._review(who, ids, "harmful", receipt)

    async def _review(
        self,
        who: Caller,
        ids: Sequence[str],
        outcome: Outcome,
        receipt: Receipt[Sequence[Reviewed]] | None,
    ) -> builtins.list[Reviewed]:
        if not 1 <= len(ids) <= REVIEW_IDS_MAX:
            raise RefusedError("invalid", f"ids: 1 to {REVIEW_IDS_MAX} at a time")

        def unit(txn: Txn) -> builtins.list[Reviewed]:
            targets = [self._target(txn.connection, who, written) for written in ids]
            for target in targets:
                views.check_reviewable(txn.connection, target)
                # Whoever may review does so in the person's name.
                self._judge(txn, who, target, outcome, None, None, persons=True)
            if outcome == "harmful":
                for target in targets:
                    if target.status not in ("hidden", "forgotten"):
                        hide(txn, target.memory, target.id, target.scope_row)
            elif any(target.status == "quarantined" for target in targets):
                views.unquarantine(txn, targets)
            settle(txn, self._env.wall_ms())
            done = [views.reviewed(txn.connection, target) for target in targets]
            if receipt is not None:
                self._replica.put_receipt(txn, receipt.key, receipt.encode(done))
            return done

        return await self._replica.transact(unit)


def _fillers(connection: apsw.Connection, group: bytes, device: bytes) -> list[int]:
    """Author rows of a foreign device that wrote more than an equal share of a group."""
    # Records and not places: a log that begins at 2**62 would hide who fills, or break the sum.
    counts = dict(
        cast(
            "list[tuple[bytes, int]]",
            connection.execute(
                "SELECT l.author, count(*) FROM grp g JOIN log l ON l.grp = g.n"
                " JOIN record r ON r.log = l.n WHERE g.id = ? GROUP BY l.author",
                (group,),
            ).fetchall(),
        )
    )
    if counts.get(device, 0) * len(counts) <= sum(counts.values()):
        return []
    return integers(
        connection,
        "SELECT min(id) FROM author WHERE device = ? AND class NOT IN ('own', 'own_device')"
        " GROUP BY agent",
        (device,),
    )


def _sha256(written: str) -> bytes | None:
    if not written:
        return None
    try:
        digest = bytes.fromhex(written)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise RefusedError("invalid", "evidence is a SHA-256: 64 hex digits")
    return digest
