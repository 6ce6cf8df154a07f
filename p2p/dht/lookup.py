"""A look-up over disjoint paths, as a pure machine: answers in, requests out.

Theory of operation. We want the k nodes nearest to a place. Every node asked names the nodes it
knows nearest to it, so each answer halves the distance (Kademlia s.2.3). A hostile node may name
only its friends, or invent nodes. Therefore the nodes we start from are dealt to three paths, and
no node is asked by two of them (S/Kademlia s.4.4): whoever is caught on one path has no word on the
others. A path is done when the k nearest nodes it heard of, less those that failed or belong to
another path, have answered.

    look = Lookup(target, start, own=our_place, limits)
    for contact in look.next_requests(): ...          # send; then one of
    look.answered(peer, closer); look.failed(peer)
    until look.done

What a hostile peer may try: endless nearer nodes (its own path alone runs on, to `asked_max`);
thousands of them in one answer (k are taken); ourselves (skipped); one network full of nodes (a
limit by prefix). The caller bounds the time in all. Source: docs/specs/dht.md s.6.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from p2p.dht.keys import Place
    from p2p.dht.table import Contact
    from p2p.identity import PeerId

SEEN_PER_PATH_MAX: Final = 256
"""Nodes a path keeps in mind, the nearest of those it heard of."""


@dataclass(frozen=True, kw_only=True)
class LookupLimits:
    """See `p2p.dht.config.DhtConfig`, whose values these are."""

    k: int = 20
    alpha: int = 10
    paths: int = 3
    asked_max: int = 200
    per_prefix_max: int | None = 10


class _State(Enum):
    ASKED = "asked"
    ANSWERED = "answered"
    FAILED = "failed"


class _Path:
    """What one path heard of."""

    def __init__(self) -> None:
        self.seen: dict[PeerId, Contact] = {}
        self.nearest: list[tuple[int, PeerId]] = []
        """Distance and peer of everybody in `seen`, nearest first."""

    def hear(self, contact: Contact, target: Place) -> None:
        if contact.peer in self.seen:
            return
        self.seen[contact.peer] = contact
        insort(self.nearest, (contact.place ^ target, contact.peer))
        if len(self.nearest) > SEEN_PER_PATH_MAX:
            _, farthest = self.nearest.pop()
            del self.seen[farthest]


class Lookup:
    """One look-up.

    Args:
        target: the place wanted.
        start: nodes to begin with, nearest first.
        own: our peer id: nobody tells us to ask ourselves.
        limits: see `LookupLimits`.
    """

    def __init__(
        self, target: Place, start: Sequence[Contact], *, own: PeerId, limits: LookupLimits
    ) -> None:
        self.target = target
        self._own = own
        self._limits = limits
        self._paths = [_Path() for _ in range(limits.paths)]
        self._state: dict[PeerId, _State] = {}
        self._owner: dict[PeerId, int] = {}
        self._answered: dict[PeerId, Contact] = {}
        self._prefixes: Counter[str] = Counter()
        self._counted: set[PeerId] = set()
        self._waiting = 0
        self._turn = 0
        for number, contact in enumerate(start):
            self._hear(self._paths[number % limits.paths], contact)

    def _hear(self, path: _Path, contact: Contact) -> None:
        if contact.peer == self._own:
            return
        limit = self._limits.per_prefix_max
        if contact.peer not in self._counted:
            if limit is not None and contact.prefix and self._prefixes[contact.prefix] >= limit:
                return
            self._counted.add(contact.peer)
            self._prefixes[contact.prefix] += 1
        path.hear(contact, self.target)

    def _wanted(self, number: int) -> Contact | None:
        """Whom path `number` has to ask next: the nearest unasked among its k nearest."""
        path = self._paths[number]
        counted = 0
        for _, peer in path.nearest:
            state = self._state.get(peer)
            if state is None:
                return path.seen[peer]
            if state is not _State.FAILED and self._owner[peer] == number:
                counted += 1
                if counted == self._limits.k:
                    break
        return None

    def next_requests(self) -> list[Contact]:
        """Whom to ask now; each counts as asked from here on. The paths take turns."""
        chosen: list[Contact] = []
        idle = 0
        while idle < len(self._paths) and self._may_ask:
            number = self._turn = (self._turn + 1) % len(self._paths)
            contact = self._wanted(number)
            if contact is None:
                idle += 1
                continue
            idle = 0
            self._state[contact.peer] = _State.ASKED
            self._owner[contact.peer] = number
            self._waiting += 1
            chosen.append(contact)
        return chosen

    @property
    def _may_ask(self) -> bool:
        return self._waiting < self._limits.alpha and len(self._state) < self._limits.asked_max

    def answered(self, contact: Contact, closer: Iterable[Contact]) -> None:
        """An asked node answered and named others; at most k of them are heard."""
        if self._settle(contact.peer, _State.ANSWERED):
            self._answered[contact.peer] = contact
            path = self._paths[self._owner[contact.peer]]
            for number, named in enumerate(closer):
                if number == self._limits.k:
                    break
                self._hear(path, named)

    def failed(self, peer: PeerId) -> None:
        """An asked node did not answer, or not properly."""
        self._settle(peer, _State.FAILED)

    def _settle(self, peer: PeerId, state: _State) -> bool:
        if self._state.get(peer) is not _State.ASKED:
            return False
        self._state[peer] = state
        self._waiting -= 1
        return True

    @property
    def done(self) -> bool:
        """Whether nothing is under way and no path has anybody left to ask."""
        if self._waiting:
            return False
        exhausted = len(self._state) >= self._limits.asked_max
        return exhausted or all(self._wanted(n) is None for n in range(len(self._paths)))

    @property
    def asked(self) -> int:
        """Nodes asked so far."""
        return len(self._state)

    def nearest(self) -> list[Contact]:
        """The k nearest nodes that answered, over all paths, nearest first."""
        everybody = sorted(self._answered.values(), key=lambda contact: contact.place ^ self.target)
        return everybody[: self._limits.k]
