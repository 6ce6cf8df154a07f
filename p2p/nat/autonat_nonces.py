"""The nonces we wait for, and whether one that came proves anything. Pure.

A nonce proves that the address we asked about leads to us, because only whoever connected to us can
have delivered it; the server's own word does not. So it counts only on a connection that the other
side opened after we had asked, directly, and once from each host: a replay brings no second voice.
Source: libp2p specs `autonat/autonat-v2.md`; docs/specs/reachability.md s.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p.net.contacts import host_of
from p2p.wire.multiaddr import ip_of, is_relayed

if TYPE_CHECKING:
    from p2p.net.seam import Addr

WAITING_MAX: Final = 32
"""Nonces waited for at once; we ask one server after the other, so there are few."""
HOSTS_PER_NONCE_MAX: Final = 4
"""Hosts that may deliver one: the server, and those it asks to help."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A nonce that came, and the connection it came on."""

    nonce: int
    remote: Addr
    """Where the connection comes from."""
    since_s: float
    """When it was accepted."""
    inbound: bool
    """Whether the other side dialled, and we did not."""
    unasked: bool
    """Whether its host was no contact of ours when it came."""


@dataclass(frozen=True)
class Proof:
    """What a delivered nonce shows."""

    addr: Addr
    """The address of ours that leads to us."""
    host: str
    """Who got in there."""
    strong: bool
    """Whether any other host would have got in as well."""


@dataclass
class _Waiting:
    addr: Addr
    since_s: float
    until_s: float
    hosts: set[str] = field(default_factory=set)


class Nonces:
    """Nonces that are under way.

    Args:
        wait_s: how long one is waited for.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._waiting: dict[int, _Waiting] = {}

    def issue(self, nonce: int, addr: Addr, now: float) -> None:
        """Wait for `nonce`, which a server was told together with `addr`."""
        self._waiting = {n: each for n, each in self._waiting.items() if now < each.until_s}
        if len(self._waiting) >= WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[nonce] = _Waiting(addr, now, now + self._wait_s)

    def clear(self) -> None:
        """Our network changed: what comes for earlier requests proves nothing of the new one."""
        self._waiting.clear()

    def take(self, delivery: Delivery, now: float) -> Proof | None:
        """What a delivery proves; None: nothing."""
        waiting = self._waiting.get(delivery.nonce)
        ip = ip_of(delivery.remote)
        if waiting is None or now >= waiting.until_s or ip is None or is_relayed(delivery.remote):
            return None
        if not delivery.inbound or delivery.since_s < waiting.since_s:
            return None
        host = host_of(ip)
        if host in waiting.hosts or len(waiting.hosts) >= HOSTS_PER_NONCE_MAX:
            return None
        waiting.hosts.add(host)
        return Proof(waiting.addr, host, delivery.unasked)
