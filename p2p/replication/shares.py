"""Epoch secrets sealed to this device: opened, given to the sealer, and what waited for them.

Source: docs/specs/record.md s.7; docs/specs/sync.md s.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.errors import AuthError
from p2p.replication.epoch import epoch_id, make_key_share, open_share, readers
from p2p.replication.keys import SealError
from p2p.replication.ops import Epoch, KeyShare, Role, decode_payload_untrusted
from p2p.replication.record import (
    LANE_CONTROL,
    BodyError,
    Envelope,
    Record,
    decode_header_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from p2p.env import Env
    from p2p.replication.groups import Group
    from p2p.replication.ops import Payload
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.standing import EpochRecord
    from p2p.replication.store import LocalRow, RecordStore, Stored

OPEN_BATCH: Final = 256
"""Sealed records opened between two transactions."""

OWED_S: Final = 60.0
"""So long an admin waits for the one before it to hand on a key. Guess: some rounds of upkeep."""
OWED_EPOCHS_MAX: Final = 256
OWED_MEMBERS_MAX: Final = 16
"""Handed on at one upkeep, a record a member; sealing takes some 115 us a key."""


class Shares:
    """Keys of this device's groups.

    Args:
        me: our key.
        store: sealed records and local rows.
        sealer: who uses the secrets.
        env: random numbers.
        checkpoint: lets other tasks run.
    """

    def __init__(
        self,
        me: bytes,
        store: RecordStore,
        sealer: GroupSealer,
        env: Env,
        checkpoint: Callable[[], Awaitable[None]],
    ) -> None:
        self._me = me
        self._store = store
        self._sealer = sealer
        self._env = env
        self._checkpoint = checkpoint

    def note(self, group: Group, record: Record) -> bool:
        """Remember sealed secrets for us in an epoch or key share; whether there were any."""
        payload = payload_of(record)
        if isinstance(payload, Epoch):
            members = (member for member, _ in payload.shares)
            group.handed.setdefault(record.id, set()).update(members)
        elif isinstance(payload, KeyShare):
            for epoch, _ in payload.shares:
                group.handed.setdefault(epoch, set()).add(payload.member)
        if isinstance(payload, Epoch):
            found = [(record.id, share) for member, share in payload.shares if member == self._me]
        elif isinstance(payload, KeyShare) and payload.member == self._me:
            found = list(payload.shares)
        else:
            return isinstance(payload, Epoch)
        for epoch, share in found:
            if epoch not in group.epochs:
                shares = group.shares.setdefault(epoch, [])
                if share not in shares:
                    shares.append(share)
        return True

    async def take(self, group: Group, records: Sequence[Record]) -> None:
        """Open what new control records seal to us, and the bodies that waited for it."""
        noted = [self.note(group, record) for record in records]
        if any(noted) or group.shares:
            await self.open(group)

    def use_own(self, group: Group, records: Sequence[Record]) -> None:
        """Write under a key of ours at once, in the step that makes its epoch known here.

        What is written from then on cites the removal that the key was made for, so whoever was
        removed must not be able to open it. The key's row is written by `open`; until then the
        epoch record has it, sealed to us.
        """
        noted = [self.note(group, record) for record in records]
        if any(noted):
            self._try(group)
            self.use_epochs(group)

    async def open(self, group: Group) -> None:
        """Open what was sealed to us and what waited for it."""
        opened = self._try(group)
        if opened:
            rows: list[LocalRow] = [
                ("epoch", (group.id, epoch_id(epoch), group.epochs[epoch])) for epoch in opened
            ]
            await self._store.admit(group.id, [], rows)
            for epoch in opened:
                group.shares.pop(epoch, None)
        self.use_epochs(group)
        for epoch in opened:
            await self._open_bodies(group, epoch_id(epoch))

    async def open_waiting(self, group: Group) -> None:
        """Open what still waits for keys that are here.

        A key and the bodies under it are two transactions: what ended between them, a crash or a
        full disk, left the bodies sealed, and no later key would be theirs.
        """
        for epoch in sorted(group.epochs):
            await self._open_bodies(group, epoch_id(epoch))

    def _try(self, group: Group) -> list[bytes]:
        """Open sealed secrets for us as far as their epochs are here; ids of those open now."""
        if not group.founded:
            return []
        opened = []
        for record in group.standing.epochs():
            shares = group.shares.get(record.id, ())
            if shares and record.id not in group.epochs:
                secret = self._opened(group, record, shares)
                if secret is None:
                    continue
                group.epochs[record.id] = secret
            if shares:
                opened.append(record.id)
        return opened

    def _opened(self, group: Group, record: EpochRecord, shares: Sequence[bytes]) -> bytes | None:
        """The secret of an epoch, out of the first share that holds it."""
        tag = group.standing.genesis.tag_commit
        for share in shares:
            for private in group.exchange.values():
                try:
                    return open_share(record, group.id, private, share, tag)
                except (SealError, AuthError):
                    continue
        return None

    def use_epochs(self, group: Group) -> None:
        """Give the sealer all secrets, the one to write under last."""
        best = None
        if group.founded:
            order = [record.id for record in group.standing.epochs()]
            best = next((epoch for epoch in order if epoch in group.epochs), None)
        for epoch, secret in group.epochs.items():
            self._sealer.set_epoch(group.id, epoch_id(epoch), secret, current=epoch == best)

    async def _open_bodies(self, group: Group, epoch: bytes) -> None:
        """Open stored bodies whose key has come."""
        skipped = 0
        while True:
            rows = await self._store.sealed(group.id, epoch, skipped + OPEN_BATCH)
            bodies = []
            rows = list(rows)[skipped:]
            for row in rows:
                plain = self.open_row(row)
                if plain is not None:
                    bodies.append((row.id, plain))
            if bodies:
                await self._store.unsealed(group.id, bodies)
            skipped += len(rows) - len(bodies)
            if len(rows) < OPEN_BATCH:
                return
            await self._checkpoint()

    def open_row(self, row: Stored) -> bytes | None:
        """Plain body of a stored data record; None without key or body, or if it does not open."""
        record = record_of(row)
        if record.envelope is None:
            return None
        try:
            return self._sealer.open_body(record)
        except BodyError:
            return None

    def owed(self, group: Group) -> list[KeyShare]:
        """Keys to hand to readers that nobody handed them, because each admin knew of half.

        One rotates while another lets somebody in, and neither knows of the other: the newcomer
        has the keys of before, and not the one made meanwhile. The admins see to it in the order
        of their keys, each a while after the one before, in case that one is away or lacks it.
        """
        standing = group.standing
        admins = [m for m, role in standing.members().items() if role == Role.ADMIN]
        if self._me not in admins or not group.epochs:
            return []
        now, patience_s = self._env.now(), OWED_S * admins.index(self._me)
        before, group.owed_since = group.owed_since, {}
        shares = []
        for member, exchange_key in readers(standing, but={self._me}).items():
            missing = {
                epoch: secret
                for epoch, secret in sorted(group.epochs.items())
                if member not in group.handed.get(epoch, ())
            }
            if not missing:
                continue
            since = group.owed_since[member] = before.get(member, now)
            if now - since >= patience_s:
                some = dict(list(missing.items())[:OWED_EPOCHS_MAX])
                shares.append(make_key_share(group.id, member, exchange_key, some, self._env.rng))
        return shares[:OWED_MEMBERS_MAX]

    def key_share(self, group: Group, member: bytes, exchange_key: bytes) -> KeyShare:
        """All epochs we hold, sealed to a newcomer."""
        return make_key_share(group.id, member, exchange_key, group.epochs, self._env.rng)


def payload_of(record: Record) -> Payload | None:
    """The typed payload of a verified control record; None for data and unknown kinds."""
    data = record.payload
    if record.lane != LANE_CONTROL or data is None:
        return None
    return decode_payload_untrusted(record.kind, data)


def record_of(row: Stored) -> Record:
    """A stored record with its header decoded; it was verified before it was stored."""
    header = decode_header_untrusted(row.header)
    part = row.envelope
    envelope = None if part is None else Envelope(part.salt, part.epoch, part.wrap, part.ct)
    return Record(row.id, header, row.header, row.signature, envelope, header.author)
