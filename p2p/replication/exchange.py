"""Comparing one group with one peer: the state machine inside a sync session.

Theory of operation
-------------------
Two members hold sets of records of a group and want the union. Each side sends a *State* (roots of
both lanes). Equal roots end it at once. Otherwise the exchange walks through its states; both sides
run the same code, so what one sends the other expects:

* CONTROL: control records first and completely, because they decide which data counts. Heads
  of lane 0, then each side sends what lies above the other's heads, an empty *Records* as the
  end, and a second *State* once it has admitted what it got. Roots that still differ set
  `control_incomplete`.
* HEADS: heads of lane 1, from which each side computes what it lacks.
* TAILS: *Want*, answered by *Records* and an empty *Records*; again until nothing is left to want,
  which an empty *Want* says. Suspects (a log that differs below its head) are fetched backwards
  here, 64 records at a time, down to the first difference: that pair proves the fork.
* COMPARE: *Done* with a root over both lanes. Unequal: fetch what both hold above a gap, where no
  head speaks, then a second *Done* ends it, honestly unequal.
  With feature 1 on both sides:
* RECONCILE: instead of looking above gaps, both sets are compared by ranges (`reconciling`), which
  finds every difference whatever its cause: a record lost below a head, a branch nobody saw.
* TRANSFER: the initiator sends what only it has, and asks for what only the responder has; then
  both say the second *Done*.
* A session to verify (feature 2) goes from unequal states to RECONCILE at once and ends there:
  nothing is fetched, only counted.
* BODIES keeps its place for fetching bodies on demand; nothing enters it.

A hostile peer may answer nothing (the session's idle limit), answer for ever (its byte and time
limits, and `rounds_max` here), claim heads it cannot serve (counted as withheld), echo our root
(roots are bound to the side), or send records nobody asked for (a protocol error). Records are
never trusted here: they go to admission, and only its answer counts.

The machine does no IO. It asks its `Port` (the session) for queries and sends messages through it.
Source: docs/specs/sync.md s.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from p2p.errors import ProtocolError
from p2p.replication import heads
from p2p.replication.exchange_types import (
    INPUT_OF,
    TRANSITIONS,
    AdmitResult,
    GroupReport,
    GroupState,
    Input,
    ServeControl,
    ServeEnd,
    ServeIds,
    ServeRange,
    Serving,
)
from p2p.replication.heads import Place, Summary
from p2p.replication.messages import (
    IDS_MAX,
    LIST_MAX,
    Counts,
    Done,
    Erased,
    HeadEntry,
    Heads,
    Recon,
    Records,
    State,
    Want,
    WantBodies,
    WantIds,
    WantRange,
)
from p2p.replication.reconciling import Reconciling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from p2p.replication.messages import Message
    from p2p.replication.ranges import RangeSet
    from p2p.replication.record import RecordWire
    from p2p.replication.store import LogKey, LogState

ROUNDS_MAX: Final = 32
"""Non-empty wants of one side in an exchange. Source: docs/specs/sync.md s.6."""

WANT_RECORDS_MAX: Final = 4096
"""Places one *want* covers: so much comes before the sender's rate is looked at again, and a log
that claims 2**62 records costs rounds and no more. Source: a guess, ~3 MB of usual records."""

BY_ID_MAX: Final = 256
"""Cited control records asked for by id at once."""

SERVE_IDS_MAX: Final = 64
"""Records read by id at once for an answer: at most 4 MiB."""


class Port(Protocol):
    """What an exchange may ask of its session."""

    salt: bytes
    side: bytes
    other_side: bytes
    me: bytes
    reconciles: bool
    """Whether both sides compare by ranges."""
    verifies: bool
    """Whether the session is to compare and to fetch nothing."""

    def send(self, message: Message) -> None:
        """Queue a message to the peer."""

    def ask_roots(self, group: bytes, then: Callable[[Summary], None]) -> None:
        """Summarise our set; no further message is handled before the answer."""

    def ask_logs(self, group: bytes, then: Callable[[Sequence[LogState]], None]) -> None:
        """Where our logs stand."""

    def ask_ranges(self, group: bytes, then: Callable[[Sequence[RangeSet]], None]) -> None:
        """Our sets of both lanes."""

    def ask_ids(
        self,
        group: bytes,
        places: Sequence[tuple[LogKey, int]],
        then: Callable[[Sequence[bytes | None]], None],
    ) -> None:
        """Ids at places of our logs."""

    def admit(
        self, group: bytes, wires: Sequence[RecordWire], then: Callable[[AdmitResult], None]
    ) -> None:
        """Hand records to admission."""

    def serve(self, exchange: Exchange, job: Serving) -> None:
        """Queue an answer, sent as the peer reads."""

    def own_log_ahead(self, group: bytes) -> None:
        """The peer has more of a log of ours than we: our database is an old copy."""

    def finished(self, report: GroupReport) -> None:
        """The exchange ended."""


@dataclass
class _Totals:
    received: int = 0
    sent: int = 0
    missing: int = 0
    delivered: int = 0
    rounds: int = 0


@dataclass
class _Control:
    """Progress inside CONTROL."""

    first_state: State | None = None
    second_state: State | None = None
    mine: Summary | None = None
    heads_sent: bool = False
    peer_heads_complete: bool = False
    settled_sent: bool = False


@dataclass
class _Wanting:
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


class Exchange:
    """One group with one peer, over a `Port`.

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
        self._totals = _Totals()
        self._control = _Control()
        self._want = _Wanting()
        self._places: dict[Place, LogState] = {}
        self._peer_entries: dict[int, list[HeadEntry]] = {0: [], 1: []}
        self._control_incomplete = False
        self._control_equal = False
        self._done_sent: list[Summary] = []
        self._done_received: list[Done] = []
        self._comparing = False
        self._throttled = False
        self._reconciling: Reconciling | None = None

    # --- state --------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in {GroupState.DONE, GroupState.FAILED}

    def _move(self, event: Input) -> None:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolError(f"{event.value} is not expected in state {self.state.value}")
        self.state = following

    # --- begin and end ------------------------------------------------------------------------

    def start(self) -> None:
        """Send our *State*."""
        self._port.ask_roots(self.group, self._send_first_state)

    def _send_first_state(self, mine: Summary) -> None:
        self._control.mine = mine
        self._send_state(mine)
        self._compare_first()

    def _send_state(self, mine: Summary) -> None:
        salt, side = self._port.salt, self._port.side
        self._port.send(
            State(
                self.tag,
                heads.bound_root(salt, side, mine.control),
                heads.bound_root(salt, side, mine.data),
            )
        )

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

    # --- messages -----------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message of this group.

        Raises:
            ProtocolError: it is not allowed now.
        """
        self._move(INPUT_OF[type(message).__name__])
        match message:
            case State():
                self._on_state(message)
            case Heads():
                self._on_heads(message)
            case Records():
                self._on_records(message)
            case Want():
                self._on_want(message)
            case WantBodies():
                self._on_want_bodies(message)
            case Done():
                self._on_done(message)
            case Recon():
                self._on_recon(message)
            case WantIds():
                self._on_want_ids(message)
            case Erased():
                pass  # Erasure comes later; the pairs are hints, the erase record itself decides.
            case _:
                raise ProtocolError(f"{type(message).__name__} needs a feature we did not offer")

    # --- CONTROL ------------------------------------------------------------------------------

    def _on_state(self, message: State) -> None:
        control = self._control
        if control.first_state is None:
            control.first_state = message
            self._compare_first()
        elif control.second_state is None and control.heads_sent:
            control.second_state = message
            self._control_check()
        else:
            raise ProtocolError("a state too many")

    def _lanes_equal(self, mine: Summary, theirs: State) -> tuple[bool, bool]:
        salt, side = self._port.salt, self._port.other_side
        return (
            heads.bound_root(salt, side, mine.control) == theirs.control_root,
            heads.bound_root(salt, side, mine.data) == theirs.data_root,
        )

    def _compare_first(self) -> None:
        mine, theirs = self._control.mine, self._control.first_state
        if mine is None or theirs is None:
            return
        control_equal, data_equal = self._lanes_equal(mine, theirs)
        self._control_equal = control_equal
        if control_equal and data_equal:
            self._move(Input.ROOTS_EQUAL)
            self._finish(equal=True, reason="")
        elif self._port.verifies:
            self._enter_reconcile()
        elif control_equal:
            self._enter_heads()
        else:
            self._port.ask_logs(self.group, self._send_control_heads)

    def _send_control_heads(self, logs: Sequence[LogState]) -> None:
        self._places = heads.by_place(self._port.salt, logs)
        self._send_heads(logs, 0)
        self._control.heads_sent = True
        self._want.ends_due += 1

    def _send_heads(self, logs: Sequence[LogState], lane: int) -> None:
        entries = heads.head_entries(self._port.salt, logs, lane)
        for at in range(0, len(entries) + 1, LIST_MAX):
            # A full frame announces another, so the last one is never full.
            self._port.send(Heads(self.tag, lane, tuple(entries[at : at + LIST_MAX])))

    def _on_heads(self, message: Heads) -> None:
        lane = 0 if self.state is GroupState.CONTROL else 1
        control = self._control
        expected = lane == 1 or (control.heads_sent and not control.peer_heads_complete)
        if message.lane != lane or not expected:
            raise ProtocolError("heads that were not expected")
        entries = self._peer_entries[lane]
        entries.extend(message.entries)
        if len(entries) > 64 * LIST_MAX:
            raise ProtocolError("too many logs")
        if len(message.entries) == LIST_MAX:
            return
        if heads.own_log_ahead(self._port.salt, entries, self._places, self._port.me, lane):
            self._port.own_log_ahead(self.group)
        if lane == 0:
            self._control.peer_heads_complete = True
            self._answer_control_heads()
        else:
            self._check_chains(1, self._enter_tails)

    def _answer_control_heads(self) -> None:
        above = {
            Place(entry.author, entry.incarnation, 0): entry.contiguous
            for entry in self._peer_entries[0]
        }
        self._port.serve(self, ServeControl(above))
        self._port.serve(self, ServeEnd())
        self._check_chains(0, lambda: None)

    def _control_advance(self) -> None:
        """All control records are here and ours are on their way: say how we stand."""
        control = self._control
        ready = (
            control.peer_heads_complete
            and not control.settled_sent
            and self._want.ends_due == 0
            and not self._want.by_id
            and self.serving == 0
        )
        if ready:
            control.settled_sent = True
            self._port.ask_roots(self.group, self._send_second_state)

    def _send_second_state(self, mine: Summary) -> None:
        self._control.mine = mine
        self._send_state(mine)
        self._control_check()

    def _control_check(self) -> None:
        control = self._control
        if not control.settled_sent or control.second_state is None or control.mine is None:
            return
        control_equal, data_equal = self._lanes_equal(control.mine, control.second_state)
        self._control_equal = control_equal
        if control_equal and data_equal:
            self._move(Input.ROOTS_EQUAL)
            self._finish(equal=True, reason="")
            return
        self._control_incomplete = not control_equal
        self._enter_heads()

    # --- HEADS and TAILS ----------------------------------------------------------------------

    def _enter_heads(self) -> None:
        self._move(Input.CONTROL_SETTLED)
        self._port.ask_logs(self.group, self._send_data_heads)

    def _send_data_heads(self, logs: Sequence[LogState]) -> None:
        self._places = heads.by_place(self._port.salt, logs)
        self._send_heads(logs, 1)

    def _check_chains(self, lane: int, then: Callable[[], None]) -> None:
        """Find logs that differ at or below the peer's head."""
        pairs = heads.compared_places(self._peer_entries[lane], self._places, lane)
        unknown = [(log, entry) for log, entry in pairs if entry.contiguous != log.contiguous]
        for log, entry in pairs:
            if entry.contiguous == log.contiguous:
                self._compare_head(log, entry, log.head_id)
        if not unknown:
            then()
            return

        def compare(ids: Sequence[bytes | None]) -> None:
            for (log, entry), record_id in zip(unknown, ids, strict=True):
                if record_id is not None:
                    self._compare_head(log, entry, record_id)
            then()

        self._port.ask_ids(
            self.group, [(log.key, entry.contiguous) for log, entry in unknown], compare
        )

    def _compare_head(self, log: LogState, entry: HeadEntry, record_id: bytes) -> None:
        if heads.short_id(self._port.salt, record_id) != entry.head:
            self._search_backwards(log.key, entry.contiguous)

    def _search_backwards(self, log: LogKey, last: int) -> None:
        """Queue a fetch of the peer's records up to `last`, to find where the chains part."""
        if last < 1 or log in self._want.forks or (log, last) in self._want.searched:
            return
        self._want.searched.add((log, last))
        first = max(1, last - heads.BACKWARDS + 1)
        short = heads.short_id(self._port.salt, log[1])
        self._want.queue.append(WantRange(short, log[2], log[3], first, last))

    def _enter_tails(self) -> None:
        self._move(Input.HEADS_COMPLETE)
        entries = self._peer_entries[1]
        tails = heads.wanted_ranges(entries, self._places, 1, self._skip_gaps, self._held)
        self._totals.missing += heads.missing_count(tails)
        for item in tails:
            log = self._places.get(Place(item.author, item.incarnation, 1))
            if log is not None and log.contiguous < log.max_seq and item.first <= log.max_seq:
                self._want.gaps[log.key] = item.last
        self._want.queue[:0] = tails
        self._want_next()

    def _want_next(self) -> None:
        """Ask for the next thing we lack, or say that there is none."""
        want = self._want
        if want.ends_due:
            return
        if want.by_id:
            ids, want.by_id = tuple(want.by_id[:BY_ID_MAX]), want.by_id[BY_ID_MAX:]
            self._port.send(WantBodies(self.tag, ids))
            want.ends_due += 1
        elif self.state is GroupState.CONTROL:
            self._control_advance()
        elif want.short:
            short, want.short = tuple(want.short[:IDS_MAX]), want.short[IDS_MAX:]
            self._port.send(WantIds(self.tag, short))
            want.ends_due += 1
        elif want.queue and self._totals.rounds < ROUNDS_MAX and not self._throttled:
            ranges = cut_ranges(want.queue)
            self._totals.rounds += 1
            self._port.send(Want(self.tag, ranges))
            want.ends_due += 1
        elif self.state is GroupState.TAILS and not want.sent_nothing:
            want.sent_nothing = True
            self._port.send(Want(self.tag, ()))
            self._tails_advance()
        elif self.state is GroupState.COMPARE:
            self._compare_advance()
        elif self.state is GroupState.TRANSFER:
            self._transfer_advance()

    def _on_records(self, message: Records) -> None:
        if not self._want.ends_due:
            raise ProtocolError("records that were not asked for")
        if message.wires:
            # In TRANSFER only the initiator asked for what comes.
            if self.state is GroupState.TAILS or (
                self.state is GroupState.TRANSFER and self._begins
            ):
                self._totals.delivered += len(message.wires)
            self._port.admit(self.group, message.wires, self._on_admitted)
            return
        self._want.ends_due -= 1
        self._want_next()

    def _on_admitted(self, result: AdmitResult) -> None:
        self._totals.received += result.stored
        if result.throttled:
            self._throttled = True
            self._want.queue.clear()
            self._want.short.clear()
        for record_id in result.missing:
            if record_id not in self._want.asked_ids:
                self._want.asked_ids.add(record_id)
                self._want.by_id.append(record_id)
        for suspect in result.suspects:
            if suspect.first:
                self._want.forks.add(suspect.log)
            else:
                self._search_backwards(suspect.log, suspect.seq - 1)

    def _on_want(self, message: Want) -> None:
        if self._want.peer_nothing and self.state is GroupState.TAILS:
            raise ProtocolError("a want after the last one")
        if not message.ranges:
            if self.state is not GroupState.TAILS:
                raise ProtocolError("an empty want has no meaning here")
            self._want.peer_nothing = True
            self._tails_advance()
            return
        for item in message.ranges:
            log = self._places.get(Place(item.author, item.incarnation, item.lane))
            if log is None or item.first > item.last:
                continue
            top = log.max_seq if log.fork_seq is None else min(log.max_seq, log.fork_seq - 1)
            if item.first <= top:
                self._port.serve(self, ServeRange(log.key, item.first, min(item.last, top)))
        self._port.serve(self, ServeEnd())

    def _on_want_bodies(self, message: WantBodies) -> None:
        self._port.serve(self, ServeIds(message.ids))
        self._port.serve(self, ServeEnd())

    def served(self, records: int) -> None:
        """The session sent so many of our records, or finished an answer."""
        self._totals.sent += records
        if self.state is GroupState.CONTROL:
            self._control_advance()
        elif self.state is GroupState.TAILS:
            self._tails_advance()
        elif self.state is GroupState.TRANSFER:
            self._transfer_advance()

    def _tails_advance(self) -> None:
        if self._want.sent_nothing and self._want.peer_nothing and self.serving == 0:
            self._move(Input.TAILS_COMPLETE)
            self._port.ask_roots(self.group, self._send_done)

    # --- COMPARE ------------------------------------------------------------------------------

    def _send_done(self, mine: Summary) -> None:
        self._done_sent.append(mine)
        root = heads.bound_root(self._port.salt, self._port.side, mine.control, mine.data)
        self._port.send(Done(self.tag, root, Counts(mine.control_count, mine.data_count)))
        self._compare()

    def _on_done(self, message: Done) -> None:
        if len(self._done_received) == 2:
            raise ProtocolError("done a third time")
        self._done_received.append(message)
        self._compare()

    def _compare(self) -> None:
        pairs = list(zip(self._done_sent, self._done_received, strict=False))
        if not pairs or (self.state is GroupState.TRANSFER and len(pairs) == 1):
            return
        mine, theirs = pairs[-1]
        expected = heads.bound_root(self._port.salt, self._port.other_side, mine.control, mine.data)
        equal = expected == theirs.root
        if equal or len(pairs) == 2:
            self._move(Input.COMPARED)
            self._finish(equal=equal, reason="" if equal else self._why_unequal())
        elif self._port.reconciles:
            # Both sides come to this from the same two roots.
            self._enter_reconcile()
        elif not self._comparing:
            self._comparing = True
            self._search_above_gaps()

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

    def _search_above_gaps(self) -> None:
        """Roots differ though the tails are here: look where no head speaks."""
        for lane in (0, 1):
            spans = heads.gap_suspects(self._peer_entries[lane], self._places, lane)
            for log, first, last in spans:
                short = heads.short_id(self._port.salt, log[1])
                self._want.queue.append(WantRange(short, log[2], log[3], first, last))
        self._want_next()

    def _compare_advance(self) -> None:
        """Nothing more to ask in COMPARE: the second *Done* ends it."""
        if self._comparing and len(self._done_sent) == 1:
            self._port.ask_roots(self.group, self._send_done)

    # --- RECONCILE and TRANSFER ---------------------------------------------------------------

    def _enter_reconcile(self) -> None:
        self._move(Input.RECONCILE_AGREED)
        self._port.ask_ranges(self.group, self._start_ranges)

    def _start_ranges(self, sets: Sequence[RangeSet]) -> None:
        self._reconciling = Reconciling(sets, self._port.salt, initiator=self._begins)
        for lane, message in self._reconciling.start():
            self._port.send(Recon(self.tag, lane, message))

    def _on_recon(self, message: Recon) -> None:
        ranges = self._reconciling
        if ranges is None:
            raise ProtocolError("ranges before both sides agreed on them")
        answer = ranges.receive(message.lane, message.message)
        if answer is not None:
            self._port.send(Recon(self.tag, message.lane, answer))
        if ranges.over:
            self._end_reconcile(ranges)

    def _end_reconcile(self, ranges: Reconciling) -> None:
        if self._port.verifies:
            self._move(Input.COMPARED)
            self._finish(equal=False, reason="they differ")
            return
        self._move(Input.RECONCILED)
        if not self._begins:
            self._want.ends_due += 1  # What only the initiator has comes unasked, with an end.
            return
        have = ranges.have
        for at in range(0, len(have), SERVE_IDS_MAX):
            self._port.serve(self, ServeIds(tuple(have[at : at + SERVE_IDS_MAX])))
        self._port.serve(self, ServeEnd())
        self._want.short = [] if self._throttled else ranges.need
        # Exact now; what heads promised was a guess.
        self._totals.missing, self._totals.delivered = len(ranges.need), 0
        self._want_next()

    def _on_want_ids(self, message: WantIds) -> None:
        if self._begins or self._want.short_closed or self._reconciling is None:
            raise ProtocolError("short ids that were not expected")
        if not message.short:
            self._want.short_closed = True
            self._transfer_advance()
            return
        ids = self._reconciling.resolve(message.short)
        for at in range(0, len(ids), SERVE_IDS_MAX):
            self._port.serve(self, ServeIds(tuple(ids[at : at + SERVE_IDS_MAX])))
        self._port.serve(self, ServeEnd())

    def _transfer_advance(self) -> None:
        """Nothing is under way any more, either way: say how we stand."""
        want = self._want
        if want.ends_due or want.by_id or self.serving or len(self._done_sent) > 1:
            return
        if self._begins and not want.short_closed:
            want.short_closed = True
            self._port.send(WantIds(self.tag, ()))
        if want.short_closed:
            self._port.ask_roots(self.group, self._send_done)


def cut_ranges(queue: list[WantRange]) -> tuple[WantRange, ...]:
    """Take from the front of the queue what one *want* may ask for; the rest of a range stays."""
    taken: list[WantRange] = []
    room = WANT_RECORDS_MAX
    while queue and room and len(taken) < LIST_MAX:
        item = queue.pop(0)
        last = min(item.last, item.first + room - 1)
        taken.append(msgspec.structs.replace(item, last=last))
        room -= last - item.first + 1
        if last < item.last:
            queue.insert(0, msgspec.structs.replace(item, first=last + 1))
    return tuple(taken)
