"""Who wants what erased, and who confirmed that it is gone.

Each member that has carried out an erase record says so in a signed record of its own, so
"confirmed by k of n" can be checked by anybody, at any time later. Nothing here says "gone
everywhere": who has been silent is named, and so is who left and may still hold the body.
Source: docs/specs/record.md s.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2p.replication.ops import ERASE_ACKS_MAX, EraseAck, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.replication.groups import Group
    from p2p.replication.ops import Payload


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A member's word on an erase record."""

    member: bytes
    bodies: int
    """How many of the named bodies it had and has no more, or knew to refuse."""
    at_ms: int
    """Unix milliseconds of the word, by the member's clock."""


@dataclass(frozen=True, kw_only=True)
class ErasureView:
    """An erase record, and what became of it."""

    id: bytes
    author: bytes
    at_ms: int
    records: int
    """How many records it names."""
    confirmed: tuple[Confirmation, ...]
    outstanding: tuple[bytes, ...]
    """Members that have not confirmed it yet."""
    out_of_reach: tuple[bytes, ...]
    """Devices that left or were removed without a word on it: they may hold the bodies for ever."""
    hidden_until_ms: int = 0
    """Of an admin's word on what others wrote: Unix milliseconds at which it is carried out here,
    unless it is undone; 0 once it was, and of an author's word, which is carried out at once."""


def views(group: Group) -> list[ErasureView]:
    """Erase records of a group that count, newest first."""
    standing = group.standing
    members = standing.members()
    found = []
    for ident, record in group.erase_records.items():
        if not standing.live(record.head, ident):
            continue
        author = record.head.author
        told = {
            word.member: word
            for word in group.confirmations.get(ident, {}).values()
            if standing.live(word.head, word.id) and not word.partial
        }
        confirmed = [
            Confirmation(
                member=word.member,
                bodies=word.bodies,
                at_ms=word.head.hlc >> 16,
            )
            for word in told.values()
        ]
        silent = (standing.ever_members() - told.keys()) - {author}
        found.append(
            ErasureView(
                id=ident,
                author=author,
                at_ms=record.head.hlc >> 16,
                records=len(record.targets),
                confirmed=tuple(sorted(confirmed, key=lambda one: one.member)),
                outstanding=tuple(sorted(one for one in silent if one in members)),
                out_of_reach=tuple(sorted(one for one in silent if one not in members)),
                hidden_until_ms=_hidden_until(group, ident),
            )
        )
    return sorted(found, key=lambda one: (-one.at_ms, one.id))


def _hidden_until(group: Group, ident: bytes) -> int:
    """0 as well where the record hides nothing here: it names its author's own."""
    record = group.erase_records[ident]
    return group.windows.get(ident, 0) if group.hidden.intersection(record.targets) else 0


def unconfirmed(group: Group, me: bytes) -> list[bytes]:
    """Ids of others' erase records that count and that we have not confirmed, oldest first."""
    standing = group.standing
    due = [
        (record.head.hlc, ident)
        for ident, record in group.erase_records.items()
        if record.head.author != me
        and me not in group.confirmations.get(ident, {})
        and standing.live(record.head, ident)
    ]
    return [ident for _, ident in sorted(due)]


def confirm(gone: Mapping[bytes, int]) -> list[tuple[Kind, Payload]]:
    """The records that confirm erase records.

    Args:
        gone: id of an erase record carried out here -> how many of the records it names are here
            without their bodies.
    """
    rows = [(ident, bodies, 0) for ident, bodies in sorted(gone.items())]
    return [
        (Kind.ERASE_ACK, EraseAck(tuple(rows[at : at + ERASE_ACKS_MAX])))
        for at in range(0, len(rows), ERASE_ACKS_MAX)
    ]
