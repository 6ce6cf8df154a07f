"""Whatever items a worker sends, in whatever order: the machine takes them or refuses them.

Drawn from a seed: items of every kind about real and invented tasks, between honest answers, ticks
and lost links. The machine may say `DecodeError` and nothing else; afterwards an honest worker
brings the job to its end, and every row was settled once.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks.job_sims.fleet import HANDLER, Fleet, PlayedTask
from federated.jobs.board import Times
from federated.jobs.coordinator import Coordinator
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.items import (
    API,
    Beat,
    Bye,
    Cancelled,
    Credit,
    Hello,
    Holding,
    Load,
    Offer,
    Offered,
    Refusal,
    Reply,
    Result,
    TaskResult,
    Usage,
    decode_job_item_untrusted,
    encode_item,
    encode_results,
)
from federated.jobs.plan import check_spec, make_job
from federated.jobs.state import JobPhase, RowState
from federated.jobs.types import Column, JobId, JobSpec, Limits, PerRow
from p2p.errors import DecodeError
from p2p.identity import PeerId
from tests.helpers.job_rogues import ECHO, echo

if TYPE_CHECKING:
    from federated.jobs.items import Item
    from federated.jobs.orders import Orders
    from federated.jobs.state import Job
    from federated.seams import GroupId, TrustClass

pytestmark = pytest.mark.attack

BOSS, ROGUE, HONEST, OTHER = (PeerId(bytes([n]) * 32) for n in range(1, 5))
WORKERS = (ROGUE, HONEST, OTHER, BOSS)
STEPS = 250
EPOCH = 7


class Door:
    """Everybody is a stranger but ourselves; signatures hold if they say so."""

    id = BOSS

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:  # noqa: ARG002
        return "own" if peer == BOSS else "stranger"

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:  # noqa: ARG002
        return bytes(peer)

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:  # noqa: ARG002
        return signature == b"signed"


class Story:
    """A coordinator among one rogue and two honest workers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.core = Coordinator(Door(), random.Random(seed + 1), epoch=EPOCH, times=Times())
        info = HandlerInfo(id="echo@1", kind="named", deterministic=True)
        self.core.board.own_handlers = {"echo@1": info}
        self.now = 0.0
        self.sessions = dict.fromkeys(WORKERS, 0)
        self.offered: dict[PeerId, list[tuple[Offer, TaskResult]]] = {peer: [] for peer in WORKERS}
        self.refused = 0
        self.job = self._job()
        for peer in WORKERS:
            self.up(peer)

    def _job(self) -> Job:
        verify = self.rng.choice(["none", "adaptive", "quorum:2", "auto", "spot:1"])
        spec = JobSpec(
            handler="echo@1", rows=[{"n": n} for n in range(12)], batch=PerRow(), verify=verify,
            columns=[Column(name="n", type="int")], max_retries=5, deadline_s=5000,
        )  # fmt: skip
        check_spec(spec)
        assert isinstance(spec.rows, list)
        job = make_job(
            spec, spec.rows, ident=JobId(b"j" * 16), nonce=bytes(16), group=b"g" * 32, agent="",
            now=0.0, wall_ms=0, code_hash=None, cacheable=False, find_peer=lambda _name: None,
        )  # fmt: skip
        self.core.submit(job, now=0.0, wall_ms=0)
        return job

    @property
    def wall_ms(self) -> int:
        return int(self.now * 1000)

    def up(self, peer: PeerId) -> None:
        self.sessions[peer] += 1
        self.core.peer_up(peer, self.sessions[peer])
        self.say(peer, Hello(1, 0, [ECHO], None))
        self.say(peer, Credit(8))
        self.say(peer, Holding([]))

    def say(self, peer: PeerId, item: Item) -> None:
        """An item as it comes from the wire, or none if it cannot."""
        try:
            got = decode_job_item_untrusted(encode_item(item))
            self.core.received(peer, self.sessions[peer], got, now=self.now, wall_ms=self.wall_ms)
        except DecodeError:
            self.refused += 1
            self.core.peer_down(peer, self.sessions[peer], now=self.now, wall_ms=self.wall_ms)
            self.collect()
            self.up(peer)
        self.collect()

    def collect(self) -> None:
        """Note what was offered to whom."""
        for peer, item in self.core.take_orders().sends:
            if isinstance(item, Offer) and peer in self.offered:
                self.offered[peer] += [(item, echo(task)) for task in item.tasks]

    def work(self, peer: PeerId) -> None:
        """An honest worker answers all that it was offered."""
        todo, self.offered[peer] = self.offered[peer], []
        for offer, result in todo:
            self.say(peer, Result(offer.job, encode_results([result]), b"signed"))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(now=self.now, wall_ms=self.wall_ms)
        self.collect()

    # ---- what the rogue says

    def ref(self) -> tuple[bytes, int, int]:
        rng = self.rng
        if self.offered[ROGUE] and rng.random() < 0.7:
            offer, result = rng.choice(self.offered[ROGUE])
            return offer.job, result.task, result.attempt
        job = rng.choice([bytes(self.job.id), b"x" * 16])
        return job, rng.choice([0, 3, 11, 12, 20, 2**32 - 1]), rng.randrange(2**16)

    def result(self) -> TaskResult:
        rng = self.rng
        _, task, attempt = self.ref()
        k = rng.choice([task, 0, 2**40])
        rows = rng.choice([
            b"", b"[]", b"[[", b'[[%d,{"n":%d}]]' % (k, k), b'[[%d,{"n":-1}]]' % k,
            b"[[%d,null]]" % k, b'[[%d,{"n":"x"}]]' % k,
        ])  # fmt: skip
        error = rng.choice(["", "", "", "busy", "exception", "\x1b", "outcome_unknown"])
        found = TaskResult(
            task, attempt, error, rng.choice([0, 10**12]), rows, False, bytes(32), Usage(), False
        )
        if rng.random() < 0.7:
            from federated.jobs.canon import digest

            found = msgspec.structs.replace(found, out_hash=digest(rows))
        return found

    def rogue_says(self) -> Item:
        rng = self.rng
        refs = [self.ref() for _ in range(rng.randrange(4))]
        held = rng.choice(["queued", "running", "finished", "unknown"])
        why = rng.choice(["busy", "policy", "quota", "draining", "?"])
        body = encode_results([self.result() for _ in range(rng.randrange(1, 4))])
        job = rng.choice([bytes(self.job.id)] * 5 + [b"x" * 16])
        pairs = [ref[1:] for ref in refs]
        return rng.choice([
            Result(job, body, b"signed"), Result(job, body, b"signed"), Result(job, body, b"bad"),
            Beat([(*ref, rng.random() < 0.5, rng.uniform(-9, 9)) for ref in refs], None),
            Reply(refs, []), Reply([], [Refusal(ref, why, rng.choice([0, 10**9])) for ref in refs]),
            Holding([(*ref, held) for ref in refs]), Credit(rng.choice([0, 1, 2**40])),
            Hello(rng.choice([1, 1, 1, 2]), 0, rng.choice([[], [ECHO]]), None), Bye(0),
            Load(1, 0, 2**50, [], True, 255), Cancelled(job, pairs, [], pairs), Credit(8),
        ])  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_no_item_makes_the_machine_fail_and_the_job_ends(seed: int) -> None:
    story = Story(seed)
    for _ in range(STEPS):
        doing = story.rng.random()
        if doing < 0.6:
            story.say(ROGUE, story.rogue_says())
        elif doing < 0.7:
            story.work(story.rng.choice([HONEST, OTHER, BOSS]))
        elif doing < 0.72:
            story.core.peer_down(ROGUE, story.sessions[ROGUE], now=story.now, wall_ms=story.wall_ms)
            story.collect()
            story.up(ROGUE)
        else:
            story.tick(story.rng.choice([0.05, 0.2, 1.0, 4.0]))
    job = story.job
    for _ in range(2000):
        if job.final or job.phase is JobPhase.REDUCING:
            break
        for peer in (HONEST, OTHER, BOSS):
            story.work(peer)
        story.tick(0.5)
    assert job.final or job.phase is JobPhase.REDUCING
    assert sum(job.counts) == len(job.rows)
    assert job.counts[RowState.PENDING] == 0
    assert [sum(row.state is state for row in job.rows) for state in RowState] == job.counts
    assert not job.live or job.audits


