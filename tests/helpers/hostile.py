"""What a peer can do that does not keep to the rules: forge, fork, flood, lie.

It has a real identity and, if it joined, real keys; everything it sends is built by hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import trio

from p2p.identity import PeerId
from p2p.replication import push
from p2p.replication.messages import Message, Records, encode_frame
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
    from collections.abc import Sequence

    from p2p.env import Env
    from p2p.identity import Identity
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


async def refused(target: Peer, reason: str, count: int = 1) -> None:
    """Wait until the target refused records for that reason."""
    await wait_until(
        lambda: sum(e.data["reason"] == reason for e in target.named("record.refused")) >= count
    )


__all__ = ["Pen", "forged", "push_records", "refused", "replace", "send_push", "with_body"]
