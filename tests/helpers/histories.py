"""Every membership history of a few operations, each once.

A *history* is a set of operations closed under what they cite, above a genesis by F. It is made by
`Histories.extensions`: one more operation, by one of three devices (F the founder, A and B who
begin outside), citing any closed part of the history. An operation's content (author, payload, what
it reaches) is its identity, so a history is a set, whatever order it was made in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2p.replication import ops
from p2p.replication.authority import Authority
from p2p.replication.ops import Role
from p2p.replication.record import Header
from tests.helpers.membership import RECOVERY, grant, invite, join, key, kind_of, limit, trusting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMES = ("F", "A", "B")
SWAPPED = {"F": "F", "A": "B", "B": "A"}

History = frozenset[int]


@dataclass(frozen=True, slots=True)
class Made:
    """One operation, once made the same in every history that holds it."""

    author: str
    verb: str
    about: str | int | None
    """The member, or the number of the invite or join."""
    variant: int
    """Role of a grant or invite; of a limit whether it keeps what it has seen."""
    within: History
    """A: all it reaches."""
    seq: int
    incarnation: int
    record_id: bytes
    header: Header
    payload: ops.Payload


class Histories:
    """Makes and numbers operations.

    Args:
        salt: of the record ids, which decide ties.
        roles: of the grants and invites made.
        invites: whether anybody invites.
        odd: also make what no daemon of ours writes: limits on the founder by others, leaving that
            keeps nothing.
    """

    def __init__(
        self,
        salt: str = "",
        *,
        roles: tuple[Role, ...] = (Role.ADMIN,),
        invites: bool = False,
        odd: bool = False,
    ) -> None:
        self.salt = salt
        self.roles = roles
        self.invites = invites
        self.odd = odd
        self.made: list[Made] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self._twins: dict[int, int] = {}
        founding = ops.Genesis(key("x"), key(RECOVERY), 0, bytes(32), None, bytes(16))
        self.genesis = self._intern("F", "genesis", None, 0, frozenset(), founding, 1, 1)
        self.group = self.made[0].record_id
        self.start: History = frozenset([self.genesis])

    # Making.

    def extensions(self, history: History) -> Iterator[int]:
        """The operations that may come next: by every author, from every view."""
        for view in self._views(history):
            for author in NAMES:
                incarnation = self._incarnation(author, view)
                own = {
                    i
                    for i in history
                    if self.made[i].author == author and self.made[i].incarnation == incarnation
                }
                # A log is a chain; forks are another test's.
                if not own <= view:
                    continue
                seq = 1 + len(own)
                for verb, about, variant in self._verbs(author, view):
                    payload = self._payload(verb, about, variant, view)
                    yield self._intern(
                        author, verb, about, variant, view, payload, incarnation, seq
                    )

    def maximal(self, history: History) -> list[int]:
        """The operations that no other of the history reaches."""
        below: set[int] = set()
        for i in history:
            below |= self.made[i].within
        return sorted(history - below)

    def twin(self, history: History) -> History:
        """The same history with A and B in each other's place."""
        return frozenset(self._twin(i) for i in sorted(history))

    def first_of_twins(self, history: History) -> History:
        """One of a history and its twin, the same one for both."""
        twin = self.twin(history)
        return min(history, twin, key=sorted)

    def _views(self, history: History) -> Iterator[History]:
        """All closed parts of a history."""
        parts: list[set[int]] = [set()]
        # Numbers grow along citations within one history only if made in that order: sort by size.
        for i in sorted(history, key=lambda i: (len(self.made[i].within), i)):
            parts += [part | {i} for part in parts if self.made[i].within <= part]
        return (frozenset(part) for part in parts if part)

    def _incarnation(self, author: str, view: History) -> int:
        """As the limits it has seen ask: the first, or the next after a removal."""
        return max(
            (
                limited.next_incarnation
                for i in view
                if isinstance(limited := self.made[i].payload, ops.Limit)
                and self.made[i].about == author
            ),
            default=1,
        )

    def _verbs(self, author: str, view: History) -> Iterator[tuple[str, str | int | None, int]]:
        if self.invites:
            yield from (("join", i, 0) for i in view if self._may_join(author, i, view))
        if not self._named(author, view):
            return
        for member in NAMES:
            if member not in (author, "F") or (self.odd and member != author):
                for role in self.roles:
                    yield "grant", member, role
            left = any(self.made[i].verb == "limit" and self.made[i].about == member for i in view)
            if member == "F" != author and not left and not self.odd:
                continue
            seen = any(self.made[i].author == member for i in view)
            if member != author or self.odd or not seen:
                yield "limit", member, 0
            if seen:
                yield "limit", member, 1
        if not self.invites:
            return
        for role in self.roles:
            yield "invite", None, role
        for i in view:
            if self.made[i].verb == "join" and self.made[i].author != author:
                yield "admit", i, 0
            if self.made[i].verb == "invite":
                yield "close", i, 0

    def _may_join(self, author: str, i: int, view: History) -> bool:
        """Whether i is somebody's invite that the author has not taken yet."""
        return (
            self.made[i].verb == "invite"
            and self.made[i].author != author
            and not any(self.made[j].author == author and self.made[j].about == i for j in view)
        )

    def _named(self, author: str, view: History) -> bool:
        return author == "F" or any(
            (self.made[i].verb == "grant" and self.made[i].about == author)
            or (self.made[i].verb == "join" and self.made[i].author == author)
            for i in view
        )

    def _payload(
        self, verb: str, about: str | int | None, variant: int, view: History
    ) -> ops.Payload:
        match verb, about:
            case "grant", str(member):
                return grant(member, Role(variant))
            case "limit", str(member):
                own = [self.made[i] for i in view if self.made[i].author == member]
                kept: dict[int, int] = {}
                for it in own:
                    kept[it.incarnation] = max(kept.get(it.incarnation, 0), it.seq)
                keep = [(inc, 0, seq) for inc, seq in kept.items()] if variant else []
                return limit(member, keep, 1 + max((it.incarnation for it in own), default=1))
            case "invite", None:
                return invite(Role(variant))
            case "join", int(i):
                return join(self.made[i].record_id)
            case "admit", int(i):
                return ops.Admit(self.made[i].record_id)
            case "close", int(i):
                return ops.InviteClose(self.made[i].record_id)
            case _:
                raise AssertionError(verb)

    def _intern(
        self,
        author: str,
        verb: str,
        about: str | int | None,
        variant: int,
        within: History,
        payload: ops.Payload,
        incarnation: int,
        seq: int,
    ) -> int:
        content = (author, verb, about, variant, within)
        number = self._numbers.get(content)
        if number is not None:
            return number
        number = len(self.made)
        cited = self.maximal(within)
        ids = sorted(self.made[i].record_id for i in cited)
        named = self.made[about].record_id if isinstance(about, int) else str(about).encode()
        text = f"{self.salt} {author} {verb} {variant} ".encode() + named
        record_id = hashlib.sha256(b"|".join([text, *ids])).digest()
        header = Header(
            1, kind_of(payload), self.group if self.made else None, key(author), incarnation, seq,
            None if seq == 1 else bytes(32), 1 + len(within), tuple(ids), None, (), bytes(32), 0, 0,
        )  # fmt: skip
        self.made.append(
            Made(author, verb, about, variant, within, seq, incarnation, record_id, header, payload)
        )
        self._numbers[content] = number
        return number

    def _twin(self, i: int) -> int:
        if i in self._twins:
            return self._twins[i]
        it = self.made[i]
        if it.verb == "genesis":
            return i
        within = frozenset(self._twin(j) for j in sorted(it.within))
        about = it.about
        if isinstance(about, str):
            about = SWAPPED[about]
        elif about is not None:
            about = self._twin(about)
        author = SWAPPED[it.author]
        payload = self._payload(it.verb, about, it.variant, within)
        twin = self._intern(
            author, it.verb, about, it.variant, within, payload, it.incarnation, it.seq
        )
        self._twins[i], self._twins[twin] = twin, i
        return twin

    # Judging.

    def authority(self, order: Iterable[int]) -> Authority:
        """An authority that received the operations in an order that citations allow."""
        authority = Authority(self.group, trusting)
        for i in order:
            it = self.made[i]
            authority.add(it.record_id, it.header, it.payload)
        return authority

    def in_order(self, history: Iterable[int]) -> list[int]:
        """One order that citations allow."""
        return sorted(history, key=lambda i: (len(self.made[i].within), i))
