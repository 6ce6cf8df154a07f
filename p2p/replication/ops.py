"""Payloads of control records, one typed struct a kind.

A payload is a MessagePack array of the struct's fields under the header's rules (one encoding;
lists ascend by their first field). Kinds are append-only: what this version does not know decodes
to None and is stored and passed on. Source: docs/specs/record.md s.6.
"""

from __future__ import annotations

import enum
import itertools
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec

from p2p.errors import AuthError, DecodeError
from p2p.identity import check_public_key_untrusted
from p2p.replication.canonical import (
    U8,
    U32,
    U63,
    Bytes16,
    Bytes32,
    Bytes64,
    decode_canonical_untrusted,
    encode_canonical,
    strictly_ascending,
)
from p2p.replication.keys import check_exchange_public_untrusted
from p2p.replication.record import (
    BODY_BYTES_MAX,
    DOMAIN_RECORD,
    HEADER_BYTES_MAX,
    Header,
    decode_header_untrusted,
    lane_of,
    record_id,
)

if TYPE_CHECKING:
    from p2p.identity import Verifier

DOMAIN_OWNER: Final = b"covey/owner/1\0"
DOMAIN_JOIN: Final = b"covey/join/1\0"

MEMBERS_MAX: Final = 400
"""Readers of a group at most: each gets a sealed key of 149 bytes in one envelope."""
KEEP_MAX: Final = 1_024
ERASE_MAX: Final = 256
ERASE_ACKS_MAX: Final = 256
REASON_TAKEN_BACK: Final = 1
"""Of a limit: what lies beyond `keep` was taken away on purpose, not just unknown."""
SEALED_EPOCH_BYTES: Final = 112
SEALED_OWNER_BYTES: Final = 80


class Kind(enum.IntEnum):
    """Record kinds of this version. Append-only: a number is never used for something else."""

    GENESIS = 1
    GRANT = 2
    LIMIT = 3
    INVITE = 4
    INVITE_CLOSE = 5
    JOIN = 6
    ADMIT = 7
    POLICY = 8
    EPOCH = 12
    KEY_SHARE = 13
    ERASE = 14
    ERASE_ACK = 15
    FORK_PROOF = 18
    OWNER = 20
    OWNER_KEY = 21
    ENTRY = 32
    STATE = 33


class Role(enum.IntEnum):
    """What a member may do; each role includes those below it. A relay gets no key."""

    RELAY = 0
    READ = 1
    WRITE = 2
    ADMIN = 3


_U16Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
_Lane: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1)]
_Flag: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1)]
_SealedEpoch: TypeAlias = Annotated[
    bytes, msgspec.Meta(min_length=SEALED_EPOCH_BYTES, max_length=SEALED_EPOCH_BYTES)
]
_SealedOwner: TypeAlias = Annotated[
    bytes, msgspec.Meta(min_length=SEALED_OWNER_BYTES, max_length=SEALED_OWNER_BYTES)
]
_HeaderBytes: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=HEADER_BYTES_MAX)]
_Member: TypeAlias = Annotated[
    tuple[tuple[Bytes32, _SealedEpoch], ...], msgspec.Meta(max_length=MEMBERS_MAX)
]


