"""This machine's network interfaces and their addresses, asked of the system.

`getifaddrs(3)` through ctypes: one call of some 0.1 ms, without a subprocess and without a
dependency. The package `ifaddr` does the same but does not tell an interface's flags, and LAN
discovery must know which ones carry multicast. Linux and macOS; elsewhere the list is empty.
Source: getifaddrs(3) of Linux man-pages and of macOS; netdevice(7) for the flags.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from p2p.wire.multiaddr import scope_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from p2p.wire.multiaddr import IpAddress

IpInterface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address with the length of its network's prefix."""

_IS_BSD: Final = sys.platform == "darwin"
_UP: Final = 0x1
_LOOPBACK: Final = 0x8
_POINT_TO_POINT: Final = 0x10
_RUNNING: Final = 0x40
_MULTICAST: Final = 0x8000 if _IS_BSD else 0x1000

# Offset and length of the address inside a sockaddr, by family; the same on both systems.
_ADDRESS_AT: Final = {int(socket.AF_INET): (4, 4), int(socket.AF_INET6): (8, 16)}
ENTRIES_MAX: Final = 1024
"""Entries looked at, some three an interface: a host of containers may have thousands, of which the
first suffice."""

CANDIDATES_MAX: Final = 4
"""Addresses of a family told beside those we send from: IPv6 makes a new one each day."""
_NET: Final = Path("/sys/class/net")


@dataclass(frozen=True)
class Interface:
    """A network interface that is up."""

    name: str
    index: int
    addresses: tuple[IpInterface, ...]
    """In the system's order; IPv6 ones that are valid on the link alone are among them."""
    loopback: bool = False
    multicast: bool = True
    point_to_point: bool = False

    def holds(self, ip: IpAddress) -> bool:
        """Whether `ip` lies in one of the networks of this interface."""
        return any(ip in address.network for address in self.addresses)


class _Ifaddrs(ctypes.Structure):
    pass


_Ifaddrs._fields_ = [
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("addr", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("other", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]


def list_interfaces() -> list[Interface]:
    """Interfaces that are up and running, by index; empty where the system cannot be asked."""
    try:
        rows = list(_rows())
    except (OSError, AttributeError):
        return []  # no getifaddrs here, or no memory for its answer
    flags = {name: bits for name, bits, _ in rows}
    addresses: dict[str, list[IpInterface]] = {name: [] for name in flags}
    for name, _, address in rows:
        if address is not None:
            addresses[name].append(address)
    found: list[Interface] = []
    for name, bits in flags.items():
        if not bits & _UP or not bits & _RUNNING:
            continue
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            continue  # it went away meanwhile
        found.append(
            Interface(
                name,
                index,
                tuple(addresses[name]),
                loopback=bool(bits & _LOOPBACK),
                multicast=bool(bits & _MULTICAST),
                point_to_point=bool(bits & _POINT_TO_POINT),
            )
        )
    return sorted(found, key=lambda interface: interface.index)


def _rows() -> Iterator[tuple[str, int, IpInterface | None]]:
    """(name, flags, address) of each entry; None for entries that are no IP address."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_Ifaddrs)()
    if libc.getifaddrs(ctypes.byref(head)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs failed")
    try:
        entry = head
        for _ in range(ENTRIES_MAX):
            try:
                row = entry.contents
            except ValueError:
                return  # the null pointer behind the last entry
            name = bytes(row.name or b"").decode("utf-8", "replace")
            yield name, int(row.flags), _address(row.addr, row.netmask)
            entry = row.next
    finally:
        libc.freeifaddrs(head)


def _address(addr: int | None, netmask: int | None) -> IpInterface | None:
    if not addr:
        return None
    family = _family(addr)
    if family not in _ADDRESS_AT:
        return None
    offset, size = _ADDRESS_AT[family]
    packed = ctypes.string_at(addr + offset, size)
    mask = _mask(netmask, offset, size)
    prefix = int.from_bytes(mask, "big").bit_count()
    if family == int(socket.AF_INET):
        return ipaddress.IPv4Interface((packed, prefix))
    if _IS_BSD and packed[:2] == b"\xfe\x80":
        packed = packed[:2] + bytes(2) + packed[4:]  # the kernel keeps the scope in there
    return ipaddress.IPv6Interface((packed, prefix))


def _family(sockaddr: int) -> int:
    head = ctypes.string_at(sockaddr, 2)
    return head[1] if _IS_BSD else int.from_bytes(head, sys.byteorder)


def _mask(netmask: int | None, offset: int, size: int) -> bytes:
    if not netmask:
        return b"\xff" * size  # no network: the address stands for itself
    if not _IS_BSD:
        return ctypes.string_at(netmask + offset, size)
    # BSD cuts trailing zero bytes off a mask and says so in its length.
    length = ctypes.string_at(netmask, 1)[0]
    return ctypes.string_at(netmask, length)[offset : offset + size].ljust(size, b"\0")


def is_bridge(interface: Interface) -> bool:
    """Whether an interface joins others on this machine, as those of containers do."""
    return (_NET / interface.name / "bridge").is_dir()


def candidates(
    interfaces: Iterable[Interface], skip: Callable[[Interface], bool] = is_bridge
) -> list[str]:
    """Addresses at which others may reach this machine, global ones first, four a family at most.

    Without loopback, without addresses of the link alone, and without those of bridges: others
    would look for them among their own containers.

    Args:
        interfaces: where to look.
        skip: which ones to leave out.
    """
    found: dict[IpAddress, None] = {}
    for interface in interfaces:
        if interface.loopback or skip(interface):
            continue
        for address in interface.addresses:
            if scope_of(address.ip) in ("public", "private") and not address.ip.is_link_local:
                found[address.ip] = None
    near_last = sorted(found, key=lambda ip: scope_of(ip) != "public")
    return [
        str(ip)
        for version in (4, 6)
        for ip in [ip for ip in near_last if ip.version == version][:CANDIDATES_MAX]
    ]


def addresses_of(interfaces: Iterable[Interface]) -> frozenset[tuple[str, str]]:
    """(interface, address) pairs that others could reach; a change of these is a change of network.

    Without loopback, and without IPv6 addresses of the link alone: they come and go with each
    container's interface and nobody dials them.
    """
    return frozenset(
        (interface.name, str(address.ip))
        for interface in interfaces
        if not interface.loopback
        for address in interface.addresses
        if not address.ip.is_link_local
    )
