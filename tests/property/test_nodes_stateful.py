"""Three to five whole nodes on real databases against a plain model, whatever happens to them.

Hypothesis draws what happens: writing, counting, erasing, removing and letting in again,
partitions, crashes. The model is a set of facts a node, merged where nodes can talk. What was drawn
is played under a virtual clock; after each step those who can talk must agree, and each must see
exactly what its facts say: who is a member, which records count, are void or erased, what is in
them, and the counter.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from memory.records.replica import Replica
from memory.storage.db import Db
from p2p.replication.shares import record_of
from p2p.replication.state import Change
from tests.helpers.chains import PlainDraft
from tests.helpers.det import run_seeded
from tests.helpers.memories import Clock
from tests.helpers.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.replication.sealing import GroupSealer

COUNTER = ("together", "count")
HERE = bytes(32)
FOUNDER = 0
WAIT_S, WAITS_MAX = 0.25, 2_400
"""Virtual seconds between two looks, and how often: ten minutes, two rounds of comparisons."""
VERBS = ("write", "count", "erase", "remove", "admit", "crash", "start", "split", "heal")

Step: TypeAlias = "tuple[str, int, int]"
"""What happens, to which node, and a number (of a record, a side of a partition, an amount)."""


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A record as the model knows it."""

    number: int
    author: int
    stay: int
    """Which of the author's stays in the group it belongs to: 0, then one more each return."""
    by: int
    """What it adds to the counter; 0 for an entry."""


@dataclass(frozen=True)
class Removed:
    """The founder took a member out and keeps what it had seen of it."""

    member: int
    stay: int
    kept: frozenset[int]


@dataclass(frozen=True)
class Returned:
    """The founder let a member in again."""

    member: int
    stay: int


@dataclass(frozen=True)
class Erased:
    """The author erased a record."""

    number: int


Fact: TypeAlias = "Written | Removed | Returned | Erased"


