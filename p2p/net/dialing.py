"""Dialling a peer at several addresses: in order, staggered, the first proven one wins.

Source: RFC 8305 s.5 (connection attempt delay); docs/specs/wire.md s.7.
"""

from __future__ import annotations

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


def dial_order(addrs: Iterable[Addr]) -> list[Addr]:
    """Near before far, IPv6 before IPv4, then names, relays last; equal ones keep their order."""

    def key(addr: Addr) -> tuple[int, int]:
        if is_relayed(addr):
            return _RELAY_ORDER, 0
        ip = ip_of(addr)
        if ip is None:
            return _NAME_ORDER, 0
        return _SCOPE_ORDER[scope_of(ip)], -ip.version

    return sorted(dict.fromkeys(addrs), key=key)


class Race(Generic[T]):
    """Attempts at several addresses, of which one result is kept.

    Args:
        attempt: connects to one address; cancelled, it leaves nothing behind.
        discard: closes a result that came second.
    """

    def __init__(
        self, attempt: Callable[[Addr], Awaitable[T]], discard: Callable[[T], Awaitable[None]]
    ) -> None:
        self._attempt = attempt
        self._discard = discard
        self._won: list[T] = []
        self._errors: list[str] = []

    async def run(self, addrs: Sequence[Addr], *, each_s: float, stagger_s: float) -> T:
        """The first result.

        Raises:
            Unreachable: every attempt failed; the message says how.
        """
        async with trio.open_nursery() as nursery:
            for addr in addrs:
                failed = trio.Event()
                nursery.start_soon(self._run_one, addr, each_s, failed, nursery.cancel_scope)
                with trio.move_on_after(stagger_s):
                    await failed.wait()
        if self._won:
            return self._won[0]
        raise Unreachable("; ".join(self._errors) or "no address to dial")

    async def _run_one(
        self, addr: Addr, each_s: float, failed: trio.Event, everything: trio.CancelScope
    ) -> None:
        try:
            with trio.fail_after(each_s):
                result = await self._attempt(addr)
        except trio.TooSlowError:
            self._errors.append(f"{addr}: no answer in {each_s:g} s")
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
        failed.set()
