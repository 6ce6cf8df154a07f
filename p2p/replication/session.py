"""One sync session with one peer: framing, hello, groups, limits; exchanges do the comparing.

Theory of operation
-------------------
A session is a pure machine. The driver feeds it bytes (`receive`), carries out the events it
returns (`Query` to the store, `Admit` to admission, `Report`, `Close`), gives results back
(`answer`), and writes what `to_send` returns. Messages are handled strictly one after another:
while an answer that a message waits for is outstanding, later bytes stay in the buffer and
`wants_bytes` is False, so a fast peer is held back by its own stream.

Answers to the peer are served from a queue of jobs, each read from the store in pieces, and only
while little is unsent: a peer that asks for a million records and reads none costs a queue entry.

Order: both say *Hello*; the salt comes from both nonces. The responder lists the groups in which
the peer is a member, by salted tag, each with its *State*; the initiator answers with those it
shares and its own states. Equal groups are over after that round trip. Timers: idle, total time.
Limits: bytes both ways, rounds. Whatever ends a session early loses nothing: the next one goes on
from the store.

A hostile peer may send any bytes (one `ProtocolError` ends it), name groups it is not in (unknown
tags), or stall (idle timer). It learns nothing of groups it is no member of.
Source: docs/specs/sync.md.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar, cast

from p2p.errors import LimitError, PeerError, ProtocolError, UsageError, VersionError
from p2p.replication import heads
from p2p.replication.exchange import Exchange
from p2p.replication.exchange_types import (
    INPUT_OF,
    AdmitResult,
    GroupReport,
    ServeControl,
    ServeEnd,
    ServeIds,
    ServeRange,
    Serving,
)
from p2p.replication.heads import Place, Summary
from p2p.replication.messages import (
    ERROR_PROTOCOL,
    ERROR_VERSION,
    FEATURE_RANGES,
    FEATURE_VERIFY,
    FRAME_BYTES_MAX,
    LIST_MAX,
    VERSION,
    Error,
    FrameReader,
    Groups,
    Hello,
    Message,
    Records,
    encode_frame,
)
from p2p.replication.record import decode_header_untrusted
from p2p.replication.session_types import (
    TRANSITIONS,
    Admit,
    Ask,
    Close,
    ControlAsk,
    Event,
    FetchAsk,
    IdsAsk,
    LogsAsk,
    Query,
    RangesAsk,
    Report,
    RootsAsk,
    SessionInput,
    SessionState,
    TailAsk,
    Unshared,
)
from p2p.replication.wires import FETCH_IDS, records_frames, wire_of

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from p2p.replication.config import ReplicationConfig
    from p2p.replication.exchange_tails import Tails
    from p2p.replication.ranges import RangeSet
    from p2p.replication.record import RecordWire
    from p2p.replication.store import LogKey, LogState, Stored

PROTOCOL: Final = "/covey/sync/1"

TAIL_BYTES: Final = 256 * 1024
"""Read from the store at once for an answer."""

SERVE_BELOW_BYTES: Final = 256 * 1024
"""More is read from the store only while less than this is unsent."""

JOBS_MAX: Final = 64 * LIST_MAX
"""Queued answers; a peer that asks for more pieces at once is closed."""


class Session:
    """The machine of one session. Satisfies `exchange_port.Port` for its exchanges.

    Args:
        me: our key.
        groups: ids of the groups in which the peer is a member, as far as we know.
        initiator: whether we opened the stream.
        nonce: 16 fresh random bytes.
        config: limits.
        now: seconds, as for every later call.
        skip_gaps: logs whose gap this peer failed to fill within the hour.
        held: logs with records in quarantine, and the lowest seq of those.
        verify: compare and fetch nothing; for the initiator. A peer that does not compare by ranges
            gets an ordinary session.
        features: what we offer; without `FEATURE_RANGES` as a peer of the first version.
    """

    def __init__(
        self,
        *,
        me: bytes,
        groups: Sequence[bytes],
        initiator: bool,
        nonce: bytes,
        config: ReplicationConfig,
        now: float,
        skip_gaps: frozenset[LogKey] = frozenset(),
        held: Mapping[LogKey, int] | None = None,
        verify: bool = False,
        features: tuple[int, ...] = (FEATURE_RANGES,),
    ) -> None:
        self.me = me
        self.reconciles = False
        self.verifies = False
        self.state = SessionState.HELLO
        self.salt = b""
        self.side = heads.INITIATOR if initiator else heads.RESPONDER
        self.other_side = heads.RESPONDER if initiator else heads.INITIATOR
        self.bytes_in = 0
        self.bytes_out = 0
        self._initiator = initiator
        self._nonce = nonce
        self._groups = tuple(sorted(groups))
        self._config = config
        self._skip_gaps = skip_gaps
        self._held = dict(held or {})
        self._started = now
        self._active = now
        self._reader = FrameReader()
        self._out: deque[bytes] = deque()
        self._unsent = 0
        self._events: list[Event] = []
        self._next_id = 0
        self._then: dict[int, Callable[[object], None]] = {}
        self._blocking: set[int] = set()
        self._jobs: deque[tuple[Tails, Serving]] = deque()
        self._serving: int | None = None
        self._exchanges: dict[bytes, Exchange] = {}
        self._ignored: set[bytes] = set()
        self._features = (*features, FEATURE_VERIFY) if verify and initiator else features
        self.send(Hello(VERSION, VERSION, self._features, nonce))

    # --- the machine's face -------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes of the peer."""
        if self.state is SessionState.CLOSED:
            return []
        self._active = now
        self.bytes_in += len(data)
        self._reader.feed(data)
        return self._step()

    def answer(self, query_id: int, result: object, now: float) -> list[Event]:
        """Take the result of a `Query` or `Admit`.

        Raises:
            UsageError: no such question is open.
        """
        if self.state is SessionState.CLOSED:
            return []
        then = self._then.pop(query_id, None)
        if then is None:
            raise UsageError(f"no question {query_id} is open")
        self._blocking.discard(query_id)
        if self._serving == query_id:
            self._serving = None
        self._active = now
        return self._step(lambda: then(result))

    def end_of_file(self) -> list[Event]:
        """The peer sends no more."""
        if self.state is SessionState.CLOSED:
            return []
        return self._step(lambda: self._close("the peer ended the session early"))

    def to_send(self, n: int) -> bytes:
        """Whole frames of at most `n` bytes; `n` is at least one frame."""
        if n < FRAME_BYTES_MAX + 4:
            raise UsageError(f"to_send needs room for a frame, got {n}")
        parts: list[bytes] = []
        size = 0
        while self._out and size + len(self._out[0]) <= n:
            frame = self._out.popleft()
            parts.append(frame)
            size += len(frame)
        self._unsent -= size
        self.bytes_out += size
        return b"".join(parts)

    def sent(self, now: float) -> list[Event]:
        """What `to_send` gave was written: there is room to serve more."""
        if self.state is SessionState.CLOSED:
            return []
        self._active = now
        return self._step()

    def next_timer(self) -> float | None:
        """When to call `on_timer`, in seconds."""
        if self.state is SessionState.CLOSED:
            return None
        return min(
            self._active + self._config.session_idle_s, self._started + self._config.session_s
        )

    def on_timer(self, now: float) -> list[Event]:
        """Close a session that is idle or too long."""
        due = self.next_timer()
        if due is None or now < due:
            return []
        idle = now >= self._active + self._config.session_idle_s
        reason = "idle" if idle else "time limit: the next session goes on"
        return self._step(lambda: self._close(reason))

    @property
    def wants_bytes(self) -> bool:
        """Whether to read from the peer: not while an answer is awaited."""
        return not self._blocking and self.state is not SessionState.CLOSED

    @property
    def unsent_bytes(self) -> int:
        """Bytes of frames that wait for `to_send`."""
        return self._unsent

    # --- stepping -----------------------------------------------------------------------------

    def _step(self, first: Callable[[], None] | None = None) -> list[Event]:
        try:
            if first is not None:
                first()
            self._pump()
            self._serve()
            self._check_end()
        except VersionError as error:
            self._fail(error, ERROR_VERSION)
        except PeerError as error:
            self._fail(error, ERROR_PROTOCOL)
        events, self._events = self._events, []
        return events

    def _pump(self) -> None:
        while not self._blocking and self.state is not SessionState.CLOSED:
            following = self._reader.next_message_untrusted()
            if following is None:
                return
            self._on_message(following[0])

    def _check_end(self) -> None:
        if self.state is SessionState.CLOSED:
            return
        if self.bytes_in + self.bytes_out > self._config.session_bytes_max:
            self._close("byte limit: the next session goes on")
        elif (
            self.state is SessionState.SYNC
            and not self._blocking
            and all(exchange.over for exchange in self._exchanges.values())
        ):
            self._move(SessionInput.FINISHED)
            self._events.append(Close("done"))

    def _move(self, event: SessionInput) -> None:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolError(f"{event.value} is not expected in state {self.state.value}")
        self.state = following

    def _close(self, reason: str, error: PeerError | None = None) -> None:
        if self.state is SessionState.CLOSED:
            return
        for exchange in self._exchanges.values():
            exchange.cut(reason)
        self.state = TRANSITIONS[self.state, SessionInput.CUT]
        self._events.append(Close(reason, error))

    def _fail(self, error: PeerError, code: int) -> None:
        if self.state is SessionState.CLOSED:
            return
        self._out.append(encode_frame(Error(code, str(error)[:200], VERSION, VERSION)))
        self._unsent += len(self._out[-1])
        self._close(str(error), error)

    # --- messages -----------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Hello):
            self._move(SessionInput.RECV_HELLO)
            self._on_hello(message)
        elif isinstance(message, Groups):
            self._move(SessionInput.RECV_GROUPS)
            self._on_groups(message)
        elif isinstance(message, Error):
            self._on_error(message)
        elif type(message).__name__ in INPUT_OF:
            self._on_group_message(message)
        else:
            raise ProtocolError(f"{type(message).__name__} does not belong to this protocol")

    def _on_hello(self, message: Hello) -> None:
        if not message.v_min <= VERSION <= message.v_max:
            raise VersionError(
                f"we speak version {VERSION}, the peer {message.v_min} to {message.v_max}"
            )
        if message.nonce == self._nonce:
            raise ProtocolError("the peer echoed our nonce")
        self._agree(message)
        pair = (self._nonce, message.nonce)
        self.salt = heads.session_salt(*(pair if self._initiator else pair[::-1]))
        if not self._initiator:
            tags = {heads.group_tag(self.salt, group): group for group in self._groups}
            self.send(Groups(tuple(sorted(tags))[:LIST_MAX]))
            for tag in sorted(tags)[:LIST_MAX]:
                self._begin(tags[tag], tag)

    def _agree(self, message: Hello) -> None:
        asked = self._features if self._initiator else message.features
        self.reconciles = FEATURE_RANGES in self._features and FEATURE_RANGES in message.features
        self.verifies = self.reconciles and FEATURE_VERIFY in asked

    def _on_groups(self, message: Groups) -> None:
        if len(set(message.tags)) != len(message.tags):
            raise ProtocolError("a group is listed twice")
        if self._initiator:
            self._share(message)
        else:
            self._keep_shared(message)

    def _share(self, message: Groups) -> None:
        tags = {heads.group_tag(self.salt, group): group for group in self._groups}
        common = [tag for tag in sorted(message.tags) if tag in tags]
        # The responder sent its states along; those of groups we do not share are dropped.
        self._ignored = set(message.tags) - set(common)
        self.send(Groups(tuple(common)))
        self._note_unshared({tags[tag] for tag in common})
        for tag in common:
            self._begin(tags[tag], tag)

    def _keep_shared(self, message: Groups) -> None:
        if any(tag not in self._exchanges for tag in message.tags):
            raise ProtocolError("a group was listed that we did not offer")
        kept = set(message.tags)
        self._note_unshared({self._exchanges[tag].group for tag in kept})
        self._exchanges = {tag: ex for tag, ex in self._exchanges.items() if tag in kept}

    def _note_unshared(self, common: set[bytes]) -> None:
        unshared = tuple(group for group in self._groups if group not in common)
        if unshared:
            self._events.append(Unshared(unshared))

    def _begin(self, group: bytes, tag: bytes) -> None:
        gaps = frozenset(log for log in self._skip_gaps if log[0] == group)
        held = {log: seq for log, seq in self._held.items() if log[0] == group}
        exchange = self._exchanges[tag] = Exchange(group, tag, self, gaps, held)
        exchange.start()

    def _on_group_message(self, message: Message) -> None:
        tag = getattr(message, "group", b"")
        if tag in self._ignored and self.state is SessionState.SYNC:
            self._ignored.discard(tag)
            return
        self._move(SessionInput.RECV_GROUP_MESSAGE)
        exchange = self._exchanges.get(tag)
        if exchange is None:
            raise ProtocolError("a message names no group of this session")
        exchange.receive(message)

    def _on_error(self, message: Error) -> None:
        reason = f"the peer gave up with code {message.code}: {message.text[:200]}"
        for exchange in self._exchanges.values():
            exchange.cut(reason)
        self._move(SessionInput.RECV_ERROR)
        if message.code == ERROR_VERSION:
            error: PeerError = VersionError(
                f"we speak version {VERSION}, the peer {message.v_min} to {message.v_max}"
            )
        else:
            error = ProtocolError(reason)
        self._events.append(Close(reason, error))

    # --- the port of the exchanges ------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message to the peer."""
        frame = encode_frame(message)
        self._out.append(frame)
        self._unsent += len(frame)

    def ask_roots(self, group: bytes, then: Callable[[Summary], None]) -> None:
        """Summarise our set."""
        self._ask(group, RootsAsk(self.salt), lambda result: then(_expect(Summary, result)))

    def ask_logs(self, group: bytes, then: Callable[[Sequence[LogState]], None]) -> None:
        """Where our logs stand."""
        self._ask(group, LogsAsk(), lambda result: then(cast("Sequence[LogState]", result)))

    def ask_ranges(self, group: bytes, then: Callable[[Sequence[RangeSet]], None]) -> None:
        """Our sets of both lanes."""
        self._ask(group, RangesAsk(), lambda result: then(cast("Sequence[RangeSet]", result)))

    def ask_ids(
        self,
        group: bytes,
        places: Sequence[tuple[LogKey, int]],
        then: Callable[[Sequence[bytes | None]], None],
    ) -> None:
        """Ids at places of our logs."""
        ask = IdsAsk(tuple(places))
        self._ask(group, ask, lambda result: then(cast("Sequence[bytes | None]", result)))

    def admit(
        self, group: bytes, wires: Sequence[RecordWire], then: Callable[[AdmitResult], None]
    ) -> None:
        """Hand records to admission."""

        def admitted(result: object) -> None:
            outcome = _expect(AdmitResult, result)
            then(outcome)
            if outcome.close:
                raise LimitError(outcome.close)

        query_id = self._register(admitted, blocking=True)
        self._events.append(Admit(query_id, group, tuple(wires)))

    def serve(self, exchange: Tails, job: Serving) -> None:
        """Queue an answer, sent as the peer reads."""
        if len(self._jobs) >= JOBS_MAX:
            raise LimitError("too many ranges asked for at once")
        exchange.serving += 1
        self._jobs.append((exchange, job))

    def finished(self, report: GroupReport) -> None:
        """An exchange ended."""
        self._events.append(Report(report))

    def _ask(self, group: bytes, ask: Ask, then: Callable[[object], None]) -> None:
        query_id = self._register(then, blocking=True)
        self._events.append(Query(query_id, group, ask))

    def _register(self, then: Callable[[object], None], *, blocking: bool) -> int:
        self._next_id += 1
        self._then[self._next_id] = then
        if blocking:
            self._blocking.add(self._next_id)
        return self._next_id

    # --- serving ------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Go on with the first job, unless much is unsent or a read is under way."""
        while (
            self._jobs
            and self._serving is None
            and self._unsent < SERVE_BELOW_BYTES
            and self.state is not SessionState.CLOSED
        ):
            exchange, job = self._jobs.popleft()
            if isinstance(job, ServeEnd):
                self.send(Records(exchange.tag, ()))
                self._served(exchange, 0)
                continue
            ask = self._ask_of(job)
            self._serving = self._register(
                lambda result, exchange=exchange, job=job: self._on_served(  # type: ignore[misc]
                    exchange, job, cast("Sequence[Stored]", result)
                ),
                blocking=False,
            )
            self._events.append(Query(self._serving, exchange.group, ask))

    @staticmethod
    def _ask_of(job: Serving) -> Ask:
        match job:
            case ServeRange(log, first, last):
                return TailAsk(log, first, last, TAIL_BYTES)
            case ServeIds(ids):
                return FetchAsk(ids[:FETCH_IDS])
            case _:
                return ControlAsk()

    def _on_served(self, exchange: Tails, job: Serving, rows: Sequence[Stored]) -> None:
        if isinstance(job, ServeControl):
            rows = [row for row in rows if self._above(row, job.above)]
        for message in records_frames(exchange.tag, [wire_of(row) for row in rows]):
            self.send(message)
        if isinstance(job, ServeRange) and rows:
            last = decode_header_untrusted(rows[-1].header).seq
            if last < job.last:
                self._jobs.appendleft((exchange, ServeRange(job.log, last + 1, job.last)))
                exchange.served(len(rows))
                return
        if isinstance(job, ServeIds) and len(job.ids) > FETCH_IDS:
            self._jobs.appendleft((exchange, ServeIds(job.ids[FETCH_IDS:])))
            exchange.served(len(rows))
            return
        self._served(exchange, len(rows))

    def _above(self, row: Stored, above: Mapping[Place, int]) -> bool:
        header = decode_header_untrusted(row.header)
        place = Place(heads.short_id(self.salt, header.author), header.incarnation, 0)
        return header.seq > above.get(place, 0)

    def _served(self, exchange: Tails, records: int) -> None:
        exchange.serving -= 1
        exchange.served(records)


def _expect(kind: type[T], result: object) -> T:
    if not isinstance(result, kind):
        raise UsageError(f"the answer must be a {kind.__name__}, got {type(result).__name__}")
    return result