@dataclass
class Model:
    """What each node knows, and where it is."""

    nodes: int
    facts: list[set[Fact]] = field(default_factory=list)
    up: list[bool] = field(default_factory=list)
    side: list[int] = field(default_factory=list)
    stays: list[int] = field(default_factory=list)
    unsure: set[int] = field(default_factory=set)
    """Nodes of which the model does not know what they know of removals."""
    written: int = 0

    def __post_init__(self) -> None:
        self.facts = [set() for _ in range(self.nodes)]
        self.up = [True] * self.nodes
        self.side = [0] * self.nodes
        self.stays = [0] * self.nodes

    def is_member(self, node: int, seen_by: int) -> bool:
        """Whether a node is in the group, by what another knows."""
        facts = self.facts[seen_by]
        last = max(
            (f.stay for f in facts if isinstance(f, Returned) and f.member == node), default=0
        )
        return not any(isinstance(f, Removed) and (f.member, f.stay) == (node, last) for f in facts)

    def counts(self, node: int) -> dict[int, Written]:
        """The records that count where a node is, erased ones apart."""
        facts = self.facts[node]
        return {
            f.number: f
            for f in facts
            if isinstance(f, Written)
            and not any(
                isinstance(r, Removed)
                and r.member == f.author
                and f.stay <= r.stay
                and f.number not in r.kept
                for r in facts
            )
        }

    def erased(self, node: int) -> set[int]:
        return {f.number for f in self.facts[node] if isinstance(f, Erased)}

    def reach(self, node: int) -> list[int]:
        """Who is in touch with a node, itself included."""
        return [
            other
            for other in range(self.nodes)
            if other == node or (self.up[node] and self.up[other] and self._same_side(node, other))
        ]

    def _same_side(self, one: int, other: int) -> bool:
        return self.side[one] == self.side[other]

    def talk(self) -> None:
        """Let facts travel between members that can talk."""
        before: list[set[Fact]] = []
        while before != self.facts:
            before = [set(facts) for facts in self.facts]
            for node in range(self.nodes):
                for other in self.partners(node):
                    self.facts[node] |= self.facts[other]
                    self.facts[other] = set(self.facts[node])
        self._note_unsure()

    def is_out(self, node: int) -> bool:
        """Whether a node was taken out, known to it or not: only the founder takes anybody out."""
        return not self.is_member(node, FOUNDER)

    def _note_unsure(self) -> None:
        """Who was taken out may be told so at any time, and tells others that do not know it.

        Whoever talks with such a node, and not with the founder, knows of the removal or not.
        """
        for group in self._groups():
            if FOUNDER in group:
                self.unsure.difference_update(group)
            elif any(self.is_out(n) or n in self.unsure for one in group for n in self.reach(one)):
                self.unsure.update(group)

    def partners(self, node: int) -> list[int]:
        """Who exchanges records with a node: each is a member by what the other knows."""
        return [
            other
            for other in self.reach(node)
            if other != node and self.is_member(other, node) and self.is_member(node, other)
        ]

    def agreeing(self) -> list[list[int]]:
        """The groups of members that must hold the same, and what the model says."""
        return [group for group in self._groups() if not self.unsure.intersection(group)]

    def _groups(self) -> list[list[int]]:
        """Nodes that are up, in groups between whose members records travel."""
        groups: list[list[int]] = []
        for node in range(self.nodes):
            if not self.up[node] or any(node in group for group in groups):
                continue
            group = [node]
            for member in group:
                group += [other for other in self.partners(member) if other not in group]
            groups.append(sorted(group))
        return groups

    # What happens.

    def apply(self, step: Step) -> None:
        verb, node, number = step
        match verb:
            case "write" | "count":
                by = number if verb == "count" else 0
                self.facts[node].add(Written(self.written, node, self.stays[node], by))
                self.written += 1
            case "erase":
                self.facts[node].add(Erased(number))
            case "remove":
                seen = frozenset(
                    f.number
                    for f in self.facts[FOUNDER]
                    if isinstance(f, Written) and f.author == node
                )
                self.facts[FOUNDER].add(Removed(node, self.stays[node], seen))
            case "admit":
                self.stays[node] += 1
                self.facts[FOUNDER].add(Returned(node, self.stays[node]))
                self.facts[node] |= self.facts[FOUNDER]
            case "crash" | "start":
                self.up[node] = verb == "start"
            case "split":
                self.side = [(number >> n) & 1 for n in range(self.nodes)]
            case "heal":
                self.side = [0] * self.nodes
            case _:
                raise AssertionError(verb)
        self.talk()


# --- the nodes ------------------------------------------------------------------------------------


