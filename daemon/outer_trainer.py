"""Training with others that talks now and then and never waits: Streaming DiLoCo over the daemons.

    with OuterTrainer("story", params, expected=3) as outer:       # params: {name: float32 array}
        for batch in batches:
            my_optimiser_step(params, batch)
            outer.step(params, tokens=len(batch))                  # never blocks, changes params

Every fragment of the model is a federation of its own, `NAME.0`, `NAME.1` and so on, whose state is
the sum of all merged differences: what one round adds to it is what the outer optimiser takes. A
thread a fragment talks to the daemon, so a step costs no call.

A member that missed rounds of a fragment (its machine slept) goes on where the others are: its
common copy follows from the sum of what was merged, nearly at first, exactly in the end; what it
learned meanwhile is in its next difference. A process that is started anew gives the same first
values as ever, and is moved to the common copy by its first step.

A common copy moves by the mean of the differences, and no clip shortens them, as the outer
optimiser takes them as they are: a member that lies moves everybody without bound. Train so with
machines that trust each other.
Source: docs/specs/rounds.md; `federated.rounds.training.outer`.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from typing_extensions import override

from daemon.cli.client import CliError
from daemon.closing import Closes
from daemon.handed import Handed
from daemon.trainer import Trainer
from federated.rounds.training.outer import Outer
from federated.rounds.training.outer_words import Applied, OuterConfig, Sync

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.rounds.numeric.dtypes import F32

STATE: Final = "d"
"""The one tensor of a fragment's federation: the sum of its merged differences."""
ROOTS_KEPT: Final = 1000
LOOK_S: Final = 1.0
"""How often a thread that sends looks whether its daemon is another one."""
FREE: Final = 1e300
"""A clip that shortens nobody: the outer optimiser takes differences as they are. C adapts towards
the median norm by a tenth a round at most, so from here it takes some 6,500 rounds to get near."""


@dataclass
class _Merged:
    """What rounds of a fragment added, `rounds` of them up to `number`."""

    fragment: int
    number: int
    rounds: int
    d: F32


class _Newest:
    """The difference that is to be handed in next: the last one, as it has in it what is unsaid."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sync: Sync | None = None

    def put(self, sync: Sync) -> None:
        """Instead of whatever is still waiting."""
        with self._changed:
            self._sync = sync
            self._changed.notify()

    def take(self, timeout_s: float) -> Sync | None:
        """What is waiting, once there is something; None: nothing came in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._sync is not None, timeout_s)
            sync, self._sync = self._sync, None
            return sync


class _Lane:
    """One fragment's talk with the daemon: a thread waits for rounds, another hands in.

    Each has a connection of its own, as a call waits for its answer.
    """

    def __init__(
        self, fragment: int, trainer: Trainer, sender: Trainer,
        inbox: queue.Queue[_Merged | Exception],
    ) -> None:  # fmt: skip
        self._fragment = fragment
        self._trainer = trainer
        self._sender = sender
        self._inbox = inbox
        self._outbox = _Newest()
        self._base = trainer.latest()
        self._connection = trainer.connection
        """By which `_base` was heard last."""
        self._handed = Handed[Sync]()
        self._ended = threading.Event()
        self.threads = [
            threading.Thread(target=run, daemon=True) for run in (self._watch, self._send)
        ]

    def start(self) -> None:
        """Begin to watch and to send; first what was merged before this process began."""
        if self._base.number:
            self._note(self._base.number, self._base.number, self._base.state[STATE])
        for thread in self.threads:
            thread.start()

    def send(self, sync: Sync) -> None:
        """Hand in a difference, by and by; one that still waits is not sent any more."""
        self._outbox.put(sync)

    def end(self) -> None:
        """Stop at the next chance."""
        self._ended.set()

    def _watch(self) -> None:
        try:
            while not self._ended.is_set():
                fresh = self._trainer.later(self._base.number)
                if fresh is not None:
                    d = fresh.state[STATE] - self._base.state[STATE]
                    rounds = fresh.number - self._base.number
                    self._base = fresh
                    self._note(fresh.number, rounds, d)
                self._connection = self._trainer.connection
        except Exception as error:  # noqa: BLE001 - a lane that ends unheard would end all syncs
            if not self._ended.is_set():
                self._inbox.put(error)

    def _note(self, number: int, rounds: int, d: F32) -> None:
        self._inbox.put(_Merged(self._fragment, number, rounds, d))

    def _send(self) -> None:
        while not self._ended.is_set():
            # Read first: a daemon that is another one since then gets the difference again.
            connection = self._connection
            newest, base = self._outbox.take(LOOK_S), self._base
            sync = newest or self._handed.again(base.number, connection)
            if sync is None:
                continue
            self._handed.forget()
            try:
                new = {STATE: base.state[STATE] + sync.delta}
                self._sender.submit_from(base, new, weight=max(sync.weight, 1.0))
                self._handed.note(base.number, sync, connection)
            except Exception as error:  # noqa: BLE001 - the same
                # Too late: the difference is in the next one, as it is against the common copy.
                stale = isinstance(error, CliError) and error.data.get("reason") == "stale"
                if not stale and not self._ended.is_set():
                    self._inbox.put(error)