class Limits(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What one log may hold since its last checkpoint (replication's policy)."""

    data_records: U32 = 200_000
    data_bytes: U63 = 256 * 1024 * 1024
    control_records: U32 = 4_096


class Genesis(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 1: founds a group; its record's id is the group id."""

    exchange_key: Bytes32
    """The founder's X25519 key."""
    recovery_key: Bytes32 | None
    """Ed25519 key that outranks the founder, or None."""
    home: _Flag
    """1 if the group is one person's devices."""
    tag_commit: Bytes32
    """Hash of the constant tag key, so that no admin can split state cells."""
    policy: Limits | None
    random: Bytes16


class Grant(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 2: gives a member a role."""

    member: Bytes32
    role: Role


class Limit(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 3: ends what a member holds; with a lower grant it demotes, alone it removes."""

    member: Bytes32
    keep: Annotated[tuple[tuple[U32, _Lane, U63], ...], msgspec.Meta(max_length=KEEP_MAX)]
    """(incarnation, lane, seq): what stays of the member's logs; a log not named keeps nothing."""
    next_incarnation: U32
    """From this one on a member who is let in again may write."""
    reason: U8
    """0 = unstated; `REASON_TAKEN_BACK`."""


class Invite(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 4: whoever holds the invite key's seed may ask to join."""

    invite_key: Bytes32
    role: Role
    uses: _U16Positive
    not_after_s: U32
    """Unix seconds; checked by the admitting member's own clock."""
    accept: _Flag
    """0: any writer admits; 1: an admin must."""


class InviteClose(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 5: an invite admits nobody any more."""

    invite_id: Bytes32


class Join(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 6: the joiner proves that it holds the ticket."""

    invite_id: Bytes32
    exchange_key: Bytes32
    """The joiner's X25519 key: epoch keys are sealed to it."""
    invite_signature: Bytes64
    """By the invite key over group, joiner and exchange key."""


class Admit(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 7: a member lets a joiner in."""

    join_id: Bytes32


class Policy(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 8: replaces the group's limits; of the standing ones the highest (hlc, id) holds."""

    limits: Limits


class Epoch(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 12: a new epoch secret, sealed to each reader."""

    key_commit: Bytes32
    shares: _Member
    """(member, sealed secret)."""


class KeyShare(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 13: hands a newcomer the epochs it may read."""

    member: Bytes32
    shares: _Member
    """(id of the epoch record, sealed secret)."""


class Erase(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 14: data records whose bodies must go; of the author's own, at once and for ever."""

    ids: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=ERASE_MAX)]
    reason: U8


class EraseAck(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 15: the author has carried out these erase records."""

    erased: Annotated[
        tuple[tuple[Bytes32, U32, _Flag], ...], msgspec.Meta(max_length=ERASE_ACKS_MAX)
    ]
    """(id of the erase record, bodies it had, 1 if something is still to be done)."""


class ForkProof(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 18: two headers one author signed that cannot both be in an honest log."""

    header_a: _HeaderBytes
    signature_a: Bytes64
    header_b: _HeaderBytes
    signature_b: Bytes64


class Owner(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 20: the device's owner key, vouching for the device."""

    owner_key: Bytes32
    signature: Bytes64
    """By the owner key over the device key."""


class OwnerKey(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Kind 21: in `home`, the owner key's seed sealed to admins, and its vouchers for devices."""

    owner_key: Bytes32
    seeds: Annotated[tuple[tuple[Bytes32, _SealedOwner], ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    """(admin, sealed seed)."""
    vouchers: Annotated[tuple[tuple[Bytes32, Bytes64], ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    """(device, signature by the owner key over the device key)."""


Payload: TypeAlias = (
    Genesis
    | Grant
    | Limit
    | Invite
    | InviteClose
    | Join
    | Admit
    | Policy
    | Epoch
    | KeyShare
    | Erase
    | EraseAck
    | ForkProof
    | Owner
    | OwnerKey
)

_DECODERS: Final = {
    Kind.GENESIS: msgspec.msgpack.Decoder(Genesis),
    Kind.GRANT: msgspec.msgpack.Decoder(Grant),
    Kind.LIMIT: msgspec.msgpack.Decoder(Limit),
    Kind.INVITE: msgspec.msgpack.Decoder(Invite),
    Kind.INVITE_CLOSE: msgspec.msgpack.Decoder(InviteClose),
    Kind.JOIN: msgspec.msgpack.Decoder(Join),
    Kind.ADMIT: msgspec.msgpack.Decoder(Admit),
    Kind.POLICY: msgspec.msgpack.Decoder(Policy),
    Kind.EPOCH: msgspec.msgpack.Decoder(Epoch),
    Kind.KEY_SHARE: msgspec.msgpack.Decoder(KeyShare),
    Kind.ERASE: msgspec.msgpack.Decoder(Erase),
    Kind.ERASE_ACK: msgspec.msgpack.Decoder(EraseAck),
    Kind.FORK_PROOF: msgspec.msgpack.Decoder(ForkProof),
    Kind.OWNER: msgspec.msgpack.Decoder(Owner),
    Kind.OWNER_KEY: msgspec.msgpack.Decoder(OwnerKey),
}


def encode_payload(payload: Payload) -> bytes:
    """The canonical bytes of a control payload."""
    return encode_canonical(payload)


def decode_payload_untrusted(kind: int, data: bytes) -> Payload | None:
    """Decode a foreign control payload.

    Returns:
        The typed payload, or None for a kind this version does not know (pass it on).

    Raises:
        DecodeError: malformed, over a limit, not canonical, a list not ascending, a key of small
            order (its owner could be anybody, or sealing to it would break every later rotation).
    """
    decoder = _DECODERS.get(kind)  # type: ignore[call-overload]  # an int finds its IntEnum
    if decoder is None:
        return None
    payload: Payload = decode_canonical_untrusted(
        decoder, data, bytes_max=BODY_BYTES_MAX, what=f"payload of kind {kind}"
    )
    _check_payload(payload)
    return payload


def _check_payload(payload: Payload) -> None:
    match payload:
        case Genesis():
            check_exchange_public_untrusted(payload.exchange_key)
            if payload.recovery_key is not None:
                check_public_key_untrusted(payload.recovery_key)
        case Grant():
            check_public_key_untrusted(payload.member)
        case Limit():
            check_public_key_untrusted(payload.member)
            logs = [(incarnation, lane) for incarnation, lane, _ in payload.keep]
            if any(a >= b for a, b in itertools.pairwise(logs)):
                raise DecodeError("limit: keep does not ascend by incarnation and lane")
        case Invite():
            check_public_key_untrusted(payload.invite_key)
        case Join():
            check_exchange_public_untrusted(payload.exchange_key)
        case Epoch():
            _check_ascending("epoch", payload.shares)
            _check_keys(payload.shares)
        case KeyShare():
            check_public_key_untrusted(payload.member)
            _check_ascending("key share", payload.shares)
        case Erase():
            if not strictly_ascending(payload.ids):
                raise DecodeError("erase: ids do not ascend")
        case EraseAck():
            if not strictly_ascending(tuple(ident for ident, _, _ in payload.erased)):
                raise DecodeError("erase ack: ids do not ascend")
        case Owner():
            check_public_key_untrusted(payload.owner_key)
        case OwnerKey():
            check_public_key_untrusted(payload.owner_key)
            for rows in (payload.seeds, payload.vouchers):
                _check_ascending("owner key", rows)
                _check_keys(rows)
        case InviteClose() | Admit() | Policy() | ForkProof():
            pass


def _check_ascending(what: str, rows: tuple[tuple[bytes, bytes], ...]) -> None:
    if not strictly_ascending(tuple(first for first, _ in rows)):
        raise DecodeError(f"{what}: a list does not ascend")


def _check_keys(rows: tuple[tuple[bytes, bytes], ...]) -> None:
    for key, _ in rows:
        check_public_key_untrusted(key)


class Fork(msgspec.Struct, frozen=True):
    """Where a log split: it is void from `seq` up, everywhere, for ever."""

    author: bytes
    incarnation: int
    lane: int
    seq: int
    id_a: bytes
    id_b: bytes


def verify_fork_proof(proof: ForkProof, group: bytes, verify: Verifier) -> Fork:
    """Check that one author signed both headers and that no honest log holds both.

    Two headers prove a fork when they stand at one seq of one log, or next to each other without
    the second following the first (prev, hlc). Whoever delivers the proof does not matter.

    Raises:
        DecodeError: a header breaks the format.
        AuthError: another group, two authors or logs, a bad signature, or no contradiction.
    """
    a, b = (decode_header_untrusted(data) for data in (proof.header_a, proof.header_b))
    id_a, id_b = record_id(proof.header_a), record_id(proof.header_b)
    for head, ident in ((a, id_a), (b, id_b)):
        if (head.group or ident) != group:
            raise AuthError("fork proof: a header belongs to another group")
    log_a = (a.author, a.incarnation, lane_of(a.kind))
    if log_a != (b.author, b.incarnation, lane_of(b.kind)):
        raise AuthError("fork proof: the headers are of different logs")
    if not contradicts(a, id_a, b, id_b):
        raise AuthError("fork proof: an honest log could hold both headers")
    signed = ((proof.header_a, proof.signature_a), (proof.header_b, proof.signature_b))
    if not all(verify(a.author, DOMAIN_RECORD, header, sig) for header, sig in signed):
        raise AuthError("fork proof: a signature is not the author's")
    return Fork(*log_a, min(a.seq, b.seq), id_a, id_b)


def contradicts(a: Header, id_a: bytes, b: Header, id_b: bytes) -> bool:
    """Whether two headers of one log cannot both be in an honest chain."""
    if a.seq > b.seq:
        a, id_a, b, id_b = b, id_b, a, id_a
    if a.seq == b.seq:
        return id_a != id_b
    return b.seq == a.seq + 1 and (b.prev != id_a or b.hlc <= a.hlc)


def verify_owner(payload: Owner, device: bytes, verify: Verifier) -> None:
    """Check that the owner key vouches for the device that published it.

    Raises:
        AuthError: it does not.
    """
    if not verify(payload.owner_key, DOMAIN_OWNER, device, payload.signature):
        raise AuthError("owner: the owner key did not sign this device")


def verify_join(
    payload: Join, group: bytes, joiner: bytes, invite: Invite, verify: Verifier
) -> None:
    """Check that the joiner holds the invite's seed.

    Raises:
        AuthError: the invite key did not sign this joiner and this exchange key for this group.
    """
    body = group + joiner + payload.exchange_key
    if not verify(invite.invite_key, DOMAIN_JOIN, body, payload.invite_signature):
        raise AuthError("join: not signed by the invite's key")
