"""Members that ask the same question find each other, and one of them says who takes part.

Each asks the group's members again and again: "do you wait for this call, too?". A call goes by the
hash of all that must be equal; a wait by a nonce, so that a second call of the same text is another
one. Of those who know of each other the one with the lowest id forms the circle when as many are
there as were expected, or when nobody new came for a while; who accepts a circle is in no other.

Sans-IO. Source: docs/specs/rounds.md s.8.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Final, TypeAlias

import msgspec

from federated.rounds.protocol.wire import Hash, Peer

SETTLE_S: Final = 2.0
"""How long nobody new may come before a circle is formed without a number to wait for. Guess: two
people who start a command beside each other do so within it."""

Nonce: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class _Array(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    pass


class Asking(_Array, frozen=True):
    """I wait for this call; do you?"""

    group: Annotated[bytes, msgspec.Meta(max_length=64)]
    call: Hash
    nonce: Nonce


class Answering(_Array, frozen=True):
    """The nonce of my wait; None: I do not wait for it."""

    nonce: Nonce | None


class Gathering(_Array, frozen=True):
    """This is the circle; are you in it?"""

    group: Annotated[bytes, msgspec.Meta(max_length=64)]
    call: Hash
    members: Annotated[tuple[tuple[Peer, Nonce], ...], msgspec.Meta(min_length=1, max_length=64)]


class Circle(msgspec.Struct, frozen=True):
    """Who takes part, and the name of their round."""

    members: tuple[tuple[bytes, bytes], ...]
    """(peer, nonce of its wait), ascending."""

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Ids, ascending."""
        return tuple(peer for peer, _ in self.members)

    def lineage(self, call: bytes) -> str:
        """What makes the federation of this meeting unlike that of any other."""
        digest = sha256(call + b"".join(peer + nonce for peer, nonce in self.members))
        return f"stat/{digest.hexdigest()}"


class Meeting:
    """One member's wait for others with the same call.

    Args:
        me: this device.
        nonce: of this wait.
        least: members without whom there is no round.
        expected: form the circle when so many are there; 0: when nobody new comes.
        now: when the wait begins.
    """

    def __init__(self, me: bytes, nonce: bytes, *, least: int, expected: int, now: float) -> None:
        self._me = me
        self._least = max(least, 1)
        self._expected = expected
        self._known: dict[bytes, bytes] = {me: nonce}
        self._changed = now
        self.circle: Circle | None = None

    @property
    def nonce(self) -> bytes:
        """Of this wait."""
        return self._known[self._me]

    @property
    def present(self) -> int:
        """Members known to wait, with us."""
        return len(self._known)

    def met(self, now: float, peer: bytes, nonce: bytes | None) -> None:
        """A member waits with this nonce, or (None) does not wait."""
        if nonce is None:
            if self._known.pop(peer, None) is not None:
                self._changed = now
        elif self._known.get(peer) != nonce:
            self._known[peer] = nonce
            self._changed = now

    def form(self, now: float) -> Circle | None:
        """The circle, if it is ours to say and it is time.

        The caller asks the others, and calls `accept` for itself once they were asked.
        """
        if self.circle is not None or min(self._known) != self._me:
            return None
        count = len(self._known)
        full = count >= self._expected > 0
        settled = self._expected == 0 and now >= self._changed + SETTLE_S
        if count < self._least or not (full or settled):
            return None
        return Circle(tuple(sorted(self._known.items())))

    def due(self) -> float:
        """When `form` may answer otherwise with nobody new."""
        return self._changed + SETTLE_S if self._expected == 0 else float("inf")

    def accept(self, circle: Circle) -> bool:
        """Whether we are in this circle from now on: it has our nonce and we are in no other.

        Who forms it may not know how many we wait for, so we look ourselves: of too few one could
        tell what each of them brings.
        """
        if self.circle is not None:
            return self.circle == circle
        if (self._me, self.nonce) not in circle.members:
            return False
        if len(circle.members) < max(self._least, self._expected):
            return False
        if len(set(circle.peers)) != len(circle.members):
            return False
        self.circle = circle
        return True
