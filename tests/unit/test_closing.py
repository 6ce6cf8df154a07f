"""A `with` block of a blocking connection ends it, whatever happens in the block."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typing_extensions import override

from daemon import trainer
from daemon.cli.client import Client, CliError
from daemon.closing import Closes
from daemon.fed_client import Statistics
from daemon.job_client import BlockingJobs
from daemon.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.json_types import Json


class Line(Closes):
    """Notes each time it is closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    @override
    def close(self) -> None:
        self.closed.append("closed")


def test_the_end_of_the_block_closes() -> None:
    line = Line()
    with line as inside:
        assert inside is line
        assert not line.closed
    assert line.closed == ["closed"]


def test_what_the_block_raises_goes_on_and_it_is_closed() -> None:
    line = Line()
    with pytest.raises(ValueError, match="theirs"), line:
        raise ValueError("theirs")
    assert line.closed == ["closed"]


class Refusing(Client):
    """Connected with nobody; refuses every call, first as a daemon without that model does."""

    def __init__(self, opened: list[Refusing]) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.close()
        self._sock = ours
        self.hello = {}
        opened.append(self)

    @override
    def call(self, method: str, *_: object, **__: object) -> Json:
        raise CliError("no", name="not_found" if method == "fed.wait" else "aborted")

    @property
    def open(self) -> bool:
        return self._sock is not None


@pytest.mark.parametrize("of", [Statistics, BlockingJobs])
def test_a_client_is_closed_and_may_be_closed_again(of: Callable[[Client], Closes]) -> None:
    client = Refusing([])
    with of(client) as closes:
        assert client.open
    closes.close()
    assert [client.open] == [False]


def test_a_trainer_that_is_refused_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Refusing] = []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(trainer, "open_client", lambda **_: Refusing(opened))
    with pytest.raises(CliError):
        Trainer("m", {"w": np.zeros(1, np.float32)})
    assert [client.open for client in opened] == [False]
    assert not list(tmp_path.iterdir())
