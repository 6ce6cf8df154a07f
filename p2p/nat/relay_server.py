"""Relaying for others: hands out places and carries circuits, under `RelayBook`'s accounts.

We see bytes that two others encrypted end to end: what we can do to them is to be slow or to stop.
Source: libp2p specs `relay/circuit-v2.md`; docs/specs/relay.md.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import PeerError, Unreachable
from p2p.identity import peer_text
from p2p.nat.relay_book import Circuit, RelayBook, TokenBucket
from p2p.nat.relay_config import limit_of
from p2p.nat.relay_messages import (
    HOP,
    MESSAGE_BYTES_MAX,
    STOP,
    HopMessage,
    HopType,
    Reservation,
    Status,
    StopMessage,
    StopType,
    decode_hop_untrusted,
    decode_stop_untrusted,
    encode_hop,
    encode_stop,
    seal_voucher,
)
from p2p.net.framed import FramedStream
from p2p.wire.multiaddr import ip_of, is_relayed, prefix_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.env import Env
    from p2p.identity import PeerId, Signer
    from p2p.nat.relay_config import RelayConfig
    from p2p.net.seam import Addr, Fabric, Stream

log = logging.getLogger("covey.p2p.relay")

PIECE_BYTES: Final = 65_536
"""Bytes read at once each way of a circuit; what a circuit may hold in memory here."""
_STREAMS_PER_PEER_MAX: Final = 16


class RelayServer:
    """Serves `hop` while `serving`.

    Args:
        signer: our identity, for vouchers.
        fabric: connections to both ends.
        config: what is given away.
        env: clocks.
        is_member: whether a peer shares a group with us.
        told: the addresses of ours that a peer connected from an address may be told.
    """

    def __init__(
        self,
        signer: Signer,
        fabric: Fabric,
        config: RelayConfig,
        env: Env,
        *,
        is_member: Callable[[PeerId], bool],
        told: Callable[[Addr], list[Addr]],
    ) -> None:
        self.book = RelayBook(config, env.now())
        self.counters: Counter[str] = Counter()
        self.serving = False
        """Whether places are given: reachability decides. Circuits that are open go on."""
        self._signer = signer
        self._fabric = fabric
        self._config = config
        self._env = env
        self._is_member = is_member
        self._told = told
        fabric.handle(HOP, self._hop, per_peer_max=_STREAMS_PER_PEER_MAX)

    def peer_down(self, peer: PeerId) -> None:
        """A peer went away: its place is free."""
        self.book.release(peer)

    async def _hop(self, stream: Stream) -> None:
        """Serve one hop stream."""
        framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
        with trio.move_on_after(self._config.talk_s) as talk:
            try:
                message = decode_hop_untrusted(await framed.receive())
            except PeerError:
                await self._answer(framed, Status.MALFORMED_MESSAGE)
                return
            if stream.path == "relay" or not self._config.serve:
                await self._answer(framed, Status.PERMISSION_DENIED)
            elif message.type is HopType.RESERVE:
                await self._reserve(framed, stream.peer)
            elif message.type is HopType.CONNECT and message.peer is not None:
                talk.deadline = math.inf
                await self._connect(framed, stream.peer, message.peer)
            else:
                await self._answer(framed, Status.UNEXPECTED_MESSAGE)
        if talk.cancelled_caught:
            stream.reset()

    async def _answer(self, framed: FramedStream, status: Status) -> None:
        self.counters[f"relay_{status.name.lower()}"] += 1
        await framed.send(encode_hop(HopMessage(type=HopType.STATUS, status=status)))

    async def _reserve(self, framed: FramedStream, peer: PeerId) -> None:
        info = self._fabric.peers().get(peer)
        member = self._is_member(peer)
        if info is None or not (self.serving or self.book.holder(peer, self._env.now())):
            await self._answer(framed, Status.RESERVATION_REFUSED)
            return
        ip = ip_of(info.addr)
        prefix = prefix_of(ip) if ip is not None else info.addr
        status = self.book.reserve(peer, prefix, member=member, now=self._env.now())
        if status is not Status.OK:
            await self._answer(framed, status)
            return
        expire_s = self._env.wall_ms() // 1000 + int(self._config.reservation_s)
        us = peer_text(self._fabric.id)
        addrs = [f"{addr}/p2p/{us}" for addr in self._told(info.addr) if not is_relayed(addr)]
        self.counters["relay_reservations"] += 1
        await framed.send(
            encode_hop(
                HopMessage(
                    type=HopType.STATUS,
                    status=Status.OK,
                    reservation=Reservation(
                        expire_s, tuple(addrs), seal_voucher(self._signer, peer, expire_s)
                    ),
                    limit=limit_of(self.book.quota(member=member)),
                )
            )
        )

    async def _connect(self, framed: FramedStream, source: PeerId, target: PeerId) -> None:
        circuit = self.book.open(source, target, self._env.now())
        if isinstance(circuit, Status):
            await self._answer(framed, circuit)
            return
        try:
            far = await self._stop(source, target, member=circuit.member)
            if far is None:
                await self._answer(framed, Status.CONNECTION_FAILED)
                return
            await self._carry(framed, far, circuit)
        finally:
            self.book.close(circuit)

    async def _stop(self, source: PeerId, target: PeerId, *, member: bool) -> FramedStream | None:
        """Offer a circuit to its target; its stream, or None if it does not want it."""
        if target not in self._fabric.peers():
            return None
        with trio.move_on_after(self._config.talk_s):
            try:
                stream = await self._fabric.open(target, STOP, direct_only=True)
            except Unreachable:
                return None
            far = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
            agreed = False
            try:
                await far.send(
                    encode_stop(
                        StopMessage(
                            type=StopType.CONNECT,
                            peer=source,
                            limit=limit_of(self.book.quota(member=member)),
                        )
                    )
                )
                answer = decode_stop_untrusted(await far.receive())
                agreed = answer.type is StopType.STATUS and answer.status == Status.OK
            except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            finally:
                if not agreed:
                    stream.reset()
            return far if agreed else None
        return None

    async def _carry(self, near: FramedStream, far: FramedStream, circuit: Circuit) -> None:
        """Copy both ways until both ended, or the quota is used up."""
        quota = self.book.quota(member=circuit.member)
        self.counters["relay_circuits"] += 1
        whole = False
        try:
            with trio.move_on_after(quota.circuit_s_max):
                await near.send(
                    encode_hop(
                        HopMessage(type=HopType.STATUS, status=Status.OK, limit=limit_of(quota))
                    )
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, near.release(), far.stream, circuit)
                    nursery.start_soon(self._copy, far.release(), near.stream, circuit)
                whole = True
        except* (trio.BrokenResourceError, trio.ClosedResourceError, _QuotaUsedUp):
            pass  # one end went away, or has had its share: both ends hear of it below
        finally:
            if not whole:
                self.counters["relay_circuits_cut"] += 1
                near.stream.reset()
                far.stream.reset()
        if whole:
            await far.stream.aclose()

    async def _copy(
        self,
        source: trio.abc.HalfCloseableStream,
        target: trio.abc.HalfCloseableStream,
        circuit: Circuit,
    ) -> None:
        quota = self.book.quota(member=circuit.member)
        bucket = TokenBucket(quota.circuit_bytes_per_s, self._env.now())
        left = math.inf if quota.circuit_bytes_max is None else quota.circuit_bytes_max
        while data := await source.receive_some(PIECE_BYTES):
            left -= len(data)
            now = self._env.now()
            class_wait_s = self.book.carry(len(data), now, member=circuit.member)
            if left < 0 or class_wait_s is None:
                raise _QuotaUsedUp
            self.counters["relay_bytes"] += len(data)
            wait_s = max(class_wait_s, bucket.take(len(data), now))
            if wait_s:
                await trio.sleep(wait_s)
            await target.send_all(data)
        await target.send_eof()


class _QuotaUsedUp(Exception):
    """A circuit carried what it may."""
