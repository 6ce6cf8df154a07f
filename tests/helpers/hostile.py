"""What a peer can do that does not keep to the rules: forge, fork, flood, lie.

It has a real identity and, if it joined, real keys; everything it sends is built by hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import trio
from typing_extensions import override

from p2p.identity import Identity, PeerId
from p2p.replication import push
from p2p.replication.heads import session_salt
from p2p.replication.messages import (
    FrameReader,
    Groups,
    Hello,
    Message,
    Records,
    State,
    encode_frame,
)
from p2p.replication.record import Envelope, Record, RecordWire, lane_of
from p2p.replication.sealing import (
    ControlDraft,
    Place,
    aead_context,
    seal_body,
    sign_record,
)
from tests.helpers.mesh import wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from types import UnionType

    from p2p.env import Env
    from p2p.replication.authority import Authority
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.service import Replication
    from tests.helpers.mesh import Peer

INCARNATION = 77
"""Of hand-made logs, so that they never meet the logs of the same identity's honest parts."""


class Desk(Protocol):
    """Whose view of group, keys and clock a pen uses: a simulated peer, or a guest on real TCP."""

    @property
    def identity(self) -> Identity:
        """Its key."""
        ...

    @property
    def env(self) -> Env:
        """Its clock and random numbers."""
        ...

    @property
    def sealer(self) -> GroupSealer:
        """Its keys of the groups."""
        ...

    @property
    def replication(self) -> Replication:
        """Its view of the groups."""
        ...


class Pen:
    """Writes records of one identity by hand.

    Args:
        peer: whose view of group, keys and clock is used.
        group: where it writes.
        identity: who signs; the peer itself by default.
        incarnation: of its logs.
    """

    def __init__(
        self,
        peer: Desk,
        group: bytes,
        *,
        identity: Identity | None = None,
        incarnation: int = INCARNATION,
    ) -> None:
        self.peer = peer
        self.group = group
        self.identity = identity or peer.identity
        self.incarnation = incarnation
        self.ends: dict[int, tuple[int, bytes | None, int]] = {}

    def heads(self) -> tuple[bytes, ...]:
        """What an honest record of the peer would cite now."""
        return self.authority().heads(self.identity.id)

    def authority(self) -> Authority:
        """The peer's view of the group."""
        found = self.peer.replication._core.groups.get(self.group)
        assert found is not None
        return found.authority

    def write(
        self,
        kind: int = 32,
        body: bytes = b"hostile",
        *,
        hlc: int | None = None,
        auth: tuple[bytes, ...] | None = None,
        seq: int | None = None,
        prev: bytes | None = None,
        advance: bool = True,
    ) -> Record:
        """The next record of the lane, or one at a place of the caller's choice."""
        lane = lane_of(kind)
        last_seq, last_id, last_hlc = self.ends.get(lane, (0, None, 0))
        at = seq if seq is not None else last_seq + 1
        before = prev if prev is not None or seq == 1 else last_id
        log = (self.group, self.identity.id, self.incarnation, lane)
        earliest = max(last_hlc + 1, self.peer.env.wall_ms() << 16, self.authority().hlc_max + 1)
        time = earliest if hlc is None else hlc
        if lane == 0:
            envelope = Envelope(self.peer.env.rng.randbytes(16), None, None, body)
        else:
            epoch = self.peer.sealer.current_epoch(self.group)
            assert epoch is not None
            secret = self.peer.sealer.epochs(self.group)[epoch]
            context = aead_context(self.group, self.identity.id, self.incarnation, at)
            envelope = seal_body(body, secret, epoch, context, self.peer.env.rng.randbytes(60))
        record = sign_record(
            self.identity,
            self.group,
            ControlDraft(kind, body),
            Place(log, at, before, 0),
            time,
            auth if auth is not None else self.heads(),
            envelope,
        )
        if advance:
            self.ends[lane] = (at, record.id, time)
        return record

    def twin(self) -> Pen:
        """A second pen at the same ends: what it writes next forks the log."""
        other = Pen(self.peer, self.group, identity=self.identity, incarnation=self.incarnation)
        other.ends = dict(self.ends)
        return other


async def send_push(peer: Peer, target: Peer, messages: Sequence[Message]) -> bool:
    """Send frames on a push stream; whether the target let it stay open."""
    stream = await peer.node.fabric.open(PeerId(target.id), push.PROTOCOL)
    try:
        for message in messages:
            await stream.send_all(encode_frame(message))
        await stream.send_eof()
        with trio.move_on_after(5):
            await stream.receive_some(1)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return False
    return True


