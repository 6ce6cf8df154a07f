"""A coordinator's book of one plan: who merges which part, what came there, and who says so.

It decides nothing. What reducers say is written down as they say it: one word is enough to leave a
member out, and a reducer that is not believed has all its words struck out. Who takes a part over
begins with nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from federated.rounds.protocol.wire import CONTROL_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from federated.rounds.protocol.wire import Commit, Have, Signed

SIGNED_BYTES_MORE: Final = 128
"""Of a signed message inside another, beyond its body: signer, signature and lengths."""
HEAD_BYTES_MAX: Final = 256


class Update(NamedTuple):
    """What a member says it sends.

    Attributes:
        signed: the commit as it came.
        commit: what it says.
        arrival_s: after the plan.
    """

    signed: Signed
    commit: Commit
    arrival_s: float


class Holdings:
    """Of a plan, or of none yet.

    Args:
        roster: the plan's.
        reducers: who merges each part at first.

    Attributes:
        updates: whose updates were committed to; written by `commit` alone.
        moves: what was signed about parts that went to their standby, by part.
    """

    def __init__(self, roster: Sequence[bytes] = (), reducers: Sequence[bytes] = ()) -> None:
        self._roster = roster
        self._reducers = {number: (reducer, 0) for number, reducer in enumerate(reducers)}
        self.updates: dict[bytes, Update] = {}
        self.moves: dict[int, Signed] = {}
        self._have: dict[int, set[bytes]] = {}
        self._unfit: dict[bytes, dict[bytes, str]] = {}
        """Whose parts are not fit, by who says so."""

    # ---- parts

    @property
    def parts(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(self._reducers)

    @property
    def reducers(self) -> frozenset[bytes]:
        """All who merge a part now."""
        return frozenset(reducer for reducer, _ in self._reducers.values())

    def reducer(self, number: int) -> bytes:
        """Who merges this part now."""
        return self._reducers[number][0]

    def merges(self, peer: bytes, number: int, counter: int | None = None) -> bool:
        """Whether a peer merges a part, after so many moves; None: however many."""
        of = self._reducers.get(number)
        return of is not None and peer == of[0] and counter in {None, of[1]}

    def unmoved(self, numbers: Sequence[int]) -> list[int]:
        """Those of the parts that are still where the plan put them."""
        return [number for number in numbers if self._reducers[number][1] == 0]

    def move(self, number: int, standby: bytes) -> int:
        """Give a part to another, to whom nothing has come yet; how often it has moved now."""
        moves = self._reducers[number][1] + 1
        self._reducers[number] = (standby, moves)
        self._have.pop(number, None)
        return moves

    # ---- updates

    def commit(self, signed: Signed, commit: Commit, arrival_s: float) -> None:
        """A member of the roster says what it sends; what it says first counts."""
        self.updates.setdefault(signed.signer, Update(signed, commit, arrival_s))

    def have(self, sender: bytes, message: Have) -> None:
        """A part's reducer says what came to it, and what of it is not fit."""
        self._have.setdefault(message.part, set()).update(
            peer for peer in self._roster if peer in message.senders
        )
        for peer, reason in message.unfit:
            # One reducer's word is enough to leave somebody out of this round, not to defame him:
            # the reason says whose word it is.
            if peer in self._roster:
                words = self._unfit.setdefault(peer, {})
                words.setdefault(sender, f"{reason} (found by {sender[:4].hex()})")

    def came(self, number: int) -> int:
        """How many members' updates are where a part is merged."""
        return len(self._have.get(number, ()))

    def least_come(self) -> list[int]:
        """The parts of which the fewest updates came."""
        fewest = min(self.came(number) for number in self._reducers)
        return [number for number in self._reducers if self.came(number) == fewest]

    def whole(self) -> list[bytes]:
        """Members whose every part is fit and where it is merged, in roster order."""
        have = [self._have.get(number, set()) for number in self._reducers]
        return [
            peer
            for peer in self._roster
            if peer in self.updates
            and peer not in self._unfit
            and all(peer in senders for senders in have)
        ]

    def awaited(self) -> set[bytes]:
        """Members whose update may still become whole."""
        return self.updates.keys() - self._unfit.keys() - set(self.whole())

    def unseen(self, number: int) -> Iterator[tuple[Signed, ...]]:
        """Commits of whom a part's reducer has not, in as few messages as hold them."""
        there = self._have.get(number, set())
        return _of_messages_size(
            [update.signed for peer, update in self.updates.items() if peer not in there]
        )

    # ---- words

    def unfit(self, peer: bytes) -> str:
        """Why a member's update is not fit, by the first word about it; empty: nobody says so."""
        return next(iter(self._unfit.get(peer, {}).values()), "")

    def alone(self) -> list[bytes]:
        """Who calls updates unfit that nobody else does, who does so most often first."""
        sayers = Counter(
            sayer for words in self._unfit.values() if len(words) == 1 for sayer in words
        )
        return [sayer for sayer, _ in sayers.most_common()]

    def unmoved_of(self, reducer: bytes) -> list[int]:
        """Parts that the plan gave to this reducer, and that are still there."""
        return [number for number, of in self._reducers.items() if of == (reducer, 0)]

    def strike_out(self, sayer: bytes) -> None:
        """Forget what somebody called unfit."""
        rest = {
            peer: {who: why for who, why in words.items() if who != sayer}
            for peer, words in self._unfit.items()
        }
        self._unfit = {peer: words for peer, words in rest.items() if words}


def _of_messages_size(commits: Sequence[Signed]) -> Iterator[tuple[Signed, ...]]:
    some: list[Signed] = []
    size = 0
    for one in commits:
        more = len(one.body) + SIGNED_BYTES_MORE
        if some and size + more > CONTROL_BYTES_MAX - HEAD_BYTES_MAX:
            yield tuple(some)
            some, size = [], 0
        some.append(one)
        size += more
    if some:
        yield tuple(some)
