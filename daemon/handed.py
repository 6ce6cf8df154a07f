"""What was handed in last: a daemon that is started anew does not know what the one before had."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Last(NamedTuple, Generic[T]):
    """What was handed in, for which round, and over which connection."""

    number: int
    what: T
    connection: object


class Handed(Generic[T]):
    """The last update, until its round is applied. For one thread."""

    def __init__(self) -> None:
        self._last: _Last[T] | None = None

    def note(self, number: int, what: T, connection: object) -> None:
        """It was handed in.

        Args:
            number: the round whose state it was made of.
            what: it was.
            connection: by which a daemon is told from the one that is started in its place.
        """
        self._last = _Last(number, what, connection)

    def forget(self) -> None:
        """A newer one is on its way: whatever becomes of it, this one is not handed in again."""
        self._last = None

    def again(self, number: int, connection: object) -> T | None:
        """What is to be handed in again, and is then no longer known here; None: nothing.

        Args:
            number: the round that is applied now. Once it is a later one than the update was made
                of, that may have been used: it counts once.
            connection: the one now.
        """
        last = self._last
        if last is None or last.connection is connection or last.number != number:
            return None
        self._last = None
        return last.what
