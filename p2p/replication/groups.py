"""Founding a group, and who owns the devices of a home.

A genesis and the first epoch are one batch: a group whose key nobody has is never on disk. A `home`
is one person's devices; founding it makes the owner key as well, seals its seed to the home's
admins (kind 21) and publishes whose device this is (kind 20). The owner key signs devices only,
never data. Source: docs/specs/authority.md s.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.errors import AuthError
from p2p.identity import Identity
from p2p.replication.authority import Authority
from p2p.replication.epoch import (
    epoch_id,
    make_epoch,
    new_secret,
    open_owner_seed,
    seal_owner_seed,
    tag_commit,
)
from p2p.replication.hlc import next_incarnation
from p2p.replication.keys import exchange_public, generate_exchange
from p2p.replication.ops import (
    DOMAIN_OWNER,
    Genesis,
    Kind,
    Owner,
    OwnerKey,
    Payload,
    encode_payload,
    verify_owner,
)
from p2p.replication.record import LANE_CONTROL, Envelope
from p2p.replication.sealing import ControlDraft, Place, sign_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p2p.identity import Signer, Verifier
    from p2p.replication.hlc import Clock
    from p2p.replication.record import Record
    from p2p.replication.sealing import SealerEnv
    from p2p.replication.standing import OwnerKeyRecord, Standing

SEED_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Founded:
    """A new group: records to store in one transaction, and secrets to keep."""

    group: bytes
    records: Sequence[Record]
    """Genesis, epoch, and for a home the owner key and owner records."""
    authority: Authority
    """With all of the records added."""
    incarnation: int
    exchange_private: bytes
    """Our X25519 private key in this group."""
    epoch: bytes
    """16-byte id of the first epoch."""
    secret: bytes
    """Its secret, 64 bytes."""
    recovery_seed: bytes | None
    """Show it once: with it a stolen founder device can be answered."""
    owner_seed: bytes | None
    """The owner key's seed; None for a group that is no home."""


def found_group(
    identity: Signer,
    env: SealerEnv,
    clock: Clock,
    *,
    home: bool,
    recovery: bool,
) -> Founded:
    """Found a group with this device as its founder.

    Args:
        identity: this device.
        env: random numbers and the wall clock.
        clock: the device's clock; it ticks once a record.
        home: whether it is one person's devices.
        recovery: whether to make a recovery key; a genesis never changes, so it is now or never.
    """
    rng = env.rng
    exchange_private = generate_exchange(rng)
    recovery_seed = rng.randbytes(SEED_BYTES) if recovery else None
    secret = new_secret(rng)
    genesis = Genesis(
        exchange_key=exchange_public(exchange_private),
        recovery_key=None if recovery_seed is None else Identity.from_seed(recovery_seed).id,
        home=int(home),
        tag_commit=tag_commit(secret),
        policy=None,
        random=rng.randbytes(16),
    )
    incarnation = next_incarnation(0, env.wall_ms())
    chain = _Chain(identity, env, clock, incarnation)
    first = chain.append(Kind.GENESIS, genesis)
    group = first.id
    epoch = chain.append(
        Kind.EPOCH, make_epoch(group, secret, {identity.id: genesis.exchange_key}, rng)
    )
    owner_seed = rng.randbytes(SEED_BYTES) if home else None
    if owner_seed is not None:
        key = make_owner_key(
            group, owner_seed, {identity.id: genesis.exchange_key}, [identity.id], env
        )
        chain.append(Kind.OWNER_KEY, key)
        chain.append(Kind.OWNER, make_owner(owner_seed, identity.id))
    return Founded(
        group=group,
        records=tuple(chain.records),
        authority=chain.authority(group),
        incarnation=incarnation,
        exchange_private=exchange_private,
        epoch=epoch_id(epoch.id),
        secret=secret,
        recovery_seed=recovery_seed,
        owner_seed=owner_seed,
    )


