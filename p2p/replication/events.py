"""What replication tells the parts above: events, and the error of a refused request.

Data holds plain values; 32-byte keys and ids stay bytes, whoever shows them decides the form. No
event carries a body, a ticket or a key. Source: docs/specs/sync.md s.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from p2p.errors import P2pError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EventValue: TypeAlias = bytes | str | int | bool | None


@dataclass(frozen=True)
class ReplicationEvent:
    """Something happened.

    Attributes:
        topic: first word of the name, such as `group`, `sync` or `record`.
        name: such as `group.member_joined`.
        data: plain values.
    """

    topic: str
    name: str
    data: Mapping[str, EventValue]


Emit: TypeAlias = "Callable[[str, Mapping[str, EventValue]], None]"
"""`emit(name, data)`; the topic follows from the name."""


class GroupError(P2pError):
    """A request about a group that cannot be fulfilled; says why and what to do.

    Args:
        reason: one of replication's reasons, such as `unknown_group` or `ticket_expired`.
        message: for the person who asked.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Events:
    """Hands events to subscribers, in order, at once."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[ReplicationEvent], None]] = []

    def subscribe(self, fn: Callable[[ReplicationEvent], None]) -> None:
        """Call `fn` for each event; it must not block."""
        self._subscribers.append(fn)

    def emit(self, name: str, data: Mapping[str, EventValue]) -> None:
        """Tell everyone."""
        event = ReplicationEvent(name.partition(".")[0], name, data)
        for fn in self._subscribers:
            fn(event)
