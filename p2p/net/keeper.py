"""Keeps peers connected: dials at once, and again with growing waits.

Source: docs/specs/wire.md s.7 (reconnecting to a pinned peer).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import trio

from p2p.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.driver import Connection
    from p2p.net.seam import Addr
    from p2p.net.table import PeerTable

log = logging.getLogger("covey.p2p.keeper")


class Reaching(Protocol):
    """What a keeper asks of the connection manager."""

    @property
    def paused(self) -> bool:
        """Whether we work offline."""
        ...

    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> Connection:
        """Have a connection to `peer`.

        Raises:
            Unreachable: nothing answered as that peer.
        """
        ...


class _Pin:
    """A peer to keep connected."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.kick = trio.Event()
        """Set when something changed: connected, lost, a new address, resumed."""
        self.attempt = 0


class Keeper:
    """The pinned peers.

    Args:
        us: our peer id.
        host: how to reach them.
        config: times.
        env: the clock, random numbers.
        table: who is connected.
    """

    def __init__(
        self, us: PeerId, host: Reaching, config: P2pConfig, env: Env, table: PeerTable
    ) -> None:
        self._us = us
        self._host = host
        self._config = config
        self._env = env
        self._table = table
        self._pins: dict[PeerId, _Pin] = {}
        self._nursery: trio.Nursery | None = None

    def __contains__(self, peer: object) -> bool:
        return peer in self._pins

    def start(self, nursery: trio.Nursery) -> None:
        """Keep in `nursery` from now on, until `stop` or its end."""
        self._nursery = nursery
        for peer in self._pins:
            self._start_keeping(nursery, peer)

    def stop(self) -> None:
        """`nursery` ends: what is pinned stays so for the next start."""
        self._nursery = None

    def pin(self, peer: PeerId) -> None:
        """Keep `peer` connected."""
        if peer not in self._pins:
            self._pins[peer] = _Pin()
            if self._nursery is not None:
                self._start_keeping(self._nursery, peer)

    def unpin(self, peer: PeerId) -> None:
        """Stop keeping `peer` connected; a live connection stays."""
        pin = self._pins.pop(peer, None)
        if pin is not None:
            pin.scope.cancel()

    def pinned(self) -> list[PeerId]:
        """Peers we keep connected, ascending."""
        return sorted(self._pins)

    def kick(self, peer: PeerId, *, fresh: bool = False) -> None:
        """Something changed for `peer`; `fresh`: a dial may succeed that did not before."""
        pin = self._pins.get(peer)
        if pin is not None:
            if fresh:
                pin.attempt = 0
            pin.kick.set()

    def kick_all(self) -> None:
        """A dial of anybody may succeed that did not before."""
        for peer in self._pins:
            self.kick(peer, fresh=True)

    def backoff_s(self, peer: PeerId, attempt: int) -> float:
        """How long to wait after failure number `attempt`, from 0; drawn anew at each call."""
        wait_s = min(self._config.backoff_max_s, 2.0 ** min(attempt, 30))
        # The side with the higher id waits longer, so that both do not dial at the same moment.
        extra_s = self._config.backoff_yield_s if self._us > peer else 0.0
        return wait_s * self._env.rng.uniform(0.5, 1.0) + extra_s

    def _start_keeping(self, nursery: trio.Nursery, peer: PeerId) -> None:
        pin = self._pins[peer]
        pin.scope = trio.CancelScope()
        nursery.start_soon(self._keep, peer, pin)

    async def _keep(self, peer: PeerId, pin: _Pin) -> None:
        connected_s: float | None = None
        with pin.scope:
            while True:
                pin.kick = trio.Event()
                now = self._env.now()
                if self._table.best(peer) is not None:
                    connected_s = now if connected_s is None else connected_s
                    await pin.kick.wait()
                    continue
                if connected_s is not None and now - connected_s >= self._config.stable_s:
                    pin.attempt = 1  # as after a first failure: the shortest wait
                connected_s = None
                if self._host.paused:
                    await pin.kick.wait()
                    continue
                if pin.attempt:
                    with trio.move_on_after(self.backoff_s(peer, pin.attempt - 1)):
                        await pin.kick.wait()
                    if self._table.best(peer) is not None or self._host.paused:
                        continue
                pin.attempt += 1
                try:
                    await self._host.connect(peer)
                except Unreachable as error:
                    log.debug("keep_failed", extra={"f": {"why": str(error)}})
