"""Who starts the handshake on a punched connection. Pure bookkeeping; `p2p.net.puncher` acts on it.

Theory of operation
-------------------
Two peers behind NATs dial each other at the same moment, so that each NAT takes the other's SYN for
an answer. Three things can come of it: the two SYNs meet and become one connection that both sides
dialled; one arrives when the other side is not dialling (before, between two tries) and is accepted
by its listener; or it comes from a port nobody expected, because that NAT draws a port for each
target. So a punched connection's Noise initiator cannot be "who dialled": the two agree on it
beforehand, and while a punch is under way every connection with that address follows the agreement.
From an unexpected port of the address it is followed only after a silence, in which an honest
ordinary dialler would have spoken. Source: mesh measurements in namespaces; libp2p specs
`relay/DCUtR.md`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.wire.multiaddr import ip_of, tcp_addr_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from p2p.identity import PeerId
    from p2p.net.seam import Addr

CONNECT_S: Final = 2.5
"""One try to connect: longer than the kernel's second SYN after 1 s and a slow round trip."""
PAUSE_S: Final = 0.1
"""Between two tries at one address."""
SILENCE_S: Final = 0.5
"""How long a connection from an unexpected port may be silent before we speak first."""


@dataclass(frozen=True)
class Punch:
    """A punch under way."""

    peer: PeerId
    initiator: bool
    """Whether we start the handshake."""
    targets: frozenset[tuple[str, int]]
    """(IP address, port) at which the peer is dialled."""


class Punches:
    """The punches under way."""

    def __init__(self) -> None:
        self._live: list[Punch] = []

    @contextmanager
    def under_way(self, peer: PeerId, addrs: Sequence[Addr], *, initiator: bool) -> Iterator[Punch]:
        """Expect connections of `peer` from these addresses inside the block."""
        targets = set[tuple[str, int]]()
        for addr in addrs:
            tcp = tcp_addr_untrusted(addr)
            if tcp is not None and tcp.ip is not None:
                targets.add((str(tcp.ip), tcp.port))
        punch = Punch(peer, initiator, frozenset(targets))
        self._live.append(punch)
        try:
            yield punch
        finally:
            self._live.remove(punch)

    def expected(self, addr: Addr) -> Punch | None:
        """The punch whose dialled address a connection comes from."""
        tcp = tcp_addr_untrusted(addr)
        if tcp is None or tcp.ip is None:
            return None
        target = (str(tcp.ip), tcp.port)
        return next((punch for punch in self._live if target in punch.targets), None)

    def from_host(self, addr: Addr) -> Punch | None:
        """The one punch with the host that a connection comes from; None if there are several."""
        ip = str(ip_of(addr))
        found = [p for p in self._live if any(host == ip for host, _ in p.targets)]
        return found[0] if len(found) == 1 else None