class Nodes:
    """The real thing.

    Args:
        folder: for the databases.
        count: how many nodes.
    """

    def __init__(self, folder: Path, count: int, nursery: trio.Nursery) -> None:
        self.mesh = Mesh(11)
        self.peers = [self.mesh.peer(f"n{i}") for i in range(count)]
        self.folder = folder
        self.nursery = nursery
        self.model = Model(count)
        self.stores: dict[int, Replica] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self.gone: dict[int, trio.Event] = {}
        self.ids: list[bytes] = []
        self.group = b""

    async def found(self) -> None:
        """All nodes up and in one group."""
        for i in range(len(self.peers)):
            (self.folder / str(i)).mkdir()
            await self.start(i)
        self.group = (await self.peers[0].replication.create_group("team")).group
        for i in range(1, len(self.peers)):
            await self.admit(i)
        await self.agree()

    async def start(self, i: int) -> None:
        await self.nursery.start(self._live, i)

    async def _live(self, i: int, *, task_status: trio.TaskStatus[None]) -> None:
        peer = self.peers[i]
        db = Db(self.folder / str(i) / "covey.db", Clock(), inline=True)

        def make_store(sealer: GroupSealer) -> Replica:
            self.stores[i] = Replica(db, sealer, self.folder / str(i))
            return self.stores[i]

        peer.build(make_store)
        self.gone[i] = trio.Event()
        with trio.CancelScope() as self.scopes[i]:
            async with trio.open_nursery() as nursery:
                await nursery.start(db.run)
                await peer.replication.load()
                await nursery.start(peer.node.run)
                await nursery.start(peer.replication.run)
                for other in self.peers[: len(self.gone)]:
                    if other is not peer:
                        peer.node.learn(other.identity.id, [other.addr])
                task_status.started()
        self.gone[i].set()

    async def crash(self, i: int) -> None:
        self.scopes[i].cancel()
        await self.gone[i].wait()

    async def admit(self, i: int) -> None:
        invite = await self.peers[FOUNDER].replication.create_invite(self.group)
        assert (await self.peers[i].replication.join(invite.ticket)).state == "member"

    async def play(self, step: Step) -> None:
        """One step in both worlds; then they must agree."""
        verb, node, number = step
        peer = self.peers[node]
        match verb:
            case "write":
                draft = PlainDraft(32, b"text %d" % len(self.ids))
                self.ids += await self.stores[node].append(self.group, [draft])
            case "count":
                change = Change("counter", COUNTER, "incr", number, "agent")
                self.ids += (await peer.replication.cells.change(self.group, change)).ids
            case "erase":
                await self.stores[node].settle(self.group, erase=[(self.ids[number], HERE, 0)])
                await peer.replication.publish_erasures(self.group)
            case "remove":
                await self.peers[FOUNDER].replication.membership.remove(self.group, peer.id)
            case "admit":
                await self.admit(node)
            case "crash":
                await self.crash(node)
            case "start":
                await self.start(node)
            case "split":
                sides: tuple[list[str], list[str]] = ([], [])
                for i, other in enumerate(self.peers):
                    sides[(number >> i) & 1].append(other.ip)
                self.mesh.net.heal()
                self.mesh.net.split(*sides)
            case "heal":
                self.mesh.net.heal()
            case _:
                raise AssertionError(verb)
        self.model.apply(step)
        await self.agree()

    async def agree(self) -> None:
        """Until those who can talk hold the same; then what each sees is what the model says."""
        for nodes in self.model.agreeing():
            await self._until_equal(nodes)
            for node in nodes:
                await self.check(node)

    async def _until_equal(self, nodes: list[int]) -> None:
        for _ in range(WAITS_MAX):
            if len({await self._root(node) for node in nodes}) == 1:
                return
            await trio.sleep(WAIT_S)
        raise AssertionError(f"nodes {nodes} do not agree in time")

    async def _root(self, node: int) -> tuple[object, ...]:
        store = self.stores[node]
        return tuple([bytes((await store.index(self.group, lane)).packed) for lane in (0, 1)])

    async def check(self, node: int) -> None:
        peer, store = self.peers[node], self.stores[node]
        members = {m.member for m in peer.replication.members(self.group)}
        assert members == {p.id for i, p in enumerate(self.peers) if self.model.is_member(i, node)}
        counting, erased = self.model.counts(node), self.model.erased(node)
        states = dict(await store.known(self.ids))
        for number, ident in enumerate(self.ids):
            state = states.get(ident)
            if number not in counting:
                assert state in (None, "void"), (number, state)
            elif number in erased:
                assert state == "stub", (number, state)
            else:
                assert state == "live", (number, state)
                await self._check_body(node, counting[number])
        value = (await peer.replication.cells.get(self.group, "counter", COUNTER)).value
        assert (value or 0) == sum(one.by for one in counting.values())

    async def _check_body(self, node: int, written: Written) -> None:
        (stored,) = await self.stores[node].fetch([self.ids[written.number]], bodies=True)
        plain = self.peers[node].sealer.open_body(record_of(stored))
        assert plain is not None
        if not written.by:
            assert plain == b"text %d" % written.number


