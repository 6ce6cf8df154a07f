"""States, inputs, questions and events of a sync session: the table of `session`.

Source: docs/specs/sync.md s.2.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.errors import PeerError
    from p2p.replication.exchange_types import GroupReport
    from p2p.replication.record import RecordWire
    from p2p.replication.store import LogKey


class SessionState(enum.Enum):
    """Where a session stands."""

    HELLO = "hello"
    GROUPS = "groups"
    SYNC = "sync"
    CLOSED = "closed"


class SessionInput(enum.Enum):
    """What moves a session."""

    RECV_HELLO = "hello"
    RECV_GROUPS = "groups"
    RECV_GROUP_MESSAGE = "group message"
    RECV_ERROR = "error"
    FINISHED = "finished"
    CUT = "cut"


_S = SessionState
_I = SessionInput

TRANSITIONS: Final[Mapping[tuple[SessionState, SessionInput], SessionState]] = {
    (_S.HELLO, _I.RECV_HELLO): _S.GROUPS,
    (_S.HELLO, _I.RECV_ERROR): _S.CLOSED,
    (_S.HELLO, _I.CUT): _S.CLOSED,
    (_S.GROUPS, _I.RECV_GROUPS): _S.SYNC,
    (_S.GROUPS, _I.RECV_ERROR): _S.CLOSED,
    (_S.GROUPS, _I.CUT): _S.CLOSED,
    (_S.SYNC, _I.RECV_GROUP_MESSAGE): _S.SYNC,
    (_S.SYNC, _I.RECV_ERROR): _S.CLOSED,
    (_S.SYNC, _I.FINISHED): _S.CLOSED,
    (_S.SYNC, _I.CUT): _S.CLOSED,
}
"""The only place with transitions; a message without an entry is a `ProtocolError`."""


@dataclass(frozen=True)
class RootsAsk:
    """`heads.fingerprint` over both lanes of a group: answered by a `Summary`."""

    salt: bytes


@dataclass(frozen=True)
class RangesAsk:
    """Sets of both lanes: answered by a list of two `ranges.RangeSet`."""


@dataclass(frozen=True)
class LogsAsk:
    """`RecordStore.logs`: answered by its result."""


@dataclass(frozen=True)
class IdsAsk:
    """Ids at places: answered by a list with None where nothing is."""

    places: tuple[tuple[LogKey, int], ...]


@dataclass(frozen=True)
class ControlAsk:
    """`RecordStore.control`: answered by its result."""


@dataclass(frozen=True)
class TailAsk:
    """`RecordStore.tail`: answered by its result."""

    log: LogKey
    first: int
    last: int
    bytes_max: int


@dataclass(frozen=True)
class FetchAsk:
    """`RecordStore.fetch` with bodies: answered by its result."""

    ids: tuple[bytes, ...]


Ask: TypeAlias = RootsAsk | RangesAsk | LogsAsk | IdsAsk | ControlAsk | TailAsk | FetchAsk


@dataclass(frozen=True)
class Query:
    """A question to the store, answered with `answer(id, ...)`."""

    id: int
    group: bytes
    ask: Ask


@dataclass(frozen=True)
class Admit:
    """Records for admission, answered with an `AdmitResult`."""

    id: int
    group: bytes
    wires: tuple[RecordWire, ...]


@dataclass(frozen=True)
class Report:
    """An exchange ended."""

    report: GroupReport


@dataclass(frozen=True)
class Unshared:
    """Groups the peer does not list for us, a member to us: it may lack our admit."""

    groups: tuple[bytes, ...]


@dataclass(frozen=True)
class Close:
    """The session is over: write what is unsent, then end the stream.

    `error` tells why when it ended before its time; None is the good end.
    """

    reason: str
    error: PeerError | None = None


Event: TypeAlias = Query | Admit | Report | Unshared | Close
