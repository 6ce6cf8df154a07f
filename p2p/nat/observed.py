"""What others say of our address: the mapping that our NAT gives the port we listen at. Pure.

Theory of operation
-------------------
Every peer tells where it sees us (identify's `observedAddr`). Seen from the port we listen at, that
is where our NAT sends a packet back to us from. One peer may lie or see a detour, so an address
counts as *confirmed* once peers of two networks say the same; for hole punching, which aims at the
peer that we talk to anyway, one word is enough. If peers see the same host but different ports for
one port of ours, the NAT draws a port for each target (symmetric), and no observed port is of use
to a third one. What is remembered is one word a peer, as long as it is connected.
Source: libp2p specs `identify/README.md`; RFC 4787 s.4.1.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.wire.multiaddr import ip_of, is_relayed, prefix_of, tcp_addr_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.identity import PeerId
    from p2p.net.seam import Addr

NETWORKS_MIN: Final = 2
"""Networks (/24, /48) whose peers must agree. Source: mesh design s.9."""
OBSERVERS_MAX: Final = 512
"""Words remembered; as many as there may be connections."""


@dataclass(frozen=True)
class _Word:
    network: str
    observed: Addr


class Observations:
    """What connected peers say of our address.

    Args:
        is_public: whether an address can be reached by everybody.
    """

    def __init__(self, is_public: Callable[[Addr], bool]) -> None:
        self._is_public = is_public
        self._words: dict[PeerId, _Word] = {}

    def note(self, peer: PeerId, peer_addr: Addr, observed: Addr) -> bool:
        """`peer`, at `peer_addr`, sees our listening port as `observed`; whether that is news."""
        ip = ip_of(peer_addr)
        tcp = tcp_addr_untrusted(observed)
        usable = ip is not None and tcp is not None and not is_relayed(peer_addr)
        if not usable or ip is None or not self._is_public(observed):
            return self.forget(peer)
        word = _Word(prefix_of(ip), observed)
        if self._words.get(peer) == word:
            return False
        if peer not in self._words and len(self._words) >= OBSERVERS_MAX:
            return False
        self._words[peer] = word
        return True

    def forget(self, peer: PeerId) -> bool:
        """`peer` is gone; whether it had said anything."""
        return self._words.pop(peer, None) is not None

    def clear(self) -> None:
        """Our network changed: nothing that was seen holds any more."""
        self._words.clear()

    def confirmed(self) -> list[Addr]:
        """Addresses that peers of `NETWORKS_MIN` networks agree on, most agreed first."""
        networks = self._networks()
        found = [addr for addr, who in networks.items() if len(who) >= NETWORKS_MIN]
        return sorted(found, key=lambda addr: (-len(networks[addr]), addr))

    def heard(self) -> list[Addr]:
        """Every address that anybody saw, most agreed first."""
        networks = self._networks()
        return sorted(networks, key=lambda addr: (-len(networks[addr]), addr))

    def symmetric(self) -> bool | None:
        """Whether our NAT draws a port for each target; None if too few peers spoke.

        Hosts are compared by address family: a host with several ports is the sign.
        """
        ports: dict[str, set[int]] = defaultdict(set)
        speakers: dict[str, int] = defaultdict(int)
        for word in self._words.values():
            tcp = tcp_addr_untrusted(word.observed)
            assert tcp is not None
            ports[tcp.host].add(tcp.port)
            speakers[tcp.host] += 1
        several = [host for host, count in speakers.items() if count > 1]
        if not several:
            return None
        return any(len(ports[host]) > 1 for host in several)

    def _networks(self) -> dict[Addr, set[str]]:
        networks: dict[Addr, set[str]] = defaultdict(set)
        for word in self._words.values():
            networks[word.observed].add(word.network)
        return networks
