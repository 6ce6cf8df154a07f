"""How much of a worker a coordinator gets: tasks it may leave here, and its share of the slots.

Theory of operation. A coordinator may leave as many tasks here as there are slots, and as many more
as are needed so that a slot that falls free finds the next task waiting, for as long as the round
trip takes: for tasks of a second none, for tiny ones sixty-four. Slots go to classes of callers by
weight, own devices 4, friends 2, strangers 1, measured in time used, and to the coordinators of a
class in turn. Who uses nothing saves nothing up.

A stranger is counted by owner: it gets one session and eight tasks, however many devices it has.
Pure: the clock is an argument. Source: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import msgspec

from federated.jobs.items import Credit, Load
from federated.jobs.limits import STRANGER_TASKS_MAX
from federated.jobs.schedule import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from federated.jobs.desk import Desk
    from federated.jobs.items import TaskResult
    from federated.jobs.manners import Reading
    from federated.seams import Mesh, TrustClass
    from p2p.identity import PeerId

AHEAD_MAX: Final = 64
"""Tasks beyond the slots that a coordinator may leave here: they hide the round trip."""
TRIP_LEAST_S: Final = 0.005
"""A coordinator's loop and journal take their time even where the link takes none. Guess."""
TRIP_UNKNOWN_S: Final = 0.1
BATTERY_UNKNOWN: Final = 255
CHANGE_LEAST: Final = 0.25
"""A grant is told again when it moves by this share: less is not worth an item."""
WEIGHTS: Final[dict[TrustClass, float]] = {"own": 4.0, "friend": 2.0, "stranger": 1.0, "none": 0.5}
"""Of the slots; `none` has no handlers, its weight only tells it from a stranger."""


def ahead(slots: int, trip_s: float, t50_s: float) -> int:
    """Tasks beyond the slots: clip(round(2 slots trip / t50), 0, 64)."""
    return min(AHEAD_MAX, max(0, round(2 * slots * trip_s / max(t50_s, 1e-9))))


class Grant:
    """What one coordinator may leave here."""

    __slots__ = ("_told", "_took")

    def __init__(self) -> None:
        self._took = Window()
        self._told = -1

    def took(self, seconds: float) -> None:
        """A task of its was done."""
        self._took.add(seconds)

    @property
    def t50_s(self) -> float:
        """Median seconds of its tasks; 0 before the first."""
        return self._took.at(0.5) if len(self._took) else 0.0

    def tasks(self, slots: int, trip_s: float | None, *, contended: bool = False) -> int:
        """Tasks it may have outstanding.

        One more than fill the slots while others want them, too: whose next task is not here yet
        cannot have its share.
        """
        if not len(self._took):
            # Nothing is known: it may try, and begins with one task of its own accord.
            return slots + AHEAD_MAX
        trip_s = TRIP_UNKNOWN_S if trip_s is None else max(trip_s, TRIP_LEAST_S)
        return slots + max(ahead(slots, trip_s, self.t50_s), int(contended))

    def news(self, tasks: int, *, begin: bool = False) -> bool:
        """Whether a grant must be told; the first of a session always."""
        old = self._told
        if not begin and old >= 0 and abs(tasks - old) < max(1, CHANGE_LEAST * old):
            return False
        self._told = tasks
        return True


class Customer(Protocol):
    """A coordinator's desk, as far as turns go."""

    share: TrustClass


D = TypeVar("D", bound=Customer)
T = TypeVar("T")


class Shares(Generic[D]):
    """Who is served next: classes by weight, desks of a class in turn."""

    def __init__(self) -> None:
        self._lines: dict[TrustClass, deque[D]] = {trust: deque() for trust in WEIGHTS}
        self._used: dict[TrustClass, float] = dict.fromkeys(WEIGHTS, 0.0)
        self._running: dict[TrustClass, int] = dict.fromkeys(WEIGHTS, 0)

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __contains__(self, desk: D) -> bool:
        return desk in self._lines[desk.share]

    def add(self, desk: D) -> None:
        """A desk has tasks."""
        share = desk.share
        if not self._busy(share):
            # Who comes after idling is level with those who are here, not ahead of them.
            here = [self._used[one] for one in WEIGHTS if self._busy(one)]
            self._used[share] = max(self._used[share], min(here, default=0.0))
        self._lines[share].append(desk)

    def _busy(self, share: TrustClass) -> bool:
        return bool(self._lines[share]) or self._running[share] > 0

    def take(self) -> D:
        """The next desk; it leaves the line, and has a slot until `end`."""
        waiting = [share for share, line in self._lines.items() if line]
        share = min(waiting, key=lambda one: self._used[one])
        self._running[share] += 1
        return self._lines[share].popleft()

    def begin(self, share: TrustClass, expected_s: float) -> None:
        """What was taken is begun and will use a slot for so long."""
        self._used[share] += expected_s / WEIGHTS[share]

    def end(self, share: TrustClass, more_s: float = 0.0) -> None:
        """A slot is free again; it was used for so much more than was expected."""
        self._running[share] -= 1
        self._used[share] += more_s / WEIGHTS[share]

    def contended(self, share: TrustClass) -> bool:
        """Whether another class wants slots, too."""
        return any(one != share and self._busy(one) for one in WEIGHTS)


