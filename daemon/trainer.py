"""Training with others from any process: numpy arrays in, merged numpy arrays out.

    trainer = Trainer("digits", state={"w": np.zeros((64, 10), np.float32)}, expected=3)
    for rnd in trainer.rounds(20):
        new, loss = my_training(rnd.state)
        rnd.submit(new, weight=len(my_data), loss=loss)

Every member runs such a loop beside its daemon. A round that ended without us is not lost: the next
`rnd` has the state that the others reached, and our late update counts half in the next round; one
that is too late for that is dropped (`rnd.dropped`). A daemon that is stopped and started anew
meanwhile is waited for, and given what it had not yet used of ours.
Blocking; needs numpy and the standard library, whatever framework made the arrays.
Source: docs/specs/rounds.md s.7.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from typing_extensions import override

from daemon.cli import out
from daemon.cli.client import CliError, open_client
from daemon.closing import Closes
from daemon.handed import Handed
from daemon.patience import Patience
from daemon.trainer_files import OwnFolder
from federated.errors import UsageError
from federated.rounds.numeric.limits import WEIGHT_MAX
from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import load_state, write_state
from federated.rounds.training.arrays import view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from daemon.json_types import Json
    from federated.rounds.numeric.dtypes import Array

LOOK_S: Final = 2.0
"""How often who watches is told how far a round is."""
STEP_S: Final = 30.0
"""How long one call waits."""


class Round:
    """A state to train on.

    Attributes:
        number: the round that begins with it, from 1.
        state: arrays of our own, to be changed at will.
        machines: who took part in the round before.
        late: rounds that our last update came late; None: not yet submitted.
        dropped: why our last update was not taken, such as that it came too many rounds late: the
            next round begins with the state now. Empty: it was.
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
        self.dropped = ""

    def submit(
        self, new: Mapping[str, object], /, *, weight: float = 1.0,
        figures: Mapping[str, float] | None = None, **metrics: float,
    ) -> None:  # fmt: skip
        """Hand in what training made of `state`.

        Args:
            new: arrays of the same names, shapes and dtypes, of any framework, on the CPU.
            weight: above 0, such as the number of examples.
            figures: for people, such as loss, whatever their names: `covey fed history` and charts
                show them. What is no number (a NaN) is not kept.
            metrics: the same, as arguments.

        Raises:
            UsageError: the arrays do not fit, or hold a NaN; or the weight is none.
            CliError: the daemon refused them; the message says why.
        """
        try:
            self.late = self._trainer.submit(
                self._base, new, weight, {**(figures or {}), **metrics}
            )
        except CliError as error:
            if error.data.get("reason") != "stale":
                raise
            self.dropped = error.message


class State(NamedTuple):
    """A state and the round that left it."""

    number: int
    state: dict[str, NDArray[np.float32]]


def _state_of(model: Mapping[str, Json]) -> State:
    loaded = load_state(Path(out.text(model["path"])))
    arrays = {name: np.array(array, np.float32) for name, array in loaded.items()}
    return State(int(out.number(model.get("round"))), arrays)


