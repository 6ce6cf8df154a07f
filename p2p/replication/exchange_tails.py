"""HEADS and TAILS of an exchange: what each side lacks, wants, and is served.

Also the hunt for the place where a log forks, and wants by id; both go on in any phase.
Theory of operation: `exchange`. Source: docs/specs/sync.md s.4, s.5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import msgspec

from p2p.errors import ProtocolError
from p2p.replication import heads
from p2p.replication.exchange_base import ExchangeBase
from p2p.replication.exchange_types import (
    AdmitResult,
    GroupState,
    Input,
    ServeEnd,
    ServeIds,
    ServeRange,
)
from p2p.replication.heads import Place
from p2p.replication.messages import (
    IDS_MAX,
    LIST_MAX,
    HeadEntry,
    Heads,
    Records,
    Want,
    WantBodies,
    WantIds,
    WantRange,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.replication.heads import Summary
    from p2p.replication.store import LogKey, LogState

ROUNDS_MAX: Final = 32
"""Non-empty wants of one side in an exchange. Source: docs/specs/sync.md s.6."""

WANT_RECORDS_MAX: Final = 4096
"""Places one *want* covers: so much comes before the sender's rate is looked at again, and a log
that claims 2**62 records costs rounds and no more. Source: a guess, ~3 MB of usual records."""

BY_ID_MAX: Final = 256
"""Cited control records asked for by id at once."""


class Tails(ExchangeBase, ABC):
    """The phases that fetch by heads; the others follow in `exchange.Exchange`."""

    @abstractmethod
    def _control_advance(self) -> None:
        """Nothing more to ask in CONTROL."""

    @abstractmethod
    def _answer_control_heads(self) -> None:
        """The peer's heads of the control lane are complete."""

    @abstractmethod
    def _compare_advance(self) -> None:
        """Nothing more to ask in COMPARE."""

    @abstractmethod
    def _transfer_advance(self) -> None:
        """Nothing more to ask in TRANSFER."""

    @abstractmethod
    def _send_done(self, mine: Summary) -> None:
        """Say how we stand."""

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
        if lane == 0:
            self._control.peer_heads_complete = True
            self._answer_control_heads()
        else:
            self._check_chains(1, self._enter_tails)

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
