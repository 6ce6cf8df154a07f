"""Dialling a peer at several addresses: in order, staggered, the first proven one wins.

Source: RFC 8305 s.4 (interleaving), s.5 (connection attempt delay); docs/specs/wire.md s.7.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from p2p.errors import P2pError, PeerError, Unreachable
from p2p.wire.multiaddr import ip_of, is_relayed, scope_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from p2p.net.seam import Addr

T = TypeVar("T")

_SCOPE_ORDER: Final = {"loopback": 0, "private": 1, "public": 2, "never": 9}
_NAME_ORDER: Final = 3
_RELAY_ORDER: Final = 4
RELAY_PLACES: Final = 2
"""Places of a dial that direct addresses leave to relayed ones, as many as a node has relays."""


def dial_order(addrs: Iterable[Addr]) -> list[Addr]:
    """Near before far, then names, relays last; IPv6 and IPv4 take turns, IPv6 first.

    In turns, because a family that does not work here would else cost a wait for each of its
    addresses. Equal ones keep their order.
    """
    groups: dict[int, dict[int, list[Addr]]] = {}
    for addr in dict.fromkeys(addrs):
        rank, family = _place(addr)
        groups.setdefault(rank, {4: [], 6: []})[family].append(addr)
    ordered: list[Addr] = []
    for _, families in sorted(groups.items()):
        for pair in zip_longest(families[6], families[4]):
            ordered += [addr for addr in pair if addr is not None]
    return ordered


def _place(addr: Addr) -> tuple[int, int]:
    """Rank and family of an address; names and relays have no turns to take."""
    if is_relayed(addr):
        return _RELAY_ORDER, 4
    ip = ip_of(addr)
    if ip is None:
        return _NAME_ORDER, 4
    return _SCOPE_ORDER[scope_of(ip)], ip.version


def best_of(addrs: Sequence[Addr], count: int) -> list[Addr]:
    """The first `count`, but many direct ones leave two places to relayed ones."""
    relayed = [addr for addr in addrs if is_relayed(addr)]
    direct = len(addrs) - len(relayed)
    spare = min(len(relayed), count, max(RELAY_PLACES, count - direct))
    kept = {*relayed[:spare], *[a for a in addrs if not is_relayed(a)][: count - spare]}
    return [addr for addr in addrs if addr in kept]


class Race(Generic[T]):
    """Attempts at several addresses, of which one result is kept. It runs once.

    Addresses may join while it runs: whoever wants the peer too may know better ones.

    Args:
        attempt: connects to one address; cancelled, it leaves nothing behind.
        discard: closes a result that came second.
        each_s: time of one attempt.
        stagger_s: the next attempt starts this long after the last, or when that one failed.
        addrs_max: addresses that may wait for their turn.
    """

    def __init__(
        self,
        attempt: Callable[[Addr], Awaitable[T]],
        discard: Callable[[T], Awaitable[None]],
        *,
        each_s: float,
        stagger_s: float,
        addrs_max: int,
    ) -> None:
        self._attempt = attempt
        self._discard = discard
        self._each_s = each_s
        self._stagger_s = stagger_s
        self._addrs_max = addrs_max
        self._waiting: list[Addr] = []
        self._started: dict[Addr, None] = {}
        self._running = 0
        self._changed = trio.Event()
        """Set when an address joined or an attempt failed."""
        self._won: list[T] = []
        self._errors: list[str] = []

    @property
    def known(self) -> list[Addr]:
        """Addresses that were tried, are, or will be."""
        return [*self._started, *self._waiting]

    def add(self, addrs: Iterable[Addr], *, first: bool) -> None:
        """Try these too, before those that wait or behind them; what was tried is not again.

        Of too many the last ones are left out.
        """
        new = [addr for addr in dict.fromkeys(addrs) if addr not in self._started]
        order = [*new, *self._waiting] if first else [*self._waiting, *new]
        self._waiting = best_of(list(dict.fromkeys(order)), self._addrs_max)
        self._changed.set()

    async def run(self) -> T:
        """The first result.

        Raises:
            Unreachable: every attempt failed; the message says how.
        """
        async with trio.open_nursery() as nursery:
            while self._waiting or self._running:
                self._changed = trio.Event()
                if not self._waiting:
                    await self._changed.wait()
                    continue
                addr = self._waiting.pop(0)
                self._started[addr] = None
                self._running += 1
                failed = trio.Event()
                nursery.start_soon(self._run_one, addr, failed, nursery.cancel_scope)
                with trio.move_on_after(self._stagger_s):
                    await failed.wait()
        if self._won:
            return self._won[0]
        raise Unreachable("; ".join(self._errors) or "no address to dial")

    async def _run_one(self, addr: Addr, failed: trio.Event, everything: trio.CancelScope) -> None:
        try:
            with trio.fail_after(self._each_s):
                result = await self._attempt(addr)
        except trio.TooSlowError:
            self._errors.append(f"{addr}: no answer in {self._each_s:g} s")
        except PeerError as error:
            self._errors.append(f"{addr}: {error}")
        except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            text = str(error)
            self._errors.append(text if text.startswith(addr) else f"{addr}: {text}")
        else:
            if self._won:
                await self._discard(result)
            else:
                self._won.append(result)
                everything.cancel()
        self._running -= 1
        failed.set()
        self._changed.set()
