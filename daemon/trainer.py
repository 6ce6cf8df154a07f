"""Training with others from any process: numpy arrays in, merged numpy arrays out.

    trainer = Trainer("digits", state={"w": np.zeros((64, 10), np.float32)}, expected=3)
    for rnd in trainer.rounds(20):
        new, loss = my_training(rnd.state)
        rnd.submit(new, weight=len(my_data), loss=loss)

Every member runs such a loop beside its daemon. A round that ended without us is not lost: the next
`rnd` has the state that the others reached, and our late update counts half in the next round.
Blocking; needs numpy and the standard library, whatever framework made the arrays.
Source: docs/specs/rounds.md s.7.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from daemon.cli import out
from daemon.cli.client import CliError, open_client
from federated.errors import UsageError
from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import load_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from daemon.json_types import Json
    from federated.rounds.numeric.dtypes import Array

    Tensors = Mapping[str, Array]

LOOK_S: Final = 2.0
"""How often who watches is told how far a round is."""
STEP_S: Final = 30.0
"""How long one call waits: a daemon that is started anew meanwhile is asked again after it."""


class Round:
    """A state to train on.

    Attributes:
        number: the round that begins with it, from 1.
        state: arrays of our own, to be changed at will.
        machines: who took part in the round before.
        late: rounds that our last update came late; None: not yet submitted.
    """

    def __init__(self, trainer: Trainer, model: dict[str, Json]) -> None:
        self._trainer = trainer
        self._base = int(out.number(model.get("round")))
        self.number = self._base + 1
        self.state = {
            name: np.array(array)
            for name, array in load_state(Path(out.text(model["path"]))).items()
        }
        machines = model.get("machines")
        self.machines = [out.text(one) for one in machines] if isinstance(machines, list) else []
        self.late: int | None = None

    def submit(self, new: Tensors, *, weight: float = 1.0, **metrics: float) -> None:
        """Hand in what training made of `state`.

        Args:
            new: arrays of the same names, shapes and dtypes.
            weight: above 0, such as the number of examples.
            metrics: figures for people: `covey fed history` and charts show them.

        Raises:
            UsageError: the arrays do not fit, or hold a NaN.
            CliError: the daemon refused them; the message says why.
        """
        self.late = self._trainer.submit(self._base, new, weight, metrics)


class State(NamedTuple):
    """A state and the round that left it."""

    number: int
    state: dict[str, NDArray[np.float32]]


def _state_of(model: Mapping[str, Json]) -> State:
    loaded = load_state(Path(out.text(model["path"])))
    arrays = {name: np.array(array, np.float32) for name, array in loaded.items()}
    return State(int(out.number(model.get("round"))), arrays)


class Trainer:
    """One member's loop.

    Args:
        name: of the model.
        state: its first state, equal at all members; not needed where this machine is a member.
        group: whose machines; None: your own.
        expected: machines to begin with; 0: begin when nobody new comes.
        wait_s: how long to wait for them.
        socket_path: the daemon's; None: where this user's daemon listens.
        policy: more arguments of `fed.join`, such as rule, codec, first_deadline_s.

    Raises:
        CliError: no daemon, nobody else, or another model of that name.
    """

    def __init__(
        self, name: str, state: Tensors | None = None, *, group: str | None = None,
        expected: int = 0, wait_s: float = 60.0, socket_path: str | None = None, **policy: Json,
    ) -> None:  # fmt: skip
        self.name = name
        self._group = group
        self._client = open_client(socket_path=socket_path, timeout_s=wait_s + 120)
        self._folder = tempfile.TemporaryDirectory(prefix="covey-trainer-")
        self._first(state, {"expected": expected, "wait_s": wait_s, **policy})

    def _first(self, state: Tensors | None, policy: dict[str, Json]) -> None:
        try:
            self._call("fed.wait", {"timeout_s": 1})
        except CliError as error:
            if error.name != "not_found":
                raise
            if state is None:
                raise UsageError(
                    f"this machine is no member of {self.name!r} yet: give its first state"
                ) from None
        else:
            return
        self._call("fed.join", {"path": str(self._write(state)), **policy})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """End the connection; this machine stays a member."""
        self._client.close()
        self._folder.cleanup()

    def rounds(
        self, last: int, *, waiting: Callable[[dict[str, Json]], None] | None = None
    ) -> Iterator[Round]:
        """States to train on, one a round, until the model's round `last` is applied.

        The number is the model's, not this loop's: all members end at the same one, whenever each
        began.

        Args:
            last: the model's last round.
            waiting: told now and then how far the round is that is waited for: `phase`,
                `machines`, `deadline_s`.
        """
        model = self.model()
        while int(out.number(model.get("round"))) < last:
            rnd = Round(self, model)
            yield rnd
            model = self.wait(rnd.number - 1, waiting=waiting)

    def model(self) -> dict[str, Json]:
        """How far the model is here: `round`, `path`, `machines`, `phase` and more."""
        return self._wait(-1, 1.0)[1]

    def latest(self) -> State:
        """The state after the last applied round."""
        return _state_of(self.model())

    def later(self, after_round: int) -> State | None:
        """The state after a later round, or None if there is none within half a minute."""
        applied, model = self._wait(after_round, STEP_S)
        return _state_of(model) if applied else None

    def submit_from(self, base: State, new: Tensors, *, weight: float) -> int:
        """Hand in a state that was made of `base`; rounds it is late."""
        return self.submit(base.number, new, weight, {})

    def wait(
        self, after_round: int, *, waiting: Callable[[dict[str, Json]], None] | None = None
    ) -> dict[str, Json]:
        """The model once a round later than that is applied.

        Args:
            after_round: the round that is known.
            waiting: as for `rounds`.
        """
        while True:
            applied, model = self._wait(after_round, STEP_S if waiting is None else LOOK_S)
            if applied:
                return model
            if waiting is not None:
                waiting(model)

    def leave(self) -> None:
        """Take part no longer; the model's states on this machine are removed."""
        self._call("fed.leave", {})

    def submit(self, base: int, new: Tensors, weight: float, metrics: Mapping[str, float]) -> int:
        """Hand in a state that was made of the one after round `base`; rounds it is late."""
        path = self._write(new)
        answer = self._call(
            "fed.submit",
            {"round": base, "path": str(path), "weight": weight, "metrics": dict(metrics)},
        )
        return int(out.number(out.mapping(answer).get("late")))

    def _wait(self, after_round: int, timeout_s: float) -> tuple[bool, dict[str, Json]]:
        answer = out.mapping(
            self._call("fed.wait", {"after_round": after_round, "timeout_s": timeout_s})
        )
        return bool(answer.get("applied")), out.mapping(answer.get("model"))

    def _write(self, state: Tensors) -> Path:
        path = Path(self._folder.name) / "new.safetensors"
        write_state(path, schema_of(state), state)
        return path

    def _call(self, name: str, params: dict[str, Json]) -> Json:
        params = {"name": self.name, **params}
        if self._group is not None:
            params["group"] = self._group
        return self._client.call(name, params)
