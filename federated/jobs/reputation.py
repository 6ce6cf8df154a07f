"""What owners' votes have earned: who is trusted alone, who is asked no more and how long.

    if reputation.trusted_alone(owner, handler, rng, wall_ms): ...
    settled = reputation.settle(accepted, answers, handler, ref, deterministic=..., wall_ms=...)
    # settled.revote: rows to judge again; settled.quarantined: owners whose rows reopen

Counted per (owner, `name@version`): a new owner or a new version starts with nothing. `cv` is how
many answers in a row were found good by others; it halves in 30 idle days. A quarantine binds the
owner and the device that answered: neither a new device nor a new owner key ends it. Times are
wall clock milliseconds, because a quarantine outlives the process.
Pure: no clock, no IO; chance is an argument. Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from federated.jobs.verify import LEVEL_NONE, LEVEL_OWN, LEVEL_REPUTATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from federated.jobs.verify import Accepted, Answer

DAY_MS: Final = 86_400_000

CV_ALONE: Final = 10
"""Answers in a row found good before an owner may be trusted alone."""
CV_MOST: Final = 100
"""Beyond so many, one answer in this many is still put to the vote."""
IDLE_MS: Final = 30 * DAY_MS
QUARANTINE_MS: Final = 7 * DAY_MS
DOUBLINGS_MAX: Final = 10
EVERYTHING_AT: Final = 3
"""The quarantine from which on it is for every handler."""
LOST_MIN: Final = 3
LOST_SHARE: Final = 0.34
"""Without an arbiter: more lost votes than these two allow are a quarantine."""

EVERY_HANDLER: Final = ""

Ref: TypeAlias = tuple[bytes, int]
"""A row: its job and index."""


class StatRow(NamedTuple):
    """A row of table `peer_stat`; of `owner` and `device` one is empty."""

    owner: bytes
    device: bytes
    handler: str
    body: bytes


class Standing(msgspec.Struct, array_like=True):
    """What an owner has earned with a handler.

    Attributes:
        n: votes counted since its last quarantine.
        ok: those that it won.
        cv: answers in a row found good, as of `seen_ms`.
        bad: quarantines, ever.
        until_ms: when the present quarantine ends; 0: none.
        seen_ms: when it was last judged.
    """

    n: int = 0
    ok: int = 0
    cv: int = 0
    bad: int = 0
    until_ms: int = 0
    seen_ms: int = 0

    def cv_at(self, wall_ms: int) -> int:
        """`cv` after the idle time since."""
        return self.cv >> min(max(0, wall_ms - self.seen_ms) // IDLE_MS, 64)


class _Ban(msgspec.Struct, array_like=True):
    """A device's quarantine, and whose device it was."""

    owner: bytes
    until_ms: int


def encode_standing(standing: Standing) -> bytes:
    """The body of an owner's row."""
    return msgspec.msgpack.encode(standing)


class Revote(NamedTuple):
    """A row that `owner` gave alone before it lost a vote.

    It is judged again with `alone=False`, without that owner's answer (kept, it would be half of a
    quorum for its colluders) and without asking that owner.
    """

    owner: bytes
    ref: Ref


class Settled(NamedTuple):
    """What a row's end means for others.

    Attributes:
        revote: rows that must be judged again.
        quarantined: owners that are asked no more from now on; rows reopen by all
            `quarantined_owners`.
    """

    revote: tuple[Revote, ...] = ()
    quarantined: tuple[bytes, ...] = ()


class Quarantine(NamedTuple):
    """Somebody who is not asked.

    Attributes:
        owner: whose devices.
        handler: for which handler; empty: for none.
        until_ms: Unix milliseconds.
        times: how often this owner was quarantined, ever.
        devices: those that were caught.
    """

    owner: bytes
    handler: str
    until_ms: int
    times: int
    devices: tuple[bytes, ...]


