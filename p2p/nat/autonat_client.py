"""Asks others whether we can be dialled: AutoNAT v2, the client's side.

One address a request, so that a nonce stands for one address. A server that wants bytes before it
dials is declined: it sees us at another address than the one we asked about.
Source: libp2p specs `autonat/autonat-v2.md`; docs/specs/reachability.md s.3.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p.errors import PeerError, Unreachable
from p2p.nat.autonat_messages import (
    AVOIDED_MAX,
    DIAL_BACK,
    DIAL_REQUEST,
    MESSAGE_BYTES_MAX,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestStatus,
    avoided_hash,
    decode_dial_back_untrusted,
    decode_dial_untrusted,
    encode_dial,
    encode_dial_back_ok,
)
from p2p.nat.autonat_nonces import Delivery, Nonces, Proof
from p2p.net.framed import FramedStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.nat.reachability_config import ReachabilityConfig
    from p2p.net.driver import Connection
    from p2p.net.seam import Addr, Handler, PeerInfo, Stream

_STREAMS_PER_PEER_MAX: Final = 1
_DIAL_BACK_BYTES_MAX: Final = 256


class Answer(Enum):
    """What asking one server came to."""

    REACHED = auto()
    """Its nonce came."""
    FAILED = auto()
    """It says that it could not reach us."""
    USELESS = auto()
    """It refused, broke off, or says that it reached us, and nothing came."""


class AskingFabric(Protocol):
    """What this needs of the fabric."""

    def handle(self, protocol: str, fn: Handler, *, per_peer_max: int) -> None:
        """Serve a protocol."""

    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:
        """Open a stream."""
        ...

    def connection_of(self, stream: Stream) -> Connection | None:
        """The connection that carries a stream."""
        ...

    def peers(self) -> Mapping[PeerId, PeerInfo]:
        """Connected peers."""
        ...


class AutonatClient:
    """Asks servers, and hears the nonces that come.

    Args:
        fabric: servers, and who delivers.
        config: times.
        env: clocks; draws the nonces.
        counts: whether somebody at the first address can tell whether the second, ours, is public.
        proved: told what a nonce that came proves.
    """

    def __init__(
        self,
        fabric: AskingFabric,
        config: ReachabilityConfig,
        env: Env,
        *,
        counts: Callable[[Addr, Addr], bool],
        proved: Callable[[Proof], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.nonces = Nonces(config.nonce_s)
        self._fabric = fabric
        self._config = config
        self._env = env
        self._counts = counts
        self._proved = proved
        self._came = trio.Event()
        self._proofs: dict[int, list[Proof]] = {}
        fabric.handle(DIAL_BACK, self._dial_back, per_peer_max=_STREAMS_PER_PEER_MAX)

    async def ask(self, server: PeerId, addr: Addr, *, helped: bool) -> Answer:
        """Ask `server` to dial us at `addr`; what came of it.

        Args:
            server: somebody who serves this.
            addr: one of ours.
            helped: whether the server may ask somebody else to deliver the nonce too. Then this
                waits for it as long as a nonce is waited for.
        """
        nonce = self._env.rng.getrandbits(64)
        until_s = trio.current_time() + self._config.nonce_s
        self.nonces.issue(nonce, addr, self._env.now())
        proofs = self._proofs[nonce] = list[Proof]()
        avoided = [avoided_hash(nonce, peer) for peer in self._fabric.peers()][:AVOIDED_MAX]
        try:
            response = None
            with trio.move_on_at(until_s):
                response = await self._request(
                    server, DialRequest((addr,), nonce, frozenset(avoided))
                )
            self.counters["autonat_asked"] += 1
            if response is None or response.status != RequestStatus.OK:
                return Answer.REACHED if proofs else Answer.USELESS
            if response.dial_status in (DialStatus.DIAL_ERROR, DialStatus.DIAL_BACK_ERROR):
                # Its word against the nonce that came: the nonce is the proof.
                return Answer.REACHED if proofs else Answer.FAILED
            with trio.move_on_at(until_s):
                while not any(proof.strong for proof in proofs) and (helped or not proofs):
                    self._came = trio.Event()
                    await self._came.wait()
            return Answer.REACHED if proofs else Answer.USELESS
        finally:
            del self._proofs[nonce]

    async def _request(self, server: PeerId, request: DialRequest) -> DialResponse | None:
        try:
            stream = await self._fabric.open(server, DIAL_REQUEST, direct_only=True)
        except Unreachable:
            return None
        try:
            framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
            await framed.send(encode_dial(request))
            answer = decode_dial_untrusted(await framed.receive())
        except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        finally:
            stream.reset()
        return answer if isinstance(answer, DialResponse) else None

    async def _dial_back(self, stream: Stream) -> None:
        """Somebody delivers a nonce."""
        framed = FramedStream(stream, message_bytes_max=_DIAL_BACK_BYTES_MAX)
        nonce: int | None = None
        with trio.move_on_after(self._config.dial_s):
            nonce = decode_dial_back_untrusted(await framed.receive())
        connection = self._fabric.connection_of(stream)
        if nonce is None or connection is None:
            stream.reset()
            return
        proof = self.nonces.take(
            Delivery(
                nonce=nonce,
                remote=connection.addr,
                since_s=connection.since_s,
                inbound=connection.inbound and not connection.dialled,
                unasked=connection.unasked,
            ),
            self._env.now(),
        )
        if proof is None or not self._counts(connection.addr, proof.addr):
            # Forged, or only late: not worth a quarrel, for the key that brings it is fresh anyway.
            self.counters["autonat_nonces_refused"] += 1
            stream.reset()
            return
        self.counters["autonat_nonces"] += 1
        self._proofs.get(nonce, []).append(proof)
        self._proved(proof)
        self._came.set()
        await framed.send(encode_dial_back_ok())