class Trainer(Closes):
    """One member's loop.

    Args:
        name: of the model.
        state: its first state, equal at all members; not needed where this machine is a member.
        group: whose machines; None: your own.
        expected: machines to begin with; 0: begin when nobody new comes.
        wait_s: how long to wait for them.
        socket_path: the daemon's; None: where this user's daemon listens.
        autostart: whether to start a daemon that is not running. Only at first: who stops it
            later means it, and it is waited for.
        timeout_s: give up after so long in all; None: never.
        tell: hears what a person may want to know: that the daemon is gone, that it is back.
        policy: more arguments of `fed.join`, such as rule, codec, first_deadline_s.

    Raises:
        UsageError: a first state is needed, or cannot be used.
        CliError: no daemon, nobody else, or another model of that name.
    """

    def __init__(
        self, name: str, state: Mapping[str, object] | None = None, *, group: str | None = None,
        expected: int = 0, wait_s: float = 60.0, socket_path: str | None = None,
        autostart: bool = True, timeout_s: float | None = None,
        tell: Callable[[str], None] = lambda _: None, **policy: Json,
    ) -> None:  # fmt: skip
        self.name = name
        self._group = group
        self._patience = Patience(tell, timeout_s)
        self._handed = Handed[dict[str, "Json"]]()
        longest = min(wait_s + 120, math.inf if timeout_s is None else timeout_s)
        open_ = partial(open_client, socket_path=socket_path, timeout_s=longest)
        with ExitStack() as opened:
            self._client = open_(autostart=autostart)
            opened.callback(self._client.close)
            self._folder = OwnFolder()
            opened.callback(self._folder.close)
            self._first(state, {"expected": expected, "wait_s": wait_s, **policy})
            self._client.close()
            self._client = open_(autostart=False)
            opened.pop_all()

    def _first(self, state: Mapping[str, object] | None, policy: dict[str, Json]) -> None:
        try:
            self._call_now("fed.wait", {"timeout_s": 1})
        except CliError as error:
            if error.name != "not_found":
                raise
            if state is None:
                raise UsageError(
                    f"this machine is no member of {self.name!r} yet: give its first state"
                ) from None
        else:
            return
        self._call_now("fed.join", {"path": str(self._write(state)), **policy})

    @override
    def close(self) -> None:
        """End the connection; this machine stays a member."""
        self._client.close()
        self._folder.close()

    def rounds(
        self, last: int, *, waiting: Callable[[dict[str, Json]], None] | None = None
    ) -> Iterator[Round]:
        """States to train on, one a round, until the model's round `last` is applied.

        The number is the model's, not this loop's: all members end at the same one, whenever each
        began.

        Args:
            last: the model's last round.
            waiting: told now and then how far the round is that is waited for: `phase`,
                `machines`, `deadline_s`, `reason`, `bytes_in` and `bytes_out`.
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

    def submit_from(self, base: State, new: Mapping[str, object], *, weight: float) -> int:
        """Hand in a state that was made of `base`; rounds it is late."""
        return self.submit(base.number, new, weight, {})

    def wait(
        self, after_round: int, *, waiting: Callable[[dict[str, Json]], None] | None = None
    ) -> dict[str, Json]:
        """The model once a round later than that is applied.

        Args:
            after_round: the round that is known.
            waiting: as for `rounds`.

        Raises:
            CliError: `deadline`: the trainer's time is over.
        """
        while True:
            applied, model = self._wait(after_round, STEP_S if waiting is None else LOOK_S)
            if applied:
                return model
            self._hand_in_again(model)
            if waiting is not None:
                waiting(model)

    @property
    def connection(self) -> object:
        """Another object once the daemon was connected to anew: it may be another daemon."""
        return self._client.hello

    def leave(self) -> None:
        """Take part no longer; the model's states on this machine are removed."""
        self._call("fed.leave", {})

    def submit(
        self, base: int, new: Mapping[str, object], weight: float, metrics: Mapping[str, float]
    ) -> int:
        """Hand in a state that was made of the one after round `base`; rounds it is late."""
        if not 0 < weight <= WEIGHT_MAX:
            raise UsageError(f"a weight of {weight}: give a number above 0")
        told: dict[str, Json] = {
            name: float(value) for name, value in metrics.items() if math.isfinite(value)
        }
        path = str(self._write(new))
        params: dict[str, Json] = {"round": base, "path": path, "weight": weight, "metrics": told}
        late = int(out.number(out.mapping(self._call("fed.submit", params)).get("late")))
        self._handed.note(base, params, self._client.hello)
        return late

    def _hand_in_again(self, model: dict[str, Json]) -> None:
        number = int(out.number(model.get("round")))
        params = self._handed.again(number, self._client.hello)
        if params is not None:
            self._call("fed.submit", params)
            self._handed.note(number, params, self._client.hello)

    def _wait(self, after_round: int, timeout_s: float) -> tuple[bool, dict[str, Json]]:
        left_s = self._patience.left_s
        if not left_s:
            raise self._over(after_round)
        params: dict[str, Json] = {"after_round": after_round, "timeout_s": min(timeout_s, left_s)}
        answer = out.mapping(self._call("fed.wait", params))
        return bool(answer.get("applied")), out.mapping(answer.get("model"))

    def _over(self, after_round: int) -> CliError:
        return CliError(
            f"the time is over, and no round of {self.name!r} after {after_round} was applied here",
            75,
            name="deadline",
            remedy="Repeat with a longer --timeout: it goes on where the model is.",
        )

    def _write(self, state: Mapping[str, object]) -> Path:
        path = self._folder.path / "new.safetensors"
        arrays = {name: _array(name, value) for name, value in state.items()}
        write_state(path, schema_of(arrays), arrays)
        return path

    def _call(self, name: str, params: dict[str, Json]) -> Json:
        return self._patience.call(lambda: self._call_now(name, params))

    def _call_now(self, name: str, params: dict[str, Json]) -> Json:
        named: dict[str, Json] = {"name": self.name, **params}
        if self._group is not None:
            named["group"] = self._group
        return self._client.call(name, named)


def _array(name: str, value: object) -> Array:
    """An array that a state file can hold, or that it refuses with a reason."""
    return value if isinstance(value, np.ndarray) else view(name, value)
