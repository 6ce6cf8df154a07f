"""What all phases of an exchange share: its progress, its state, its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2p.errors import ProtocolError
from p2p.replication import heads
from p2p.replication.exchange_types import TRANSITIONS, GroupReport, GroupState, Input
from p2p.replication.messages import Done, HeadEntry, State, WantRange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.replication.exchange_port import Port
    from p2p.replication.heads import Place, Summary
    from p2p.replication.reconciling import Reconciling
    from p2p.replication.store import LogKey, LogState


@dataclass
class Totals:
    """Records and rounds of an exchange, counted."""

    received: int = 0
    sent: int = 0
    missing: int = 0
    delivered: int = 0
    rounds: int = 0


@dataclass
class ControlProgress:
    """Progress inside CONTROL."""

    first_state: State | None = None
    second_state: State | None = None
    mine: Summary | None = None
    heads_sent: bool = False
    peer_heads_complete: bool = False
    settled_sent: bool = False


@dataclass
class Wanting:
    """What this side still asks for."""

    queue: list[WantRange] = field(default_factory=list)
    by_id: list[bytes] = field(default_factory=list)
    asked_ids: set[bytes] = field(default_factory=set)
    ends_due: int = 0
    """Answers under way: each ends with an empty *Records*."""
    sent_nothing: bool = False
    """Whether our empty *Want* went out."""
    peer_nothing: bool = False
    gaps: dict[LogKey, int] = field(default_factory=dict)
    searched: set[tuple[LogKey, int]] = field(default_factory=set)
    forks: set[LogKey] = field(default_factory=set)
    short: list[bytes] = field(default_factory=list)
    """Short ids only the peer holds."""
    short_closed: bool = False
    """Whether the initiator's empty *WantIds* went out, or came in."""


class ExchangeBase:
    """One group with one peer, over a `Port`: see `exchange.Exchange`.

    Args:
        group: the group's id.
        tag: its name in this session.
        port: the session.
        skip_gaps: logs whose gap this peer failed to fill within the hour.
        held: logs with records in quarantine, and the lowest seq of those.
    """

    def __init__(
        self,
        group: bytes,
        tag: bytes,
        port: Port,
        skip_gaps: frozenset[LogKey] = frozenset(),
        held: Mapping[LogKey, int] | None = None,
    ) -> None:
        self.group = group
        self.tag = tag
        self.state = GroupState.CONTROL
        self.serving = 0
        """Answers queued and not yet sent; kept by the session."""
        self._port = port
        self._skip_gaps = skip_gaps
        self._held = {heads.place_of(port.salt, log): seq for log, seq in (held or {}).items()}
        self._totals = Totals()
        self._control = ControlProgress()
        self._want = Wanting()
        self._places: dict[Place, LogState] = {}
        self._peer_entries: dict[int, list[HeadEntry]] = {0: [], 1: []}
        self._control_incomplete = False
        self._control_equal = False
        self._done_sent: list[Summary] = []
        self._done_received: list[Done] = []
        self._comparing = False
        self._throttled = False
        self._reconciling: Reconciling | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in {GroupState.DONE, GroupState.FAILED}

    def _move(self, event: Input) -> None:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolError(f"{event.value} is not expected in state {self.state.value}")
        self.state = following

    def cut(self, reason: str) -> None:
        """The session ends before the exchange did."""
        if not self.over:
            self._move(Input.CUT)
            self._finish(equal=False, reason=reason)

    @property
    def _begins(self) -> bool:
        return self._port.side == heads.INITIATOR

    def _finish(self, *, equal: bool, reason: str) -> None:
        short = 0 if equal else max(0, self._totals.missing - self._totals.delivered)
        ranges = self._reconciling
        mine = self._done_sent[-1] if self._done_sent else self._control.mine
        self._port.finished(
            GroupReport(
                group=self.group,
                equal=equal,
                reason=reason,
                received=self._totals.received,
                sent=self._totals.sent,
                missing=short,
                forks=len(self._want.forks),
                rounds=self._totals.rounds + (0 if ranges is None else ranges.rounds),
                control_incomplete=self._control_incomplete,
                withheld=short > 0 and self.state is GroupState.DONE and self._asked_all(),
                confirmed=self._confirmed(),
                gaps_failed=tuple(sorted(self._want.gaps)) if short else (),
                records=0 if mine is None else mine.control_count + mine.data_count,
                reconciled=ranges is not None,
                range_messages=0 if ranges is None else ranges.messages,
                compared_all=ranges is not None and self._begins and ranges.complete,
                only_here=() if ranges is None else tuple(ranges.have),
                only_there=0 if ranges is None else len(ranges.need),
            )
        )

    def _asked_all(self) -> bool:
        """Whether what is missing was asked for: else it is no fault of the peer."""
        return not self._throttled and not self._want.queue and not self._want.short

    def _confirmed(self) -> bool:
        if self._control_equal:
            return True  # The same set of control records, so ours too.
        mine = [log for log in self._places.values() if log.key[1] == self._port.me]
        entries = self._peer_entries[0]
        return bool(entries) and all(
            heads.confirms(self._port.salt, entries, log) for log in mine if log.key[3] == 0
        )

    def _send_state(self, mine: Summary) -> None:
        salt, side = self._port.salt, self._port.side
        self._port.send(
            State(
                self.tag,
                heads.bound_root(salt, side, mine.control),
                heads.bound_root(salt, side, mine.data),
            )
        )

    def _lanes_equal(self, mine: Summary, theirs: State) -> tuple[bool, bool]:
        salt, side = self._port.salt, self._port.other_side
        return (
            heads.bound_root(salt, side, mine.control) == theirs.control_root,
            heads.bound_root(salt, side, mine.data) == theirs.data_root,
        )

    def _why_unequal(self) -> str:
        if self._want.forks:
            return "fork"
        if self._throttled:
            return "rate"
        if self._held:
            return "held"
        if self._want.queue or self._want.short or not self._compared_all():
            return "rounds: the next session goes on"
        return "control_incomplete" if self._control_incomplete else "unequal"

    def _compared_all(self) -> bool:
        return self._reconciling is None or self._reconciling.complete
