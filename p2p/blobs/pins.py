"""Who may read a blob and who holds it: the part of a blob that people and services decide.

A blob is read by the groups under which it was pinned, put or fetched. A *pin* also keeps it from
being collected; it has a tag, which names who holds it, so that two holders do not undo each other.
Source: docs/specs/blobs.md s.4.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec
import trio

from p2p.errors import UsageError

if TYPE_CHECKING:
    from p2p.blobs.manifest import BlobId

GROUP_BYTES: Final = 32
TAG_CHARACTERS_MAX: Final = 64
PINS_MAX: Final = 1024
"""Pins of one blob."""


class Public(enum.Enum):
    """The audience of everybody."""

    PUBLIC = "public"


PUBLIC: Final = Public.PUBLIC
Group: TypeAlias = bytes | Literal[Public.PUBLIC] | None
"""Who may read: the members of a group (its 32 bytes), our own devices (None), or everybody."""

_OWN: Final = b""
_EVERYBODY: Final = b"*"

_Group: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=GROUP_BYTES)]
_Tag: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=TAG_CHARACTERS_MAX)]


class _Pin(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    tag: _Tag
    group: _Group


class _Wire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    readers: list[_Group]
    pins: list[_Pin]


_decoder: Final = msgspec.msgpack.Decoder(_Wire)
_encoder: Final = msgspec.msgpack.Encoder()

UNREADABLE: Final = ("unreadable", None)
"""The pin of a blob whose pins file cannot be read: better kept too long than lost."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Readers and holders of one blob. Immutable: a change makes a new one."""

    readers: tuple[Group, ...] = ()
    """Groups that may read it although none of them holds it."""
    pins: tuple[tuple[str, Group], ...] = ()
    """Who holds it: tag and group."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """Everybody who may read it."""
        return tuple(dict.fromkeys((*self.readers, *(group for _, group in self.pins))))

    def with_reader(self, group: Group) -> Pins:
        """Let a group read it too."""
        return Pins(tuple(dict.fromkeys((*self.readers, group))), self.pins)

    def with_pin(self, group: Group, tag: str) -> Pins:
        """Hold it.

        Raises:
            UsageError: the tag is empty or too long, or there are too many pins.
        """
        if not 0 < len(tag) <= TAG_CHARACTERS_MAX or not tag.isprintable():
            raise UsageError(f"a pin's tag has 1 to {TAG_CHARACTERS_MAX} printable characters")
        pins = tuple(dict.fromkeys((*self.pins, (tag, group))))
        if len(pins) > PINS_MAX:
            raise UsageError(f"a blob has at most {PINS_MAX} pins")
        return Pins(self.readers, pins)

    def without_pin(self, tag: str) -> Pins:
        """Hold it no longer under `tag`; whoever could read it only by that pin no longer can."""
        return Pins(self.readers, tuple(pin for pin in self.pins if pin[0] != tag))

    def encode(self) -> bytes:
        """The pins file."""
        return _encoder.encode(
            _Wire(
                1,
                [_group_bytes(group) for group in self.readers],
                [_Pin(tag, _group_bytes(group)) for tag, group in self.pins],
            )
        )


def decode_pins(data: bytes) -> Pins:
    """The pins of a file that we wrote; of a damaged or missing one, a pin that keeps the blob."""
    try:
        wire = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Pins((), (UNREADABLE,))
    return Pins(
        tuple(_group(raw) for raw in wire.readers),
        tuple((pin.tag, _group(pin.group)) for pin in wire.pins),
    )


def _group_bytes(group: Group) -> bytes:
    if group is None:
        return _OWN
    if isinstance(group, Public):
        return _EVERYBODY
    if len(group) != GROUP_BYTES:
        raise UsageError(f"a group's id has {GROUP_BYTES} bytes, not {len(group)}")
    return group


def _group(raw: bytes) -> Group:
    if raw == _OWN:
        return None
    return PUBLIC if raw == _EVERYBODY else raw


@dataclass(slots=True, eq=False)
class Entry:
    """One blob of ours, as the loop sees it."""

    id: BlobId
    size: int
    """Bytes of the blob, however many of them are here."""
    whole: bool
    bytes_used: int
    """Of the disk."""
    used_ms: int
    pins: Pins
    right: int = 0
    """Bitmap of chunks found right since the start: nothing else is given to anybody."""
    fetching: bool = False
    lock: trio.Lock = field(default_factory=trio.Lock)
    """One change of its files at a time."""

    @property
    def pinned(self) -> bool:
        """Whether somebody holds it."""
        return bool(self.pins.pins)
