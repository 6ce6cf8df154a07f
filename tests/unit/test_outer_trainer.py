"""What an outer trainer asks its daemon for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from daemon import outer_trainer
from daemon.outer_trainer import STATE, OuterTrainer
from daemon.trainer import State
from federated.rounds.training.outer_words import OuterConfig

if TYPE_CHECKING:
    from daemon.json_types import Json


class Recorder:
    """A trainer that notes what it was made with."""

    made: list[dict[str, Json]]

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

    def close(self) -> None:
        pass


@pytest.mark.parametrize("grace_s", [None, 2.5])
def test_every_fragments_model_is_joined_with_the_grace_that_was_given(
    monkeypatch: pytest.MonkeyPatch, grace_s: float | None
) -> None:
    monkeypatch.setattr(outer_trainer, "Trainer", Recorder)
    monkeypatch.setattr(Recorder, "made", [], raising=False)
    params = {"a": np.zeros(4, np.float32), "b": np.zeros(3, np.float32)}
    with OuterTrainer("story", params, OuterConfig(fragments=2), grace_s=grace_s):
        pass
    assert [policy["grace_s"] for policy in Recorder.made] == [grace_s] * 2
    assert {policy["rule"] for policy in Recorder.made} == {"mean"}
