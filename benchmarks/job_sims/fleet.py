"""A real coordinator among peers that are played: what simulations and tests of jobs drive.

    fleet = Fleet(seed=1)
    fleet.join("a", slots=2, credit=4)
    job = fleet.submit(rows=100)
    for task in fleet.offered("a"): fleet.answer(task, wall_ms=900)
    fleet.tick(at=0.2)

Time is what the caller says it is. Nothing of the coordinator is replaced: items go in and orders
come out as they do in a daemon, but for their encoding.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from federated.jobs.canon import digest
from federated.jobs.choosing import prefix_of
from federated.jobs.coordinator import Coordinator
from federated.jobs.items import (
    API,
    Ack,
    Beat,
    Cancel,
    Cancelled,
    Credit,
    Hello,
    Offer,
    Offered,
    Refusal,
    Reply,
    Result,
    TaskResult,
    Usage,
    encode_results,
)
from federated.jobs.plan import make_job
from federated.jobs.types import JobId, JobSpec, PerRow
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from federated.jobs.board import Times
    from federated.jobs.choosing import PrefixOf
    from federated.jobs.items import Item, Load, OfferTask
    from federated.jobs.orders import Orders
    from federated.jobs.state import Job
    from federated.seams import GroupId, TrustClass

HANDLER: Final = "echo@1"
OURS: Final = PeerId(b"ours".ljust(32, b"\0"))
US: Final = b"us".ljust(32, b"\0")
GROUP: Final = b"g" * 32
WALL_MS: Final = 1_800_000_000_000
_JSON: Final = msgspec.json.Encoder()


def peer_id(name: str) -> PeerId:
    """The id of a peer that is called so."""
    return PeerId(name.encode().ljust(32, b"\0"))


class PlayedDoor:
    """Who the peers are."""

    def __init__(self) -> None:
        self.id = OURS
        self.classes: dict[PeerId, TrustClass] = {}
        self.owners: dict[PeerId, bytes] = {}

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:
        """What `join` said; nobody but own devices is anything without a group."""
        found = "own" if peer == OURS else self.classes.get(peer, "none")
        return found if group is not None or found == "own" else "none"

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:  # noqa: ARG002
        """What `join` said."""
        return self.owners.get(peer, US)

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:  # noqa: ARG002
        """Signatures of the fleet are the peers' ids."""
        return signature == peer


@dataclass(frozen=True)
class PlayedTask:
    """An offered task at a peer."""

    peer: str
    job: JobId
    offered: OfferTask

    @property
    def ref(self) -> tuple[bytes, int, int]:
        """As the wire names it."""
        return (self.job, self.offered.task, self.offered.attempt)


