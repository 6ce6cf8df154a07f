"""The signed record: header, id, signature, envelope. Its bytes never change.

A header says who wrote, where in which chain, when, on whose authority, and commits to a body; the
body travels in an envelope that may be absent. The signature covers the header as received, the id
leaves the signature out (a malleable signature makes no second record), and the commitment covers
ciphertext, so that a relay without keys can check bodies too.

Path of a foreign record: `decode_wire_untrusted`, `verify_record`, admission (authority, chain,
clock), then the store. Source: docs/specs/record.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec

from p2p.errors import AuthError, DecodeError
from p2p.replication.canonical import (
    Bytes16,
    Bytes32,
    Bytes64,
    decode_canonical_untrusted,
    encode_canonical,
    strictly_ascending,
)

if TYPE_CHECKING:
    from p2p.identity import Verifier

VERSION: Final = 1

# The permanent limits of docs/specs/record.md s.4.
HEADER_BYTES_MAX: Final = 1_024
BODY_BYTES_MAX: Final = 65_536
ENVELOPE_BYTES_MAX: Final = 65_792
WIRE_BYTES_MAX: Final = HEADER_BYTES_MAX + ENVELOPE_BYTES_MAX + 80
AUTH_MAX: Final = 8
SUPERSEDES_MAX: Final = 8
KIND_MAX: Final = 127
WRAP_BYTES: Final = 60
AEAD_TAG_BYTES: Final = 16

LANE_CONTROL: Final = 0
LANE_DATA: Final = 1
KIND_GENESIS: Final = 1
KIND_AUTHORITY_END: Final = 12
"""Kinds below this one carry authority (A ops)."""
KIND_DATA_START: Final = 32
"""Kinds from this one on are data; those between are control (C)."""

DOMAIN_RECORD: Final = b"covey/record/1\0"
DOMAIN_ID: Final = b"covey/record-id/1\0"
DOMAIN_BODY: Final = b"covey/body/1\0"

STATE_LIVE: Final = "live"
STATE_SEALED: Final = "sealed"
STATE_VOID: Final = "void"
STATE_STUB: Final = "stub"

_Positive32: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF_FFFF)]
_Positive63: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=0x7FFF_FFFF_FFFF_FFFF)]
_BodySize: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=ENVELOPE_BYTES_MAX)]


class BodyError(DecodeError):
    """The envelope is not the one the header commits to, or does not open.

    The header may be good all the same: keep it and ask somebody else for the body.
    """


class Header(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The signed part, in wire order.

    Invariants (held by `decode_header_untrusted`): `group` is None and `auth` empty exactly in a
    genesis, which stands at seq 1; `prev` is None exactly at seq 1; `auth` and `supersedes` ascend
    strictly.
    """

    version: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    kind: Annotated[int, msgspec.Meta(ge=1, le=KIND_MAX)]
    """What the body is; the number alone gives the lane."""
    group: Bytes32 | None
    """Id of the group's genesis record; None in that record itself."""
    author: Bytes32
    """Device key that signed."""
    incarnation: _Positive32
    """Which of the author's logs; a new one begins after a restore or a clock accident."""
    seq: _Positive63
    """Place in (group, author, incarnation, lane), dense from 1."""
    prev: Bytes32 | None
    """Id of the record at seq - 1."""
    hlc: _Positive63
    """Milliseconds << 16 | counter; greater than prev's and than every `auth` record's."""
    auth: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=AUTH_MAX)]
    """Heads of the A ops the author knew: on whose authority it writes."""
    key_tag: Bytes16 | None
    """Keyed hash of a state cell's path, so that a relay can group without reading."""
    supersedes: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=SUPERSEDES_MAX)]
    body_commit: Bytes32
    """SHA-256 of the envelope under its domain."""
    body_size: _BodySize
    """Bytes of the envelope."""
    flags: Annotated[int, msgspec.Meta(ge=0, le=0)]


