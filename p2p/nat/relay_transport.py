"""Dialling over a relay: a circuit is one more raw stream under the wire.

    transport = RelayTransport(fabric, config)
    stream = await transport.dial("/ip4/45.77.1.9/tcp/4001/p2p/R/p2p-circuit", peer=target)

All of Noise and Yamux runs on it again, end to end. Source: docs/specs/relay.md s.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import DecodeError, PeerError, Unreachable, UsageError
from p2p.identity import parse_peer_untrusted
from p2p.nat.relay_messages import (
    HOP,
    MESSAGE_BYTES_MAX,
    HopMessage,
    HopType,
    Status,
    decode_hop_untrusted,
    encode_hop,
)
from p2p.net.framed import FramedStream
from p2p.wire.multiaddr import format_addr, parse_addr_untrusted

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.nat.relay_config import RelayConfig
    from p2p.net.seam import Accept, Addr, Fabric, Path

_WHY: Final[dict[int, str]] = {
    Status.RESERVATION_REFUSED: "the relay refuses",
    Status.RESOURCE_LIMIT_EXCEEDED: "the relay is full",
    Status.PERMISSION_DENIED: "the relay does not serve us",
    Status.CONNECTION_FAILED: "the relay cannot reach the peer",
    Status.NO_RESERVATION: "the peer holds no place at the relay",
}


def split_circuit_untrusted(addr: Addr) -> tuple[Addr, PeerId] | None:
    """The relay's address and id of `<relay>/p2p/R/p2p-circuit`; None for any other address.

    Raises:
        DecodeError: not a multiaddr.
    """
    parts = parse_addr_untrusted(addr)
    if len(parts) < 3 or parts[-1][0] != "p2p-circuit" or parts[-2][0] != "p2p":
        return None
    if any(name in ("p2p", "p2p-circuit") for name, _ in parts[:-2]):
        return None  # a relay behind a relay
    return format_addr(parts[:-2]), parse_peer_untrusted(parts[-2][1])


class RelayTransport:
    """Dials circuits. Satisfies `p2p.net.seam.Transport`.

    Args:
        fabric: reaches relays.
        config: times.
    """

    def __init__(self, fabric: Fabric, config: RelayConfig) -> None:
        self.path: Path = "relay"
        self._fabric = fabric
        self._config = config

    def dials(self, addr: Addr) -> bool:
        """Whether `addr` leads over one relay that is not ourselves."""
        try:
            circuit = split_circuit_untrusted(addr)
        except DecodeError:
            return False
        return circuit is not None and circuit[1] != self._fabric.id

    async def dial(
        self,
        addr: Addr,
        *,
        peer: PeerId | None = None,
        reuse_port: bool = False,  # noqa: ARG002 - a circuit has no port of ours
    ) -> trio.abc.Stream:
        """Ask the relay for a circuit to `peer`.

        Raises:
            Unreachable: no relay there, or it does not connect us; the message says why.
            UsageError: no circuit address, or nobody to look for.
        """
        circuit = split_circuit_untrusted(addr)
        if circuit is None or peer is None:
            raise UsageError(f"cannot dial {addr} over a relay: no relay, or no peer named")
        base, relay = circuit
        if relay == peer:
            raise Unreachable(f"{addr}: the relay is the peer itself")
        await self._fabric.connect(relay, [base])
        stream = await self._fabric.open(relay, HOP, direct_only=True)
        framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
        connected = False
        try:
            with trio.fail_after(self._config.talk_s):
                await framed.send(encode_hop(HopMessage(type=HopType.CONNECT, peer=peer)))
                answer = decode_hop_untrusted(await framed.receive())
            connected = answer.type is HopType.STATUS and answer.status == Status.OK
        except trio.TooSlowError:
            raise Unreachable(f"{addr}: the relay does not answer") from None
        except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unreachable(f"{addr}: {error}") from error
        finally:
            if not connected:
                stream.reset()
        if not connected:
            why = _WHY.get(answer.status, f"status {int(answer.status)}")
            raise Unreachable(f"{addr}: {why}")
        return framed.release()

    async def listen(
        self, addr: Addr, accept: Accept, *, task_status: trio.TaskStatus[Addr]
    ) -> None:
        """Not this way: the relay's offers come in by `RelayClient`.

        Raises:
            UsageError: always.
        """
        del accept, task_status
        await trio.lowlevel.checkpoint()
        raise UsageError(f"cannot listen at {addr}: circuits are offered by relays")
