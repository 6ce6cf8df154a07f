"""What the coordinator's machine remembers: the live jobs, the workers it speaks with, its orders.

`leasing` hands tasks out, `settling` takes answers in, `coordinator` is the door of both; all three
work on one `Board`. Pure: the clock comes as an argument, numbers from `rng`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from federated.jobs.cache import kept_ms, put_params
from federated.jobs.effects import suits
from federated.jobs.loading import AUDIT, AUDITED, pack_ks
from federated.jobs.orders import TAINTED_EVENTS, Caught, Orders
from federated.jobs.quoting import quotes
from federated.jobs.reputation import Reputation
from federated.jobs.schedule import PeerView
from federated.jobs.state import JobPhase, RowState
from federated.jobs.types import JobId

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from federated.jobs.handlers.base import HandlerInfo
    from federated.jobs.items import Load, Offered
    from federated.jobs.state import Attempt, Job, RowCell, TaskCell
    from federated.jobs.types import JobSpec
    from federated.seams import GroupId, TrustClass
    from p2p.identity import PeerId

EVENT_GAP: Final = 1 << 20
"""Event numbers skip so many at a start: those a crash took are never given twice."""

_JSON: Final = msgspec.json.Encoder(order="deterministic")


class Door(Protocol):
    """What the machine asks of the mesh; `federated.seams.Mesh` is one."""

    @property
    def id(self) -> PeerId:
        """This node."""
        ...

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:
        """What `peer` is to us in `group`."""
        ...

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:
        """Whose device it is."""
        ...

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `peer` signed domain + body."""
        ...


@dataclass(frozen=True, kw_only=True)
class Times:
    """Settings of the machine, in seconds and counts; docs/specs/jobs.md s.5 explains each."""

    lease_s: float = 10.0
    lease_down_s: float = 3.0
    """Lease left when the link went down."""
    retry_base_s: float = 0.5
    retry_cap_s: float = 30.0
    progress_s: float = 0.25
    """Least time between two progress events of a job."""
    grace_s: float = 5.0
    """Beyond `wall_s`, before a running task counts as lost despite its beats."""


class PeerCell:
    """A worker we have a session with.

    Attributes:
        session: number of the session; items of an older one are dropped.
        handlers: what it lets us use, by id.
        credit: how many tasks it lets us have outstanding.
        window: how many we trust it with so far: doubles while all goes well.
        specs: jobs it was told of.
        outstanding: attempts there, in the order of their offers.
        view: what was seen of it, for estimates.
        heard: monotonic seconds of the last item.
        silent: it has tasks and says nothing: it is offered no more until it does, or until
            `silent_end`.
        rest_end: monotonic seconds until which it asked to be left alone; 0: it did not.
        told: it has said in this session what it holds.
    """

    __slots__ = (
        "busy", "clean", "credit", "down", "draining", "handlers", "heard", "load", "outstanding",
        "peer", "rest_end", "session", "silent", "silent_end", "specs", "told", "view", "window",
    )  # fmt: skip

    def __init__(self, peer: PeerId, session: int) -> None:
        self.peer = peer
        self.session = session
        self.handlers: dict[str, Offered] = {}
        self.load: Load | None = None
        self.credit = 1
        self.window = 1
        self.clean = 0
        self.busy = 0
        self.outstanding: dict[Attempt, None] = {}
        self.specs: set[bytes] = set()
        self.view = PeerView()
        self.heard = 0.0
        self.silent = False
        self.silent_end = 0.0
        self.rest_end = 0.0
        self.told = False
        self.draining = False
        self.down = False

    @property
    def room(self) -> int:
        """How many tasks it may be offered now."""
        if self.draining or self.down or self.silent or self.rest_end:
            return 0
        return min(self.credit, self.window) - len(self.outstanding)