class OuterTrainer(Closes):
    """One member's outer optimiser, joined to its daemon.

    Args:
        name: of the model.
        params: its parameters, float32, the same values on all members.
        config: the same on all members.
        expected: machines to begin with; 0: begin when nobody new comes.
        group: whose machines; None: your own.
        wait_s: how long to wait for them.
        socket_path: the daemon's; None: where this user's daemon listens.
        first_deadline_s: how long the first sync waits for members; later ones learn it.
        grace_s: after so many seconds a sync goes on with half of the members that take part in
            it, so that a slow one does not hold the others' syncs up: what it brings later counts
            half in the next one. The same on all members. None: it waits for two thirds, until
            the deadline.

    Attributes:
        outer: the optimiser itself: `common()`, `save()`.
        synced: syncs merged so far.
        roots: (fragment, round, hash of the common copy after it) of the last ones: equal on all
            members.

    Raises:
        CliError: no daemon, nobody else, or another model of that name.
    """

    def __init__(
        self, name: str, params: Mapping[str, object], config: OuterConfig | None = None, *,
        expected: int = 0, group: str | None = None, wait_s: float = 60.0,
        socket_path: str | None = None, first_deadline_s: float = 60.0,
        grace_s: float | None = None,
    ) -> None:  # fmt: skip
        self.outer = Outer(params, config)
        self.synced = 0
        self.roots: deque[tuple[int, int, bytes]] = deque(maxlen=ROOTS_KEPT)
        self._inbox: queue.Queue[_Merged | Exception] = queue.Queue()
        with ExitStack() as opened:
            trainers = []
            for fragment in range(len(self.outer.fragment_names)):
                zeros = {STATE: np.zeros(self.outer.size(fragment), np.float32)}
                trainer = Trainer(
                    f"{name}.{fragment}", zeros, group=group, expected=expected, wait_s=wait_s,
                    socket_path=socket_path, rule="mean", codec=self.outer.config.codec, clip=FREE,
                    first_deadline_s=first_deadline_s, grace_s=grace_s,
                )  # fmt: skip
                trainers.append(opened.enter_context(trainer))
            senders = [
                opened.enter_context(Trainer(trainer.name, group=group, socket_path=socket_path))
                for trainer in trainers
            ]
            self._lanes = [
                _Lane(fragment, trainer, sender, self._inbox)
                for fragment, (trainer, sender) in enumerate(zip(trainers, senders, strict=True))
            ]
            self._trainers = opened.pop_all()
        for lane in self._lanes:
            lane.start()

    @override
    def close(self) -> None:
        """Stop talking; this machine stays a member of each fragment's federation."""
        for lane in self._lanes:
            lane.end()
        self._trainers.close()

    def step(self, params: Mapping[str, object], tokens: int = 1) -> bool:
        """An inner step is done: take over what was merged, hand in what falls due. Never blocks.

        Args:
            params: the trainer's parameters, float32, changed in place.
            tokens: that the step was made of.

        Returns:
            Whether parameters changed.

        Raises:
            CliError: the daemon refused or is gone.
            UsageError: parameters of another shape.
        """
        self._take_merged()
        changed = False
        for request in self.outer.step(params, tokens):
            match request:
                case Sync():
                    self._lanes[request.fragment].send(request)
                case Applied():
                    changed = True
                case _:
                    pass  # a turn that passed: the difference stays for the next
        return changed

    def settle(self, timeout_s: float) -> int:
        """Wait until a merged result is there, at most so long; how many are merged so far."""
        try:
            self._merge(self._inbox.get(timeout=timeout_s))
        except queue.Empty:
            return self.synced
        self._take_merged()
        return self.synced

    def _take_merged(self) -> None:
        while not self._inbox.empty():
            self._merge(self._inbox.get())

    def _merge(self, came: _Merged | Exception) -> None:
        if isinstance(came, Exception):
            raise came
        if came.rounds == 1:
            self.outer.merged(came.fragment, self.outer.root(came.fragment), came.d)
        else:
            self.outer.missed(came.fragment, came.rounds, came.d)
        self.synced += 1
        self.roots.append((came.fragment, came.number, self.outer.root(came.fragment)))
