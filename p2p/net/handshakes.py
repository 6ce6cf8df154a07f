"""From a raw stream to a connection whose peer is proven.

No stranger may stop the node here, whatever it sends: what is not one of their errors is a fault of
ours, told to the fabric, and costs that stream. Source: docs/specs/wire.md s.7.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from p2p.errors import AuthError, P2pError, PeerError, Unreachable
from p2p.net.driver import Buffers, Connection
from p2p.wire.multiaddr import is_private
from p2p.wire.noise import KEY_BYTES
from p2p.wire.session import Session
from p2p.wire.yamux_frames import YamuxLimits

if TYPE_CHECKING:
    from collections import Counter

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.net.book import Book
    from p2p.net.gate import Gate, Origin
    from p2p.net.ports import ConnectionOwner
    from p2p.net.seam import Addr, Path

log = logging.getLogger("covey.p2p.handshakes")


class Handshakes:
    """Makes connections over raw streams.

    Args:
        identity: who we are.
        config: limits and times.
        env: clocks and random numbers.
        book: forgets an address at which somebody else lives.
        gate: told who fails to prove anything.
        counters: counts `handshakes_failed`.
        owner: what runs on the connections.
    """

    def __init__(
        self,
        identity: Identity,
        config: P2pConfig,
        env: Env,
        book: Book,
        gate: Gate,
        counters: Counter[str],
        owner: ConnectionOwner,
    ) -> None:
        self._identity = identity
        self._config = config
        self._env = env
        self._book = book
        self._gate = gate
        self._counters = counters
        self._owner = owner
        self._buffers = Buffers()
        self._limits = YamuxLimits(
            stream_send_buffer_bytes=config.stream_send_buffer_bytes,
            stream_window_bytes_max=config.stream_window_bytes_max,
            connection_window_bytes_max=config.connection_window_bytes_max,
            streams_inbound_max=config.streams_inbound_max,
            control_bytes_max=config.control_bytes_max,
            unknown_bytes_per_min=config.unknown_bytes_per_min,
        )

    def make(
        self,
        stream: trio.abc.Stream,
        addr: Addr,
        path: Path,
        *,
        expected: PeerId | None,
        inbound: bool,
        dialled: bool,
    ) -> Connection:
        """A connection whose handshake has not begun.

        Args:
            stream: the raw transport; owned by the connection from here on.
            addr: where it was dialled, or came from.
            path: how it runs.
            expected: whom we mean; None: whoever it is.
            inbound: whether the other side starts the handshake.
            dialled: whether we dialled `addr`.
        """
        rng = self._env.rng
        session = Session(
            self._identity,
            initiator=not inbound,
            static=rng.randbytes(KEY_BYTES),
            ephemeral=rng.randbytes(KEY_BYTES),
            expected=expected,
            limits=self._limits,
        )
        return Connection(
            stream,
            session,
            self._owner,
            self._env,
            self._config,
            buffers=self._buffers,
            addr=addr,
            inbound=inbound,
            dialled=dialled,
            path="lan" if path == "direct" and is_private(addr) else path,
        )

    async def prove_accepted(self, connection: Connection, origin: Origin | None) -> bool:
        """Run the handshake of a connection that came in; whether it proved who it is.

        Whoever fails is counted against `origin`; closing is left to the caller.
        """
        why = "no proof in time"
        try:
            with trio.move_on_after(self._config.upgrade_deadline_s):
                await connection.upgrade()
                return True
        except PeerError as error:
            why = str(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - a supervisor: no stranger may stop the node
            self._owner.failed("handshake", error)
            why = "a fault of ours"
        self._counters["handshakes_failed"] += 1
        self._gate.failed_handshake(origin, self._env.now())
        log.debug(
            "handshake_failed", extra={"f": {"addr": connection.addr, "why": why}, "remote": True}
        )
        return False

    async def prove_dialled(
        self, stream: trio.abc.Stream, peer: PeerId, addr: Addr, path: Path, *, initiator: bool
    ) -> Connection:
        """Run the handshake over a raw stream that we dialled; it is closed if that fails.

        Raises:
            P2pError: it is not `peer`, or broke the protocol, or we have a fault.
            trio.BrokenResourceError: the stream ended.
        """
        connection = self.make(
            stream, addr, path, expected=peer, inbound=not initiator, dialled=True
        )
        proven = False
        try:
            await connection.upgrade()
            proven = True
        except AuthError:
            # Somebody else lives there now: do not knock again.
            self._book.forget_addr(peer, addr)
            raise
        except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:
            # A supervisor: whoever answers at an address may not stop the node.
            self._owner.failed("handshake", error)
            raise Unreachable(f"{addr}: a fault of ours, see the log") from error
        finally:
            if not proven:
                with trio.move_on_after(self._config.close_grace_s, shield=True):
                    await connection.discard()
        return connection
