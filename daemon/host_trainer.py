"""Several training processes on one machine that are one member: updates through shared memory.

    with HostTrainer("digits", trainers=4) as trainer:        # in each of four processes
        for rnd in trainer.rounds(20):
            new, loss = my_training(rnd.state)
            rnd.submit(new, weight=len(my_data))

The daemon lends each a piece of memory, folds what they write there as it comes, and shows the next
state to all of them: nothing is copied over a socket. The machine joins the model once before, by
`covey fed join` or `daemon.trainer`. Source: docs/specs/rounds.md, host pool.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daemon.cli import out
from daemon.cli.client import open_client
from federated.rounds.numeric import tensors
from federated.rounds.pool.client import PoolClient
from federated.rounds.statefile import load_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from daemon.json_types import Json
    from federated.rounds.numeric.dtypes import F32, Array


class HostRound:
    """A state to train on.

    Attributes:
        number: the round that begins with it, from 1.
        state: float32 arrays of our own, to be changed at will.
    """

    def __init__(self, trainer: HostTrainer, number: int, flat: F32) -> None:
        self._trainer = trainer
        self._base = flat
        self.number = number
        self.state = {
            name: np.array(array) for name, array in tensors.unflatten(trainer.schema, flat).items()
        }

    def submit(self, new: Mapping[str, Array], *, weight: float = 1.0) -> None:
        """Hand in what training made of `state`; returns when it is part of the machine's sum.

        Args:
            new: float32 arrays of the same names and shapes.
            weight: above 0, such as the number of examples.

        Raises:
            UsageError: the arrays do not fit.
            PoolRefused: why it is no part of the round, such as that it is over.
        """
        client, schema = self._trainer.client, self._trainer.schema
        update = client.lend()
        tensors.flatten(schema, new, update)
        np.subtract(update, self._base, out=update)
        client.filled(update, weight, self.number)


class HostTrainer:
    """One of several trainers of a machine.

    Args:
        name: of the model, which this machine has joined.
        trainers: how many trainers make this machine's update.
        group: whose machines; None: your own.
        socket_path: the daemon's; None: where this user's daemon listens.

    Raises:
        CliError: no daemon, or this machine has not joined.
    """

    def __init__(
        self, name: str, *, trainers: int = 1, group: str | None = None,
        socket_path: str | None = None,
    ) -> None:  # fmt: skip
        params: dict[str, Json] = {"name": name, "trainers": trainers}
        if group is not None:
            params["group"] = group
        rpc = open_client(socket_path=socket_path)
        opened = out.mapping(rpc.call("fed.open", params))
        rpc.close()
        state = load_state(Path(out.text(opened["path"])))
        wide = {name: np.asarray(array, np.float32) for name, array in state.items()}
        self.schema = tensors.schema_of(wide)
        self._flat = tensors.flatten(self.schema, wide)
        self._round = int(out.number(opened["round"]))
        lane, items = int(out.number(opened["lane"])), int(out.number(opened["items"]))
        self.client = PoolClient(out.text(opened["socket"]), lane, items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.client.close()

    def rounds(self, last: int) -> Iterator[HostRound]:
        """States to train on, until the model's round `last` is applied."""
        while self._round <= last:
            yield HostRound(self, self._round, self._flat)
            result = self.client.wait(self._round)
            self._round = result.round + 1
            self._flat = np.array(result.state, np.float32)
