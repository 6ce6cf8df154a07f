"""The same on all daemons of a test at once: commands, programs, and what comes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from daemon.json_types import Json
    from tests.helpers.daemons import Home

Answer = dict[str, "Json"]


def program(
    home: Home, path: Path, *words: object, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Begin a Python program beside a daemon; the caller waits for it."""
    return subprocess.Popen(
        [sys.executable, str(path), *map(str, words)],
        env={**home.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(running: Iterable[subprocess.Popen[str]], limit_s: float = 60.0) -> list[str]:
    """What each printed; all of them must end well, each so soon after the one before it.

    Where one does not, the rest are killed: they would train on beside the tests that follow.
    """
    found = []
    processes = list(running)
    try:
        for process in processes:
            printed, problem = process.communicate(timeout=limit_s)
            assert process.returncode == 0, printed + problem
            found.append(printed)
    finally:
        for process in processes[len(found) :]:
            process.kill()  # of one that has ended it does nothing
            process.communicate()
    return found


def everywhere(
    homes: Sequence[Home], *commands: Sequence[str], limit_s: float = 60.0
) -> list[Answer]:
    """One command a machine, at the same time; their JSON."""
    running = [
        home.popen(*command, "--json") for home, command in zip(homes, commands, strict=True)
    ]
    return [cast("Answer", json.loads(printed)) for printed in ended(running, limit_s)]


def the(answer: Answer, kind: str) -> Answer:
    """A part of an answer, such as `mean` or `round`."""
    return cast("Answer", answer[kind])


def members(answer: Answer) -> list[Answer]:
    """How each machine fared in the answer's round."""
    return cast("list[Answer]", the(answer, "round")["members"])


def models(home: Home) -> dict[str, Answer]:
    """What a machine says of the models that it trains with others, by name."""
    rows = cast("list[Answer]", home.json("fed", "status"))
    return {str(one["name"]): one for one in rows}


def round_of(home: Home, name: str) -> int:
    """A model's last round on a machine; -1 if it has no such model."""
    found = models(home).get(name)
    return -1 if found is None else int(str(found["round"]))
