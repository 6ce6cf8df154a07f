"""Replication under faults and hostile members: the seeds, and the controls that must fail.

One seed is one run of `tests.sim.world`. `make sim SEED=n` repeats one, `make sim SEEDS=1000` runs
more. The controls switch one defence off and demand that an invariant notices. The one for full
text that keeps deleted words, `secure-delete` off, is
`tests/unit/test_erasing.py::test_control_without_a_guard_the_search_finds_residue`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from typing_extensions import override

from p2p.replication import authority, groups
from p2p.replication.ops import Role
from p2p.replication.ranges import RangeSet
from tests.helpers.det import run_seeded
from tests.helpers.membership import trusting
from tests.helpers.ranges_kit import XorSet
from tests.helpers.schedules import SymmetricFold
from tests.sim import faults, operations, villains
from tests.sim.invariants import BrokenError
from tests.sim.plan import Plan
from tests.sim.run import SeedError, counts, leaves, never, run_batch, run_seed
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.identity import Verifier

FAST = range(4)
SEEDS = 200
PROCESSES = 2


@pytest.mark.parametrize("seed", FAST)
def test_members_agree_whatever_happened(seed: int) -> None:
    run_seed(seed, counts())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_seeds_keep_every_invariant_and_contain_every_fault() -> None:
    total, failures = run_batch(range(SEEDS), PROCESSES)
    assert failures == []
    assert never(total) == []


def test_the_same_seed_gives_the_same_trace() -> None:
    traces = [run_seed(seed, counts()) for seed in (0, 0, 1)]
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


def test_a_failure_names_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(world: World) -> None:
        raise BrokenError("planted", f"{len(world.peers)} nodes")

    monkeypatch.setattr("tests.sim.invariants.ALWAYS", (broken,))
    with pytest.raises(SeedError, match=r"planted: . nodes; repeat it with: make sim SEED=3$"):
        run_seed(3, counts())


# --- controls -------------------------------------------------------------------------------------


class Scene(World):
    """A run whose events are chosen: four honest members and a hostile admin, a calm network.

    Args:
        events: what happens instead of drawn steps.
        verify: another signature check.
    """

    heal_s = 200.0

    def __init__(
        self, events: Callable[[Scene], Awaitable[None]], *, verify: Verifier | None = None
    ) -> None:
        plan = replace(
            Plan.draw(0), members=4, newcomers=0, villains=(("forge", "coup", "collide"),),
            steps=0, latency_s=0.01, jitter_s=0.0, loss=0.0, disk_s=0.0, push_lost=0.0,
            push_twice=0.0, push_mixed=0.0,
        )  # fmt: skip
        super().__init__(plan, counts(), verify=verify)
        self._events = events

    @override
    async def found(self) -> None:
        await super().found()
        await self.settled()
        await self._events(self)

    async def settled(self) -> None:
        """A minute, so that what was said is known everywhere."""
        await trio.sleep(60)


def broken_by(
    events: Callable[[Scene], Awaitable[None]], *, verify: Verifier | None = None
) -> str | None:
    """The invariant that a scene breaks, None if all hold."""

    async def main() -> None:
        await Scene(events, verify=verify).main()

    try:
        run_seeded(main, seed=0)
    except BaseExceptionGroup as error:
        (found,) = leaves(error)
        assert isinstance(found, BrokenError), found
        return found.invariant
    return None


async def forging(scene: Scene) -> None:
    """A hostile member writes in the name of another."""
    assert await villains.forge(scene, scene.villains[0])


def test_control_without_a_signature_check_a_forgery_is_found() -> None:
    assert broken_by(forging) is None
    assert broken_by(forging, verify=trusting) == "stored_headers_verify"


async def colliding(scene: Scene) -> None:
    """A hostile member gives each side of a partition another set, with equal XOR."""
    assert await villains.collide(scene, scene.villains[0])
    await scene.settled()


@pytest.mark.slow
def test_control_with_an_xor_fingerprint_replicas_differ_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert broken_by(colliding) is None
    monkeypatch.setattr(RangeSet, "fingerprint", XorSet.fingerprint)
    assert broken_by(colliding) == "sets_are_equal"


async def expelling(scene: Scene) -> None:
    """A hostile admin is taken out, and goes on as if it had not heard of it."""
    villain = scene.villains[0]
    group = scene.founder.group_of(scene.group)
    if group.role(villain.id) != Role.ADMIN:
        await scene.founder.replication.membership.set_role(scene.group, villain.id, Role.ADMIN)
        await scene.settled()
    scene.old_heads[villain.id] = villains.pen_of(scene, villain).heads()
    operations.expel(scene, villain)
    await scene.settled()
    assert await villains.coup(scene, villain)
    await scene.settled()


def test_control_with_symmetric_removal_the_expelled_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broken_by(expelling) is None
    monkeypatch.setattr(authority, "Fold", SymmetricFold)
    assert broken_by(expelling) in {"expelled_stay_out", "honest_members_stay"}


async def sleeping(scene: Scene) -> None:
    """A member sleeps for a year while another erases what both hold."""
    writer = scene.founder
    text = "plain:to be erased"
    ident = await writer.write(scene.group, text)
    scene.book.texts[ident] = text
    scene.book.authors[ident] = writer.id
    await scene.settled()
    await scene.honest[1].stop()
    await scene.settled()
    await writer.store.settle(scene.group, erase=[(ident, operations.HERE, 0)])
    await writer.replication.publish_erasures(scene.group)
    scene.book.erased.add(ident)
    scene.book.erasing.add(ident)
    await scene.settled()
    faults.pass_a_year(scene)


def test_control_with_tombstones_that_expire_a_sleeper_brings_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert broken_by(sleeping) is None
    lasting = groups.Group.erasure_of
    over: list[bool] = []

    def expiring(group: groups.Group, target: bytes, author: bytes) -> groups.Erasure | None:
        return None if over else lasting(group, target, author)

    async def sleeping_too_long(scene: Scene) -> None:
        await sleeping(scene)
        over.append(True)
        for peer in scene.honest:
            peer.disk.erased.clear()

    monkeypatch.setattr(groups.Group, "erasure_of", expiring)
    assert broken_by(sleeping_too_long) in {"erased_records_stay_away", "sets_are_equal"}