class RecordWire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A record as it travels: signed bytes untouched, the envelope possibly left out."""

    header: Annotated[bytes, msgspec.Meta(max_length=HEADER_BYTES_MAX)]
    signature: Bytes64
    envelope: Annotated[bytes, msgspec.Meta(max_length=ENVELOPE_BYTES_MAX)] | None


class _DataEnvelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    salt: Bytes16
    epoch: Bytes16
    wrap: Annotated[bytes, msgspec.Meta(min_length=WRAP_BYTES, max_length=WRAP_BYTES)]
    ct: Annotated[
        bytes,
        msgspec.Meta(min_length=AEAD_TAG_BYTES, max_length=BODY_BYTES_MAX + AEAD_TAG_BYTES),
    ]


class _ControlEnvelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    salt: Bytes16
    payload: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]


_header_decoder = msgspec.msgpack.Decoder(Header)
_wire_decoder = msgspec.msgpack.Decoder(RecordWire)
_data_decoder = msgspec.msgpack.Decoder(_DataEnvelope)
_control_decoder = msgspec.msgpack.Decoder(_ControlEnvelope)


@dataclass(frozen=True, slots=True)
class Envelope:
    """The detachable part of a record."""

    salt: bytes
    """16 random bytes: without them an erased body's commitment could be guessed."""
    epoch: bytes | None
    """First 16 bytes of the epoch record's id; None in a control record."""
    wrap: bytes | None
    """nonce 12 || data key sealed under the epoch key; None in a control record."""
    ct: bytes
    """Ciphertext, or the plain payload of a control record."""

    def encode(self) -> bytes:
        """The canonical bytes that the header commits to."""
        if self.epoch is None or self.wrap is None:
            return encode_canonical((self.salt, self.ct))
        return encode_canonical((self.salt, self.epoch, self.wrap, self.ct))


@dataclass(frozen=True, slots=True)
class Record:
    """A verified record; satisfies `p2p.replication.store.Verified`.

    `verify_record` leaves `plain`, `state`, `owner` and `relation` at their defaults; admission
    fills them in with `dataclasses.replace`.
    """

    id: bytes
    head: Header
    """The decoded header."""
    header: bytes
    """The signed bytes, as received."""
    signature: bytes
    envelope: Envelope | None
    owner: bytes
    plain: bytes | None = None
    state: str = STATE_LIVE
    relation: str = "other"

    @property
    def group(self) -> bytes:
        """The group id; a genesis record's own id."""
        return self.head.group or self.id

    @property
    def author(self) -> bytes:
        """Device key that signed."""
        return self.head.author

    @property
    def incarnation(self) -> int:
        """Which of the author's logs."""
        return self.head.incarnation

    @property
    def lane(self) -> int:
        """0 control, 1 data."""
        return lane_of(self.head.kind)

    @property
    def seq(self) -> int:
        """Place in the log, from 1."""
        return self.head.seq

    @property
    def prev(self) -> bytes | None:
        """Id of the record at seq - 1."""
        return self.head.prev

    @property
    def hlc(self) -> int:
        """Hybrid logical clock."""
        return self.head.hlc

    @property
    def kind(self) -> int:
        """Record kind."""
        return self.head.kind

    @property
    def auth(self) -> tuple[bytes, ...]:
        """A ops whose authority the author invokes."""
        return self.head.auth

    @property
    def key_tag(self) -> bytes | None:
        """State cell, or None."""
        return self.head.key_tag

    @property
    def supersedes(self) -> tuple[bytes, ...]:
        """Ids this record replaces."""
        return self.head.supersedes

    @property
    def payload(self) -> bytes | None:
        """Payload of a control record, if its envelope is here."""
        if self.envelope is None or self.envelope.epoch is not None:
            return None
        return self.envelope.ct

    def wire(self) -> RecordWire:
        """The record as it travels, envelope included if it is here."""
        envelope = None if self.envelope is None else self.envelope.encode()
        return RecordWire(self.header, self.signature, envelope)


def lane_of(kind: int) -> int:
    """0 (control) for kinds below 32, else 1 (data). Each lane has a chain of its own."""
    return LANE_CONTROL if kind < KIND_DATA_START else LANE_DATA


def is_authority(kind: int) -> bool:
    """Whether records of this kind are A ops: the set that decides who may do what."""
    return kind < KIND_AUTHORITY_END


def record_id(header: bytes) -> bytes:
    """32 bytes naming a record: hash of the signed bytes, the signature left out."""
    return hashlib.sha256(DOMAIN_ID + header).digest()


def body_commit(envelope: bytes) -> bytes:
    """32 bytes by which a header commits to its envelope."""
    return hashlib.sha256(DOMAIN_BODY + envelope).digest()


def encode_header(header: Header) -> bytes:
    """The bytes to sign. The caller keeps the header's invariants."""
    return encode_canonical(header)


