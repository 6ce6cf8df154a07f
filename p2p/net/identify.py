"""identify, push and ping as services on connections.

Each side asks the other once a connection, and pushes when its own addresses or protocols changed.
What is learned serves three ends: addresses to dial that peer again, the protocols it speaks, and
its software's name for people. Source: docs/specs/wire.md s.6.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p.errors import AuthError, DecodeError, PeerError
from p2p.limits import PING_BYTES
from p2p.wire.envelope import open_peer_record_untrusted, seal_peer_record
from p2p.wire.identify import (
    IDENTIFY,
    IDENTIFY_PUSH,
    PROTOCOL_VERSION,
    IdentifyMessage,
    IdentifyReader,
    encode_identify,
    frame,
)
from p2p.wire.multiaddr import ip_of, parse_addr_untrusted, scope_of, split_peer_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.net.book import Book
    from p2p.net.driver import Connection
    from p2p.net.seam import Addr, Stream

log = logging.getLogger("covey.p2p.identify")

PORT_MIN = 1024
"""Services of the system live below; no node does."""


class IdentifyOwner(Protocol):
    """What identify needs of the fabric."""

    def addrs(self) -> list[Addr]:
        """Our addresses."""
        ...

    def protocol_names(self) -> list[str]:
        """What we serve."""
        ...

    def connection_of(self, stream: Stream) -> Connection | None:
        """The connection that carries a stream."""
        ...

    def identified(self, peer: PeerId) -> None:
        """A peer told what it serves."""

    def observed(self, connection: Connection, addr: Addr) -> None:
        """A peer told where it sees us."""

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of a peer."""


REACH_EVERYBODY: Final = 3
"""What `reach_of` says of a public address."""


def reach_of(addr: Addr, config: P2pConfig) -> int:
    """How far an address reaches: 0 never, 1 this machine, 2 private, 3 everybody."""
    ip = ip_of(addr)
    if ip is None:
        return REACH_EVERYBODY
    scope = scope_of(ip)
    if scope == "never":
        return 0
    if config.private_is_public:
        return REACH_EVERYBODY
    return {"loopback": 1, "private": 2, "public": REACH_EVERYBODY}[scope]


def addrs_for(addrs: Iterable[Addr], seen_at: Addr, config: P2pConfig) -> list[Addr]:
    """Those of `addrs` that make sense to a peer seen at `seen_at`: as far as it is, or farther."""
    near = reach_of(seen_at, config) or REACH_EVERYBODY
    return [addr for addr in addrs if reach_of(addr, config) >= near]


def dialable_addrs(
    addrs: Iterable[Addr], peer: PeerId, seen_at: Addr, config: P2pConfig
) -> list[Addr]:
    """What a peer says of itself, less what we never dial on a stranger's word."""
    found: list[Addr] = []
    for text in addrs_for(addrs, seen_at, config):
        try:
            addr, named = split_peer_untrusted(text)
            ports = [int(value) for name, value in parse_addr_untrusted(addr) if name == "tcp"]
        except DecodeError:
            continue
        if (named is None or named == peer) and ports and min(ports) >= PORT_MIN:
            found.append(addr)
    return found


