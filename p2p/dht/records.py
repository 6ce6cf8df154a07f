"""What the DHT stores: who may say it, how long it holds, and which of two is the better.

Every datum is an envelope signed by whom it speaks of, so that a node in between can drop it but
not change it. Three kinds: peer records (where a peer is), values (what an owner put under its own
key and a name), providers (who offers something). Source: docs/specs/dht.md s.4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from p2p.dht.keys import PeerKey, ValueKey, decode_key_untrusted, value_key
from p2p.dht.messages import CLAIM_BYTES_MAX, RECORD_BYTES_MAX, VALUE_BYTES_MAX
from p2p.errors import AuthError, DecodeError, LimitError, UsageError
from p2p.wire.envelope import (
    open_envelope_untrusted,
    open_peer_record_untrusted,
    seal_envelope,
    seal_peer_record,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.dht.messages import DhtPeer
    from p2p.identity import PeerId, Signer
    from p2p.net.seam import Addr
    from p2p.wire.envelope import PeerRecord

VALUE_DOMAIN: Final = b"covey-dht-value"
VALUE_TYPE: Final = b"/covey/kv/1"
PROVIDER_DOMAIN: Final = b"covey-provider"
PROVIDER_TYPE: Final = b"/covey/provider/1"
BODY_BYTES_MAX: Final = 1024
"""What an owner may say in a value. The DHT points at things, it does not hold them."""
AHEAD_S_MAX: Final = 48 * 3600
"""How far ahead an expiry or a date may lie: two lives of a record, for clocks that are wrong."""
BEHIND_S_MAX: Final = 48 * 3600
"""How old a peer record may be: a life of 24 h and as much for clocks that are wrong. A recording
of an older one tells where a peer once was."""

_VERSION: Final = 1


class _Value(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    key: bytes
    seq: int
    expires_s: int
    body: bytes


class _Claim(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    key: bytes
    expires_s: int


@dataclass(frozen=True)
class Verified:
    """A value whose signature, owner, key and dates are right."""

    value: bytes
    """As it travels."""
    seq: int
    expires_s: int
    """Unix seconds after which it is void."""
    body: bytes
    """What the owner says; empty for a peer record."""
    addrs: tuple[Addr, ...] = ()
    """For a peer record: where the peer is."""

    def beats(self, other: Verified | None) -> bool:
        """Whether this one is to be kept instead of `other`: later, or equally late and larger."""
        return other is None or (self.seq, self.value) > (other.seq, other.value)


def seal_value(signer: Signer, name: bytes, seq: int, expires_s: int, body: bytes) -> bytes:
    """Our value under our own key and `name`.

    Raises:
        UsageError: the body is over 1,024 bytes or the name over 32.
    """
    if len(body) > BODY_BYTES_MAX:
        raise UsageError(f"a value has at most {BODY_BYTES_MAX} bytes, this has {len(body)}")
    value = _Value(_VERSION, value_key(signer.id, name), seq, expires_s, body)
    return seal_envelope(signer, VALUE_DOMAIN, VALUE_TYPE, msgspec.msgpack.encode(value))


def seal_claim(signer: Signer, key: bytes, expires_s: int) -> bytes:
    """Our word that we provide what `key` names."""
    claim = _Claim(_VERSION, key, expires_s)
    return seal_envelope(signer, PROVIDER_DOMAIN, PROVIDER_TYPE, msgspec.msgpack.encode(claim))


def seal_own_record(signer: Signer, seq: int, addrs: Sequence[Addr]) -> bytes:
    """Our peer record; the last addresses are left out if it would pass 2,048 bytes."""
    kept = list(addrs)
    while True:
        record = seal_peer_record(signer, seq, kept)
        if len(record) <= RECORD_BYTES_MAX:
            return record
        kept.pop()


def verify_value(
    key: bytes, value: bytes, now_ms: int, *, require_signed: bool, lifetime_s: float
) -> Verified:
    """Check what a node wants stored under `key`, or answers for it.

    Args:
        key: what was asked for.
        value: what came.
        now_ms: Unix milliseconds.
        require_signed: whether namespaces other than ours are refused.
        lifetime_s: how long a value without a date of its own holds.

    Raises:
        DecodeError: malformed, too large, or for another key.
        AuthError: not signed by the owner of the key.
        LimitError: too old or dated too far ahead, which a wrong clock explains as well.
    """
    if len(value) > VALUE_BYTES_MAX:
        raise DecodeError("a value is over its limit")
    parsed = decode_key_untrusted(key)
    if isinstance(parsed, PeerKey):
        return _verify_peer_value(parsed, value, now_ms, lifetime_s)
    if isinstance(parsed, ValueKey):
        return _verify_kv(key, parsed, value, now_ms)
    if require_signed:
        raise DecodeError("a key of a namespace that is not ours")
    return Verified(value, 0, now_ms // 1000 + int(lifetime_s), value)


def _verify_peer_value(key: PeerKey, value: bytes, now_ms: int, lifetime_s: float) -> Verified:
    record = open_peer_record_untrusted(value)
    if record.peer != key.owner:
        raise AuthError("a peer record under another peer's key", record.peer)
    if record.seq > now_ms + AHEAD_S_MAX * 1000:
        raise LimitError("a peer record is dated too far ahead")
    if record.seq < now_ms - BEHIND_S_MAX * 1000:
        raise LimitError("a peer record is too old")
    expires_s = min(record.seq, now_ms) // 1000 + BEHIND_S_MAX
    expires_s = min(expires_s, now_ms // 1000 + int(lifetime_s))
    return Verified(value, record.seq, expires_s, b"", record.addrs)


def _verify_kv(key: bytes, parsed: ValueKey, value: bytes, now_ms: int) -> Verified:
    statement = open_envelope_untrusted(value, VALUE_DOMAIN, VALUE_TYPE)
    if statement.peer != parsed.owner:
        raise AuthError("a value under another peer's key", statement.peer)
    content = _decode_value_untrusted(statement.payload)
    if content.key != key:
        raise DecodeError("a value was signed for another key")
    if len(content.body) > BODY_BYTES_MAX:
        raise DecodeError("a value's body is over 1,024 bytes")
    _check_expiry(content.expires_s, now_ms)
    if not 0 <= content.seq < 1 << 63:
        raise DecodeError("a value's seq is out of range")
    return Verified(value, content.seq, content.expires_s, content.body)


def verify_claim(key: bytes, peer: PeerId, claim: bytes, now_ms: int) -> int:
    """Check that `peer` says itself that it provides `key`; Unix seconds until which it does.

    Raises:
        DecodeError: malformed, too large, or for another key.
        AuthError: not signed by `peer`.
        LimitError: expired or too far ahead.
    """
    if len(claim) > CLAIM_BYTES_MAX:
        raise DecodeError("a provider's claim is over its limit")
    statement = open_envelope_untrusted(claim, PROVIDER_DOMAIN, PROVIDER_TYPE)
    if statement.peer != peer:
        raise AuthError("a provider's claim was signed by somebody else", statement.peer)
    content = _decode_claim_untrusted(statement.payload)
    if content.key != key:
        raise DecodeError("a provider's claim is for another key")
    _check_expiry(content.expires_s, now_ms)
    return content.expires_s


def verify_peer_record(peer: PeerId, record: bytes) -> PeerRecord:
    """Check that `record` is `peer`'s own word of where it is.

    Raises:
        DecodeError: malformed or too large.
        AuthError: not signed by `peer`.
    """
    if len(record) > RECORD_BYTES_MAX:
        raise DecodeError("a peer record is over its limit")
    opened = open_peer_record_untrusted(record)
    if opened.peer != peer:
        raise AuthError("another peer's record", opened.peer)
    return opened


def with_addrs(named: DhtPeer) -> DhtPeer:
    """A peer with the addresses of its record beside it, for software that reads no record.

    Args:
        named: its record, if there is one, was verified before or is our own.
    """
    if named.addrs or not named.signed_record:
        return named
    return replace(named, addrs=verify_peer_record(named.peer, named.signed_record).addrs)


def _check_expiry(expires_s: int, now_ms: int) -> None:
    if expires_s * 1000 <= now_ms:
        raise LimitError("expired")
    if expires_s * 1000 > now_ms + AHEAD_S_MAX * 1000:
        raise LimitError("expires too far ahead")


def _decode_value_untrusted(data: bytes) -> _Value:
    try:
        value = msgspec.msgpack.decode(data, type=_Value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError("not a DHT value") from None
    if value.version != _VERSION:
        raise DecodeError("a DHT value of another version")
    return value


def _decode_claim_untrusted(data: bytes) -> _Claim:
    try:
        claim = msgspec.msgpack.decode(data, type=_Claim)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError("not a provider's claim") from None
    if claim.version != _VERSION:
        raise DecodeError("a provider's claim of another version")
    return claim
