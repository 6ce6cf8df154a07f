"""What an outer trainer asks its daemon for."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from daemon import outer_trainer
from daemon.cli.client import CliError
from daemon.outer_trainer import STATE, OuterTrainer, _Lane
from daemon.trainer import State
from federated.errors import UsageError
from federated.rounds.training.outer_words import OuterConfig, Sync

if TYPE_CHECKING:
    from typing import Self

    from daemon.json_types import Json
    from daemon.outer_trainer import _Merged
    from daemon.trainer import Trainer


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer_trainer, "LOOK_S", 0.01)


class Recorder:
    """A trainer that notes what it was made with."""

    made: list[dict[str, Json]]
    closed = 0

    def __init__(
        self, name: str, state: dict[str, np.ndarray] | None = None, **policy: Json
    ) -> None:
        self.name = name
        self.connection = object()
        self._state = State(0, state or {STATE: np.zeros(1, np.float32)})
        if state is not None:
            self.made.append(policy)

    def latest(self) -> State:
        return self._state

    def later(self, _: int) -> None:
        return None

    def submit_from(self, _: State, new: dict[str, np.ndarray], **__: float) -> int:
        return self.handed(float(new[STATE][0]))

    def handed(self, _: float) -> int:
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        type(self).closed += 1


@pytest.mark.parametrize("grace_s", [None, 2.5])
def test_every_fragments_model_is_joined_with_the_grace_that_was_given(
    monkeypatch: pytest.MonkeyPatch, grace_s: float | None
) -> None:
    monkeypatch.setattr(outer_trainer, "Trainer", Recorder)
    monkeypatch.setattr(Recorder, "made", [], raising=False)
    params = {"a": np.zeros(4, np.float32), "b": np.zeros(3, np.float32)}
    monkeypatch.setattr(Recorder, "closed", 0)
    with OuterTrainer("story", params, OuterConfig(fragments=2), grace_s=grace_s):
        pass
    assert Recorder.closed == 4, "a watcher and a sender each"
    assert [policy["grace_s"] for policy in Recorder.made] == [grace_s] * 2
    assert {policy["rule"] for policy in Recorder.made} == {"mean"}


def sync_of(value: float) -> Sync:
    return Sync(0, bytes(32), np.full(1, value, np.float32), 1.0, 0, "f32")


def lane_of(trainer: Recorder) -> tuple[_Lane, queue.Queue[_Merged | Exception]]:
    inbox: queue.Queue[_Merged | Exception] = queue.Queue()
    return _Lane(0, cast("Trainer", trainer), cast("Trainer", trainer), inbox), inbox


def test_a_difference_that_waits_gives_way_to_a_newer_one() -> None:
    """While a daemon is away they would be handed in one after the other, each counted anew."""
    sent: queue.Queue[float] = queue.Queue()

    class Slow(Recorder):
        def handed(self, value: float) -> int:
            sent.put(value)
            return 0

    lane, _ = lane_of(Slow("story.0"))
    for value in (1.0, 2.0, 3.0):
        lane.send(sync_of(value))
    lane.threads[1].start()
    assert sent.get(timeout=10) == 3.0
    lane.end()
    lane.threads[1].join(10)
    assert sent.empty()


def test_a_daemon_that_was_started_anew_is_given_the_difference_again() -> None:
    sent: queue.Queue[float] = queue.Queue()

    class Restarts(Recorder):
        def later(self, _: int) -> None:
            self.connection = object()
            time.sleep(0.001)

        def handed(self, value: float) -> int:
            sent.put(value)
            return 0

    lane, inbox = lane_of(Restarts("story.0"))
    lane.send(sync_of(1.0))
    for thread in lane.threads:
        thread.start()
    assert [sent.get(timeout=10) for _ in range(3)] == [1.0] * 3
    lane.end()
    for thread in lane.threads:
        thread.join(10)
    assert inbox.empty()


def test_a_daemon_that_is_started_anew_gets_the_newest_difference_and_no_older_one() -> None:
    """It goes away while one is handed in, and who watches is connected anew first."""
    sent: queue.Queue[float] = queue.Queue()
    away, back, heard = threading.Event(), threading.Event(), threading.Event()

    class Restarted(Recorder):
        def later(self, _: int) -> None:
            if away.is_set():
                self.connection = back
                heard.set()

        def handed(self, value: float) -> int:
            if value == 2.0 and not away.is_set():
                away.set()
                assert back.wait(10)
            sent.put(value)
            return 0

    lane, _ = lane_of(Restarted("story.0"))
    lane.send(sync_of(1.0))
    lane.threads[1].start()
    assert sent.get(timeout=10) == 1.0
    lane.threads[0].start()
    lane.send(sync_of(2.0))
    assert heard.wait(10)
    back.set()
    assert [sent.get(timeout=10) for _ in range(2)] == [2.0, 2.0]
    lane.end()
    for thread in lane.threads:
        thread.join(10)
    assert set(sent.queue) <= {2.0}


def test_nor_does_it_get_an_older_one_where_the_newest_was_not_answered() -> None:
    """It may be there all the same."""
    sent: queue.Queue[float] = queue.Queue()

    class Fails(Recorder):
        def handed(self, value: float) -> int:
            sent.put(value)
            if value == 2.0:
                raise CliError("the connection broke")
            return 0

    trainer = Fails("story.0")
    lane, inbox = lane_of(trainer)
    lane.threads[1].start()
    for value in (1.0, 2.0):
        lane.send(sync_of(value))
        assert sent.get(timeout=10) == value
    assert isinstance(inbox.get(timeout=10), CliError)
    lane.end()
    lane.threads[1].join(10)
    assert sent.empty()
    assert lane._handed.again(0, object()) is None


@pytest.mark.parametrize("which", [0, 1], ids=["watches", "sends"])
def test_whatever_ends_a_lane_is_raised_by_the_next_step(which: int) -> None:
    class Broken(Recorder):
        def later(self, _: int) -> None:
            raise ValueError("a state that is none")

        def handed(self, _: float) -> int:
            raise ValueError("a state that is none")

    lane, inbox = lane_of(Broken("story.0"))
    lane.send(sync_of(1.0))
    lane.threads[which].start()
    assert "none" in str(inbox.get(timeout=10))
    lane.end()
    lane.threads[which].join(10)


def test_what_was_opened_is_closed_where_a_later_fragment_cannot_be_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refuses(Recorder):
        def __init__(
            self, name: str, state: dict[str, np.ndarray] | None = None, **policy: Json
        ) -> None:
            if name == "story.1":
                raise UsageError("another model of that name")
            super().__init__(name, state, **policy)

    monkeypatch.setattr(outer_trainer, "Trainer", Refuses)
    monkeypatch.setattr(Recorder, "made", [], raising=False)
    params = {"a": np.zeros(4, np.float32), "b": np.zeros(3, np.float32)}
    with pytest.raises(UsageError):
        OuterTrainer("story", params, OuterConfig(fragments=2))
    assert len(Recorder.made) == Refuses.closed - Recorder.closed == 1
