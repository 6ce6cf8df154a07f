"""Both lanes of one group reconciled by ranges: who speaks when, and what came of it.

The initiator opens both lanes at once and closes each with a message without ranges, so that the
responder knows when the comparing is over. Pure; `exchange` sends what this returns.
Source: docs/specs/sync.md s.5, s.10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.errors import ProtocolError
from p2p.replication.ranges import EMPTY, Initiator, RangeSet, Responder

if TYPE_CHECKING:
    from collections.abc import Sequence

LANES: Final = (0, 1)


class Reconciling:
    """One side's part in it.

    Args:
        sets: our items of the control and the data lane.
        salt: of the session.
        initiator: whether we begin.
    """

    def __init__(self, sets: Sequence[RangeSet], salt: bytes, *, initiator: bool) -> None:
        self._asking = [Initiator(one, salt) for one in sets] if initiator else []
        self._answering = [] if initiator else [Responder(one, salt) for one in sets]
        self._open = set(LANES)

    @property
    def over(self) -> bool:
        """Whether both lanes are closed."""
        return not self._open

    @property
    def complete(self) -> bool:
        """Whether the initiator compared everything; a responder cannot know."""
        return all(lane.complete for lane in self._asking)

    @property
    def have(self) -> list[bytes]:
        """Ids only we hold, control records first; the initiator knows them."""
        return [record_id for lane in self._asking for record_id in lane.have]

    @property
    def need(self) -> list[bytes]:
        """Short ids only the peer holds, control records first; the initiator knows them."""
        return [short for lane in self._asking for short in lane.need]

    @property
    def rounds(self) -> int:
        """Round trips of the longer lane."""
        return max(lane.rounds for lane in [*self._asking, *self._answering])

    @property
    def messages(self) -> int:
        """Messages of the peer so far, both lanes."""
        return sum(lane.rounds for lane in [*self._asking, *self._answering])

    def start(self) -> list[tuple[int, bytes]]:
        """The initiator's first messages, a lane each."""
        return [(lane, self._asking[lane].start()) for lane in LANES if self._asking]

    def receive(self, lane: int, message: bytes) -> bytes | None:
        """The answer to a message about a lane, or None.

        Raises:
            PeerError: bytes that are no range message, a lane that is closed, or over a limit.
        """
        if lane not in self._open:
            raise ProtocolError("a range message for a lane that is settled")
        if self._answering:
            if message == EMPTY:
                self._open.discard(lane)
                return None
            return self._answering[lane].receive(message)
        answer = self._asking[lane].receive(message)
        if answer is None:
            self._open.discard(lane)
            return EMPTY
        return answer

    def resolve(self, short_ids: Sequence[bytes]) -> list[bytes]:
        """Whole ids of those we listed, control records first."""
        return [record_id for lane in self._answering for record_id in lane.resolve(short_ids)]
