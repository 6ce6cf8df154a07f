"""identify's message: who I am, where I listen, what I speak, how I see you.

The side that was opened answers `/ipfs/id/1.0.0`; the opener of `/ipfs/id/push/1.0.0` sends. A
sender may cut its message in up to ten parts; they are merged. Nothing in here is proof of
anything: the key must be the one the handshake proved, and addresses serve to dial that peer only.
Source: libp2p specs `identify/README.md`; docs/specs/wire.md s.6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from p2p.errors import DecodeError, LimitError
from p2p.identity import decode_public_key_untrusted, encode_public_key
from p2p.limits import (
    ADDRS_MAX,
    IDENTIFY_MESSAGE_BYTES_MAX,
    IDENTIFY_MESSAGES_MAX,
    IDENTIFY_SENT_BYTES_MAX,
)
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr
from p2p.wire.protobuf import decode_message_untrusted, encode_message
from p2p.wire.varint import decode_varint_untrusted, encode_varint

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.net.seam import Addr

IDENTIFY: Final = "/ipfs/id/1.0.0"
IDENTIFY_PUSH: Final = "/ipfs/id/push/1.0.0"
PING: Final = "/ipfs/ping/1.0.0"
PROTOCOL_VERSION: Final = "covey/1"

PROTOCOLS_MAX: Final = 256
"""Protocol names kept of a peer."""
TEXT_CHARACTERS_MAX: Final = 256
"""Longest protocol name or agent string kept."""

_KEY, _LISTEN, _PROTOCOLS, _OBSERVED, _VERSION, _AGENT, _RECORD = 1, 2, 3, 4, 5, 6, 8


@dataclass(frozen=True, kw_only=True)
class IdentifyMessage:
    """One message; None and empty mean absent, which in a push changes nothing."""

    peer: PeerId | None = None
    listen_addrs: tuple[Addr, ...] = ()
    protocols: tuple[str, ...] = ()
    observed_addr: Addr | None = None
    protocol_version: str = ""
    agent: str = ""
    signed_record: bytes = b""


def encode_identify(message: IdentifyMessage) -> bytes:
    """Encode, leaving out the last protocols and the record if it would pass 4,096 bytes."""
    protocols = list(message.protocols)
    record = message.signed_record
    while True:
        data = _encode(replace(message, protocols=tuple(protocols), signed_record=record))
        if len(data) <= IDENTIFY_SENT_BYTES_MAX or not (record or protocols):
            return data
        if record:
            record = b""
        else:
            protocols.pop()


def _encode(message: IdentifyMessage) -> bytes:
    fields: list[tuple[int, int | bytes]] = []
    if message.peer is not None:
        fields.append((_KEY, encode_public_key(message.peer)))
    fields += [(_LISTEN, encode_addr(addr)) for addr in message.listen_addrs]
    fields += [(_PROTOCOLS, name.encode()) for name in message.protocols]
    if message.observed_addr is not None:
        fields.append((_OBSERVED, encode_addr(message.observed_addr)))
    if message.protocol_version:
        fields.append((_VERSION, message.protocol_version.encode()))
    if message.agent:
        fields.append((_AGENT, message.agent.encode()))
    if message.signed_record:
        fields.append((_RECORD, message.signed_record))
    return encode_message(fields)


def decode_identify_untrusted(data: bytes) -> IdentifyMessage:
    """Read one message. Addresses we do not understand are left out.

    Raises:
        DecodeError: not an identify message, a key we refuse, or a text that is not UTF-8.
    """
    fields = decode_message_untrusted(data)
    key = fields.bytes_of(_KEY)
    addrs: list[Addr] = []
    for raw in fields.all_bytes(_LISTEN)[:ADDRS_MAX]:
        addr = _addr_or_none(raw)
        if addr is not None:
            addrs.append(addr)
    return IdentifyMessage(
        peer=None if key is None else decode_public_key_untrusted(key),
        listen_addrs=tuple(addrs),
        protocols=tuple(_text(raw) for raw in fields.all_bytes(_PROTOCOLS)[:PROTOCOLS_MAX]),
        observed_addr=_addr_or_none(fields.bytes_of(_OBSERVED) or b""),
        protocol_version=_text(fields.bytes_of(_VERSION) or b""),
        agent=_text(fields.bytes_of(_AGENT) or b""),
        signed_record=fields.bytes_of(_RECORD) or b"",
    )


def merge_identify(old: IdentifyMessage, new: IdentifyMessage) -> IdentifyMessage:
    """`old` with everything that is present in `new`."""
    return IdentifyMessage(
        peer=new.peer or old.peer,
        listen_addrs=new.listen_addrs or old.listen_addrs,
        protocols=new.protocols or old.protocols,
        observed_addr=new.observed_addr or old.observed_addr,
        protocol_version=new.protocol_version or old.protocol_version,
        agent=new.agent or old.agent,
        signed_record=new.signed_record or old.signed_record,
    )


def frame(data: bytes) -> bytes:
    """`data` with its length in front, as identify sends it."""
    return encode_varint(len(data)) + data


class IdentifyReader:
    """Collects length-prefixed messages until the stream ends."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._messages = 0
        self._merged = IdentifyMessage()

    def receive(self, data: bytes | bytearray) -> None:
        """Take bytes in any cut.

        Raises:
            DecodeError: not identify messages.
            LimitError: a message over 8,192 bytes, or the eleventh.
        """
        self._buffer += data
        while self._buffer:
            found = decode_varint_untrusted(self._buffer)
            if found is None:
                return
            length, start = found
            if length > IDENTIFY_MESSAGE_BYTES_MAX:
                raise LimitError("identify: a message is over 8,192 bytes")
            if len(self._buffer) < start + length:
                return
            self._messages += 1
            if self._messages > IDENTIFY_MESSAGES_MAX:
                raise LimitError("identify: more than ten messages")
            message = decode_identify_untrusted(bytes(self._buffer[start : start + length]))
            del self._buffer[: start + length]
            self._merged = merge_identify(self._merged, message)

    def end(self) -> IdentifyMessage:
        """The merged message.

        Raises:
            DecodeError: the stream ended inside a message, or before the first.
        """
        if self._buffer or not self._messages:
            raise DecodeError("identify: the stream ended inside a message")
        return self._merged


def _addr_or_none(raw: bytes) -> Addr | None:
    try:
        return decode_addr_untrusted(raw) if raw else None
    except DecodeError:
        return None


def _text(raw: bytes) -> str:
    try:
        return raw.decode()[:TEXT_CHARACTERS_MAX]
    except UnicodeDecodeError:
        raise DecodeError("identify: a text is not UTF-8") from None
