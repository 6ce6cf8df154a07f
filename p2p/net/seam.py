"""The seam between protocols and the network: `Fabric`, `Stream`, `Transport`.

Everything above (peer RPC, replication, later blobs, DHT and tasks) sees only a `Fabric`. Two
implementations exist: `p2p.net.wire_fabric.WireFabric` (the public libp2p wire over any
`Transport`) and `p2p.net.memory_fabric.MemFabric` (no crypto, for fast simulations). One
conformance suite (`tests/unit/test_fabric_conformance.py`) holds both to the same contract:

1. a cancelled call never harms another stream;
2. buffers are bounded, and back-pressure has no time-out;
3. a handler's exception resets its own stream only;
4. the peer is proved before a byte of it is delivered;
5. a dead peer is reported in bounded time (45 s idle, 15 s with something outstanding);
6. one connection a peer, chosen alike on both sides;
7. no thread, wall clock or global generator;
8. end-of-file one way leaves the other way usable.

Ends of a stream use trio's own errors: `trio.BrokenResourceError` (reset, or the connection died),
`trio.ClosedResourceError` (we closed it), `b""` from `receive_some` (end of file).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from p2p.identity import PeerId

Addr: TypeAlias = str
"""A multiaddr in text form, such as `/ip4/192.0.2.7/tcp/15001`, without a trailing `/p2p/...`."""

Path: TypeAlias = Literal["direct", "lan", "relay", "mem"]

AddrSource: TypeAlias = Literal["interface", "mapped", "observed", "relay"]
"""Who knows an address of ours: an interface, the gateway's mapping, peers that saw us come from
it, a relay that holds a reservation. Advertised in this order."""


class Stream(trio.abc.HalfCloseableStream):
    """One ordered, flow-controlled byte stream to a proven peer."""

    peer: PeerId
    protocol: str
    path: Path

    @abstractmethod
    def reset(self) -> None:
        """Abandon both directions at once; the other side sees a broken stream. Never blocks."""


@dataclass(frozen=True, kw_only=True)
class PeerInfo:
    """What the fabric knows of a connected peer."""

    peer: PeerId
    path: Path
    addr: Addr
    """The address it was dialled at, or came from."""
    inbound: bool
    since_s: float
    """`env.now()` when the connection was ready."""
    seen_s: float
    """`env.now()` when a byte last arrived."""
    rtt_s: float | None
    bytes_in: int
    bytes_out: int
    streams: int
    agent: str = ""
    """What identify said of its software; shown, never trusted."""


@dataclass(frozen=True)
class PeerUp:
    """A first connection to `peer` is ready."""

    peer: PeerId


@dataclass(frozen=True)
class PeerDown:
    """The last connection to `peer` ended."""

    peer: PeerId
    reason: str


@dataclass(frozen=True)
class PathChanged:
    """Traffic to `peer` takes another path now."""

    peer: PeerId
    path: Path


@dataclass(frozen=True)
class PeerIdentified:
    """`peer` told which protocols it serves, for the first time or anew: see `protocols`."""

    peer: PeerId


@dataclass(frozen=True)
class AddrsChanged:
    """Our own addresses changed."""

    addrs: tuple[Addr, ...]


FabricEvent: TypeAlias = PeerUp | PeerDown | PeerIdentified | PathChanged | AddrsChanged
Handler: TypeAlias = "Callable[[Stream], Awaitable[None]]"


class Fabric(Protocol):
    """Authenticated streams to peers, whatever lies between."""

    @property
    def id(self) -> PeerId:
        """Our own peer id."""
        ...

    def addrs(self) -> list[Addr]:
        """Addresses to advertise, best first."""
        ...

    def set_own_addrs(self, source: AddrSource, addrs: Sequence[Addr]) -> None:
        """Replace what one source knows of our own addresses; `AddrsChanged` if it matters."""
        ...

    def handle(self, protocol: str, fn: Handler, *, per_peer_max: int) -> None:
        """Serve `protocol`: `fn` runs once per inbound stream, in a task of its own.

        The stream is closed when `fn` returns and reset when it raises. Streams over `per_peer_max`
        of one peer are reset.
        """
        ...

    def unhandle(self, protocol: str) -> None:
        """Serve `protocol` no more; streams being served go on. Peers are told."""
        ...

    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Have a live connection to `peer`, dialling `addrs` and remembered addresses if needed.

        Raises:
            Unreachable: nothing answered as that peer.
        """
        ...

    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:
        """Open a stream, connecting first if needed.

        Returns before the other side confirmed the protocol; a refusal shows as a broken stream.

        Raises:
            Unreachable: no connection could be made, or none of the allowed kind.
        """
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """End all connections to `peer` politely."""
        ...

    def peers(self) -> Mapping[PeerId, PeerInfo]:
        """Connected peers, a snapshot."""
        ...

    def info(self, peer: PeerId) -> PeerInfo | None:
        """What `peers` would show of one peer; None if it is not connected."""
        ...

    def protocols(self, peer: PeerId) -> frozenset[str]:
        """What a connected peer said that it serves; empty until it did."""
        ...

    def events(self) -> trio.MemoryReceiveChannel[FabricEvent]:
        """A new subscription. It holds 256 events; when full it is closed: reread `peers()`."""
        ...


Accept: TypeAlias = "Callable[[trio.abc.Stream, Addr], Awaitable[None]]"


class Transport(Protocol):
    """Raw byte streams under the wire: TCP, MemNet, and circuits over a relay."""

    path: Path
    """How its streams run. A "direct" one to a private address counts as "lan"."""

    def dials(self, addr: Addr) -> bool:
        """Whether this transport understands `addr`."""
        ...

    async def dial(
        self, addr: Addr, *, peer: PeerId | None = None, reuse_port: bool = False
    ) -> trio.abc.Stream:
        """Connect.

        Args:
            addr: an address that `dials` accepts.
            peer: whom the caller wants to find there; a relay must be told, TCP does not care.
            reuse_port: leave from the port we listen at, so that others see our mapped port.

        Raises:
            Unreachable: refused, unroutable or timed out below us.
        """
        ...

    async def listen(
        self,
        addr: Addr,
        accept: Accept,
        *,
        task_status: trio.TaskStatus[Addr],
    ) -> None:
        """Accept until cancelled; `started` with the bound address (port 0 resolved).

        `accept(stream, remote_addr)` runs in a task per connection and owns the stream.
        """
        ...
