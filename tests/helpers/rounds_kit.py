"""Rounds in a simulated world: real machines, a network that loses and delays, nodes that die.

A node's tensors are hashes: what a part is, is said by who made it. One seed draws everything.
"""

from __future__ import annotations

import heapq
import random
import struct
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from federated.rounds.numeric.payload import encoded_bytes
from federated.rounds.numeric.tensors import next_root
from federated.rounds.protocol.checks import Setting
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.member import Update
from federated.rounds.protocol.orders import (
    Cover,
    Decided,
    Encode,
    Ended,
    FetchPart,
    FetchResult,
    GramMade,
    MakeGram,
    Merge,
    Merged,
    OpenSum,
    PartArrived,
    PartFailed,
    Persist,
    Prepare,
    Prepared,
    ReadSets,
    ResultArrived,
    ResultFailed,
    Send,
    ServePart,
    Tell,
)
from federated.rounds.protocol.policy import Policy, federation_id
from federated.rounds.protocol.wire import Apply, sign
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.rounds.protocol.leader import Leader
    from federated.rounds.protocol.orders import Order, Vote
    from federated.rounds.protocol.wire import Message, Plan, Signed

POLICY = Policy(rule="sum", codec="f64", first_deadline_s=20.0, transfer_s=15.0)


class FakeSigner:
    """Signs by a hash that everybody could make: the simulation has no forger, tests that need one
    make its bytes themselves.
    """

    def __init__(self, me: bytes) -> None:
        self._me = me

    def sign(self, domain: bytes, body: bytes) -> bytes:
        return self._of(self._me, domain, body)

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        return signature == self._of(peer, domain, body)

    @staticmethod
    def _of(peer: bytes, domain: bytes, body: bytes) -> bytes:
        return sha256(peer + domain + body).digest() * 2


def peers(count: int) -> list[bytes]:
    """Names of members."""
    return [sha256(b"member %d" % index).digest() for index in range(count)]


def by(peer: bytes, message: Message) -> Signed:
    """A message signed by this peer."""
    return sign(FakeSigner(peer), peer, message)


def make_setting(
    me: bytes, circle: Sequence[bytes], *, policy: Policy = POLICY, rule: str = "sum",
    newcomers: Sequence[bytes] = (), elements: int = 1000, payload_bytes: int = 8000,
    number: int = 1, owners: dict[bytes, bytes] | None = None,
) -> Setting:  # fmt: skip
    """A round's setting as this member has it."""
    return Setting(
        me=me, signer=FakeSigner(me), federation=federation_id(bytes(32), "f"), number=number,
        circle=tuple(circle), newcomers=tuple(newcomers), owners=owners or {}, base_root=bytes(32),
        policy=policy, schema=bytes(32), elements=elements, rule=rule,
        deadline_s=policy.first_deadline_s, payload_bytes=payload_bytes, backoff_s=5.0,
    )  # fmt: skip


