"""NAT-PMP: the bytes with which a gateway is asked for its external address and for a port.

Requests and replies are fixed tables of a few bytes over UDP port 5351. Source: RFC 6886 s.3;
docs/specs/portmap.md s.2.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2p.errors import DecodeError

PORT: Final = 5351
SEND_AT_S: Final = (0.0, 0.25, 0.75, 1.75)
"""A request is sent again at these times. RFC 6886 s.3.1 goes on to 64 s; UPnP is tried by then."""
GIVE_UP_S: Final = 3.75
"""No reply by then: the gateway does not speak it. The wait after the last sending, doubled."""
EPOCH_SLACK_S: Final = 2.0
"""How much a gateway's clock may lag behind. Source: RFC 6886 s.3.6."""

_VERSION: Final = 0
_ASK_ADDRESS: Final = 0
_MAP_TCP: Final = 2
_REPLY: Final = 0x80
_SUCCESS: Final = 0

REFUSALS: Final = {
    1: "it speaks another version",
    2: "port mapping is switched off there",
    3: "it has no network itself",
    4: "it has no room for another mapping",
    5: "it does not know the request",
}
"""What each result code means. Source: RFC 6886 s.3.5."""


@dataclass(frozen=True)
class AddressReply:
    """The gateway's external address."""

    epoch_s: int
    """Seconds since the gateway last lost its mappings."""
    address: ipaddress.IPv4Address

    @property
    def usable(self) -> ipaddress.IPv4Address | None:
        """The address, None for the zeros that a gateway without a line of its own tells."""
        return None if self.address.is_unspecified else self.address


@dataclass(frozen=True)
class MapReply:
    """A port that the gateway forwards to us, or no longer does."""

    epoch_s: int
    internal_port: int
    external_port: int
    lifetime_s: int


@dataclass(frozen=True)
class Refusal:
    """The gateway said no."""

    epoch_s: int
    result: int
    """Not 0; see `REFUSALS`."""
    is_map: bool
    """Whether a mapping was refused, not the question for the address."""

    @property
    def reason(self) -> str:
        """For people."""
        return REFUSALS.get(self.result, f"it answered with result {self.result}")


Reply: TypeAlias = AddressReply | MapReply | Refusal


def encode_ask_address() -> bytes:
    """A request for the external address."""
    return bytes((_VERSION, _ASK_ADDRESS))


def encode_map_tcp(internal_port: int, external_port: int, lifetime_s: int) -> bytes:
    """A request to forward a TCP port; lifetime 0 with external port 0 ends the mapping.

    Args:
        internal_port: ours.
        external_port: the gateway's port we would like; it may give another.
        lifetime_s: for how long.
    """
    return struct.pack("!BBHHHI", _VERSION, _MAP_TCP, 0, internal_port, external_port, lifetime_s)


def decode_natpmp_untrusted(data: bytes) -> Reply:
    """Read a reply.

    Raises:
        DecodeError: not a reply of version 0 to one of our requests.
    """
    if len(data) < 8:
        raise DecodeError("NAT-PMP: a reply has at least 8 bytes")
    version, opcode, result, epoch_s = struct.unpack_from("!BBHI", data)
    if version != _VERSION or opcode not in (_REPLY | _ASK_ADDRESS, _REPLY | _MAP_TCP):
        raise DecodeError("NAT-PMP: not a reply to a request of ours")
    is_map = opcode == _REPLY | _MAP_TCP
    if result != _SUCCESS:
        return Refusal(epoch_s, result, is_map)
    if len(data) != (16 if is_map else 12):
        raise DecodeError("NAT-PMP: a reply of a wrong length")
    if is_map:
        internal_port, external_port, lifetime_s = struct.unpack_from("!HHI", data, 8)
        return MapReply(epoch_s, internal_port, external_port, lifetime_s)
    return AddressReply(epoch_s, ipaddress.IPv4Address(data[8:12]))


class EpochWatch:
    """Notices that the gateway lost its mappings: its clock began anew.

    The gateway's count is expected to have grown by 7/8 of our own time at least. Source: RFC 6886
    s.3.6.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def restarted(self, epoch_s: int, now: float) -> bool:
        """Take a reply's epoch; whether the gateway restarted since the reply before."""
        last, self._last = self._last, (epoch_s, now)
        if last is None:
            return False
        expected_s = last[0] + (now - last[1]) * 7 / 8
        return epoch_s < expected_s - EPOCH_SLACK_S
