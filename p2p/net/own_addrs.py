"""Our own addresses: what each source knows of them, and the list to advertise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.limits import ADDRS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.net.seam import Addr, AddrSource

_ORDER: Final[tuple[AddrSource, ...]] = ("interface", "mapped", "observed", "relay")


class OwnAddrs:
    """The union of what the sources know, best source first, without repetition."""

    def __init__(self) -> None:
        self._known: dict[AddrSource, tuple[Addr, ...]] = {}

    def set(self, source: AddrSource, addrs: Sequence[Addr]) -> bool:
        """Replace what `source` knows; whether the list to advertise changed."""
        before = self.all()
        self._known[source] = tuple(addrs)
        return self.all() != before

    def of(self, source: AddrSource) -> tuple[Addr, ...]:
        """What `source` knows."""
        return self._known.get(source, ())

    def all(self) -> list[Addr]:
        """Addresses to advertise; at most as many as a peer reads."""
        every = [addr for source in _ORDER for addr in self._known.get(source, ())]
        return list(dict.fromkeys(every))[:ADDRS_MAX]

    def clear(self) -> None:
        """Forget everything: we are not reachable any more."""
        self._known.clear()
