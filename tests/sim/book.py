"""What the simulation knows to be true, kept outside the product: the checks compare with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.replication.ops import Role
    from tests.sim.parts import SimPeer


@dataclass(frozen=True)
class Limited:
    """Somebody was taken out, demoted or left: what whoever said so held then."""

    records: frozenset[bytes]
    erased: frozenset[bytes]


@dataclass
class Book:
    """Facts of a run."""

    texts: dict[bytes, str] = field(default_factory=dict)
    """Id of each acknowledged entry -> its text."""
    authors: dict[bytes, bytes] = field(default_factory=dict)
    """Id of any acknowledged record -> its author."""
    erasing: set[bytes] = field(default_factory=set)
    """Entries whose erasure was asked for; it may have failed."""
    erased: set[bytes] = field(default_factory=set)
    """Entries whose erasure was acknowledged."""
    lost: set[bytes] = field(default_factory=set)
    """Acknowledged records that only a disk held which was replaced by an old image, or devices
    that are out."""
    unerased: set[bytes] = field(default_factory=set)
    """The same of erasures."""
    restored: set[bytes] = field(default_factory=set)
    """Devices that came back from an old image."""
    limits: dict[bytes, list[Limited]] = field(default_factory=dict)
    """Honest devices that somebody wanted out or lower, or that wanted out themselves."""
    joined: dict[bytes, tuple[frozenset[bytes], Role]] = field(default_factory=dict)
    """Member -> who let it in (whoever invited or accepted it), and as what at least."""
    increments: dict[str, int] = field(default_factory=dict)
    """Cell of a counter -> sum of what was acknowledged."""
    unsure_cells: set[str] = field(default_factory=set)
    """Cells with a change of which nobody knows whether it was done."""
    expelled: set[bytes] = field(default_factory=set)
    """Hostile members that the founder took out, with all they did."""
    accomplices: set[bytes] = field(default_factory=set)
    """Devices that only hostile members let in."""

    def note_join(self, member: bytes, by: Iterable[bytes], role: Role) -> None:
        """A member is in. It may have come by several tickets: any of them may be what counts."""
        vouchers, before = self.joined.get(member, (frozenset[bytes](), role))
        self.joined[member] = (vouchers | set(by), min(role, before))

    def note_limit(self, member: bytes, by: SimPeer, honest: list[SimPeer]) -> None:
        """A limit on a member is about to be written; whether it will is not known yet.

        Whoever is out is not spoken to: what only such devices hold may stay with them.
        """
        self.limits.setdefault(member, []).append(
            Limited(frozenset(by.disk.rows), frozenset(by.disk.erased))
        )
        inside = [peer for peer in honest if peer.id not in self.limits]
        self.lost |= self.authors.keys() - {i for peer in inside for i in peer.disk.rows}
        self.unerased |= self.erased - {i for peer in inside for i in peer.disk.erased}

    def note_restore(self, peer: SimPeer, image_rows: set[bytes], others: list[SimPeer]) -> None:
        """A peer's disk is about to be replaced by an old image."""
        inside = [other for other in others if other.id not in self.limits]
        elsewhere = {ident for other in inside for ident in other.disk.rows}
        erased_elsewhere = {ident for other in inside for ident in other.disk.erased}
        gone = set(peer.disk.rows) - image_rows
        self.lost |= gone - elsewhere
        self.unerased |= peer.disk.erased - erased_elsewhere
        self.restored.add(peer.id)

    def must_survive(self, ident: bytes) -> bool:
        """Whether an acknowledged record has to be everywhere in the end."""
        limits = self.limits.get(self.authors[ident], ())
        return ident not in self.lost and all(ident in limit.records for limit in limits)

    def must_be_erased(self, ident: bytes) -> bool:
        """Whether an acknowledged erasure has to be carried out everywhere in the end."""
        limits = self.limits.get(self.authors[ident], ())
        return ident not in self.unerased and all(ident in limit.erased for limit in limits)

    def must_be_member(self, member: bytes, founder: bytes) -> bool:
        """Whether nobody with a right to it could have taken this member out."""
        if member == founder:
            return True
        if member in self.limits or member not in self.joined:
            return False
        # A restored device may have closed an invite without knowing whom it had let in.
        vouchers = self.joined[member][0]
        return all(
            one not in self.restored and self.must_be_member(one, founder) for one in vouchers
        )
