"""Range-based set reconciliation: which ids only one of two replicas holds, in a few round trips.

Theory of operation
-------------------
Both sides hold items (hlc, id), sorted. The *initiator* cuts its whole set into ranges and sends a
salted hash of the ids in each; the *responder* compares each with its own range of the same bounds.
Equal hash: a skip. Unequal: the range is cut again, into 16 hashes, or, when fewer than 32 items
are left, into the list of short ids. Answers go back and forth until the initiator's would be
empty; it then knows what only it has (whole ids) and what only the responder has (short ids, which
the responder resolves, because it keeps what it listed). 100,000 items with 100 differences take
two round trips.

A fingerprint is a hash over the ordered list of ids and their number, with a salt both sides
contributed to. XOR and sums can be forged without knowing the salt: 300 ids of one's own contain a
subset whose XOR is zero, found in milliseconds, and a replica that lacks it looks equal.

Nothing is kept between messages but what was listed and found, so a cut costs one round trip: the
ranges that were settled are equal the next time and cost a hash each. Near the end of a frame the
rest becomes one hash to infinity, and the next message goes on there.

A hostile peer may send any bytes (`DecodeError`), never agree (`rounds_max`), list ids it has not
(the caller counts what was not delivered), or list for ever (`LISTED_MAX`). A message costs at most
two passes of hashing over the own set, whatever is in it, since its ranges cannot overlap.

Layout: the public Negentropy V1 messages (range-based set reconciliation, Meyer 2023) with other
fingerprints and ids. Source: docs/specs/sync.md s.10.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from p2p.errors import DecodeError, LimitError, ProtocolError
from p2p.replication.heads import DOMAIN_RANGE, DOMAIN_SHORT, ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION_BYTE: Final = 1
"""First byte of each message."""

MESSAGE_BYTES_MAX: Final = 65_536
"""Largest message: it fits a frame. Source: docs/specs/sync.md s.1."""

MESSAGE_BYTES_MIN: Final = 2048
"""Room for the pieces of one range, 16 of at most 60 B, or nothing would ever be said."""

RANGES_MAX: Final = 4096
"""Ranges of a message: twice what a full frame of fingerprints has."""

ROUNDS_MAX: Final = 32
"""Messages of one side about one lane in a session."""

LISTED_MAX: Final = 65_536
"""Short ids a responder lists in a session: ~13 MB of its memory. The next session goes on."""

BRANCHES: Final = 16
"""Pieces of a range that differs: 8 take a third round trip, 64 twice the bytes (measured)."""

LIST_BELOW: Final = 32
"""A range with fewer items is listed: 31 short ids are as long as 16 fingerprints of 15 bytes."""

LIST_FIRST_BELOW: Final = 17
"""The same for the first message: equal sets then cost 400 bytes at most, lists both ways."""

LIST_FREELY_BELOW: Final = 128
LIST_FREELY_BYTES: Final = 1024
"""A responder lists so many items while its message is shorter than this: a burst of new records on
one side ends a round trip sooner, for at most 1 KB more."""

FINGERPRINT_BYTES: Final = 16
SHORT_BYTES: Final = 8
ID_BYTES: Final = 32

RESERVE_BYTES: Final = 128
"""Kept free for the end of a message: a skip's bound, then one fingerprint to infinity, 63 B."""

INFINITY: Final = b"\xff" * (ITEM_BYTES + 1)
"""Above every item. Any other bound is 40 bytes, hlc and the beginning of an id, zeros after it."""

_ZERO: Final = bytes(ITEM_BYTES)
_MODE_SKIP: Final = 0
_MODE_FINGERPRINT: Final = 1
_MODE_IDS: Final = 2
_VARINT_BYTES_MAX: Final = 10
_U64: Final = 1 << 64

EMPTY: Final = bytes([VERSION_BYTE])
"""A message without ranges: everything is settled."""


