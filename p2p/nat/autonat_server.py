"""Tells others whether they can be dialled: AutoNAT v2, the server's side.

What a hostile client may want of us is a packet to a third: a flood against it, a scan of its
ports, or our address in its logs. So we dial only the IP address at which we see the client
ourselves, directly and not through a relay; only addresses that everybody can reach, no system's
port; six times a minute for one client and sixty for all; once, for five seconds. A request is as
long as the packets of the dial it causes, so nothing is amplified. AutoNAT's way to have another
address dialled for a payment in bytes is not offered.
Source: libp2p specs `autonat/autonat-v2.md`; docs/specs/reachability.md s.3.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p.errors import ProtocolError
from p2p.identity import peer_text
from p2p.nat.autonat_budget import MinuteBudget
from p2p.nat.autonat_messages import (
    DIAL_REQUEST,
    MESSAGE_BYTES_MAX,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestStatus,
    decode_dial_untrusted,
    encode_dial,
)
from p2p.nat.dialback_wire import may_dial
from p2p.net.framed import FramedStream
from p2p.wire.multiaddr import ip_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.nat.dialback_wire import NonceDialer
    from p2p.nat.reachability_config import ReachabilityConfig
    from p2p.net.driver import Connection
    from p2p.net.seam import Addr, Handler, Stream

log = logging.getLogger("covey.p2p.reachability")

_STREAMS_PER_PEER_MAX: Final = 2


class ServingFabric(Protocol):
    """What this needs of the fabric."""

    def handle(self, protocol: str, fn: Handler, *, per_peer_max: int) -> None:
        """Serve a protocol, and tell so."""

    def unhandle(self, protocol: str) -> None:
        """Serve it no more, and tell so."""

    def connection_of(self, stream: Stream) -> Connection | None:
        """The connection that carries a stream."""
        ...


class AutonatServer:
    """Dials clients that ask for it.

    Args:
        fabric: who asks, and from where.
        dialer: dials.
        config: how often.
        env: clocks.
        is_public: whether an address can be aimed at.
        reached: told (client, address, nonce, peers it avoids) of a client that was reached.
    """

    def __init__(
        self,
        fabric: ServingFabric,
        dialer: NonceDialer,
        config: ReachabilityConfig,
        env: Env,
        *,
        is_public: Callable[[Addr], bool],
        reached: Callable[[PeerId, Addr, int, frozenset[bytes]], Awaitable[None]],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._fabric = fabric
        self._dialer = dialer
        self._config = config
        self._env = env
        self._is_public = is_public
        self._reached = reached
        self._serving = False
        self._budget = MinuteBudget(
            per_peer_max=config.dials_per_peer_per_min, all_max=config.dials_per_min
        )

    @property
    def serving(self) -> bool:
        """Whether we offer it: peers look at what we serve to choose whom to ask."""
        return self._serving

    @serving.setter
    def serving(self, on: bool) -> None:
        if on and not self._serving:
            self._fabric.handle(DIAL_REQUEST, self._serve, per_peer_max=_STREAMS_PER_PEER_MAX)
        elif self._serving and not on:
            self._fabric.unhandle(DIAL_REQUEST)
        self._serving = on

    async def _serve(self, stream: Stream) -> None:
        """Answer one request."""
        client = stream.peer
        framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
        request = None
        with trio.move_on_after(self._config.talk_s):
            request = decode_dial_untrusted(await framed.receive())
        if request is None:
            stream.reset()
            return
        if not isinstance(request, DialRequest):
            raise ProtocolError("autonat: a request begins with the addresses", client)
        aim = self._aim(stream, request)
        if aim is None:
            await self._answer(framed, DialResponse(RequestStatus.REFUSED))
            return
        if not self._budget.spend(client, self._env.now()):
            await self._answer(framed, DialResponse(RequestStatus.REJECTED))
            return
        index, addr = aim
        status = await self._dialer.deliver(client, addr, request.nonce)
        log.info(
            "autonat_dialled",
            extra={"f": {"peer": peer_text(client), "status": status.name}, "remote": True},
        )
        self.counters[f"autonat_{status.name.lower()}"] += 1
        await self._answer(framed, DialResponse(RequestStatus.OK, index, status))
        if status is DialStatus.OK:
            await self._reached(client, addr, request.nonce, request.avoided)

    def _aim(self, stream: Stream, request: DialRequest) -> tuple[int, Addr] | None:
        """The first address that we dial for this client, and its place in the request."""
        connection = self._fabric.connection_of(stream)
        if connection is None or connection.path == "relay":
            return None
        seen_at = ip_of(connection.addr)
        for index, addr in enumerate(request.addrs):
            if addr is None or seen_at is None or ip_of(addr) != seen_at:
                continue
            if may_dial(addr, self._is_public):
                return index, addr
        return None

    async def _answer(self, framed: FramedStream, response: DialResponse) -> None:
        if response.status is not RequestStatus.OK:
            self.counters[f"autonat_{RequestStatus(response.status).name.lower()}"] += 1
        await framed.send(encode_dial(response))
