"""Stored records in wire form, cut into messages that fit a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.replication.messages import FRAME_BYTES_MAX, RECORDS_MAX, Records
from p2p.replication.record import Envelope, RecordWire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.store import Stored

FETCH_IDS: Final = 16
"""Records asked for by id that are read from the store at once: at most 1.1 MB."""

_RECORD_ROOM: Final = 16
"""Array and length prefixes around a record's parts, rounded up."""

_MESSAGE_ROOM: Final = 64
"""The rest of a *records* message: type, group, list header."""


def wire_of(stored: Stored) -> RecordWire:
    """A stored record as it travels; without its envelope when only the header is here."""
    part = stored.envelope
    envelope = None
    if part is not None:
        envelope = Envelope(part.salt, part.epoch, part.wrap, part.ct).encode()
    return RecordWire(stored.header, stored.signature, envelope)


def records_frames(group: bytes, wires: Sequence[RecordWire]) -> list[Records]:
    """Records cut into messages that fit a frame."""
    frames: list[Records] = []
    batch: list[RecordWire] = []
    room = FRAME_BYTES_MAX - _MESSAGE_ROOM
    size = 0
    for wire in wires:
        weight = wire_bytes(wire)
        if batch and (len(batch) == RECORDS_MAX or size + weight > room):
            frames.append(Records(group, tuple(batch)))
            batch, size = [], 0
        batch.append(wire)
        size += weight
    if batch:
        frames.append(Records(group, tuple(batch)))
    return frames


def wire_bytes(wire: RecordWire) -> int:
    """Encoded size of a record, rounded up."""
    envelope = 0 if wire.envelope is None else len(wire.envelope)
    return len(wire.header) + len(wire.signature) + envelope + _RECORD_ROOM
