"""States, inputs and results of comparing one group with one peer: the table of `exchange`.

Source: docs/specs/sync.md s.5.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.replication.heads import Place
    from p2p.replication.store import LogKey


class GroupState(enum.Enum):
    """Where an exchange stands."""

    CONTROL = "control"
    HEADS = "heads"
    TAILS = "tails"
    COMPARE = "compare"
    RECONCILE = "reconcile"
    TRANSFER = "transfer"
    BODIES = "bodies"
    DONE = "done"
    FAILED = "failed"


class Input(enum.Enum):
    """What moves an exchange: messages received, and what it found out itself."""

    RECV_STATE = "state"
    RECV_RECORDS = "records"
    RECV_HEADS = "heads"
    RECV_WANT = "want"
    RECV_RECON = "recon"
    RECV_WANT_IDS = "want_ids"
    RECV_WANT_BODIES = "want_bodies"
    RECV_ERASED = "erased"
    RECV_DONE = "done"
    ROOTS_EQUAL = "roots_equal"
    CONTROL_SETTLED = "control_settled"
    HEADS_COMPLETE = "heads_complete"
    TAILS_COMPLETE = "tails_complete"
    COMPARED = "compared"
    RECONCILE_AGREED = "reconcile_agreed"
    RECONCILED = "reconciled"
    TRANSFERRED = "transferred"
    CUT = "cut"


_S = GroupState
_I = Input

TRANSITIONS: Final[Mapping[tuple[GroupState, Input], GroupState]] = {
    (_S.CONTROL, _I.RECV_STATE): _S.CONTROL,
    (_S.CONTROL, _I.RECV_HEADS): _S.CONTROL,
    (_S.CONTROL, _I.RECV_RECORDS): _S.CONTROL,
    (_S.CONTROL, _I.RECV_WANT_BODIES): _S.CONTROL,
    (_S.CONTROL, _I.ROOTS_EQUAL): _S.DONE,
    (_S.CONTROL, _I.CONTROL_SETTLED): _S.HEADS,
    (_S.CONTROL, _I.RECONCILE_AGREED): _S.RECONCILE,
    (_S.CONTROL, _I.CUT): _S.FAILED,
    (_S.HEADS, _I.RECV_HEADS): _S.HEADS,
    (_S.HEADS, _I.HEADS_COMPLETE): _S.TAILS,
    (_S.HEADS, _I.CUT): _S.FAILED,
    (_S.TAILS, _I.RECV_WANT): _S.TAILS,
    (_S.TAILS, _I.RECV_RECORDS): _S.TAILS,
    (_S.TAILS, _I.RECV_WANT_BODIES): _S.TAILS,
    (_S.TAILS, _I.RECV_ERASED): _S.TAILS,
    (_S.TAILS, _I.TAILS_COMPLETE): _S.COMPARE,
    (_S.TAILS, _I.CUT): _S.FAILED,
    (_S.COMPARE, _I.RECV_DONE): _S.COMPARE,
    (_S.COMPARE, _I.RECV_WANT): _S.COMPARE,
    (_S.COMPARE, _I.RECV_RECORDS): _S.COMPARE,
    (_S.COMPARE, _I.RECV_WANT_BODIES): _S.COMPARE,
    (_S.COMPARE, _I.COMPARED): _S.DONE,
    (_S.COMPARE, _I.RECONCILE_AGREED): _S.RECONCILE,
    (_S.COMPARE, _I.CUT): _S.FAILED,
    (_S.RECONCILE, _I.RECV_RECON): _S.RECONCILE,
    (_S.RECONCILE, _I.RECONCILED): _S.TRANSFER,
    (_S.RECONCILE, _I.COMPARED): _S.DONE,
    (_S.RECONCILE, _I.CUT): _S.FAILED,
    (_S.TRANSFER, _I.RECV_RECORDS): _S.TRANSFER,
    (_S.TRANSFER, _I.RECV_WANT): _S.TRANSFER,
    (_S.TRANSFER, _I.RECV_WANT_IDS): _S.TRANSFER,
    (_S.TRANSFER, _I.RECV_WANT_BODIES): _S.TRANSFER,
    (_S.TRANSFER, _I.RECV_DONE): _S.TRANSFER,
    (_S.TRANSFER, _I.COMPARED): _S.DONE,
    (_S.TRANSFER, _I.TRANSFERRED): _S.BODIES,
    (_S.TRANSFER, _I.CUT): _S.FAILED,
    (_S.BODIES, _I.RECV_RECORDS): _S.BODIES,
    (_S.BODIES, _I.RECV_WANT_BODIES): _S.BODIES,
    (_S.BODIES, _I.RECV_ERASED): _S.BODIES,
    (_S.BODIES, _I.COMPARED): _S.DONE,
    (_S.BODIES, _I.CUT): _S.FAILED,
}
"""The only place with transitions; a received message without an entry is a `ProtocolError`."""

INPUT_OF: Final[Mapping[str, Input]] = {
    "State": _I.RECV_STATE,
    "Records": _I.RECV_RECORDS,
    "Heads": _I.RECV_HEADS,
    "Want": _I.RECV_WANT,
    "Recon": _I.RECV_RECON,
    "WantIds": _I.RECV_WANT_IDS,
    "WantBodies": _I.RECV_WANT_BODIES,
    "Erased": _I.RECV_ERASED,
    "Done": _I.RECV_DONE,
}
"""Messages that belong to a group."""


@dataclass(frozen=True)
class Suspect:
    """A place of a log at which the peer's chain is not ours."""

    log: LogKey
    seq: int
    """Highest seq known to differ."""
    first: bool
    """Whether this is the first difference: both records cite the same predecessor."""


