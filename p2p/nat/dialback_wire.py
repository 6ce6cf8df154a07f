"""Delivers a nonce over a connection of its own: dialled once, under a key made for it, and ended.

The dial leaves from an ephemeral port, because one from the port we listen at would come through a
hole that the client's NAT made for us. The key is fresh because the client is connected to us
already: a second connection under our own key would be dropped in favour of the first, and nobody's
name matters here, only the nonce. The client must prove its own key before it hears the nonce, so a
nonce cannot be delivered to somebody else. Source: docs/specs/reachability.md s.3.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import DecodeError, P2pError, PeerError, Unreachable
from p2p.identity import Identity
from p2p.nat.autonat_messages import (
    DIAL_BACK,
    DialStatus,
    decode_dial_back_answer_untrusted,
    encode_dial_back,
)
from p2p.net.driver import Buffers, Connection
from p2p.net.framed import FramedStream
from p2p.wire.multiaddr import tcp_addr_untrusted
from p2p.wire.noise import KEY_BYTES
from p2p.wire.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.seam import Addr, Handler

log = logging.getLogger("covey.p2p.reachability")

PORT_MIN: Final = 1024
"""Services of the system live below; no node does, and no stranger makes us knock there."""
ANSWER_BYTES_MAX: Final = 256


def may_dial(addr: Addr, is_public: Callable[[Addr], bool]) -> bool:
    """Whether we dial `addr` on somebody's word: TCP at a public IP address, no system port."""
    try:
        tcp = tcp_addr_untrusted(addr)
    except DecodeError:
        return False
    return tcp is not None and tcp.ip is not None and tcp.port >= PORT_MIN and is_public(addr)


class _Nobody:
    """What a connection asks of its owner, where nothing is served and nothing remembered."""

    served: Container[str] = ()

    def admit_stream(self, connection: Connection, protocol: str) -> Handler | None:  # noqa: ARG002 - the owner's shape
        """Nothing is served."""
        return None

    def release_stream(self, connection: Connection, protocol: str) -> None:
        """Nothing was."""

    def opened(self, connection: Connection) -> None:
        """The caller waits for it."""

    def doubted(self, connection: Connection) -> None:
        """It ends in a few seconds anyway."""

    def followed(self, connection: Connection) -> None:
        """Nothing is served."""

    def leaving(self, connection: Connection) -> None:
        """We leave too."""

    def violated(self, connection: Connection, why: str) -> None:
        """Who breaks a rule here harms itself: it stays unproved."""

    def failed(self, where: str, error: Exception) -> None:
        """Our code raised: a bug here."""
        log.error("bug", extra={"f": {"where": where}, "remote": True}, exc_info=error)


class NonceDialer:
    """Dials peers to deliver a nonce.

    Args:
        dial: a raw stream to an address, from an ephemeral port.
        config: of the wire.
        env: clocks, and the numbers that keys are made of.
    """

    def __init__(
        self, dial: Callable[[Addr], Awaitable[trio.abc.Stream]], config: P2pConfig, env: Env
    ) -> None:
        self._dial = dial
        self._config = config
        self._env = env
        self._buffers = Buffers()

    async def deliver(self, peer: PeerId, addr: Addr, nonce: int) -> DialStatus:
        """Deliver `nonce` to `peer` at `addr`; how it went. The time is limited here."""
        status = DialStatus.DIAL_ERROR
        with trio.move_on_after(self._config.reach.dial_s):
            try:
                stream = await self._dial(addr)
            except Unreachable:
                return status
            connection = self._connection(stream, peer, addr)
            try:
                await connection.upgrade()
                status = DialStatus.DIAL_BACK_ERROR
                if await self._hand_over(connection, nonce):
                    status = DialStatus.OK
            except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                log.debug("dial_back_failed", extra={"f": {"why": str(error)}})
            finally:
                with trio.CancelScope(shield=True):
                    await connection.discard()  # closes at once, without a goodbye
        return status

    async def _hand_over(self, connection: Connection, nonce: int) -> bool:
        confirmed = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await connection.wait_can_open()
            if connection.alive:
                stream = connection.open(DIAL_BACK)
                try:
                    framed = FramedStream(stream, message_bytes_max=ANSWER_BYTES_MAX)
                    await framed.send(encode_dial_back(nonce))
                    await stream.send_eof()
                    confirmed = decode_dial_back_answer_untrusted(await framed.receive())
                except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    log.debug("dial_back_failed", extra={"f": {"why": str(error)}})
                finally:
                    stream.reset()
            connection.abort("the nonce is delivered")
        return confirmed

    def _connection(self, stream: trio.abc.Stream, peer: PeerId, addr: Addr) -> Connection:
        rng = self._env.rng
        session = Session(
            Identity.generate(rng),
            initiator=True,
            static=rng.randbytes(KEY_BYTES),
            ephemeral=rng.randbytes(KEY_BYTES),
            expected=peer,
        )
        return Connection(
            stream,
            session,
            _Nobody(),
            self._env,
            self._config,
            buffers=self._buffers,
            addr=addr,
            inbound=False,
            dialled=True,
        )
