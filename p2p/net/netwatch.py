"""Notices that this machine is on another network, or woke up.

Theory of operation. No portable call tells of a change, so every two seconds we ask which addresses
this machine has and which of them it would send from, some 0.2 ms of work, and compare. Two states
of the network are the same if these are. A machine that slept shows by its wall clock: it went on
while the monotonic one stood still. A wall clock that was set forward by over ten seconds looks the
same; the answer to both is to check the connections once, which harms none.

Whoever is told must stand being told too often. Source: docs/specs/lan.md s.5.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from p2p.net.interfaces import addresses_of, list_interfaces
from p2p.net.tcp import source_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.env import Env
    from p2p.net.interfaces import Interface

log = logging.getLogger("covey.p2p.netwatch")

WOKE_S: Final = 10.0
"""The wall clock ahead of the monotonic one by more means that the machine slept."""


@dataclass(frozen=True)
class NetworkChange:
    """What is different now."""

    addresses: tuple[str, ...]
    """Addresses of this machine that others could reach, those it sends from first."""
    woke: bool
    """Whether the machine slept."""
    moved: bool
    """Whether the addresses are others than before."""


class Watch:
    """The comparison; it reads no clock and asks no system."""

    def __init__(self) -> None:
        self._state: tuple[frozenset[tuple[str, str]], tuple[str, ...]] | None = None
        self._ahead_s: float | None = None

    def observe(
        self, sources: Sequence[str], interfaces: Sequence[Interface], now: float, wall_ms: int
    ) -> NetworkChange | None:
        """What changed since the last call; None if nothing did, or if this is the first.

        Args:
            sources: addresses this machine sends from, best first.
            interfaces: interfaces that are up.
            now: monotonic seconds.
            wall_ms: Unix milliseconds.
        """
        pairs = addresses_of(interfaces)
        state = pairs, tuple(sources)
        ahead_s = wall_ms / 1000 - now
        before, before_s = self._state, self._ahead_s
        self._state, self._ahead_s = state, ahead_s
        if before is None or before_s is None:
            return None
        woke, moved = ahead_s - before_s > WOKE_S, state != before
        if not woke and not moved:
            return None
        addresses = dict.fromkeys([*sources, *sorted(address for _, address in pairs)])
        return NetworkChange(tuple(addresses), woke, moved)


class NetWatch:
    """Looks every two seconds and tells.

    Args:
        env: clocks.
        changed: told each change, in the loop; must not block or raise.
        every_s: how often to look.
        sources: asks which addresses we send from.
        interfaces: asks which addresses there are.
    """

    def __init__(
        self,
        env: Env,
        changed: Callable[[NetworkChange], None],
        every_s: float,
        *,
        sources: Callable[[], Sequence[str]] = source_addresses,
        interfaces: Callable[[], Sequence[Interface]] = list_interfaces,
    ) -> None:
        self._env = env
        self._changed = changed
        self._every_s = every_s
        self._sources = sources
        self._interfaces = interfaces
        self._watch = Watch()

    def check(self) -> NetworkChange | None:
        """Look once, and tell if something changed."""
        change = self._watch.observe(
            self._sources(), self._interfaces(), self._env.now(), self._env.wall_ms()
        )
        if change is not None:
            log.info(
                "network_changed",
                extra={"f": {"addresses": len(change.addresses), "woke": change.woke}},
            )
            self._changed(change)
        return change

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled; started when the first state is known."""
        self.check()
        task_status.started()
        while True:
            await trio.sleep(self._every_s)
            self.check()