class _Chain:
    """The founder's first control log, sealed before any store knows the group."""

    def __init__(self, identity: Signer, env: SealerEnv, clock: Clock, incarnation: int) -> None:
        self.records: list[Record] = []
        self._payloads: list[Payload] = []
        self._identity = identity
        self._env = env
        self._clock = clock
        self._incarnation = incarnation

    def append(self, kind: Kind, payload: Payload) -> Record:
        """Seal the next record; all after the genesis cite it alone, there being no other A op."""
        group = self.records[0].id if self.records else None
        prev = self.records[-1].id if self.records else None
        log = (group or b"", self._identity.id, self._incarnation, LANE_CONTROL)
        draft = ControlDraft(kind, encode_payload(payload))
        record = sign_record(
            self._identity,
            group,
            draft,
            Place(log, len(self.records) + 1, prev, 0),
            self._clock.tick(self._env.wall_ms()),
            () if group is None else (group,),
            Envelope(self._env.rng.randbytes(16), None, None, draft.body),
        )
        self.records.append(record)
        self._payloads.append(payload)
        return record

    def authority(self, group: bytes) -> Authority:
        """An authority that knows these records."""
        authority = Authority(group)
        for record, payload in zip(self.records, self._payloads, strict=True):
            authority.add(record.id, record.head, payload)
        return authority


def make_owner_key(
    group: bytes,
    owner_seed: bytes,
    admins: Mapping[bytes, bytes],
    devices: Sequence[bytes],
    env: SealerEnv,
) -> OwnerKey:
    """Seal an owner key to a home's admins and vouch for its devices.

    Args:
        group: the home.
        owner_seed: the owner key's seed.
        admins: admin -> X25519 key.
        devices: members with write or more; each will publish its voucher.
        env: source of the ephemeral keys.
    """
    owner = Identity.from_seed(owner_seed)
    seeds = {
        admin: seal_owner_seed(group, owner_seed, key, env.rng) for admin, key in admins.items()
    }
    vouchers = {device: owner.sign(DOMAIN_OWNER, device) for device in devices}
    return OwnerKey(owner.id, tuple(sorted(seeds.items())), tuple(sorted(vouchers.items())))


def make_owner(owner_seed: bytes, device: bytes) -> Owner:
    """What a device publishes about its owner, by who has the owner key."""
    owner = Identity.from_seed(owner_seed)
    return Owner(owner.id, owner.sign(DOMAIN_OWNER, device))


def owner_from_voucher(standing: Standing, device: bytes, verify: Verifier) -> Owner | None:
    """What a device of a home may publish about its owner: from the newest live voucher for it.

    None without one, and for a voucher whose signature does not hold.
    """
    for record in standing.owner_keys():
        for vouched, signature in record.payload.vouchers:
            if vouched == device:
                owner = Owner(record.payload.owner_key, signature)
                return owner if _vouches(owner, device, verify) else None
    return None


def _vouches(owner: Owner, device: bytes, verify: Verifier) -> bool:
    try:
        verify_owner(owner, device, verify)
    except AuthError:
        return False
    return True


def open_owner_key(
    record: OwnerKeyRecord, group: bytes, admin: bytes, exchange_private: bytes
) -> bytes | None:
    """The owner key's seed from a home's record, as one of its admins; None if not sealed to us.

    Raises:
        SealError: what is sealed to us does not open.
        AuthError: it opens to another key than the record names.
    """
    for member, sealed in record.payload.seeds:
        if member == admin:
            seed = open_owner_seed(group, exchange_private, sealed)
            if len(seed) != SEED_BYTES or Identity.from_seed(seed).id != record.payload.owner_key:
                raise AuthError("owner key: the sealed seed is not of the key it names")
            return seed
    return None


def unvouched(standing: Standing, devices: Sequence[bytes]) -> list[bytes]:
    """Those of a home's devices the newest owner key record does not vouch for."""
    records = standing.owner_keys()
    vouched = {device for device, _ in records[0].payload.vouchers} if records else set()
    return [device for device in devices if device not in vouched]
