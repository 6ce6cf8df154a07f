"""Drive a peer of a public libp2p implementation from a test: JSON lines on stdin and stdout."""

from __future__ import annotations

import itertools
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import msgspec
import trio

from tests.helpers.need import need, unmet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

ROOT: Final = Path(__file__).resolve().parents[2]
COMMANDS: Final[Mapping[str, list[str]]] = {
    "js": ["node_modules/.bin/node", "peer.mjs"],
    "py": ["venv/bin/python", "peer.py"],
}
INSTALL_TIMEOUT_S: Final = 280


class OracleError(Exception):
    """The other implementation reported an error."""


def install(kind: str) -> Path:
    """Have the implementation in `build/interop/<kind>`; skip (or fail in CI) if that cannot be.

    Returns:
        Its folder.
    """
    need("linux")
    done = subprocess.run(
        ["bash", str(ROOT / "tests/interop/install.sh"), kind],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_TIMEOUT_S,
    )
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        unmet(
            f"{kind}-libp2p could not be installed: {' '.join(last)}",
            f"run `tests/interop/install.sh {kind}`; it needs npm, or gcc and GMP's headers",
        )
    return ROOT / "build" / "interop" / kind


@dataclass
class Oracle:
    """A running peer of another implementation."""

    process: trio.Process
    id: str = ""
    """Its peer id as text."""
    addrs: list[str] = field(default_factory=list)
    """Where it listens, each with /p2p/<id>."""
    events: dict[str, trio.Event] = field(default_factory=dict)
    """Event name to the event that is set when it comes."""
    details: dict[str, dict[str, Json]] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _answers: dict[int, trio.MemorySendChannel[dict[str, Json]]] = field(default_factory=dict)

    async def act(self, act: str, **arguments: Json) -> dict[str, Json]:
        """Have it do something and return its answer.

        Raises:
            OracleError: with its own words.
        """
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[dict[str, Json]](1)
        self._answers[number] = send
        line = msgspec.json.encode({"n": number, "act": act, **arguments}) + b"\n"
        assert self.process.stdin is not None
        await self.process.stdin.send_all(line)
        answer = await receive.receive()
        if "error" in answer:
            message = f"{act}: {answer['error']}"
            raise OracleError(message)
        return cast("dict[str, Json]", answer["ok"])

    async def event(self, name: str) -> dict[str, Json]:
        """Wait until it reported `name` (also before this call) and return the report."""
        await self.events.setdefault(name, trio.Event()).wait()
        return self.details[name]

    async def read(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hand answers and events out; started when the peer listens."""
        buffer = b""
        assert self.process.stdout is not None
        async for chunk in self.process.stdout:
            *lines, buffer = (buffer + bytes(chunk)).split(b"\n")
            for line in lines:
                message = cast("dict[str, Json]", msgspec.json.decode(line))
                if "ready" in message:
                    ready = cast("dict[str, Json]", message["ready"])
                    self.id = str(ready["id"])
                    self.addrs = [str(addr) for addr in cast("list[Json]", ready["addrs"])]
                    task_status.started()
                elif "event" in message:
                    name = str(message["event"])
                    self.details[name] = message
                    self.events.setdefault(name, trio.Event()).set()
                else:
                    number = int(cast("int", message["n"]))
                    self._answers.pop(number).send_nowait(message)


@asynccontextmanager
async def running_oracle(
    kind: str, folder: Path, listen: str, **roles: Json
) -> AsyncGenerator[Oracle]:
    """A peer of `kind` that ends with the block.

    Args:
        kind: which implementation.
        folder: where it is installed.
        listen: a multiaddr to listen at; empty for none.
        roles: what it does besides, see its `peer.*`.
    """
    program, *arguments = COMMANDS[kind]
    command = [str(folder / program), *arguments, listen]
    if roles:
        command.append(msgspec.json.encode(roles).decode())
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_process, command, folder)
        oracle = Oracle(process)
        await nursery.start(oracle.read)
        yield oracle
        nursery.cancel_scope.cancel()


async def _process(
    command: list[str], folder: Path, *, task_status: trio.TaskStatus[trio.Process]
) -> None:
    """Run until cancelled; then it is killed. Its stderr is the test's."""
    await trio.run_process(
        command,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        check=False,
        deliver_cancel=_kill,
        task_status=task_status,
    )


async def _kill(process: trio.Process) -> None:
    process.kill()  # trio waits for it then
