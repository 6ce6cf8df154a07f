"""The routing table: which nodes we know, sorted by how much of our place they share.

Theory of operation. Bucket i holds at most k nodes whose places share exactly i leading bits with
ours. A node enters when it was seen to serve the DHT and answered a request. Nodes that stayed long
stay longer (Kademlia s.2.4), so a full bucket takes nobody in while its oldest node lives: the
caller is told whom to ask, and only a dead one is replaced. A hostile network can therefore not
push honest nodes out; what it could do is be first, which the limits by prefix bound: few nodes of
one IPv4 /24 or IPv6 /48 a bucket, and few in the table.

Nothing here reads a clock, sends anything or verifies a signature. Source: docs/specs/dht.md s.5.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from p2p.dht.keys import PLACE_BITS, Place, peer_place, shared_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2p.identity import PeerId
    from p2p.net.seam import Addr

Offer: TypeAlias = Literal["added", "known", "full", "prefix", "self"]
"""What became of a node: in; in already; its bucket is full; its prefix has its share; us."""

FAILURES_MAX: Final = 3
"""Requests a node may leave unanswered in a row before it leaves the table by itself."""


@dataclass(frozen=True)
class Contact:
    """A node and how to reach it."""

    peer: PeerId
    place: Place
    addrs: tuple[Addr, ...] = ()
    record: bytes = b""
    """Its signed peer record; without one we cannot pass it on."""
    seq: int = 0
    """The record's."""
    prefix: str = ""
    """The network it is reached in, for limits; empty: not known."""

    @classmethod
    def of(cls, peer: PeerId) -> Contact:
        """A contact of whom nothing is known but its id."""
        return cls(peer, peer_place(peer))


class _Entry:
    __slots__ = ("answered_s", "contact", "failures")

    def __init__(self, contact: Contact, answered_s: float) -> None:
        self.contact = contact
        self.answered_s = answered_s
        self.failures = 0


class RoutingTable:
    """256 buckets of nodes.

    Args:
        own: our place.
        k: nodes in a bucket.
        per_prefix_bucket_max: nodes of one prefix in a bucket; None: no limit.
        per_prefix_table_max: the same in the table.

    *Invariants*: every node is in the bucket of its shared bits; no bucket over `k`; no prefix over
    its limits; we are not in it.
    """

    def __init__(
        self,
        own: Place,
        *,
        k: int,
        per_prefix_bucket_max: int | None,
        per_prefix_table_max: int | None,
    ) -> None:
        self._own = own
        self._k = k
        self._per_bucket = per_prefix_bucket_max
        self._per_table = per_prefix_table_max
        # The first of a bucket is the one that answered longest ago.
        self._buckets: dict[int, dict[PeerId, _Entry]] = {}
        self._where: dict[PeerId, int] = {}
        self._prefixes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._where

    def __iter__(self) -> Iterator[Contact]:
        for index in sorted(self._buckets):
            for entry in self._buckets[index].values():
                yield entry.contact

    def offer(self, contact: Contact, now: float) -> Offer:
        """`contact` serves the DHT and answered just now: take it in if there is room."""
        index = shared_bits(self._own, contact.place)
        if index == PLACE_BITS:
            return "self"
        if contact.peer in self._where:
            return self._renew(contact, now)
        bucket = self._buckets.get(index, {})
        if self._prefix_is_full(contact.prefix, bucket):
            return "prefix"
        if len(bucket) >= self._k:
            return "full"
        self._add(index, contact, now)
        return "added"

    def _renew(self, contact: Contact, now: float) -> Offer:
        bucket = self._buckets[self._where[contact.peer]]
        entry = bucket.pop(contact.peer)
        old = entry.contact
        if contact.prefix != old.prefix:
            # It moved: the new prefix may have its share already.
            self._prefixes[old.prefix] -= 1
            if self._prefix_is_full(contact.prefix, bucket):
                self._forget_place(contact.peer)
                return "prefix"
            self._prefixes[contact.prefix] += 1
        if contact.seq < old.seq or not contact.record:
            contact = replace(contact, record=old.record, seq=old.seq, addrs=old.addrs)
        entry.contact, entry.answered_s, entry.failures = contact, now, 0
        bucket[contact.peer] = entry
        return "known"

    def _prefix_is_full(self, prefix: str, bucket: dict[PeerId, _Entry]) -> bool:
        if not prefix:
            return False
        if self._per_table is not None and self._prefixes[prefix] >= self._per_table:
            return True
        if self._per_bucket is None:
            return False
        same = sum(entry.contact.prefix == prefix for entry in bucket.values())
        return same >= self._per_bucket

    def _add(self, index: int, contact: Contact, now: float) -> None:
        self._buckets.setdefault(index, {})[contact.peer] = _Entry(contact, now)
        self._where[contact.peer] = index
        self._prefixes[contact.prefix] += 1

    def _forget_place(self, peer: PeerId) -> None:
        index = self._where.pop(peer)
        if not self._buckets[index]:
            del self._buckets[index]

    def is_full(self, contact: Contact) -> bool:
        """Whether `contact` is not in its bucket and there is no room in it."""
        bucket = self._buckets.get(shared_bits(self._own, contact.place), {})
        return contact.peer not in bucket and len(bucket) >= self._k

    def oldest_beside(self, contact: Contact, *, before_s: float) -> Contact | None:
        """Of the bucket `contact` belongs to, the node that answered longest ago.

        Args:
            contact: whom there was no room for.
            before_s: None if even the oldest answered after this: it need not be asked again.
        """
        bucket = self._buckets.get(shared_bits(self._own, contact.place))
        if not bucket:
            return None
        oldest = next(iter(bucket.values()))
        return oldest.contact if oldest.answered_s <= before_s else None

    def answered(self, peer: PeerId, now: float) -> None:
        """A node of the table answered."""
        index = self._where.get(peer)
        if index is not None:
            entry = self._buckets[index].pop(peer)
            entry.answered_s, entry.failures = now, 0
            self._buckets[index][peer] = entry

    def failed(self, peer: PeerId) -> bool:
        """A node left a request unanswered; whether it left the table for that."""
        index = self._where.get(peer)
        if index is None:
            return False
        entry = self._buckets[index][peer]
        entry.failures += 1
        if entry.failures < FAILURES_MAX:
            return False
        self.remove(peer)
        return True

    def remove(self, peer: PeerId) -> None:
        """A node is dead, or serves no more."""
        index = self._where.get(peer)
        if index is None:
            return
        entry = self._buckets[index].pop(peer)
        self._prefixes[entry.contact.prefix] -= 1
        self._forget_place(peer)

    def get(self, peer: PeerId) -> Contact | None:
        """A node of the table."""
        index = self._where.get(peer)
        return None if index is None else self._buckets[index][peer].contact

    def nearest(self, place: Place, count: int) -> list[Contact]:
        """The `count` nodes nearest to `place`, nearest first."""
        return sorted(self, key=lambda contact: contact.place ^ place)[:count]

    def buckets(self) -> list[int]:
        """Indices of buckets in use, the far half first."""
        return sorted(self._buckets)
