"""Which hosts we have sent anything to lately. Pure: `now` is an argument.

A NAT that filters by address lets in every packet of a host that we sent to, so such a host cannot
prove that everybody gets in. This remembers them: hosts with a live connection, and for a while
those that were dialled or whose connection ended. Its memory is bounded, and where it had to forget
somebody early, nobody counts as unknown until that contact would have ended by itself.
Source: RFC 4787 s.5; docs/specs/reachability.md s.4.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from p2p.wire.multiaddr import IpAddress

HOSTS_MAX: Final = 4096
"""Hosts remembered, as many as the gate remembers."""


class Contacts:
    """Hosts we sent to.

    Args:
        window_s: how long a contact lasts after the last packet.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._last_s: OrderedDict[str, float] = OrderedDict()
        self._live: Counter[str] = Counter()
        self._blind_until_s = -math.inf

    def note(self, ip: IpAddress | None, now: float) -> None:
        """Something was sent to `ip`."""
        if ip is None:
            return
        host = host_of(ip)
        self._last_s.pop(host, None)
        self._last_s[host] = now
        while self._last_s:
            oldest, last_s = next(iter(self._last_s.items()))
            over = now - last_s >= self._window_s
            if not over and len(self._last_s) <= HOSTS_MAX:
                break
            del self._last_s[oldest]
            if not over:
                self._blind_until_s = max(self._blind_until_s, last_s + self._window_s)

    def begin(self, ip: IpAddress | None) -> None:
        """A connection with `ip` lives from now on."""
        if ip is not None:
            self._live[host_of(ip)] += 1

    def end(self, ip: IpAddress | None, now: float) -> None:
        """It ended."""
        if ip is not None:
            host = host_of(ip)
            self._live[host] -= 1
            if not self._live[host]:
                del self._live[host]
            self.note(ip, now)

    def unknown(self, ip: IpAddress | None, now: float) -> bool:
        """Whether `ip` is surely no contact; False for what has no address."""
        if ip is None or now < self._blind_until_s:
            return False
        host = host_of(ip)
        last_s = self._last_s.get(host, -math.inf)
        return not self._live[host] and now - last_s >= self._window_s


def host_of(ip: IpAddress) -> str:
    """What counts as one host: an IPv4 address or an IPv6 /64."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    ip = mapped or ip
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))