class Fleet:
    """A coordinator and the tasks its peers hold.

    Args:
        seed: of its random numbers.
        times: settings of the coordinator.
        prefix_of: blocks a task begins with.

    Attributes:
        held: tasks at each peer, in the order of their offers.
        cancels: what peers were told to stop, once `auto_cancel` is off.
        executions: tasks ever offered.
    """

    def __init__(
        self, *, seed: int, times: Times | None = None, prefix_of: PrefixOf = prefix_of
    ) -> None:
        self.rng = random.Random(seed)
        self.door = PlayedDoor()
        self.core = Coordinator(self.door, self.rng, epoch=1, times=times, prefix_of=prefix_of)
        self.now = 0.0
        self.held: dict[str, dict[tuple[bytes, int, int], PlayedTask]] = {}
        self.cancels: list[tuple[str, Cancel]] = []
        self.auto_cancel = True
        self.executions = 0
        self.ended: set[JobId] = set()
        self.on_offer: Callable[[PlayedTask], None] = lambda _task: None
        self.on_stop: Callable[[PlayedTask], None] = lambda _task: None
        self.on_orders: Callable[[Orders], None] = lambda _orders: None
        self.on_submit: Callable[[Job], None] = lambda _job: None
        self._sessions: dict[str, int] = {}

    @property
    def wall_ms(self) -> int:
        """Wall clock."""
        return WALL_MS + int(self.now * 1000)

    # ---- peers

    def join(
        self, name: str, *, slots: int = 2, credit: int = 4, trust: TrustClass = "own",
        owner: bytes = US, handler: str = HANDLER,
    ) -> None:  # fmt: skip
        """A peer comes, or comes back with nothing in its hands."""
        peer = OURS if name == "ours" else peer_id(name)
        self.door.classes[peer] = trust
        self.door.owners[peer] = owner
        self._sessions[name] = session = self._sessions.get(name, 0) + 1
        self.held[name] = {}
        self.core.peer_up(peer, session)
        offered = Offered(handler, "named", True, False, slots, 0, True)
        self.say(name, Hello(API, 0, [offered], None))
        self.say(name, Credit(credit))

    def leave(self, name: str) -> None:
        """A peer's link goes down."""
        session = self._sessions[name]
        self.core.peer_down(self.id_of(name), session, now=self.now, wall_ms=self.wall_ms)
        self.carry_out()

    @staticmethod
    def id_of(name: str) -> PeerId:
        """A peer's id."""
        return OURS if name == "ours" else peer_id(name)

    def say(self, name: str, item: Item) -> None:
        """A peer sends an item."""
        self.core.received(
            self.id_of(name), self._sessions[name], item, now=self.now, wall_ms=self.wall_ms
        )
        self.carry_out()

    def offered(self, name: str) -> list[PlayedTask]:
        """Tasks a peer holds."""
        return list(self.held[name].values())

    # ---- jobs

    def submit(self, *, rows: int | Iterable[dict[str, object]] = 1, **spec: object) -> Job:
        """Begin a job, a task a row unless the spec says otherwise."""
        table: list[dict[str, object]] = []
        table += [{"n": n} for n in range(rows)] if isinstance(rows, int) else rows
        agent = str(spec.pop("agent", ""))
        group = GROUP if spec.get("group", "own") != "own" else None
        fields = {"handler": HANDLER, "batch": PerRow(), "verify": "none", **spec}
        made = JobSpec(rows=table, **fields)  # type: ignore[arg-type]
        job = make_job(
            made, table, ident=JobId(self.rng.randbytes(16)), nonce=bytes(16), group=group,
            agent=agent, now=self.now, wall_ms=self.wall_ms, code_hash=None, cacheable=False,
            find_peer=lambda _name: None,
        )  # fmt: skip
        self.on_submit(job)
        self.core.submit(job, now=self.now, wall_ms=self.wall_ms)
        self.carry_out()
        return job

    # ---- what peers do

    def answer(
        self, task: PlayedTask, *, wall_ms: int = 0, error: str = "", rows: bytes | None = None
    ) -> None:
        """A peer has done a task, or failed."""
        self.held[task.peer].pop(task.ref, None)
        if rows is None:
            rows = task.offered.rows
        rows = b"" if error else rows
        result = TaskResult(
            task.offered.task, task.offered.attempt, error, 0, rows, False, digest(rows),
            Usage(wall_ms=wall_ms), False,
        )  # fmt: skip
        self.say(task.peer, Result(task.job, encode_results([result]), self.id_of(task.peer)))

    def refuse(self, task: PlayedTask, why: str = "busy", retry_ms: int = 0) -> None:
        """A peer does not take a task."""
        self.held[task.peer].pop(task.ref, None)
        self.say(task.peer, Reply([], [Refusal(task.ref, why, retry_ms)]))

    def beat(self, name: str, running: Iterable[PlayedTask] = (), load: Load | None = None) -> None:
        """A peer says what it holds, and which of it runs."""
        runs = {task.ref for task in running}
        refs = [(*ref, ref in runs, 0.0) for ref in self.held[name]]
        self.say(name, Beat(refs, load))

    def give_back(self, name: str, cancel: Cancel, never: Iterable[tuple[int, int]]) -> None:
        """A peer says that it never started some tasks."""
        never = list(never)
        for task, number in never:
            self.held[name].pop((cancel.job, task, number), None)
        self.say(name, Cancelled(cancel.job, [], never, []))

    # ---- time

    def tick(self, *, at: float) -> None:
        """It is `at`, and the coordinator looks round."""
        self.now = at
        self.core.tick(now=at, wall_ms=self.wall_ms)
        self.carry_out()

    def pass_time(self, until: float, *, beating: Iterable[str] = ()) -> None:
        """Ticks up to a time, with beats each 3 s of those who beat that nothing runs yet."""
        names = list(beating)
        next_beat = self.now
        while self.now < until - 1e-9:
            self.tick(at=min(until, self.now + 0.2))
            if self.now >= next_beat:
                next_beat += 3.0
                for name in names:
                    self.beat(name, self.offered(name))

    def carry_out(self) -> None:
        """Do what the coordinator ordered, until it orders nothing more."""
        while not (orders := self.core.take_orders()).empty:
            self.on_orders(orders)
            for peer, item in (*orders.sends, *orders.after):
                self._deliver(peer, item)
            self.core.offers_kept(orders.offers)
            for ident in orders.reduces:
                self.core.reduced(ident, wall_ms=self.wall_ms)
            self.ended.update(orders.ended)

    def _deliver(self, peer: PeerId, item: Item) -> None:
        name = "ours" if peer == OURS else bytes(peer).rstrip(b"\0").decode()
        match item:
            case Offer():
                for offered in item.tasks:
                    task = PlayedTask(name, JobId(item.job), offered)
                    self.held[name][task.ref] = task
                    self.executions += 1
                    self.on_offer(task)
            case Cancel() if self.auto_cancel and not item.unstarted_only:
                wanted = None if item.attempts is None else set(item.attempts)
                for ref in [ref for ref in self.held[name] if ref[0] == item.job]:
                    if wanted is None or ref[1:] in wanted:
                        self.on_stop(self.held[name].pop(ref))
            case Cancel():
                self.cancels.append((name, item))
            case Ack():
                pass
            case _:
                pass