@dataclass
class Faults:
    """What the network and the machines do wrong."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.05
    fetch_loss: float = 0.0


@dataclass
class Node:
    """A member: its machine, its disk, what it decided."""

    setting: Setting
    machine: Machine
    alive: bool = True
    life: int = 0
    promised: int = -1
    vote: Vote | None = None
    kept: set[bytes] = field(default_factory=set)
    """Hashes of merged parts on its disk."""
    serving: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    decided: Decided | None = None
    ended: list[str] = field(default_factory=list)
    told: list[Tell] = field(default_factory=list)
    voted: dict[int, bytes] = field(default_factory=dict)


class World:
    """Members of one round.

    Args:
        seed: of everything.
        settings: one a member.
        faults: of network and transfers.
        submits: members that bring an update; None: all.
    """

    def __init__(
        self, seed: int, settings: Sequence[Setting], faults: Faults | None = None,
        submits: set[bytes] | None = None,
    ) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self.now = 0.0
        self.faults = faults or Faults()
        self.nodes = {one.me: Node(one, self.make_machine(one)) for one in settings}
        self.cut: set[tuple[bytes, bytes]] = set()
        """(from, to) that nothing passes."""
        self.counts: dict[str, int] = {}
        self.merged: dict[tuple[bytes, int, int], tuple[bytes, ...]] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._wakes: dict[bytes, float] = {}
        self.submits = set(self.nodes) if submits is None else submits
        self.on_tell: Callable[[bytes, Tell], None] | None = None
        """Called at each thing a machine tells, before what it does next."""
        for peer in self.nodes:
            self.at(self.rng.random() * 0.1, partial(self._begin, peer))

    def make_machine(self, setting: Setting, **kept: object) -> Machine:
        """A member's machine, anew or with what it kept."""
        return Machine(setting, **kept)  # type: ignore[arg-type]

    # ---- time

    def at(self, delay: float, fn: Callable[[], None]) -> None:
        """Call `fn` after `delay` seconds."""
        self._serial += 1
        heapq.heappush(self._queue, (self.now + delay, self._serial, fn))

    def run(self, until: float, *, done: Callable[[], bool] | None = None) -> None:
        """Go on until then, or until `done`."""
        while self._queue and self._queue[0][0] <= until:
            if done is not None and done():
                return
            self.now, _, fn = heapq.heappop(self._queue)
            fn()
        self.now = max(self.now, until)

    def until_phase(self, peer: bytes, phase: str, limit_s: float = 100.0) -> Leader:
        """Go on until this coordinator enters a phase, which must be before `limit_s`."""

        def entered() -> bool:
            leader = self.nodes[peer].machine.leader
            return leader is not None and leader.phase == phase

        self.run(limit_s, done=entered)
        leader = self.nodes[peer].machine.leader
        assert leader is not None, phase
        assert leader.phase == phase
        return leader

    def all_decided(self) -> bool:
        """Whether every living member has the result."""
        return all(node.decided is not None for node in self.nodes.values() if node.alive)

    def count(self, what: str) -> None:
        """A fault happened."""
        self.counts[what] = self.counts.get(what, 0) + 1

    # ---- life

    def _begin(self, peer: bytes) -> None:
        node = self.nodes[peer]
        node.machine.start(self.now)
        if peer in self.submits:
            node.machine.submit(self.now, Update(1.0))
        self._carry(node)

    def kill(self, peer: bytes) -> None:
        """kill -9: what was not persisted is gone."""
        node = self.nodes[peer]
        if node.alive:
            node.alive = False
            node.life += 1
            node.serving = {}
            self.count("killed")

    def restart(self, peer: bytes) -> None:
        """Start again from the disk."""
        node = self.nodes[peer]
        if node.alive:
            return
        node.alive = True
        decided = node.decided.proof if node.decided is not None else None
        assert decided is None or isinstance(decided, Apply)
        node.machine = self.make_machine(
            node.setting, promised=node.promised, vote=node.vote, decided=decided
        )
        self.count("restarted")
        self._begin(peer)

    # ---- orders

    def _carry(self, node: Node) -> None:
        life = node.life
        for order in node.machine.take():
            if node.life != life:
                return  # killed in the middle of it: the rest was never done
            self._order(node, order)
        self._wake(node)

    def _wake(self, node: Node) -> None:
        due = node.machine.next_time()
        me, life = node.setting.me, node.life
        if due == float("inf") or self._wakes.get(me) == due:
            return
        self._wakes[me] = due

        def wake() -> None:
            if self._wakes.get(me) == due:
                del self._wakes[me]
            if node.alive and node.life == life:
                node.machine.on_time(self.now)
                self._carry(node)

        self.at(max(0.001, due - self.now), wake)

    def _order(self, node: Node, order: Order) -> None:
        me = node.setting.me
        match order:
            case Send():
                self._send(me, order)
            case Persist():
                node.promised, node.vote = order.promised, order.vote
                if order.vote is not None and order.vote.view == order.promised:
                    before = node.voted.setdefault(order.vote.view, order.vote.root)
                    assert before == order.vote.root, "voted twice in a view"
            case Prepare():
                hashes = tuple(
                    sha256(me + order.plan_hash + bytes([index])).digest()
                    for index in range(len(order.plan.parts))
                )
                self._later(node, Prepared(order.plan_hash, hashes, 1.0))
            case ServePart():
                node.serving[order.plan_hash, order.part] = order.reducer
            case FetchPart():
                self._fetch_part(node, order)
            case MakeGram():
                made = self._products(node, order)
                self._later(node, GramMade(order.plan_hash, order.part, made))
            case Merge():
                self.merged[order.plan_hash, order.part, order.counter] = order.order
                made = b"".join(order.order) + repr(order.coefficients).encode()
                digest = sha256(order.plan_hash + bytes([order.part]) + made).digest()
                node.kept.add(digest)
                plan = self._plan_of(node)
                size = encoded_bytes(plan.codec, plan.parts[order.part].count)
                done = Merged(order.plan_hash, order.part, order.counter, size, digest)
                self._later(node, done)
            case FetchResult():
                self._fetch_result(node, order)
            case Decided():
                assert node.decided is None
                assert order.root == next_root(node.setting.base_root, order.hashes)
                assert set(order.hashes) <= node.kept
                node.decided = order
            case Encode() | Cover() | ReadSets() | OpenSum():
                raise AssertionError("masked rounds have a world of their own")
            case Ended():
                node.ended.append(order.reason)
            case Tell():
                node.told.append(order)
                if self.on_tell is not None:
                    self.on_tell(me, order)

    def _products(self, node: Node, order: MakeGram) -> bytes:
        """Of updates of norm 1 that have nothing in common; the last one was zeros."""
        count = len(order.order)
        square = 1.0 / len(self._plan_of(node).parts)
        values: list[float] = []
        for row in range(count + 1):
            own = square if row else 0.0
            values += [own] if order.diagonal else [*[0.0] * row, own]
        return struct.pack(f"<{len(values)}d", *values)

    @staticmethod
    def _plan_of(node: Node) -> Plan:
        made = node.machine.member.made
        assert made is not None
        return made.plan

    def _later(self, node: Node, event: object) -> None:
        life = node.life

        def happen() -> None:
            if node.alive and node.life == life:
                node.machine.event(self.now, event)  # type: ignore[arg-type]
                self._carry(node)

        self.at(self.rng.random() * 0.05, happen)

    # ---- network

    def _passes(self, sender: bytes, to: bytes) -> bool:
        return (sender, to) not in self.cut and self.nodes[to].alive

    def _send(self, sender: bytes, order: Send) -> None:
        if order.to not in self.nodes:
            return
        if self.rng.random() < self.faults.loss:
            self.count("lost")
            return
        times = 2 if self.rng.random() < self.faults.repeat else 1
        if times > 1:
            self.count("repeated")
        for _ in range(times):
            delay = self.rng.expovariate(1 / self.faults.delay_s)
            self.at(delay, lambda: self._deliver(sender, order))

    def _deliver(self, sender: bytes, order: Send) -> None:
        if not self._passes(sender, order.to):
            self.count("cut")
            return
        node = self.nodes[order.to]
        try:
            node.machine.receive(self.now, sender, order.packet)
        except DecodeError as error:
            self.count(f"refused: {error}")
        self._carry(node)

    def _fetch_part(self, node: Node, order: FetchPart) -> None:
        sender = self.nodes[order.sender]
        me = node.setting.me
        ok = (
            sender.alive
            and self._passes(order.sender, me)
            and sender.serving.get((order.plan_hash, order.part)) == me
            and self.rng.random() >= self.faults.fetch_loss
        )
        if ok:
            self._later(node, PartArrived(order.plan_hash, order.part, order.sender))
        else:
            self.count("part not had")
            self._later(node, PartFailed(order.plan_hash, order.part, order.sender))

    def _fetch_result(self, node: Node, order: FetchResult) -> None:
        me = node.setting.me
        held = order.sha256 in node.kept or any(
            self.nodes[peer].alive
            and self._passes(peer, me)
            and order.sha256 in self.nodes[peer].kept
            and self.rng.random() >= self.faults.fetch_loss
            for peer in order.holders
        )
        if held:
            node.kept.add(order.sha256)
            self._later(node, ResultArrived(order.part, order.sha256))
        else:
            self.count("result not had")
            self._later(node, ResultFailed(order.part, order.sha256))