@dataclass(frozen=True)
class AdmitResult:
    """What admission made of a batch."""

    stored: int = 0
    duplicate: int = 0
    refused: int = 0
    held: int = 0
    missing: tuple[bytes, ...] = ()
    """Cited control records that are not here: to be asked for by id."""
    suspects: tuple[Suspect, ...] = ()
    throttled: bool = False
    """The peer is over its rate: ask for nothing more in this session."""
    close: str = ""
    """Not empty: the peer sent too much that it should have refused itself; end the session."""


@dataclass(frozen=True)
class GroupReport:
    """How an exchange ended. Counts are records."""

    group: bytes
    equal: bool
    reason: str
    received: int = 0
    sent: int = 0
    missing: int = 0
    """Records the peer showed and did not bring, at most."""
    forks: int = 0
    rounds: int = 0
    control_incomplete: bool = False
    withheld: bool = False
    confirmed: bool = False
    """The peer holds all our own control records."""
    gaps_failed: tuple[LogKey, ...] = ()
    records: int = 0
    """How many records of ours were compared, both lanes; of the last comparison."""
    reconciled: bool = False
    """Whether the sets were compared by ranges: what differed is then known record by record."""
    range_messages: int = 0
    """Range messages of the peer, both lanes: what it cost us."""
    compared_all: bool = False
    """Whether the comparing by ranges came to its end; we were its initiator."""
    only_here: tuple[bytes, ...] = ()
    """Ids only we held when the ranges were compared; known to the initiator."""
    only_there: int = 0
    """How many only the peer held then; known to the initiator."""


@dataclass(frozen=True)
class ServeRange:
    """A range of one of our logs to send."""

    log: LogKey
    first: int
    last: int


@dataclass(frozen=True)
class ServeControl:
    """Our control records above the peer's heads."""

    above: Mapping[Place, int]


@dataclass(frozen=True)
class ServeIds:
    """Records by id."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True)
class ServeEnd:
    """The empty *Records* that ends an answer."""


Serving = ServeRange | ServeControl | ServeIds | ServeEnd