def decode_header_untrusted(data: bytes) -> Header:
    """Decode a foreign header and hold it to every rule that needs no context.

    Raises:
        DecodeError: malformed, out of range, not canonical, or an invariant of `Header` broken.
    """
    header = decode_canonical_untrusted(
        _header_decoder, data, bytes_max=HEADER_BYTES_MAX, what="record header"
    )
    _check_shape(header)
    return header


def _check_shape(header: Header) -> None:
    genesis = header.kind == KIND_GENESIS
    if (header.group is None) != genesis:
        raise DecodeError("record header: only a genesis, and every genesis, names no group")
    if (not header.auth) != genesis:
        raise DecodeError("record header: only a genesis, and every genesis, cites no authority")
    if genesis and header.seq != 1:
        raise DecodeError("record header: a genesis is the first record of its log")
    if (header.prev is None) != (header.seq == 1):
        raise DecodeError("record header: prev is absent at seq 1 and nowhere else")
    if not strictly_ascending(header.auth):
        raise DecodeError("record header: auth does not ascend")
    if not strictly_ascending(header.supersedes):
        raise DecodeError("record header: supersedes does not ascend")


def encode_wire(wire: RecordWire) -> bytes:
    """The record as a MessagePack array, for a frame or a file."""
    return encode_canonical(wire)


def decode_wire_untrusted(data: bytes) -> RecordWire:
    """Decode a foreign record without looking into its header.

    Raises:
        DecodeError: malformed, over a limit, or not canonical.
    """
    return decode_canonical_untrusted(_wire_decoder, data, bytes_max=WIRE_BYTES_MAX, what="record")


def decode_envelope_untrusted(data: bytes, kind: int) -> Envelope:
    """Decode a foreign envelope of a record of `kind`.

    Raises:
        DecodeError: malformed, over a limit, not canonical, or not of the kind's lane.
    """
    if lane_of(kind) == LANE_CONTROL:
        control = decode_canonical_untrusted(
            _control_decoder, data, bytes_max=ENVELOPE_BYTES_MAX, what="control envelope"
        )
        return Envelope(control.salt, None, None, control.payload)
    sealed = decode_canonical_untrusted(
        _data_decoder, data, bytes_max=ENVELOPE_BYTES_MAX, what="data envelope"
    )
    return Envelope(sealed.salt, sealed.epoch, sealed.wrap, sealed.ct)


def verify_record(wire: RecordWire, verify: Verifier) -> Record:
    """Check everything about a record that needs no context: encoding, ranges, signature, body.

    Args:
        wire: the record as it travelled.
        verify: the signature check; it refuses small-order keys.

    Returns:
        The record, `plain` None and `state` "live".

    Raises:
        DecodeError: the header breaks a rule of the format.
        AuthError: the author's key did not sign it.
        BodyError: header and signature are good, the envelope is not the one committed to.
    """
    header = decode_header_untrusted(wire.header)
    return verify_decoded(wire, header, record_id(wire.header), verify)


def verify_decoded(wire: RecordWire, header: Header, ident: bytes, verify: Verifier) -> Record:
    """As `verify_record`, of a wire whose header was decoded already: by `decode_header_untrusted`.

    Args:
        wire: the record as it travelled.
        header: its header, decoded.
        ident: its `record_id`.
        verify: the signature check; it refuses small-order keys.

    Raises:
        AuthError: the author's key did not sign it.
        BodyError: header and signature are good, the envelope is not the one committed to.
    """
    if not verify(header.author, DOMAIN_RECORD, wire.header, wire.signature):
        raise AuthError("record: the author's key did not sign this header")
    envelope = None
    if wire.envelope is not None:
        envelope = verify_envelope(header, wire.envelope)
    return Record(ident, header, wire.header, wire.signature, envelope, header.author)


def verify_envelope(header: Header, data: bytes) -> Envelope:
    """Check a foreign envelope against the header that commits to it.

    Raises:
        BodyError: another size or hash, or not an envelope.
    """
    if len(data) != header.body_size:
        raise BodyError(f"record body: {len(data)} bytes, the header says {header.body_size}")
    if body_commit(data) != header.body_commit:
        raise BodyError("record body: not the one its header commits to")
    try:
        return decode_envelope_untrusted(data, header.kind)
    except DecodeError as error:
        raise BodyError(str(error)) from error
