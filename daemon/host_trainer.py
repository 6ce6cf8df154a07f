"""Several training processes on one machine that are one member: updates through shared memory.

    with HostTrainer("digits", trainers=4) as trainer:        # in each of four processes
        for rnd in trainer.rounds(20):
            new, loss = my_training(rnd.state)
            rnd.submit(new, weight=len(my_data))

The daemon lends each a piece of memory, folds what they write there as it comes, and shows the next
state to all of them: nothing is copied over a socket. The machine joins the model once before, by
`covey fed join` or `daemon.trainer`.

A trainer may die and come back, or not: the others' updates are handed in at the round's deadline.
A daemon that is started anew is waited for; as it lost the updates that it had folded, the round
under way is trained again. Source: docs/specs/rounds.md, host pool.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from typing_extensions import override

from daemon.cli import out
from daemon.cli.client import open_client
from daemon.closing import Closes
from daemon.patience import Patience
from federated.errors import UsageError
from federated.rounds.numeric import tensors
from federated.rounds.pool.client import PoolClient, PoolError, PoolRefused
from federated.rounds.pool.records import Reason
from federated.rounds.statefile import load_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from daemon.json_types import Json
    from federated.rounds.numeric.dtypes import F32, Array


OVER: Final = frozenset({Reason.ROUND, Reason.ABORTED, Reason.FAULT})
"""An update comes too late, or its round was given up: the next one begins with the state now."""
GONE: Final = frozenset({Reason.CLOSED, Reason.LANE, Reason.STALE})
"""The daemon was started anew, or the machine left the model: ask it."""
TRIES: Final = 5


class HostRound:
    """A state to train on.

    Attributes:
        number: the round that begins with it, from 1.
        state: float32 arrays of our own, to be changed at will.
        dropped: why the update is no part of the machine's sum, such as that its round is over;
            empty: it is.
    """

    def __init__(self, trainer: HostTrainer, number: int, flat: F32) -> None:
        self._trainer = trainer
        self._base = flat
        self.number = number
        self.state = {
            name: np.array(array) for name, array in tensors.unflatten(trainer.schema, flat).items()
        }
        self.dropped = ""

    def submit(self, new: Mapping[str, Array], *, weight: float = 1.0) -> None:
        """Hand in what training made of `state`; returns when it is part of the machine's sum.

        Args:
            new: float32 arrays of the same names and shapes.
            weight: above 0, such as the number of examples.

        Raises:
            UsageError: the arrays do not fit.
            PoolRefused: why it is no part of the round, such as a NaN.
            CliError: the daemon is gone, or this machine is no member any more.
        """
        for _ in range(TRIES):
            try:
                self._hand_in(new, weight)
            except PoolRefused as refused:
                if refused.reason in OVER:
                    self.dropped = str(refused)
                    return
                if refused.reason not in GONE:
                    raise
            except PoolError:
                pass  # the daemon has ended
            else:
                return
            if self._trainer.reopen() != self.number:
                self.dropped = "the round ended while the daemon was away"
                return
        raise PoolError("the pool refuses updates each time: look at `covey logs`")

    def _hand_in(self, new: Mapping[str, Array], weight: float) -> None:
        client, schema = self._trainer.client, self._trainer.schema
        update = client.lend()
        try:
            tensors.flatten(schema, new, update)
        except UsageError:
            client.give_back(update)
            raise
        with np.errstate(over="ignore", invalid="ignore"):  # the pool refuses what comes of it
            np.subtract(update, self._base, out=update)
        client.filled(update, weight, self.number)


class HostTrainer(Closes):
    """One of several trainers of a machine.

    Args:
        name: of the model, which this machine has joined.
        trainers: how many trainers make this machine's update.
        group: whose machines; None: your own.
        socket_path: the daemon's; None: where this user's daemon listens.
        tell: hears what a person may want to know: that the daemon is gone, that it is back.

    Raises:
        CliError: no daemon, or this machine has not joined.
    """

    def __init__(
        self, name: str, *, trainers: int = 1, group: str | None = None,
        socket_path: str | None = None, tell: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._params: dict[str, Json] = {"name": name, "trainers": trainers}
        if group is not None:
            self._params["group"] = group
        self._socket_path = socket_path
        self._patience = Patience(tell)
        self.client = self._open(autostart=True)

    def _open(self, *, autostart: bool) -> PoolClient:
        rpc = open_client(socket_path=self._socket_path, autostart=autostart)
        try:
            opened = out.mapping(rpc.call("fed.open", self._params))
        finally:
            rpc.close()
        state = load_state(Path(out.text(opened["path"])))
        wide = {name: np.asarray(array, np.float32) for name, array in state.items()}
        self.schema = tensors.schema_of(wide)
        self._flat = tensors.flatten(self.schema, wide)
        self._round = int(out.number(opened["round"]))
        lane, items = int(out.number(opened["lane"])), int(out.number(opened["items"]))
        return PoolClient(out.text(opened["socket"]), lane, items)

    def reopen(self) -> int:
        """Connect to a daemon that was started anew; the round that it collects now."""
        self.client.close()
        self.client = self._patience.call(lambda: self._open(autostart=False))
        return self._round

    @override
    def close(self) -> None:
        """End the connection; this machine stays a member."""
        self.client.close()

    def rounds(self, last: int) -> Iterator[HostRound]:
        """States to train on, until the model's round `last` is applied.

        A round comes again if the daemon was started anew before it was applied.
        """
        while self._round <= last:
            rnd = HostRound(self, self._round, self._flat)
            yield rnd
            if self._round == rnd.number:
                self._wait(rnd.number)

    def _wait(self, number: int) -> None:
        """For the state that a round leaves; or begin it again."""
        try:
            result = self.client.wait(number)
        except PoolRefused as refused:
            if refused.reason not in OVER:
                self.reopen()
        except PoolError:
            self.reopen()
        else:
            self._round = result.round + 1
            self._flat = np.array(result.state, np.float32)
