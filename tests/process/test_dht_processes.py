"""Twenty real processes over loopback: every get succeeds after a quarter of them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from p2p.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
COUNT = 20
KILLED = 5
TABLE_MIN = 12
"""Nodes each must know before anything is stored: more than half of all."""


class Member:
    """A process that hosts a node."""

    def __init__(self, number: int, process: trio.Process) -> None:
        self.number = number
        self.owner = Identity.from_seed(number.to_bytes(4, "big") * 8).id.hex()
        self.process = process
        self._held = b""

    async def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        while b"\n" not in self._held:
            data = await self.process.stdout.receive_some()
            assert data, f"process {self.number} ended: {self.process.returncode}"
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line.decode()

    async def ask(self, *words: str) -> str:
        """Send a line and return its answer."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(" ".join(words).encode() + b"\n")
        return await self.line()


async def start(number: int, *bootstrap: str) -> tuple[Member, str]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.helpers.dht_process", str(number), *bootstrap],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    member = Member(number, process)
    word, addr = (await member.line()).split()
    assert word == "ready"
    return member, addr


async def all_join(members: list[Member]) -> None:
    for member in members:
        while int(await member.ask("size")) < TABLE_MIN:  # noqa: ASYNC110 - another process
            await trio.sleep(0.2)


async def play(stack: ExitStack) -> None:
    first, addr = await start(1)
    stack.callback(first.process.kill)
    members = [first]
    for number in range(2, COUNT + 1):
        member, _ = await start(number, addr)
        stack.callback(member.process.kill)
        members.append(member)
    await all_join(members)
    for member in members:
        acknowledged = await member.ask("put", f"n{member.number}", f"v{member.number}")
        assert int(acknowledged) >= TABLE_MIN
    # The one that all of them joined through is among the dead.
    for member in members[:KILLED]:
        member.process.kill()
        await member.process.wait()
    left = members[KILLED:]
    for number, owner in enumerate(members):
        asker = left[(number * 7 + 3) % len(left)]
        found = await asker.ask("get", owner.owner, f"n{owner.number}")
        assert found == f"v{owner.number}", f"{asker.number} asked for {owner.number}"
    for member in left:
        assert member.process.stdin is not None
        await member.process.stdin.aclose()
        assert await member.process.wait() == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_get_succeeds_after_a_quarter_of_twenty_processes_is_killed() -> None:
    with ExitStack() as stack:
        trio.run(play, stack)
