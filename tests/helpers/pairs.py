"""Two session machines against each other without a loop: every byte and answer by hand.

Admission is the simplest that can be right: it stores what fits its chain, reports contradictions,
and believes every signature. What is tested here is the comparison, not the judgement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from p2p.errors import DecodeError
from p2p.replication import heads
from p2p.replication.config import ReplicationConfig
from p2p.replication.exchange_types import AdmitResult, Suspect
from p2p.replication.heads import Summary
from p2p.replication.memstore import MemStore
from p2p.replication.messages import FEATURE_RANGES
from p2p.replication.ranges import RangeSet
from p2p.replication.record import RecordWire, verify_record
from p2p.replication.session import Session
from p2p.replication.session_types import (
    Admit,
    Close,
    ControlAsk,
    FetchAsk,
    IdsAsk,
    LogsAsk,
    Query,
    RangesAsk,
    Report,
    RootsAsk,
    TailAsk,
    Unshared,
)
from tests.helpers.chains import PlainSealer

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine, Sequence

    from p2p.replication.exchange_types import GroupReport
    from p2p.replication.record import Record
    from p2p.replication.session_types import Event

T = TypeVar("T")


def now(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("the coroutine waited")


def believe(key: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:  # noqa: ARG001
    """A verifier that takes every signature."""
    return True


@dataclass
class Side:
    """One end: its records and its machine."""

    me: bytes
    groups: Sequence[bytes]
    store: MemStore = field(init=False)
    session: Session = field(init=False)
    reports: dict[bytes, GroupReport] = field(default_factory=dict)
    suspects: list[Suspect] = field(default_factory=list)
    closed: Close | None = None
    unshared: tuple[bytes, ...] = ()
    refuse: frozenset[bytes] = frozenset()
    """Ids it pretends not to have when asked for a log or for control records."""
    refuse_by_id: frozenset[bytes] = frozenset()
    """Ids it pretends not to have when asked for them."""
    features: tuple[int, ...] = (FEATURE_RANGES,)

    def __post_init__(self) -> None:
        self.store = MemStore(PlainSealer(self.me))

    def hold(self, records: Sequence[Record]) -> None:
        """Put records into the store."""
        for record in records:
            now(self.store.admit(record.group, [record]))

    def begin(
        self,
        *,
        initiator: bool,
        config: ReplicationConfig | None = None,
        verify: bool = False,
    ) -> None:
        """A new machine."""
        self.closed = None
        self.reports = {}
        self.session = Session(
            me=self.me,
            groups=self.groups,
            initiator=initiator,
            nonce=(b"i" if initiator else b"r") * 16,
            config=config or ReplicationConfig(),
            now=0.0,
            verify=verify,
            features=self.features,
        )

    def carry(self, events: list[Event], at: float) -> None:
        """Carry out what the machine asks."""
        queue = list(events)
        while queue:
            event = queue.pop(0)
            match event:
                case Query():
                    queue += self.session.answer(event.id, self.query(event), at)
                case Admit():
                    queue += self.session.answer(event.id, self.admit(event), at)
                case Report(report=report):
                    self.reports[report.group] = report
                case Close():
                    assert self.closed is None, "closed twice"
                    self.closed = event
                case Unshared(groups=groups):
                    self.unshared = groups

    def query(self, query: Query) -> object:
        """Answer from the store."""
        group, store = query.group, self.store
        match query.ask:
            case RootsAsk(salt=salt):
                lanes = [now(store.index(group, lane)) for lane in (0, 1)]
                prints = [heads.fingerprint(salt, lane.packed) for lane in lanes]
                return Summary(prints[0], prints[1], len(lanes[0]), len(lanes[1]))
            case RangesAsk():
                return [RangeSet(now(store.index(group, lane)).packed) for lane in (0, 1)]
            case LogsAsk():
                return now(store.logs(group))
            case IdsAsk(places=places):
                found = [now(store.at(log, seq)) for log, seq in places]
                return [None if row is None else row.id for row in found]
            case ControlAsk():
                return [row for row in now(store.control(group)) if row.id not in self.refuse]
            case TailAsk(log=log, first=first, last=last, bytes_max=bytes_max):
                rows = now(store.tail(log, first, last, bytes_max))
                return [row for row in rows if row.id not in self.refuse]
            case FetchAsk(ids=ids):
                rows = now(store.fetch(ids, bodies=True))
                return [row for row in rows if row.id not in self.refuse_by_id]

    def admit(self, event: Admit) -> AdmitResult:
        """Store what fits."""
        stored = duplicate = refused = 0
        suspects = []
        for wire in event.wires:
            try:
                record = verify_record(wire, believe)
            except DecodeError:
                refused += 1
                continue
            if record.group != event.group:
                refused += 1
                continue
            (verdict,) = now(self.store.admit(event.group, [record]))
            stored += verdict.outcome == "stored"
            duplicate += verdict.outcome == "duplicate"
            if verdict.outcome == "fork":
                suspects.append(self.suspect(record))
        self.suspects += suspects
        return AdmitResult(
            stored=stored, duplicate=duplicate, refused=refused, suspects=tuple(suspects)
        )

    def suspect(self, record: Record) -> Suspect:
        """A contradiction at a place."""
        log = (record.group, record.author, record.incarnation, record.lane)
        ours = now(self.store.at(log, record.seq))
        assert ours is not None
        return Suspect(log, record.seq, first=ours.record.prev == record.prev)

    def index(self, group: bytes) -> tuple[bytes, bytes]:
        """Both lanes' sets."""
        control, data = (now(self.store.index(group, lane)).packed for lane in (0, 1))
        return control, data


def run_pair(
    a: Side,
    b: Side,
    *,
    rng: random.Random | None = None,
    config: ReplicationConfig | None = None,
    bytes_max: int | None = None,
    verify: bool = False,
) -> tuple[int, int]:
    """Run a session of two sides to its end; bytes sent each way.

    Args:
        a: the initiator.
        b: the responder.
        rng: cuts the streams at random places; None: as they come.
        config: limits.
        bytes_max: cut the connection after so many bytes of the initiator.
        verify: compare and fetch nothing.
    """
    a.begin(initiator=True, config=config, verify=verify)
    b.begin(initiator=False, config=config)
    wires = {id(a): bytearray(), id(b): bytearray()}
    sent = {id(a): 0, id(b): 0}
    idle = 0
    while idle < 3:
        moved = False
        for one, other in ((a, b), (b, a)):
            out = one.session.to_send(256 * 1024)
            if out:
                wires[id(one)] += out
                sent[id(one)] += len(out)
                one.carry(one.session.sent(0.0), 0.0)
                moved = True
            pipe = wires[id(one)]
            if pipe and other.closed is None:
                size = len(pipe) if rng is None else rng.randint(1, len(pipe))
                data = bytes(pipe[:size])
                del pipe[:size]
                other.carry(other.session.receive(data, 0.0), 0.0)
                moved = True
        if bytes_max is not None and sent[id(a)] >= bytes_max:
            break
        idle = 0 if moved else idle + 1
    for side in (a, b):
        if side.closed is None:
            side.carry(side.session.end_of_file(), 0.0)
    return sent[id(a)], sent[id(b)]


def wires_of(records: Sequence[Record]) -> tuple[RecordWire, ...]:
    """Records as they travel."""
    return tuple(record.wire() for record in records)