class Board:
    """The machine's memory.

    Args:
        door: who peers are.
        rng: for attempt numbers and waiting times.
        epoch: of this coordinator; results name it in what they sign.
        times: settings.
        next_event: number of the next event.
    """

    def __init__(
        self, door: Door, rng: random.Random, *, epoch: int, times: Times, next_event: int = 1
    ) -> None:
        self.door = door
        self.rng = rng
        self.epoch = epoch
        self.times = times
        self.jobs: dict[JobId, Job] = {}
        self.peers: dict[PeerId, PeerCell] = {}
        self.orders = Orders()
        self.next_event = next_event
        self.counters: dict[str, int] = {}
        self.reputation = Reputation()
        self.own_handlers: dict[str, HandlerInfo] = {}
        """What a device of ours says of handlers: nature is never a peer's word."""
        self.on_computed: Callable[[str, int, float], None] = lambda _handler, _rows, _s: None
        """Told what a row took: (handler, rows, seconds)."""
        self.engines: dict[PeerId, str] = {}
        """Addresses of engines by the id they go by here."""
        self.halted = False
        """The journal cannot be written: nothing is handed out."""
        self._standing: dict[tuple[JobId, PeerId], tuple[TrustClass, bytes]] = {}

    def take_orders(self) -> Orders:
        """What is to be done since the last time."""
        taken, self.orders = self.orders, Orders()
        return taken

    def count(self, name: str, by: int = 1) -> None:
        """Count something for `covey metrics`."""
        self.counters[name] = self.counters.get(name, 0) + by

    def standing(self, job: Job, peer: PeerId) -> tuple[TrustClass, bytes]:
        """What a peer is in a job, and whose: read once a job, for an owner may change."""
        found = self._standing.get((job.id, peer))
        if found is None:
            found = (self.door.trust(peer, job.group), self.door.owner(peer, job.group))
            self._standing[job.id, peer] = found
        return found

    def forget_standing(self, job: JobId) -> None:
        """A job ended."""
        for pair in [pair for pair in self._standing if pair[0] == job]:
            del self._standing[pair]

    def tell(self, job: Job, kind: str, data: dict[str, object], at_ms: int) -> None:
        """Record an event of a job."""
        seq = self.next_event
        self.next_event += 1
        self.orders.write("event", (seq, job.id, at_ms, kind, _JSON.encode(data)))

    def keep_job(self, job: Job, *, full: bool = False) -> None:
        """Record where a job is."""
        self.orders.write(
            "job_state",
            (job.phase, job.reason, job.finished_ms, job.executions, job.executions_max, job.id),
        )
        self.orders.full = self.orders.full or full

    def uncount(self, job: Job) -> None:
        """An attempt was refused or given back before it began: it was no execution."""
        job.executions -= 1
        if job.executions_max is not None:
            self.keep_job(job)

    def keep_audit(self, job: Job, task: TaskCell, *, due: bool) -> None:
        """Record that a task computes an accepted row again, or that it has."""
        stage = AUDIT if due else AUDITED
        self.orders.write("task", (job.id, task.index, pack_ks(task.ks), stage))

    def end_audit(self, job: Job, task: TaskCell) -> None:
        """An audit is over, with or without an answer."""
        job.audits -= 1
        self.keep_audit(job, task, due=False)

    def keep_durations(self, rows: Iterable[tuple[str, int, bytes]], wall_ms: int) -> None:
        """Record how long tasks took."""
        for handler, kind, body in rows:
            self.orders.write("duration", (handler, kind, wall_ms, body))

    def keep_row(self, job: Job, row: RowCell) -> None:
        """Record what became of a row."""
        kept, level, owners = row.value, row.level, row.agreed
        if row.base is not None and row.state is RowState.PENDING:
            kept, level, owners = row.base
        value = None if kept is None else _JSON.encode(kept)
        self.orders.write(
            "row_state",
            (row.state, level, row.reason, value, b"".join(owners), job.id, row.k),
        )

    def keep_cached(self, job: Job, row: RowCell, wall_ms: int) -> None:
        """Keep an accepted answer for later jobs, if they may have it."""
        if job.cache_ms and row.value is not None:
            value = _JSON.encode(row.value)
            self.orders.write(
                "cache",
                put_params(
                    row.hash, job.spec.handler, value, row.level, row.agreed, row.backing,
                    now_ms=wall_ms, keep_ms=job.cache_ms,
                ),
            )  # fmt: skip
            for record in quotes(row.source, value):
                self.orders.write("cache_quote", (record, row.hash))

    def drop_cached(self, job: Job, row: RowCell) -> None:
        """An accepted answer is in doubt: no later job may have it."""
        if job.cache_ms:
            self.orders.write("cache", (row.hash,))

    def caught(self, owners: Iterable[bytes], wall_ms: int) -> None:
        """Have what is kept of earlier jobs changed by a quarantine."""
        bans = self.reputation.bans(wall_ms)
        self.orders.caught.append(Caught(frozenset(owners), bans, self.next_event, wall_ms))
        self.next_event += TAINTED_EVENTS

    def tell_state(self, job: Job, at_ms: int) -> None:
        """Record the event `state` of a job."""
        data: dict[str, object] = {"state": job.phase, **self.row_counts(job)}
        if job.cached:
            data["cached"] = job.cached
        if job.reason:
            data["reason"] = job.reason
        self.tell(job, "state", data, at_ms)

    @staticmethod
    def row_counts(job: Job) -> dict[str, object]:
        """Rows by state, as people read them."""
        return {state.name.lower(): job.counts[state] for state in RowState}

    # ---- what handlers and peers are to a job

    def nature(self, job: Job) -> tuple[str, bool]:
        """Kind of a job's handler, and whether its answers depend on the machine."""
        info = self.own_handlers.get(job.spec.handler)
        if info is not None:
            return info.kind, info.local
        return ("llm" if job.spec.handler.startswith("llm:") else "named"), False

    def deterministic(self, job: Job) -> bool:
        """Whether equal rows have equal answers, as a device of ours says."""
        info = self.own_handlers.get(job.spec.handler)
        return info is not None and info.deterministic and not info.local

    def cache_ms(self, spec: JobSpec) -> int:
        """How long answers for a spec are kept for later jobs; 0: not at all."""
        if spec.cache == "off" or spec.effect == "once":
            return 0
        return kept_ms(self.own_handlers.get(spec.handler), spec.params)

    def arbiter(self, job: Job) -> bool:
        """Whether a device of ours can compute a row again, and its answer decides."""
        return self.deterministic(job)

    def usable(self, job: Job, cell: PeerCell, wall_ms: int) -> bool:
        """Whether a peer may be asked for rows of a job."""
        if cell.down or job.spec.handler not in cell.handlers or not self._serves(job, cell.peer):
            return False
        if not suits(job, cell) or (job.only is not None and cell.peer not in job.only):
            return False
        trust, owner = self.standing(job, cell.peer)
        if trust == "none":
            return False
        return trust == "own" or not self.reputation.quarantined(
            owner, bytes(cell.peer), job.spec.handler, wall_ms
        )

    def _serves(self, job: Job, peer: PeerId) -> bool:
        """Whether a worker belongs to a job's engine; our own node is every job's arbiter."""
        return peer == self.door.id or job.spec.engine == self.engines.get(peer, "peers")

    def slots_of(self, handler: str) -> dict[bytes, int]:
        """Tasks at once of each peer that offers a handler."""
        return {
            bytes(cell.peer): cell.handlers[handler].slots
            for cell in self.peers.values() if handler in cell.handlers
        }  # fmt: skip

    def owners_left(self, job: Job, row: RowCell, wall_ms: int) -> int:
        """How many owners could still be asked for a row."""
        asked = row.barred | {answer.owner for answer in row.answers}
        devices = {answer.device for answer in row.answers}
        left = {
            self.standing(job, cell.peer)[1]
            for cell in self.peers.values()
            if cell.peer != self.door.id
            and not cell.draining
            and cell.credit > 0
            and bytes(cell.peer) not in devices
            and self.usable(job, cell, wall_ms)
        }
        return len(left - asked)

    def job_of(self, ident: bytes) -> Job | None:
        """A job in memory."""
        return self.jobs.get(JobId(ident))

    def live_jobs(self) -> list[Job]:
        """Jobs whose tasks may be at peers."""
        return [job for job in self.jobs.values() if not job.final]

    def wants_peers(self) -> bool:
        """Whether sessions are needed."""
        return any(job.phase is not JobPhase.REDUCING for job in self.live_jobs())