class Allowance:
    """What coordinators have of one worker.

    Args:
        mesh: who they are, and how far.
        slots: tasks at once.
        desks: those there are.
    """

    def __init__(self, mesh: Mesh, slots: int, desks: Mapping[PeerId, Desk]) -> None:
        self._mesh = mesh
        self._slots = slots
        self._desks = desks
        self.turns: Shares[Desk] = Shares()

    def admit(self, desk: Desk) -> bool:
        """Look who a coordinator is; False if its owner is a stranger that is served already."""
        if not desk.tasks:
            desk.share, desk.payer = self._standing(desk.peer)
        return desk.share != "stranger" or not any(
            other.payer == desk.payer and other.scope is not None
            for other in self._desks.values() if other is not desk
        )  # fmt: skip

    def _standing(self, peer: PeerId) -> tuple[TrustClass, bytes]:
        """What a caller is to us in the best of the groups we share, and whose device there."""
        if peer == self._mesh.id:
            return "own", bytes(peer)
        groups = (None, *self._mesh.shared_groups(peer))
        found = [(self._mesh.trust(peer, one), self._mesh.owner(peer, one)) for one in groups]
        return max(found, key=lambda one: WEIGHTS[one[0]])

    def full(self, desk: Desk) -> bool:
        """Whether a coordinator has left as many tasks here as it may."""
        if desk.share in {"own", "friend"}:
            return len(desk.tasks) >= self._slots + AHEAD_MAX
        theirs = sum(len(one.tasks) for one in self._desks.values() if one.payer == desk.payer)
        return theirs >= STRANGER_TASKS_MAX

    def credit(self, desk: Desk, *, begin: bool = False) -> Credit | None:
        """What to tell a coordinator; None if that changed little."""
        link = self._mesh.fabric.info(desk.peer)
        trip_s = 0.0 if desk.peer == self._mesh.id else None if link is None else link.rtt_s
        contended = self.turns.contended(desk.share)
        tasks = desk.grant.tasks(self._slots, trip_s, contended=contended)
        if desk.share not in {"own", "friend"}:
            tasks = min(tasks, STRANGER_TASKS_MAX)
        return Credit(tasks) if desk.grant.news(tasks, begin=begin) else None

    def load(self, running: int, seen: Reading) -> Load:
        """How busy the worker is."""
        queue_s = sum(len(one.queue) * one.grant.t50_s for one in self._desks.values())
        queue_ms = int(1000 * queue_s / self._slots)
        battery = BATTERY_UNKNOWN if seen.percent is None else min(100, seen.percent)
        return Load(self._slots, running, queue_ms, [], seen.on_ac, battery)

    @contextmanager
    def using(self, desk: Desk, tasks: int, clock: Callable[[], float]) -> Iterator[None]:
        """A slot that so many tasks of a desk use."""
        share, began = desk.share, clock()
        expected_s = desk.grant.t50_s * tasks
        self.turns.begin(share, expected_s)
        try:
            yield
        finally:
            took_s = clock() - began
            self.turns.end(share, took_s - expected_s)
            desk.grant.took(took_s / tasks)
            if (credit := self.credit(desk)) is not None:
                desk.post(credit)


def with_times(
    batch: Sequence[T], results: Sequence[TaskResult], took_s: float
) -> Iterator[tuple[T, TaskResult]]:
    """Tasks that ran in one trip with their results, each with its part of the time.

    What took less than a millisecond keeps none: it says nothing.
    """
    wall_ms = int(1000 * took_s / len(batch))
    for task, result in zip(batch, results, strict=True):
        if wall_ms:
            usage = msgspec.structs.replace(result.usage, wall_ms=wall_ms)
            yield task, msgspec.structs.replace(result, usage=usage)
        else:
            yield task, result
