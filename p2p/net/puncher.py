"""Punches: dials a peer while it dials us, and gives each connection of a punch its agreed role.

`p2p.net.punching` says which connection belongs to a punch, and why that must be agreed on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from p2p.errors import P2pError
from p2p.net.framed import HandedOverStream
from p2p.net.ports import NowaitStream
from p2p.net.punching import CONNECT_S, PAUSE_S, SILENCE_S, Punch, Punches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.identity import PeerId
    from p2p.net.dialler import DialHost, Dialler
    from p2p.net.handshakes import Handshakes
    from p2p.net.seam import Addr
    from p2p.net.table import PeerTable

log = logging.getLogger("covey.p2p.puncher")


class Puncher:
    """The punches under way.

    Args:
        host: who keeps connections.
        handshakes: how a raw stream is proven.
        dialler: how to dial.
        table: who is connected.
    """

    def __init__(
        self, host: DialHost, handshakes: Handshakes, dialler: Dialler, table: PeerTable
    ) -> None:
        self._host = host
        self._handshakes = handshakes
        self._dialler = dialler
        self._table = table
        self._punches = Punches()
        self._direct: dict[PeerId, trio.Event] = {}

    async def punch(
        self, peer: PeerId, addrs: Sequence[Addr], *, initiator: bool, limit_s: float
    ) -> bool:
        """Dial `peer` while it dials us, until the two meet; whether they did.

        Args:
            peer: who dials us at this moment.
            addrs: its public addresses.
            initiator: whether we start the handshake, as agreed with it.
            limit_s: when to give up.
        """
        with self._punches.under_way(peer, addrs, initiator=initiator):
            direct = self._direct.setdefault(peer, trio.Event())
            with trio.move_on_after(limit_s):
                async with trio.open_nursery() as nursery:
                    for addr in addrs:
                        nursery.start_soon(self._punch_one, peer, addr, initiator)
                    await direct.wait()
                    nursery.cancel_scope.cancel()
        return self._table.is_direct(peer)

    async def _punch_one(self, peer: PeerId, addr: Addr, initiator: bool) -> None:
        while True:
            try:
                with trio.fail_after(CONNECT_S):
                    stream, path = await self._dialler.raw(peer, addr, reuse_port=True)
                connection = await self._handshakes.prove_dialled(
                    stream, peer, addr, path, initiator=initiator
                )
            except (P2pError, trio.TooSlowError, trio.BrokenResourceError) as error:
                log.debug("punch_missed", extra={"f": {"addr": addr, "why": str(error)}})
                await trio.sleep(PAUSE_S)
            else:
                self._host.running().start_soon(self._host.carry, connection)
                return

    def met(self, peer: PeerId) -> None:
        """There is a direct connection to `peer`."""
        direct = self._direct.pop(peer, None)
        if direct is not None:
            direct.set()

    async def agreed_role(
        self, stream: trio.abc.Stream, addr: Addr
    ) -> tuple[Punch | None, trio.abc.Stream]:
        """The punch that an accepted connection belongs to, and the stream to go on with."""
        punch = self._punches.expected(addr)
        if punch is not None:
            return punch, stream
        punch = self._punches.from_host(addr)
        if punch is None or not punch.initiator:
            return None, stream
        with trio.move_on_after(SILENCE_S):
            if isinstance(stream, NowaitStream):
                await stream.wait_readable()
                return None, stream
            assert isinstance(stream, trio.abc.HalfCloseableStream)
            early = await stream.receive_some()
            return None, HandedOverStream(stream, bytes(early))
        return punch, stream