@pytest.mark.parametrize("effect", ["none", "once"])
def test_an_offer_that_is_refused_before_it_leaves_is_forgotten(effect: str) -> None:
    """Sixteen bits can be guessed: a worker refuses what is still being written down."""
    fleet = Fleet(seed=1)
    info = HandlerInfo(
        id=HANDLER, kind="named", deterministic=effect == "none", effect=effect == "once"
    )
    fleet.core.board.own_handlers = {HANDLER: info}
    fleet.join("a", credit=4)
    if effect == "once":
        offered = Offered(HANDLER, "named", True, True, 2, 0, True)
        fleet.say("a", Hello(API, 0, [offered], None))
        fleet.say("a", Holding([]))
    refused = []

    def guess(orders: Orders) -> None:
        for peer, session, offer in orders.offers:
            for task in offer.tasks:
                ref = (offer.job, task.task, task.attempt)
                refused.append(ref)
                item = Reply([], [Refusal(ref, "quota", 20_000)])
                fleet.core.received(peer, session, item, now=0.0, wall_ms=fleet.wall_ms)

    fleet.on_orders = guess
    job = fleet.submit(rows=2, effect=effect, limits=Limits(executions=5))
    assert refused
    assert not fleet.offered("a")
    assert job.executions == 0


def test_results_said_again_on_a_full_disk_pile_up_nowhere() -> None:
    fleet = Fleet(seed=2)
    fleet.join("a", credit=4)
    fleet.submit(rows=4)
    (task,) = fleet.offered("a")
    fleet.core.halt(fleet.wall_ms)
    fleet.carry_out()
    waiting: list[Orders] = []
    fleet.on_orders = waiting.append
    for _ in range(500):
        fleet.answer(task)
        other = msgspec.structs.replace(task.offered, attempt=task.offered.attempt ^ 1)
        fleet.answer(PlayedTask("a", task.job, other))
    assert sum(bool(orders.after or orders.writes) for orders in waiting) == 1
    fleet.core.unhalt(fleet.now, fleet.wall_ms)
    fleet.carry_out()
    assert fleet.offered("a"), "it goes on"
