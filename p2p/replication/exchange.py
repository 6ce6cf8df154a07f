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

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from p2p.errors import ProtocolError
from p2p.replication import heads
from p2p.replication.exchange_tails import Tails
from p2p.replication.exchange_types import (
    INPUT_OF,
    GroupState,
    Input,
    ServeControl,
    ServeEnd,
    ServeIds,
)
from p2p.replication.heads import Place, Summary
from p2p.replication.messages import (
    Counts,
    Done,
    Erased,
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
    from collections.abc import Sequence

    from p2p.replication.messages import Message
    from p2p.replication.ranges import RangeSet
    from p2p.replication.store import LogState

SERVE_IDS_MAX: Final = 64
"""Records read by id at once for an answer: at most 4 MiB."""


class Exchange(Tails):
    """One group with one peer, over a `Port`.

    Args:
        group: the group's id.
        tag: its name in this session.
        port: the session.
        skip_gaps: logs whose gap this peer failed to fill within the hour.
        held: logs with records in quarantine, and the lowest seq of those.
    """

    # --- begin and end ------------------------------------------------------------------------

    def start(self) -> None:
        """Send our *State*."""
        self._port.ask_roots(self.group, self._send_first_state)

    def _send_first_state(self, mine: Summary) -> None:
        self._control.mine = mine
        self._send_state(mine)
        self._compare_first()

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

    @override
    def _answer_control_heads(self) -> None:
        above = {
            Place(entry.author, entry.incarnation, 0): entry.contiguous
            for entry in self._peer_entries[0]
        }
        self._port.serve(self, ServeControl(above))
        self._port.serve(self, ServeEnd())
        self._check_chains(0, lambda: None)

    @override
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

    # --- COMPARE ------------------------------------------------------------------------------

    @override
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

    def _search_above_gaps(self) -> None:
        """Roots differ though the tails are here: look where no head speaks."""
        for lane in (0, 1):
            spans = heads.gap_suspects(self._peer_entries[lane], self._places, lane)
            for log, first, last in spans:
                short = heads.short_id(self._port.salt, log[1])
                self._want.queue.append(WantRange(short, log[2], log[3], first, last))
        self._want_next()

    @override
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

    @override
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