class Reputation:
    """What every owner and device has earned here."""

    def __init__(self) -> None:
        self._standings: dict[tuple[bytes, str], Standing] = {}
        self._bans: dict[tuple[bytes, str], _Ban] = {}
        self._alone: dict[tuple[bytes, str], list[Ref]] = {}
        self._changed: set[tuple[bytes, bytes, str]] = set()

    # ---- questions

    def cv(self, owner: bytes, handler: str, wall_ms: int) -> int:
        """How many of the owner's answers in a row were found good."""
        standing = self._standings.get((owner, handler))
        return 0 if standing is None else standing.cv_at(wall_ms)

    def trusted_alone(self, owner: bytes, handler: str, rng: Random, wall_ms: int) -> bool:
        """Draw whether one answer of this owner is enough; once a row, after it has come."""
        cv = self.cv(owner, handler, wall_ms)
        return cv >= CV_ALONE and rng.random() < 1.0 - 1.0 / min(cv, CV_MOST)

    def quarantined(self, owner: bytes, device: bytes, handler: str, wall_ms: int) -> bool:
        """Whether this device of this owner is not to be asked."""
        for name in (handler, EVERY_HANDLER):
            standing = self._standings.get((owner, name))
            if standing is not None and standing.until_ms > wall_ms:
                return True
            ban = self._bans.get((device, name))
            if ban is not None and ban.until_ms > wall_ms:
                return True
        return False

    def quarantined_owners(self, handler: str, wall_ms: int) -> frozenset[bytes]:
        """Every owner that is not to be asked: what `verify.reopen` wants, old ones included.

        Colluders are caught one by one: a row that two of them carry opens with the last.
        """
        return frozenset(
            owner
            for (owner, name), standing in self._standings.items()
            if name in {handler, EVERY_HANDLER} and standing.until_ms > wall_ms
        )

    def bans(self, wall_ms: int) -> Callable[[str], frozenset[bytes]]:
        """`quarantined_owners` by handler, as of now: nothing that happens later changes it."""
        by_handler: dict[str, set[bytes]] = {}
        for (owner, name), standing in self._standings.items():
            if standing.until_ms > wall_ms:
                by_handler.setdefault(name, set()).add(owner)
        everywhere = by_handler.get(EVERY_HANDLER, set())
        return lambda handler: frozenset(by_handler.get(handler, set()) | everywhere)

    # ---- what happened

    def settle(
        self,
        verdict: Accepted,
        answers: Sequence[Answer],
        handler: str,
        ref: Ref,
        *,
        deterministic: bool,
        wall_ms: int,
    ) -> Settled:
        """Count a row that was accepted, or that an audit has judged.

        Args:
            verdict: of the judge.
            answers: what it judged.
            handler: `name@version`.
            ref: the row.
            deterministic: whether another answer than an own device's is a lie; otherwise a lost
                vote halves `cv` and never quarantines.
            wall_ms: now.
        """
        if verdict.level <= LEVEL_REPUTATION:
            self._taken_alone(verdict, answers, handler, ref)
            return Settled()
        devices: dict[bytes, bytes] = {}
        for answer in answers:
            if not answer.own and answer.row is not None:
                devices.setdefault(answer.owner, answer.device)
        audited = len(devices) == 1
        for owner in sorted(verdict.agreed & devices.keys()):
            self._won(owner, handler, wall_ms, by_vote=not audited)
        revote: list[Revote] = []
        quarantined: list[bytes] = []
        for owner in sorted(verdict.lost & devices.keys()):
            doubted = self._lost(owner, handler, wall_ms, deterministic=deterministic)
            revote += [Revote(owner, one) for one in doubted if one != ref]
            proven = verdict.level == LEVEL_OWN
            if deterministic and (proven or self._loses_often(owner, handler)):
                self._quarantine(owner, devices[owner], handler, wall_ms)
                quarantined.append(owner)
        return Settled(tuple(revote), tuple(quarantined))

    def forget(self, job: bytes) -> None:
        """A job has ended: its rows are not voted on again."""
        for key, refs in list(self._alone.items()):
            kept = [ref for ref in refs if ref[0] != job]
            if kept:
                self._alone[key] = kept
            else:
                del self._alone[key]

    def quarantines(self, wall_ms: int) -> list[Quarantine]:
        """Who is not asked now, by owner and handler."""
        return [
            Quarantine(
                owner, handler, standing.until_ms, self._caught(owner),
                tuple(sorted(
                    device for (device, name), ban in self._bans.items()
                    if name == handler and ban.owner == owner
                )),
            )
            for (owner, handler), standing in sorted(self._standings.items())
            if standing.until_ms > wall_ms
        ]  # fmt: skip

    def lift(self, who: bytes) -> bool:
        """The operator ends the quarantine of an owner, or of a device and its owner.

        What was counted stays: the next quarantine is longer.

        Returns:
            Whether there was one.
        """
        owners = {who} | {ban.owner for (device, _), ban in self._bans.items() if device == who}
        found = False
        for (owner, handler), standing in self._standings.items():
            if owner in owners and standing.until_ms:
                standing.until_ms = 0
                self._changed.add((owner, b"", handler))
                found = True
        for (device, handler), ban in self._bans.items():
            if (device == who or ban.owner in owners) and ban.until_ms:
                ban.until_ms = 0
                self._changed.add((b"", device, handler))
                found = True
        return found

    # ---- the journal

    def rows(self) -> list[StatRow]:
        """Everything that must survive, in one order."""
        keys = [(owner, b"", handler) for owner, handler in self._standings]
        keys += [(b"", device, handler) for device, handler in self._bans]
        return [self._row(key) for key in sorted(keys)]

    def take_changed(self) -> list[StatRow]:
        """The rows that changed since the last call, in one order."""
        keys = sorted(self._changed)
        self._changed.clear()
        return [self._row(key) for key in keys]

    def load(self, rows: Iterable[StatRow], alone: Iterable[tuple[bytes, str, Ref]] = ()) -> None:
        """Take in what the journal kept; rows that name an owner and a device are not ours.

        Args:
            rows: of `peer_stat`.
            alone: (owner, handler, row) accepted at level 1 in jobs that are not over, oldest
                first.
        """
        for row in rows:
            if row.owner and not row.device:
                standing = msgspec.msgpack.decode(row.body, type=Standing)
                self._standings[row.owner, row.handler] = standing
            elif row.device and not row.owner:
                ban = msgspec.msgpack.decode(row.body, type=_Ban)
                self._bans[row.device, row.handler] = ban
        for owner, handler, ref in alone:
            self._alone.setdefault((owner, handler), []).append(ref)

    # ---- inside

    def _row(self, key: tuple[bytes, bytes, str]) -> StatRow:
        owner, device, handler = key
        value = self._standings[owner, handler] if owner else self._bans[device, handler]
        return StatRow(owner, device, handler, msgspec.msgpack.encode(value))

    def _standing(self, owner: bytes, handler: str) -> Standing:
        self._changed.add((owner, b"", handler))
        return self._standings.setdefault((owner, handler), Standing())

    def _taken_alone(
        self, verdict: Accepted, answers: Sequence[Answer], handler: str, ref: Ref
    ) -> None:
        if verdict.level == LEVEL_NONE:
            return
        for owner in verdict.agreed & {answer.owner for answer in answers if not answer.own}:
            self._alone.setdefault((owner, handler), []).append(ref)

    def _won(self, owner: bytes, handler: str, wall_ms: int, *, by_vote: bool) -> None:
        standing = self._standing(owner, handler)
        standing.cv = standing.cv_at(wall_ms) + 1
        standing.seen_ms = wall_ms
        if by_vote:
            standing.n += 1
            standing.ok += 1
            self._alone.pop((owner, handler), None)

    def _lost(self, owner: bytes, handler: str, wall_ms: int, *, deterministic: bool) -> list[Ref]:
        standing = self._standing(owner, handler)
        standing.cv = 0 if deterministic else standing.cv_at(wall_ms) // 2
        standing.seen_ms = wall_ms
        standing.n += 1
        return self._alone.pop((owner, handler), [])

    def _loses_often(self, owner: bytes, handler: str) -> bool:
        standing = self._standing(owner, handler)
        lost = standing.n - standing.ok
        return lost >= LOST_MIN and lost > LOST_SHARE * standing.n

    def _caught(self, owner: bytes) -> int:
        """How often, ever."""
        return sum(
            standing.bad for (whose, _), standing in self._standings.items() if whose == owner
        )

    def _quarantine(self, owner: bytes, device: bytes, handler: str, wall_ms: int) -> None:
        times = 1 + self._caught(owner)
        until_ms = wall_ms + QUARANTINE_MS * 2 ** min(times - 1, DOUBLINGS_MAX)
        standing = self._standing(owner, handler)
        standing.bad += 1
        standing.n = standing.ok = standing.cv = 0
        for name in (handler,) if times < EVERYTHING_AT else (handler, EVERY_HANDLER):
            bound = self._standing(owner, name)
            bound.until_ms = max(bound.until_ms, until_ms)
            self._changed.add((b"", device, name))
            self._bans[device, name] = _Ban(owner, until_ms)
