"""Builds membership histories without keys: A ops with headers, signatures taken on trust.

For tests of the authority rules alone. Names stand for device keys; ids are hashes of a counter, or
chosen (a hostile device may grind its ids).
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

from p2p.replication import ops
from p2p.replication.authority import Authority
from p2p.replication.record import Header

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from p2p.replication.fold import Fold
    from p2p.replication.standing import Standing

RECOVERY = "recovery"


@cache
def key(name: str) -> bytes:
    """The device key a name stands for: a fixed 32 bytes that decoders accept."""
    return hashlib.sha256(b"device " + name.encode()).digest()


def trusting(*_args: object, **_kwargs: object) -> bool:
    """A verifier that believes everything."""
    return True


class Ledger:
    """Every op ever written in one group, by whomever, in the order of writing."""

    def __init__(self, founder: str = "F", *, home: bool = False) -> None:
        self.entries: list[tuple[bytes, Header, ops.Payload | None]] = []
        self.authors: list[str] = []
        self._seqs: dict[tuple[str, int], int] = {}
        self._reached: list[frozenset[int]] = []
        genesis = ops.Genesis(key("x"), key(RECOVERY), int(home), bytes(32), None, bytes(16))
        self.genesis = self.write(founder, genesis, auth=())

    @property
    def group(self) -> bytes:
        """The genesis's id."""
        return self.entries[0][0]

    def id(self, i: int) -> bytes:
        """Record id of op i."""
        return self.entries[i][0]

    def payload(self, i: int) -> ops.Payload | None:
        """Payload of op i."""
        return self.entries[i][2]

    def write(
        self,
        author: str,
        payload: ops.Payload | None,
        auth: Iterable[int] | None = None,
        *,
        incarnation: int = 1,
        seq: int | None = None,
        ident: bytes | None = None,
        kind: int | None = None,
    ) -> int:
        """Append an op; its number.

        Args:
            author: name of the device.
            payload: what it says; None with a `kind` nobody knows.
            auth: ops it cites, by number; None cites everything written so far.
            incarnation: of the author's log.
            seq: place in the log; None for the next.
            ident: record id; None for a hash.
            kind: overrides the payload's kind.
        """
        number = len(self.entries)
        cited = self.heads(range(number)) if auth is None else list(auth)
        log = (author, incarnation)
        place = self._seqs.get(log, 0) + 1 if seq is None else seq
        self._seqs[log] = max(place, self._seqs.get(log, 0))
        here = ident or hashlib.sha256(f"op {number} {author} {place}".encode()).digest()
        head = Header(
            version=1,
            kind=kind_of(payload) if kind is None else kind,
            group=None if number == 0 else self.group,
            author=key(author),
            incarnation=incarnation,
            seq=place,
            prev=None if place == 1 else bytes(32),
            hlc=number + 1,
            auth=tuple(sorted(self.id(i) for i in cited)),
            key_tag=None,
            supersedes=(),
            body_commit=bytes(32),
            body_size=0,
            flags=0,
        )
        earlier = [
            j
            for j in range(number)
            if self.authors[j] == author
            and self.entries[j][1].incarnation == incarnation
            and self.entries[j][1].seq < place
        ]
        self.entries.append((here, head, payload))
        self.authors.append(author)
        self._reached.append(self.closure([*cited, *earlier]))
        return number

    def data(
        self,
        author: str,
        auth: Iterable[int],
        *,
        seq: int = 1,
        incarnation: int = 1,
        kind: int = 32,
    ) -> Header:
        """Header of a record that is no A op."""
        cited = tuple(sorted(self.id(i) for i in auth))
        return Header(
            1, kind, self.group, key(author), incarnation, seq, None if seq == 1 else bytes(32),
            len(self.entries) + 1, cited, None, (), bytes(32), 0, 0,
        )  # fmt: skip

    def closure(self, numbers: Iterable[int]) -> frozenset[int]:
        """The ops and all they reach."""
        found: set[int] = set()
        for i in numbers:
            found |= self._reached[i] | {i}
        return frozenset(found)

    def reached(self, i: int) -> frozenset[int]:
        """A of op i."""
        return self._reached[i]

    def heads(self, numbers: Iterable[int]) -> list[int]:
        """At most eight ops of a set that no other of it reaches."""
        chosen = sorted(set(numbers))
        covered: set[int] = set()
        for i in chosen:
            covered |= self._reached[i]
        return [i for i in chosen if i not in covered][:8]

    def authority(self, order: Sequence[int] | None = None) -> Authority:
        """An authority that received the ops in an order; one whose citations lack waits."""
        authority = Authority(self.group, trusting)
        waiting = list(range(len(self.entries)) if order is None else order)
        authority.add(*self.entries[0])
        while waiting:
            later = []
            for i in waiting:
                if authority.missing(self.entries[i][1]):
                    later.append(i)
                else:
                    authority.add(*self.entries[i])
            assert len(later) < len(waiting), "an op cites what is not in the ledger"
            waiting = later
        return authority

    def standing(self, order: Sequence[int] | None = None) -> Standing:
        """Who stands, given all ops."""
        return self.authority(order).standing()

    def stands(self, i: int) -> bool:
        """Whether op i stands, given all ops."""
        return self.id(i) not in self.standing().void_ops()

    def role(self, name: str) -> ops.Role | None:
        """A device's role, given all ops."""
        return self.standing().role(key(name))


def fork(authority: Authority, name: str, incarnation: int, seq: int, lane: int = 0) -> None:
    """Tell an authority of a proven fork, proof taken on trust."""
    proof = ops.Fork(key(name), incarnation, lane, seq, bytes(32), bytes(32))
    authority._add_fork(proof)
    authority._standing = None
    authority._heads.clear()


def fold_with(authority: Authority, rules: type[Fold]) -> Fold:
    """The verdict of other rules on an authority's ops."""
    authority._refresh_ancestors()
    forks = {(a, inc): seq for (a, inc, lane), seq in authority._forks.items() if lane == 0}
    return rules(list(authority._ops), list(authority._ancestors), forks, authority._valid_joins())


_KINDS = {
    ops.Genesis: ops.Kind.GENESIS,
    ops.Grant: ops.Kind.GRANT,
    ops.Limit: ops.Kind.LIMIT,
    ops.Invite: ops.Kind.INVITE,
    ops.InviteClose: ops.Kind.INVITE_CLOSE,
    ops.Join: ops.Kind.JOIN,
    ops.Admit: ops.Kind.ADMIT,
    ops.Policy: ops.Kind.POLICY,
}


def kind_of(payload: ops.Payload | None) -> int:
    assert payload is not None, "an unknown op needs a kind"
    return _KINDS[type(payload)]


def grant(member: str, role: ops.Role) -> ops.Grant:
    """A grant by name."""
    return ops.Grant(key(member), role)


def limit(
    member: str, keep: Iterable[tuple[int, int, int]] = (), next_incarnation: int = 2
) -> ops.Limit:
    """A limit by name."""
    return ops.Limit(key(member), tuple(sorted(keep)), next_incarnation, 0)


def invite(role: ops.Role, *, uses: int = 1, manual: bool = False) -> ops.Invite:
    """An invite whose key nobody checks."""
    return ops.Invite(key("invite"), role, uses, 0xFFFF_FFFF, int(manual))


def join(invite_id: bytes) -> ops.Join:
    """A join whose signature nobody checks."""
    return ops.Join(invite_id, key("x"), bytes(64))