class Identify:
    """The service.

    Args:
        identity: who we are.
        config: limits and times.
        env: the wall clock dates our record.
        book: keeps signed records.
        owner: see `IdentifyOwner`.
        agent: our software's name.
    """

    def __init__(
        self,
        identity: Identity,
        config: P2pConfig,
        env: Env,
        book: Book,
        owner: IdentifyOwner,
        *,
        agent: str,
    ) -> None:
        self._identity = identity
        self._config = config
        self._env = env
        self._book = book
        self._owner = owner
        self._agent = agent
        self._seq = 0
        self._record: tuple[tuple[Addr, ...], bytes] = ((), b"")

    async def ask(self, connection: Connection) -> None:
        """Ask the other side who it is, once a connection."""
        try:
            with trio.move_on_after(self._config.identify_s):
                await connection.wait_can_open()
                if not connection.alive:
                    return
                stream = connection.open(IDENTIFY)
                try:
                    # Not aclose: js counts our half-open identify streams, so we end them early.
                    await stream.send_eof()
                    self._apply(connection, await self._read(stream))
                finally:
                    stream.reset()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it does not speak identify, or it is gone
        except PeerError as error:
            connection.blame(str(error))

    async def answer(self, stream: Stream) -> None:
        """Serve `/ipfs/id/1.0.0`: say who we are."""
        connection = self._owner.connection_of(stream)
        if connection is not None:
            await stream.send_all(frame(self._message(connection)))

    async def take_push(self, stream: Stream) -> None:
        """Serve `/ipfs/id/push/1.0.0`: hear what changed."""
        connection = self._owner.connection_of(stream)
        with trio.move_on_after(self._config.identify_s):
            message = await self._read(stream)
            if connection is not None:
                self._apply(connection, message)

    async def push(self, connection: Connection) -> None:
        """Tell the other side what changed."""
        if IDENTIFY_PUSH not in connection.remote_protocols:
            return
        try:
            with trio.move_on_after(self._config.identify_s):
                await connection.wait_can_open()
                if not connection.alive:
                    return
                stream = connection.open(IDENTIFY_PUSH)
                try:
                    await stream.send_all(frame(self._message(connection)))
                finally:
                    await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def echo(self, stream: Stream) -> None:
        """Serve `/ipfs/ping/1.0.0`: give back what comes, in pieces of 32 bytes."""
        held = bytearray()
        while data := await stream.receive_some():
            held += data
            whole = len(held) - len(held) % PING_BYTES
            if whole:
                await stream.send_all(bytes(held[:whole]))
                del held[:whole]

    async def _read(self, stream: Stream) -> IdentifyMessage:
        reader = IdentifyReader()
        while data := await stream.receive_some():
            reader.receive(data)
        return reader.end()

    def _apply(self, connection: Connection, message: IdentifyMessage) -> None:
        peer = connection.peer
        if message.peer is not None and message.peer != peer:
            raise AuthError("identify names another key than the handshake proved", peer)
        if message.agent:
            connection.agent = message.agent
            connection.prompt_ends = message.agent.startswith("covey/")
        if message.protocols:
            changed = connection.remote_protocols != frozenset(message.protocols)
            connection.remote_protocols = frozenset(message.protocols)
            if changed:
                self._owner.identified(peer)
        if message.observed_addr is not None:
            self._owner.observed(connection, message.observed_addr)
        addrs = list(message.listen_addrs)
        if message.signed_record:
            record = open_peer_record_untrusted(message.signed_record)
            if record.peer != peer:
                raise AuthError("identify holds another peer's record", peer)
            now_ms = self._env.wall_ms()
            if self._book.put_record(peer, message.signed_record, record.seq, now_ms):
                addrs += record.addrs
        usable = dialable_addrs(addrs, peer, connection.addr, self._config)
        if usable:
            self._owner.learn(peer, usable)

    def _message(self, connection: Connection) -> bytes:
        ours = self._owner.addrs()
        public = tuple(addr for addr in ours if reach_of(addr, self._config) == REACH_EVERYBODY)
        return encode_identify(
            IdentifyMessage(
                peer=self._identity.id,
                listen_addrs=tuple(addrs_for(ours, connection.addr, self._config)),
                protocols=tuple(self._owner.protocol_names()),
                observed_addr=connection.addr,
                protocol_version=PROTOCOL_VERSION,
                agent=self._agent,
                signed_record=self._signed_record(public),
            )
        )

    def _signed_record(self, addrs: tuple[Addr, ...]) -> bytes:
        """Our record, signed anew only when the addresses changed."""
        if not addrs:
            return b""
        if self._record[0] != addrs:
            self._seq = max(self._env.wall_ms(), self._seq + 1)
            self._record = addrs, seal_peer_record(self._identity, self._seq, addrs)
        return self._record[1]
