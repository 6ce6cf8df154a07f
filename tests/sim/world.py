"""One run of the replication simulation: safety under faults, then healing and liveness.

First honest users, faults and hostile members do what the plan's seed says, and what must always
hold is looked at after every step. Then faults stop, everybody who is down comes up, clocks agree,
and within a bound of virtual time every member must hold the same set.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Final

import trio

from p2p.env import SeededEnv
from p2p.identity import Identity, PeerId
from p2p.replication.ops import Role
from tests.helpers.mesh import Mesh, OffsetEnv
from tests.sim import faults, invariants, operations, villains
from tests.sim.book import Book
from tests.sim.invariants import BrokenError
from tests.sim.parts import Habits, SimPeer
from tests.sim.plan import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.identity import Verifier
    from p2p.replication.memstore import MemDisk
    from tests.helpers.sometimes import Sometimes
    from tests.sim.plan import Plan

CALLS_END_S: Final = 400.0
"""After healing, every call has returned by then."""

VILLAIN_SHARE: Final = 0.5
"""Chance that a hostile member acts in a step."""


class World:
    """Nodes, the network between them, and what is known of them.

    Args:
        plan: of the run.
        sometimes: counts of what happened.
        verify: another signature check, for a control.
    """

    heal_s = 900.0
    """So long after that, the members agree."""

    def __init__(self, plan: Plan, sometimes: Sometimes, *, verify: Verifier | None = None) -> None:
        self.plan = plan
        self.sometimes = sometimes
        self.rng = random.Random(f"world/{plan.seed}")
        self.mesh = Mesh(
            plan.seed,
            plan.config,
            latency_s=plan.latency_s,
            jitter_s=plan.jitter_s,
            loss=plan.loss,
        )
        self._verify = verify
        self.book = Book()
        self.group = b""
        self.genesis_hlc = 0
        self.written = 0
        self.cells_begun: dict[str, int] = {}
        self.cells_done: dict[str, int] = {}
        self.images: dict[str, MemDisk] = {}
        self.old_heads: dict[bytes, tuple[bytes, ...]] = {}
        self.collided: set[bytes] = set()
        self.years_ms = 0
        self.offset_ms_max = 0
        names = [f"n{i}" for i in range(plan.members + plan.newcomers)]
        self.honest = [self._peer(name) for name in names]
        self.villains = [
            self._peer(f"v{i}", hostile=deeds) for i, deeds in enumerate(plan.villains)
        ]
        self.stranger = self._peer("stranger")
        self.peers = [*self.honest, *self.villains]
        self.founder = self.honest[0]
        self.nursery: trio.Nursery

    def _peer(self, name: str, *, hostile: tuple[str, ...] = ()) -> SimPeer:
        plan, seed = self.plan, self.plan.seed
        self._numbered = getattr(self, "_numbered", 0) + 1
        peer = SimPeer(
            self.mesh.net,
            name,
            f"10.0.0.{self._numbered}",
            Identity.generate(SeededEnv(seed, f"{name}/key", trio.current_time).rng),
            OffsetEnv(seed, name, trio.current_time),
            plan.config,
            habits=Habits(
                push_lost=plan.push_lost,
                push_twice=plan.push_twice,
                push_mixed=plan.push_mixed,
                withholds="withhold" in hostile,
                claims="claim" in hostile,
            ),
            sometimes=self.sometimes,
        )
        if self._verify is not None:
            peer.verify = self._verify
        return peer

    # --- the run ------------------------------------------------------------------------------

    async def main(self) -> str:
        """Found, break, heal, check; the trace."""
        async with trio.open_nursery() as self.nursery:
            for peer in [*self.peers, self.stranger]:
                await self.nursery.start(peer.live)
            await self.found()
            for _ in range(self.plan.steps):
                await self.step()
                self.check_always()
                await trio.sleep(self.rng.uniform(0, self.plan.pause_s))
            await self.heal()
            await self.converge()
            await self.check_at_the_end()
            trace = self.trace()
            self.nursery.cancel_scope.cancel()
        return trace

    async def found(self) -> None:
        """The first node founds; members come in by ticket, hostile ones too."""
        first = self.founder.replication
        self.group = (await first.create_group("home", home=self.plan.home)).group
        self.genesis_hlc = next(iter(self.founder.disk.rows.values())).record.hlc
        members = self.honest[1 : self.plan.members]
        for peer in [*members, *self.villains]:
            role = self.rng.choice([Role.WRITE, Role.ADMIN])
            invite = await first.create_invite(self.group, role=role)
            joined = await peer.replication.join(invite.ticket)
            assert joined.state == "member"
            self.book.note_join(peer.id, {self.founder.id}, role)
        for peer in self.peers:
            peer.habits.disk_s = self.plan.disk_s
        for peer in members:
            await self.stranger.node.fabric.connect(PeerId(peer.id), [peer.addr])

    async def step(self) -> None:
        """One thing a user does or a fault, and perhaps something hostile."""
        weights = self.plan.weights
        (kind,) = self.rng.choices(list(weights), list(weights.values()))
        if kind in OPERATIONS:
            self.sometimes(kind)
            operations.TABLE[kind](self)
        else:
            await faults.TABLE[kind](self)
        for villain in self.villains:
            if self.rng.random() < VILLAIN_SHARE:
                await villains.act(self, villain)

    async def heal(self) -> None:
        """Stop faults and deeds; what a hostile store says goes on."""
        self.mesh.net.heal()
        for peer in self.peers:
            peer.habits.full = False
            peer.habits.push_lost = peer.habits.push_twice = peer.habits.push_mixed = 0.0
            peer.look_at_clock()
            # Late enough for everything that an honest clock ever said to be in the past.
            peer.env.offset_ms = self.offset_ms_max
        for peer in self.peers:
            if not peer.up:
                await self.nursery.start(peer.live)

    async def converge(self) -> None:
        """Wait until every call has returned and the members agree."""
        await self._until(lambda: not any(p.busy for p in self.peers), CALLS_END_S, "calls_return")
        await self._until(self.agreed, self.heal_s, "sets_are_equal")

    async def _until(self, condition: Callable[[], bool], limit_s: float, invariant: str) -> None:
        deadline = trio.current_time() + limit_s
        while not condition():
            if trio.current_time() > deadline:
                raise BrokenError(invariant, f"not within {limit_s:.0f} s: {self.describe()}")
            await trio.sleep(1.0)

    def agreed(self) -> bool:
        """Whether the members hold the same sets, and can read them."""
        core = self.core()
        if not all(peer.knows(self.group) for peer in core):
            return False
        if len({peer.roots(self.group) for peer in core}) > 1:
            return False
        if any(peer.group_of(self.group).again and self.may_write(peer) for peer in core):
            return False  # it may still sign anew what it wrote before it heard of a limit
        return len({self.texts_of(peer) for peer in core}) == 1

    def texts_of(self, peer: SimPeer) -> tuple[str, ...]:
        """What a member reads, but what may differ for good.

        An erasure by somebody who was taken out before all had heard of it, and is not back:
        whoever had carried it out has no body any more, the others keep theirs.
        """
        role, book = self.founder.group_of(self.group).role, self.book
        unsure = {book.texts[i] for i in book.erasing if role(book.authors[i]) is None}
        return tuple(text for text in peer.texts(self.group) if text not in unsure)

    def check_always(self) -> None:
        """What holds at any time."""
        for check in invariants.ALWAYS:
            check(self)

    async def check_at_the_end(self) -> None:
        """What holds when the members agree."""
        for check in invariants.AT_THE_END:
            verdict = check(self)
            if verdict is not None:
                await verdict
        for peer in self.peers:
            for name, what in (("clock.skew", "held"), ("sync.withheld", "withheld_noticed")):
                if peer.named(name):
                    self.sometimes(what)
            for event in peer.named("record.refused"):
                self.sometimes(f"refused_{event.data['reason']}")

    # --- who is who ---------------------------------------------------------------------------

    def core(self) -> list[SimPeer]:
        """Honest members, as the founder sees it.

        A disk from before the join knows no group that anybody could tell it of: who is put back
        to it needs a new ticket, and takes no part until then.
        """
        role = self.founder.group_of(self.group).role
        return [
            peer
            for peer in self.honest
            if role(peer.id) is not None
            and (peer.knows(self.group) or peer.id not in self.book.restored)
        ]

    def running_honest(self) -> list[SimPeer]:
        """Honest nodes that run and know the group."""
        return [peer for peer in self.honest if peer.knows(self.group)]

    def some_up(self) -> SimPeer | None:
        """A node that runs."""
        up = [peer for peer in self.peers if peer.up]
        return self.rng.choice(up) if up else None

    def some_member(self) -> SimPeer | None:
        """An honest node that runs and believes it is in."""
        found = [peer for peer in self.honest if peer.is_member(self.group)]
        return self.rng.choice(found) if found else None

    def some_admin(self) -> SimPeer | None:
        """An honest node that runs and believes it is an admin."""
        found = [
            peer
            for peer in self.running_honest()
            if peer.group_of(self.group).role(peer.id) == Role.ADMIN
        ]
        return self.rng.choice(found) if found else None

    def two_honest(self) -> tuple[SimPeer, SimPeer]:
        """Two honest nodes."""
        a, b = self.rng.sample(self.honest, 2)
        return a, b

    def name_of(self, device: bytes) -> str:
        """A node's name."""
        return next((p.name for p in self.peers if p.id == device), device.hex()[:8])

    def wall_ms_max(self) -> int:
        """The latest that any clock shows now."""
        return max(peer.env.wall_ms() for peer in self.peers)

    def in_own_fork(self, ident: bytes) -> bool:
        """Whether a record of a restored device lies above the place where its log forked."""
        for peer in self.honest:
            row = peer.disk.rows.get(ident)
            if row is None or row.record.author not in self.book.restored:
                continue
            record = row.record
            fork = self.founder.disk.logs.get(
                (record.group, record.author, record.incarnation, record.lane)
            )
            if fork is not None and fork.fork_seq is not None and record.seq >= fork.fork_seq:
                return True
        return False

    def may_be_taken_out(self, member: bytes) -> bool:
        """Whether somebody with the right to it may have wanted this honest device out."""
        if member == self.founder.id:
            return False
        return not self.book.must_be_member(member, self.founder.id)

    def may_write(self, peer: SimPeer) -> bool:
        """Whether a device may write, as the founder sees it."""
        role = self.founder.group_of(self.group).role(peer.id)
        return role is not None and role >= Role.WRITE

    def must_survive(self, ident: bytes) -> bool:
        """Whether an acknowledged record has to be everywhere in the end.

        What a limit cut off is excused only where its author is not back, or does not hold it any
        more, or fell with whoever let it in: else it has to say it again itself.
        """
        if self.book.must_survive(ident):
            return True
        author = next((p for p in self.honest if p.id == self.book.authors[ident]), None)
        if author is None or not self.may_write(author) or ident not in author.disk.rows:
            return False
        vouchers = self.book.joined.get(author.id, (frozenset[bytes](), Role.READ))[0]
        back = author.id not in self.book.restored and all(
            one not in self.book.restored and self.book.must_be_member(one, self.founder.id)
            for one in vouchers
        )
        if back:
            self.sometimes("said_again")
        return back

    def good_standing(self) -> set[bytes]:
        """Honest devices whose records nobody had the right to void."""
        return {p.id for p in self.honest if not self.may_be_taken_out(p.id)}

    # --- telling ------------------------------------------------------------------------------

    def describe(self) -> str:
        """How the members stand, for a failure's message."""
        return "; ".join(
            f"{p.name} {p.roots(self.group)} {len(p.texts(self.group))} texts"
            if p.knows(self.group)
            else f"{p.name} knows nothing"
            for p in self.core()
        )

    def trace(self) -> str:
        """Everything the nodes told, as one hash."""
        digest = hashlib.sha256()
        for peer in [*self.peers, self.stranger]:
            for event in peer.events:
                digest.update(f"{event.name} {sorted(event.data.items())}".encode())
            digest.update(repr(peer.notes).encode())
            digest.update(str(peer.seen_bytes).encode())
            if peer.knows(self.group):
                digest.update(str(peer.roots(self.group)).encode())
        digest.update(str(trio.current_time()).encode())
        return digest.hexdigest()