@dataclass(frozen=True, slots=True)
class Range:
    """One range of a message; it begins where the one before ended.

    Attributes:
        upper: exclusive bound, 40 bytes or `INFINITY`.
        fingerprint: 16 bytes, or None.
        short_ids: of all items in the range, 8 bytes each, or None. With neither: a skip.
    """

    upper: bytes
    fingerprint: bytes | None = None
    short_ids: tuple[bytes, ...] | None = None


class RangeSet:
    """An immutable set of items in order, as `store.IdIndex.packed` has them.

    Args:
        packed: 40 bytes an item: hlc big-endian u64, id 32; ascending.
    """

    __slots__ = ("_ids", "packed")

    def __init__(self, packed: bytes) -> None:
        count, rest = divmod(len(packed), ITEM_BYTES)
        if rest:
            raise ValueError(f"an index has whole items of {ITEM_BYTES} B, got {len(packed)} B")
        self.packed = packed
        # The ids without their clocks, moved as words of 8 bytes: a range is then one slice to
        # hash. 2 ms for 100,000 items, where a join of slices takes 15.
        words = array("Q", packed)
        ids = array("Q", bytes(count * ID_BYTES))
        for at in range(ID_BYTES // 8):
            ids[at :: ID_BYTES // 8] = words[at + 1 :: ITEM_BYTES // 8]
        self._ids = memoryview(ids).cast("B")

    def __len__(self) -> int:
        return len(self.packed) // ITEM_BYTES

    def id_at(self, at: int) -> bytes:
        """The id of an item."""
        return bytes(self._ids[at * ID_BYTES : (at + 1) * ID_BYTES])

    def fingerprint(self, salt: bytes, first: int, end: int) -> bytes:
        """16 bytes over the ids of items `first` to `end` (exclusive)."""
        digest = hashlib.sha256(DOMAIN_RANGE + salt + (end - first).to_bytes(8, "big"))
        digest.update(self._ids[first * ID_BYTES : end * ID_BYTES])
        return digest.digest()[:FINGERPRINT_BYTES]

    def find(self, bound: bytes) -> int:
        """How many items lie below a bound."""
        if bound == INFINITY:
            return len(self)
        return bisect_left(range(len(self)), bound, key=self._item)

    def bound_before(self, at: int) -> bytes:
        """The shortest bound above item `at` - 1 and not above item `at`; 0 < at < len."""
        below, above = self._item(at - 1), self._item(at)
        if below[:8] != above[:8]:
            return above[:8] + bytes(ID_BYTES)
        same = 8
        while below[same] == above[same]:
            same += 1
        return above[: same + 1] + bytes(ITEM_BYTES - same - 1)

    def _item(self, at: int) -> bytes:
        return self.packed[at * ITEM_BYTES : (at + 1) * ITEM_BYTES]


# --- messages -------------------------------------------------------------------------------------


def decode_ranges_untrusted(message: bytes) -> list[Range]:
    """The ranges of a message, their bounds ascending.

    Raises:
        DecodeError: not in the one form a message can have, or over a limit.
    """
    if not 0 < len(message) <= MESSAGE_BYTES_MAX:
        raise DecodeError(f"a range message has 1 to {MESSAGE_BYTES_MAX} B, got {len(message)}")
    if message[0] != VERSION_BYTE:
        raise DecodeError("a range message of another version")
    reader = _Reader(message)
    ranges: list[Range] = []
    lower = _ZERO
    while reader.left:
        if len(ranges) == RANGES_MAX:
            raise DecodeError(f"more than {RANGES_MAX} ranges")
        upper = reader.bound()
        if upper <= lower:
            raise DecodeError("bounds must ascend")
        ranges.append(reader.payload(upper))
        lower = upper
    if ranges and ranges[-1].fingerprint is None and ranges[-1].short_ids is None:
        raise DecodeError("the last range is a skip, which is left out")
    return ranges


class _Reader:
    """Cuts a message into its fields."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._at = 1
        self._hlc = 0
        self._ended = False

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._message) - self._at

    def bound(self) -> bytes:
        """An exclusive upper bound."""
        if self._ended:
            raise DecodeError("a range above infinity")
        step, size = self._varint(), self._varint()
        if step == 0:
            if size:
                raise DecodeError("infinity has no id")
            self._ended = True
            return INFINITY
        self._hlc += step - 1
        if self._hlc >= _U64 or size > ID_BYTES:
            raise DecodeError("a bound out of range")
        prefix = self._take(size)
        if prefix.endswith(b"\0"):
            raise DecodeError("a bound with zeros at its end")
        return self._hlc.to_bytes(8, "big") + prefix.ljust(ID_BYTES, b"\0")

    def payload(self, upper: bytes) -> Range:
        """What is said of the range below `upper`."""
        mode = self._varint()
        if mode == _MODE_SKIP:
            return Range(upper)
        if mode == _MODE_FINGERPRINT:
            return Range(upper, fingerprint=self._take(FINGERPRINT_BYTES))
        if mode != _MODE_IDS:
            raise DecodeError("an unknown kind of range")
        data = self._take(self._varint() * SHORT_BYTES)
        return Range(
            upper,
            short_ids=tuple(
                [data[at : at + SHORT_BYTES] for at in range(0, len(data), SHORT_BYTES)]
            ),
        )

    def _varint(self) -> int:
        value = 0
        for at in range(self._at, min(self._at + _VARINT_BYTES_MAX, len(self._message))):
            byte = self._message[at]
            if at == self._at and byte == 0x80:
                raise DecodeError("a number with a leading zero")
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                self._at = at + 1
                return value
        raise DecodeError("a number without an end")

    def _take(self, size: int) -> bytes:
        if size > self.left:
            raise DecodeError("the message ends inside a range")
        self._at += size
        return self._message[self._at - size : self._at]


def _varint(value: int) -> bytes:
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


class _Writer:
    """Writes a message; skips are joined, and the last one is left out."""

    def __init__(self) -> None:
        self._out = bytearray(EMPTY)
        self._hlc = 0
        self._skip: bytes | None = None

    def __len__(self) -> int:
        return len(self._out)

    def message(self) -> bytes:
        """What was written."""
        return bytes(self._out)

    def mark(self) -> tuple[int, int, bytes | None]:
        """Where the message stands, for `back`."""
        return len(self._out), self._hlc, self._skip

    def back(self, mark: tuple[int, int, bytes | None]) -> None:
        """Forget what was written since `mark`."""
        size, self._hlc, self._skip = mark
        del self._out[size:]

    def skip(self, upper: bytes) -> None:
        """Nothing more is to be said of what lies below `upper`."""
        self._skip = upper

    def fingerprint(self, upper: bytes, value: bytes) -> None:
        """The range up to `upper` has this fingerprint."""
        self._begin(upper, _MODE_FINGERPRINT)
        self._out += value

    def short_ids(self, upper: bytes, short_ids: Sequence[bytes]) -> None:
        """The range up to `upper` has these ids."""
        self._begin(upper, _MODE_IDS)
        self._out += _varint(len(short_ids)) + b"".join(short_ids)

    def _begin(self, upper: bytes, mode: int) -> None:
        if self._skip is not None:
            self._bound(self._skip)
            self._out.append(_MODE_SKIP)
            self._skip = None
        self._bound(upper)
        self._out.append(mode)

    def _bound(self, upper: bytes) -> None:
        if upper == INFINITY:
            self._out += b"\0\0"
            return
        hlc = int.from_bytes(upper[:8], "big")
        prefix = upper[8:].rstrip(b"\0")
        self._out += _varint(1 + hlc - self._hlc) + _varint(len(prefix)) + prefix
        self._hlc = hlc


# --- the two sides --------------------------------------------------------------------------------


class _Side(ABC):
    """What both sides do with a range that differs.

    Args:
        items: our set.
        salt: of the session.
        message_bytes: size of our messages, at most; small ones in tests.
    """

    def __init__(
        self, items: RangeSet, salt: bytes, *, message_bytes: int = MESSAGE_BYTES_MAX
    ) -> None:
        if not MESSAGE_BYTES_MIN <= message_bytes <= MESSAGE_BYTES_MAX:
            raise ValueError(f"message_bytes must allow a few ranges, got {message_bytes}")
        self._items = items
        self._salt = salt
        self._room = message_bytes - RESERVE_BYTES
        self._short = hashlib.sha256(DOMAIN_SHORT + salt)
        self.rounds = 0
        """Messages of the peer so far."""

    def _short_ids(self, first: int, end: int) -> dict[bytes, bytes]:
        """Ids of items under their short forms, in order."""
        found = {}
        for at in range(first, end):
            digest = self._short.copy()
            record_id = self._items.id_at(at)
            digest.update(record_id)
            found[digest.digest()[:SHORT_BYTES]] = record_id
        return found

    def _listed(self, short_ids: dict[bytes, bytes]) -> None:  # noqa: B027 - a hook, not a duty
        """A list of ours goes out."""

    @abstractmethod
    def _list_below(self, out: _Writer) -> int: ...

    @abstractmethod
    def _answer_ids(
        self, out: _Writer, first: int, end: int, upper: bytes, theirs: Sequence[bytes]
    ) -> bool: ...

    def _answer(self, ranges: Sequence[Range]) -> bytes:
        """Our word on each range of the peer, as far as the message has room."""
        out = _Writer()
        first = 0
        for item in ranges:
            end = self._items.find(item.upper)
            if item.short_ids is not None:
                fits = self._answer_ids(out, first, end, item.upper, item.short_ids)
            elif item.fingerprint in {None, self._items.fingerprint(self._salt, first, end)}:
                out.skip(item.upper)
                fits = True
            else:
                fits = self._split(out, first, end, item.upper)
            if not fits:
                break
            first = end
        return out.message()

    def _split(self, out: _Writer, first: int, end: int, upper: bytes) -> bool:
        """Cut a range; False: there was no room, and the rest was left as one fingerprint."""
        mark = out.mark()
        short_ids = None
        if end - first < self._list_below(out):
            short_ids = self._short_ids(first, end)
            out.short_ids(upper, list(short_ids))
        else:
            self._branch(out, first, end, upper)
        if len(out) > self._room:
            out.back(mark)
            self._rest(out, first)
            return False
        if short_ids is not None:
            self._listed(short_ids)
        return True

    def _branch(self, out: _Writer, first: int, end: int, upper: bytes) -> None:
        size, larger = divmod(end - first, BRANCHES)
        for piece in range(BRANCHES):
            following = first + size + (piece < larger)
            last = piece == BRANCHES - 1
            bound = upper if last else self._items.bound_before(following)
            out.fingerprint(bound, self._items.fingerprint(self._salt, first, following))
            first = following

    def _rest(self, out: _Writer, first: int) -> None:
        """Everything from an item up, in one fingerprint: the next message goes on there."""
        count = len(self._items)
        out.fingerprint(INFINITY, self._items.fingerprint(self._salt, first, count))


class Initiator(_Side):
    """The side that begins, and learns what differs.

        message = initiator.start()
        while message is not None:
            message = initiator.receive(answer_of_the_peer(message))

    Afterwards `have` and `need` are exact if `complete`, else a part.
    """

    def __init__(
        self,
        items: RangeSet,
        salt: bytes,
        *,
        message_bytes: int = MESSAGE_BYTES_MAX,
        rounds_max: int = ROUNDS_MAX,
    ) -> None:
        super().__init__(items, salt, message_bytes=message_bytes)
        self._rounds_max = rounds_max
        self._received = 0
        self._have: dict[bytes, None] = {}
        self._need: dict[bytes, None] = {}
        self.complete = False
        """Whether everything was compared."""

    @property
    def have(self) -> list[bytes]:
        """Ids only we hold, in order."""
        return list(self._have)

    @property
    def need(self) -> list[bytes]:
        """Short ids only the peer holds, as it listed them."""
        return list(self._need)

    def start(self) -> bytes:
        """The first message."""
        out = _Writer()
        self._split(out, 0, len(self._items), INFINITY)
        return out.message()

    def receive(self, message: bytes) -> bytes | None:
        """The answer to a message of the responder; None: nothing is left to say.

        Raises:
            DecodeError: not a range message.
        """
        ranges = decode_ranges_untrusted(message)
        self.rounds += 1
        self._received += sum(len(item.short_ids or ()) for item in ranges)
        answer = self._answer(ranges)
        self.complete = answer == EMPTY
        # So many ids that another message might overrun what the responder may list.
        full = self._received > LISTED_MAX - MESSAGE_BYTES_MAX // SHORT_BYTES
        if self.complete or full or self.rounds >= self._rounds_max:
            return None
        return answer

    @override
    def _list_below(self, out: _Writer) -> int:
        return LIST_BELOW if self.rounds else LIST_FIRST_BELOW

    @override
    def _answer_ids(
        self, out: _Writer, first: int, end: int, upper: bytes, theirs: Sequence[bytes]
    ) -> bool:
        ours = self._short_ids(first, end)
        listed = set(theirs)
        self._have.update((ours[short], None) for short in ours if short not in listed)
        self._need.update((short, None) for short in theirs if short not in ours)
        out.skip(upper)
        return True


class Responder(_Side):
    """The side that answers, and resolves the short ids it listed."""

    def __init__(
        self,
        items: RangeSet,
        salt: bytes,
        *,
        message_bytes: int = MESSAGE_BYTES_MAX,
        rounds_max: int = ROUNDS_MAX,
    ) -> None:
        super().__init__(items, salt, message_bytes=message_bytes)
        self._rounds_max = rounds_max
        self._sent: dict[bytes, bytes] = {}

    def receive(self, message: bytes) -> bytes:
        """The answer to a message of the initiator.

        Raises:
            DecodeError: not a range message.
            ProtocolError: more messages than an initiator sends.
            LimitError: asked to list more than a session may.
        """
        ranges = decode_ranges_untrusted(message)
        self.rounds += 1
        if self.rounds > self._rounds_max:
            raise ProtocolError(f"more than {self._rounds_max} range messages")
        return self._answer(ranges)

    def resolve(self, short_ids: Sequence[bytes]) -> list[bytes]:
        """Whole ids of those we listed; others are left out."""
        return [self._sent[short] for short in short_ids if short in self._sent]

    @override
    def _listed(self, short_ids: dict[bytes, bytes]) -> None:
        self._sent |= short_ids
        if len(self._sent) > LISTED_MAX:
            raise LimitError(f"more than {LISTED_MAX} ids to list in a session")

    @override
    def _list_below(self, out: _Writer) -> int:
        return LIST_FREELY_BELOW if len(out) < LIST_FREELY_BYTES else LIST_BELOW

    @override
    def _answer_ids(
        self, out: _Writer, first: int, end: int, upper: bytes, theirs: Sequence[bytes]
    ) -> bool:
        del theirs  # The initiator compares; it learns what both hold.
        room = (self._room - len(out)) // SHORT_BYTES - RESERVE_BYTES // SHORT_BYTES
        cut = min(end, first + max(0, room))
        if cut < end:
            if cut > first:
                self._list(out, first, cut, self._items.bound_before(cut))
            self._rest(out, cut)
            return False
        self._list(out, first, end, upper)
        return True

    def _list(self, out: _Writer, first: int, end: int, upper: bytes) -> None:
        short_ids = self._short_ids(first, end)
        out.short_ids(upper, list(short_ids))
        self._listed(short_ids)
