"""The default gateway: whom to ask for a mapped port.

Linux tells it in a file of the kernel's, which is read in some 20 us without waiting for any disk.
macOS has no such file; there `route -n get default` is run as a process of its own, so that the
loop goes on meanwhile. Elsewhere there is none. Source: proc(5); route(8).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

ROUTES: Final = Path("/proc/net/route")
ROUTE_COMMAND: Final = ("/sbin/route", "-n", "get", "default")
ROUTE_S: Final = 3.0
"""The command answers within milliseconds; this ends a hang."""
_IS_LINUX: Final = sys.platform == "linux"
_UP: Final = 0x1
_GATEWAY: Final = 0x2
_GATEWAY_LINE: Final = re.compile(r"^\s*gateway:\s*([0-9.]+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Gateway:
    """A default gateway and our address towards it."""

    address: ipaddress.IPv4Address
    own: ipaddress.IPv4Address


def gateway_of_routes(text: str) -> ipaddress.IPv4Address | None:
    """The default gateway in the text of `/proc/net/route`, the one with the least metric."""
    lines = [line.split() for line in text.splitlines()]
    if not lines:
        return None
    places: Mapping[str, int] = {name: place for place, name in enumerate(lines[0])}
    found: list[tuple[int, ipaddress.IPv4Address]] = []
    for row in lines[1:]:
        try:
            flags = int(row[places["Flags"]], 16)
            is_default = not int(row[places["Destination"]], 16) and not int(
                row[places["Mask"]], 16
            )
            # The kernel prints the address as a number in the machine's own byte order.
            packed = int(row[places["Gateway"]], 16).to_bytes(4, sys.byteorder)
            metric = int(row[places["Metric"]])
        except (KeyError, IndexError, ValueError, OverflowError):
            continue
        if is_default and flags & _UP and flags & _GATEWAY:
            found.append((metric, ipaddress.IPv4Address(packed)))
    return min(found)[1] if found else None


def gateway_of_command(text: str) -> ipaddress.IPv4Address | None:
    """The gateway in the output of `route -n get default`."""
    found = _GATEWAY_LINE.search(text)
    try:
        return ipaddress.IPv4Address(found[1]) if found else None
    except ValueError:
        return None


async def default_gateway() -> Gateway | None:
    """Whom to ask for a mapped port; None without an IPv4 network."""
    await trio.lowlevel.checkpoint()
    address = await _ask_system()
    own = None if address is None else own_address_towards(address)
    return None if address is None or own is None else Gateway(address, own)


async def _ask_system() -> ipaddress.IPv4Address | None:
    if _IS_LINUX:
        try:
            return gateway_of_routes(ROUTES.read_text("ascii"))
        except (OSError, UnicodeDecodeError):
            return None
    with trio.move_on_after(ROUTE_S):
        try:
            done = await trio.run_process(
                ROUTE_COMMAND, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
            )
        except OSError:
            return None
        return gateway_of_command(bytes(done.stdout or b"").decode("ascii", "replace"))
    return None


def own_address_towards(gateway: ipaddress.IPv4Address) -> ipaddress.IPv4Address | None:
    """Our address on the gateway's link: asks the routing table and sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((str(gateway), 9))
            return ipaddress.IPv4Address(str(sock.getsockname()[0]))
    except OSError:
        return None