async def push_records(
    peer: Peer, target: Peer, group: bytes, records: Sequence[Record | RecordWire]
) -> bool:
    """Push records, one frame each sixteen."""
    wires = [r.wire() if isinstance(r, Record) else r for r in records]
    frames = [Records(group, tuple(wires[at : at + 16])) for at in range(0, len(wires), 16)]
    return await send_push(peer, target, frames)


def forged(record: Record) -> RecordWire:
    """The record with a signature that is not its author's."""
    wire = record.wire()
    return RecordWire(wire.header, bytes(64), wire.envelope)


def with_body(record: Record, envelope: bytes) -> RecordWire:
    """The record with another envelope than it commits to."""
    return RecordWire(record.header, record.signature, envelope)


def altered(wire: RecordWire, rng: random.Random) -> RecordWire:
    """The record with one bit of its header, signature or envelope changed."""
    parts = [wire.header, wire.signature, wire.envelope or b""]
    at = rng.randrange(3 if wire.envelope else 2)
    data = bytearray(parts[at])
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    parts[at] = bytes(data)
    return RecordWire(parts[0], parts[1], parts[2] or None)


class Impostor(Identity):
    """Somebody's key with somebody else's signatures.

    Args:
        victim: whose key it shows.
        own: who signs.
    """

    def __init__(self, victim: bytes, own: Identity) -> None:
        self._victim = PeerId(victim)
        self._own = own

    @property
    @override
    def id(self) -> PeerId:
        return self._victim

    @override
    def sign(self, domain: bytes, body: bytes) -> bytes:
        return self._own.sign(domain, body)


def with_equal_xor(write: Callable[[], Record]) -> tuple[list[Record], list[Record]]:
    """Two disjoint sets of records, equal in number and in the XOR of their ids.

    Linear algebra over GF(2): among 258 ids there is such a pair of sets at the latest.

    Args:
        write: makes another record.
    """
    basis: dict[int, tuple[int, int]] = {}
    made: list[Record] = []
    while True:
        made.append(write())
        # A bit beside the id counts members modulo 2: the subset found has an even number.
        value, members = int.from_bytes(made[-1].id, "big") | 1 << 256, 1 << len(made) - 1
        while value and value.bit_length() in basis:
            other, others = basis[value.bit_length()]
            value, members = value ^ other, members ^ others
        if not value:
            chosen = [record for n, record in enumerate(made) if members >> n & 1]
            half = len(chosen) // 2
            return chosen[:half], chosen[half:]
        basis[value.bit_length()] = value, members


class Liar:
    """The initiator's side of a session, by hand.

    Args:
        stream: to the peer that is lied to.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.reader = FrameReader()
        self.salt = b""

    async def send(self, message: Message) -> None:
        """Send one message."""
        await self.stream.send_all(encode_frame(message))

    async def receive(self, kind: type | UnionType) -> Message:
        """The next message of that kind; others are passed over."""
        while True:
            found = self.reader.next_message_untrusted()
            if found is not None:
                if isinstance(found[0], kind):
                    return found[0]
                continue
            data = await self.stream.receive_some(65_536)
            assert data, "the other side ended the session"
            self.reader.feed(bytes(data))

    async def greet(self) -> tuple[bytes, State]:
        """Exchange hellos and groups; tag and the responder's state."""
        await self.send(Hello(1, 1, (), b"n" * 16))
        hello = await self.receive(Hello)
        assert isinstance(hello, Hello)
        self.salt = session_salt(b"n" * 16, hello.nonce)
        groups = await self.receive(Groups)
        assert isinstance(groups, Groups)
        assert groups.tags, "the peer shares no group with us"
        state = await self.receive(State)
        assert isinstance(state, State)
        await self.send(Groups(groups.tags[:1]))
        return groups.tags[0], state


async def refused(target: Peer, reason: str, count: int = 1) -> None:
    """Wait until the target refused records for that reason."""
    await wait_until(
        lambda: sum(e.data["reason"] == reason for e in target.named("record.refused")) >= count
    )


__all__ = [
    "Impostor",
    "Liar",
    "Pen",
    "altered",
    "forged",
    "push_records",
    "refused",
    "replace",
    "send_push",
    "with_body",
    "with_equal_xor",
]
