"""Multiaddrs: `/ip4/192.0.2.7/tcp/15001` as text and as bytes.

Only the protocols Covey can use are known; an address with another code is refused as a whole, and
its neighbours in a list live on. Text and bytes are canonical both ways: one address, one form.
Source: https://github.com/multiformats/multiaddr; docs/specs/wire.md s.2.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from p2p.errors import DecodeError
from p2p.identity import decode_multihash_untrusted, parse_peer_untrusted, peer_multihash, peer_text
from p2p.limits import ADDR_BYTES_MAX
from p2p.wire.varint import decode_varint_untrusted, encode_varint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.identity import PeerId

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NO_VALUE: Final = 0
_VARIABLE: Final = -1


@dataclass(frozen=True)
class _Protocol:
    name: str
    code: int
    value_bytes: int  # fixed length, _NO_VALUE, or _VARIABLE


_PROTOCOLS: Final = (
    _Protocol("ip4", 4, 4),
    _Protocol("tcp", 6, 2),
    _Protocol("ip6", 41, 16),
    _Protocol("dns", 53, _VARIABLE),
    _Protocol("dns4", 54, _VARIABLE),
    _Protocol("dns6", 55, _VARIABLE),
    _Protocol("dnsaddr", 56, _VARIABLE),
    _Protocol("udp", 273, 2),
    _Protocol("p2p-circuit", 290, _NO_VALUE),
    _Protocol("p2p", 421, _VARIABLE),
    _Protocol("quic-v1", 461, _NO_VALUE),
)
_BY_NAME: Final = {protocol.name: protocol for protocol in _PROTOCOLS}
_BY_CODE: Final = {protocol.code: protocol for protocol in _PROTOCOLS}
# Longest legal address: a relayed one has two peer ids of 55 characters and a host name of 253.
_TEXT_CHARACTERS_MAX: Final = 512
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(?:(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\.)*(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z"
)
_PORT: Final = re.compile(r"(?:0|[1-9][0-9]{0,4})\Z")

Part: TypeAlias = tuple[str, str]
"""(protocol name, value as text; "" for protocols without one)."""


def parse_addr_untrusted(text: str) -> tuple[Part, ...]:
    """Split a multiaddr's text into its parts, each in canonical form.

    Raises:
        DecodeError: not a multiaddr, an unknown protocol, or over 256 bytes in binary.
    """
    if len(text) > _TEXT_CHARACTERS_MAX or not text.startswith("/"):
        raise DecodeError("multiaddr must start with / and be at most 512 characters")
    words = text[1:].split("/")
    parts: list[Part] = []
    index = 0
    while index < len(words):
        # "ipfs" is the former name of "p2p"; old tools still print it.
        name = "p2p" if words[index] == "ipfs" else words[index]
        protocol = _BY_NAME.get(name)
        if protocol is None:
            raise DecodeError("multiaddr has an unknown protocol")
        if protocol.value_bytes == _NO_VALUE:
            parts.append((name, ""))
            index += 1
            continue
        if index + 1 == len(words):
            raise DecodeError(f"multiaddr ends after /{name}")
        value = _value_text(protocol, _value_bytes(protocol, words[index + 1]))
        parts.append((name, value))
        index += 2
    if len(encode_parts(parts)) > ADDR_BYTES_MAX:
        raise DecodeError("multiaddr is over 256 bytes")
    return tuple(parts)


def format_addr(parts: Iterable[Part]) -> str:
    """The text of canonical parts."""
    return "".join(f"/{name}/{value}" if value else f"/{name}" for name, value in parts)


def canonical_addr_untrusted(text: str) -> str:
    """The one text form of an address.

    Raises:
        DecodeError: not a multiaddr we know.
    """
    return format_addr(parse_addr_untrusted(text))


def encode_parts(parts: Iterable[Part]) -> bytes:
    """The binary form of canonical parts."""
    out = bytearray()
    for name, text in parts:
        protocol = _BY_NAME[name]
        out += encode_varint(protocol.code)
        if protocol.value_bytes == _NO_VALUE:
            continue
        value = _value_bytes(protocol, text)
        if protocol.value_bytes == _VARIABLE:
            out += encode_varint(len(value))
        out += value
    return bytes(out)


def encode_addr(text: str) -> bytes:
    """The binary form of a multiaddr's text.

    Raises:
        DecodeError: as `parse_addr_untrusted`.
    """
    return encode_parts(parse_addr_untrusted(text))


def decode_addr_untrusted(data: bytes) -> str:
    """The text of a binary multiaddr.

    Raises:
        DecodeError: truncated, over 256 bytes, an unknown protocol or a value out of form.
    """
    if not 0 < len(data) <= ADDR_BYTES_MAX:
        raise DecodeError("multiaddr must have 1 to 256 bytes")
    parts: list[Part] = []
    offset = 0
    while offset < len(data):
        code, offset = _need_varint(data, offset)
        protocol = _BY_CODE.get(code)
        if protocol is None:
            raise DecodeError("multiaddr has an unknown protocol")
        length = protocol.value_bytes
        if length == _VARIABLE:
            length, offset = _need_varint(data, offset)
        if length > len(data) - offset:
            raise DecodeError("multiaddr is truncated")
        value = bytes(data[offset : offset + length])
        offset += length
        parts.append((protocol.name, _value_text(protocol, value) if length else ""))
        if length == 0 and protocol.value_bytes != _NO_VALUE:
            raise DecodeError(f"multiaddr has an empty /{protocol.name}")
    return format_addr(parts)


def _need_varint(data: bytes, offset: int) -> tuple[int, int]:
    found = decode_varint_untrusted(data, offset)
    if found is None:
        raise DecodeError("multiaddr is truncated")
    return found


def _value_bytes(protocol: _Protocol, text: str) -> bytes:
    match protocol.name:
        case "ip4" | "ip6":
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                raise DecodeError(f"multiaddr: not an {protocol.name} address") from None
            if len(address.packed) != protocol.value_bytes or "%" in text:
                raise DecodeError(f"multiaddr: not an {protocol.name} address")
            return address.packed
        case "tcp" | "udp":
            if not _PORT.fullmatch(text) or int(text) > 0xFFFF:
                raise DecodeError("multiaddr: port must be 0 to 65535")
            return int(text).to_bytes(2, "big")
        case "p2p":
            return peer_multihash(parse_peer_untrusted(text))
        case _:
            if not _HOST_NAME.match(text):
                raise DecodeError("multiaddr: not a host name")
            return text.encode("ascii")


def _value_text(protocol: _Protocol, value: bytes) -> str:
    match protocol.name:
        case "ip4":
            return str(ipaddress.IPv4Address(value))
        case "ip6":
            return str(ipaddress.IPv6Address(value))
        case "tcp" | "udp":
            return str(int.from_bytes(value, "big"))
        case "p2p":
            return peer_text(decode_multihash_untrusted(value))
        case _:
            try:
                text = value.decode("ascii")
            except UnicodeDecodeError:
                raise DecodeError("multiaddr: not a host name") from None
            if not _HOST_NAME.match(text):
                raise DecodeError("multiaddr: not a host name")
            return text


def split_peer_untrusted(text: str) -> tuple[str, PeerId | None]:
    """Split `/ip4/.../tcp/.../p2p/X` into the address and the peer; None without a last `/p2p`.

    Raises:
        DecodeError: as `parse_addr_untrusted`.
    """
    parts = parse_addr_untrusted(text)
    if parts and parts[-1][0] == "p2p":
        return format_addr(parts[:-1]), parse_peer_untrusted(parts[-1][1])
    return format_addr(parts), None


@dataclass(frozen=True)
class TcpAddr:
    """A multiaddr that TCP can dial or listen at."""

    kind: Literal["ip4", "ip6", "dns", "dns4", "dns6"]
    host: str
    port: int

    @property
    def ip(self) -> IpAddress | None:
        """The address, or None for a name."""
        return ipaddress.ip_address(self.host) if self.kind in ("ip4", "ip6") else None

    @property
    def text(self) -> str:
        """The multiaddr."""
        return f"/{self.kind}/{self.host}/tcp/{self.port}"


def tcp_addr_untrusted(text: str) -> TcpAddr | None:
    """Read a plain TCP multiaddr; None if it is another kind of address.

    Raises:
        DecodeError: not a multiaddr at all.
    """
    parts = parse_addr_untrusted(text)
    if len(parts) != 2 or parts[1][0] != "tcp":
        return None
    (kind, host), (_, port) = parts
    match kind:
        case "ip4" | "ip6" | "dns" | "dns4" | "dns6":
            return TcpAddr(kind, host, int(port))
        case _:
            return None


def ip_of(addr: str) -> IpAddress | None:
    """The IP address a multiaddr starts with, or None (names, relays, nonsense)."""
    try:
        parts = parse_addr_untrusted(addr)
    except DecodeError:
        return None
    if parts and parts[0][0] in ("ip4", "ip6"):
        return ipaddress.ip_address(parts[0][1])
    return None


def prefix_of(ip: IpAddress) -> str:
    """The network that limits count together: an IPv4 /24 or an IPv6 /48."""
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))


def is_relayed(addr: str) -> bool:
    """Whether an address leads over a relay: `/ip4/.../tcp/.../p2p/R/p2p-circuit`."""
    return "/p2p-circuit" in addr


def is_private(addr: str) -> bool:
    """Whether an address is a direct one in a private range."""
    ip = ip_of(addr)
    return ip is not None and not is_relayed(addr) and scope_of(ip) == "private"


def is_public(addr: str) -> bool:
    """Whether an address is a direct one that everybody can reach."""
    ip = ip_of(addr)
    return ip is not None and not is_relayed(addr) and scope_of(ip) == "public"


def scope_of(ip: IpAddress) -> Literal["loopback", "private", "public", "never"]:
    """How far an address reaches; "never" is not dialled (multicast, unspecified, reserved)."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    if mapped is not None:
        return scope_of(mapped)
    if ip.is_loopback:
        return "loopback"
    if ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return "never"
    if ip.is_global:
        return "public"
    return "private"
