"""Who of the last round's members answers, for a round that does not come to a plan.

A quorum of them must take part. While fewer answer, views follow each other without end, as those
who are away may come back: then a person wants to know whose machines are missing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from federated.rounds.protocol.checks import Setting

VIEWS: Final = 3
"""After so many without a plan it is said."""
HEARD_IN: Final = 2
"""So many views back somebody was heard at most, else it is missing."""


class Attendance:
    """Who was heard in the last views of the round under way.

    Args:
        setting: of the round; None: none is under way.

    Attributes:
        lack: why nothing goes on, for people; empty: nothing is known to be wrong.
        missing: members of the last round that did not answer, ascending, if `lack`.
    """

    def __init__(self, setting: Setting | None = None) -> None:
        self._setting = setting
        self._views = 0
        self._came: deque[set[bytes]] = deque([set()], HEARD_IN)
        self.lack = ""
        self.missing: tuple[bytes, ...] = ()

    def came(self, sender: bytes) -> None:
        """A packet of the round came from this member."""
        self._came[-1].add(sender)

    def told(self, kind: str) -> None:
        """What the round says of itself: a plan, or a view that came to nothing."""
        if kind == "round.planned":
            self._views, self.lack, self.missing = 0, "", ()
        elif kind == "view.changed":
            self._views += 1
            if self._views >= VIEWS:
                self._look()
            self._came.append(set())

    def _look(self) -> None:
        setting = self._setting
        assert setting is not None, "only rounds say anything"
        missing = set(setting.circle).difference({setting.me}, *self._came)
        here, needed = len(setting.circle) - len(missing), setting.quorum()
        self.lack, self.missing = "", ()
        if here < needed:
            self.lack = (
                f"too few of the last round's machines answer: {needed} of"
                f" {len(setting.circle)} are needed"
            )
            self.missing = tuple(sorted(missing))