async def play(count: int, steps: Iterable[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            nodes = Nodes(Path(folder), count, nursery)
            await nodes.found()
            for step in steps:
                await nodes.play(step)
            nursery.cancel_scope.cancel()


# --- what is drawn --------------------------------------------------------------------------------


class Happenings(RuleBasedStateMachine):
    """Draws a story that is possible, by the model; plays it at the end."""

    drawn: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(3)
        self.steps: list[Step] = []

    @initialize(count=st.integers(3, 5))
    def begin(self, count: int) -> None:
        self.model = Model(count)

    def step(self, verb: str, node: int, number: int = 0) -> None:
        self.steps.append((verb, node, number))
        self.drawn[verb] += 1
        self.model.apply(self.steps[-1])

    def _writers(self) -> list[int]:
        model = self.model
        return [n for n in range(model.nodes) if model.up[n] and model.is_member(n, n)]

    def _erasable(self) -> list[tuple[int, int]]:
        """(author, record): where the founder hears of it at once, or a removal might void it."""
        model = self.model
        return [
            (record.author, number)
            for number, record in sorted(model.counts(FOUNDER).items())
            if record.by == 0
            and number not in model.erased(record.author)
            and record.author in self._near()
        ]

    def _near(self) -> list[int]:
        """Members in touch with the founder."""
        model = self.model
        if not model.up[FOUNDER]:
            return []
        return [n for n in model.reach(FOUNDER) if model.is_member(n, FOUNDER)]

    @precondition(lambda self: self._writers())
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        self.step("write", data.draw(st.sampled_from(self._writers())))

    def _counters(self) -> list[int]:
        """Who is not refused: who is out may have been told."""
        return [n for n in self._writers() if not self.model.is_out(n)]

    @precondition(lambda self: self._counters())
    @rule(data=st.data(), by=st.integers(1, 9))
    def count(self, data: st.DataObject, by: int) -> None:
        self.step("count", data.draw(st.sampled_from(self._counters())), by)

    @precondition(lambda self: self._erasable())
    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        self.step("erase", *data.draw(st.sampled_from(self._erasable())))

    def _removable(self) -> list[int]:
        model = self.model
        if not model.up[FOUNDER]:
            return []
        return [n for n in range(1, model.nodes) if model.is_member(n, FOUNDER)]

    @precondition(lambda self: self._removable())
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.step("remove", data.draw(st.sampled_from(self._removable())))

    def _outside(self) -> list[int]:
        model = self.model
        if not model.up[FOUNDER]:
            return []
        return [n for n in model.reach(FOUNDER) if not model.is_member(n, FOUNDER)]

    @precondition(lambda self: self._outside())
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        self.step("admit", data.draw(st.sampled_from(self._outside())))

    @precondition(lambda self: not any(self.model.side))
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        self.step("split", FOUNDER, data.draw(st.integers(1, 2**self.model.nodes - 2)))

    @precondition(lambda self: any(self.model.side))
    @rule()
    def heal(self) -> None:
        self.step("heal", FOUNDER)

    @precondition(lambda self: sum(self.model.up) >= self.model.nodes - 1)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        up = [n for n in range(self.model.nodes) if self.model.up[n]]
        self.step("crash", data.draw(st.sampled_from(up)))

    @precondition(lambda self: not all(self.model.up))
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        down = [n for n in range(self.model.nodes) if not self.model.up[n]]
        self.step("start", data.draw(st.sampled_from(down)))

    @override
    def teardown(self) -> None:
        for node in [n for n in range(self.model.nodes) if not self.model.up[n]]:
            self.step("start", node)
        self.step("heal", FOUNDER)
        # Whatever was drawn, these come up in every story.
        self.step("write", FOUNDER)
        self.step("erase", FOUNDER, self.model.written - 1)
        if self._removable():
            self.step("remove", self._removable()[0])
        self.step("admit", self._outside()[0])
        run_seeded(play, self.model.nodes, self.steps, seed=1)


def run_machine(examples: int, steps: int) -> None:
    Happenings.drawn.clear()
    run_state_machine_as_test(
        Happenings,
        settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None),
    )
    assert all(Happenings.drawn[verb] for verb in VERBS), Happenings.drawn


def test_nodes_do_as_the_model_says() -> None:
    run_machine(10, 12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_do_as_the_model_says_in_longer_stories() -> None:
    run_machine(60, 25)
