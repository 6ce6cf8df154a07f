"""Run the commands that a document shows, and compare what they print with what it says.

A block fenced as ```console holds a session: a line that starts with `$ ` is a command (continued
where it ends in a backslash), the lines after it are what it prints. `...` in an expected line
stands for anything, and an expected line `...` for any number of lines. A command without expected
lines may print what it likes. Every command must end with status 0. All blocks of a document run in
one shell, so that a variable set in one is there in the next.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_BLOCK: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One command of a document."""

    command: str
    expected: tuple[str, ...]
    """Lines it must print, `...` for what may vary; empty: anything."""


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    step: Step
    status: int
    output: str


def steps_of(markdown: str) -> list[Step]:
    """The commands of all console blocks, in order."""
    return [step for block in _BLOCK.findall(markdown) for step in _steps(block)]


def _steps(block: str) -> Iterator[Step]:
    command: list[str] = []
    expected: list[str] = []
    for line in block.splitlines():
        if command and command[-1].endswith("\\"):
            command.append(line)
        elif line.startswith("$ "):
            if command:
                yield Step("\n".join(command), tuple(expected))
            command, expected = [line[2:]], []
        elif command:
            expected.append(line)
    if command:
        while expected and not expected[-1].strip():
            expected.pop()
        yield Step("\n".join(command), tuple(expected))


def matches(expected: Sequence[str], output: str) -> bool:
    """Whether `output` is what a document says: `...` stands for anything within its place."""
    if not expected:
        return True
    patterns = []
    for line in expected:
        if line.strip() == "...":
            patterns.append(r"(?:[^\n]*\n)*?")
        else:
            parts = [re.escape(part) for part in line.rstrip().split("...")]
            patterns.append("[^\n]*?".join(parts) + r"[ \t]*\n")
    return re.fullmatch("".join(patterns), output.rstrip() + "\n") is not None


def run_steps(
    steps: Sequence[Step], *, folder: Path, env: Mapping[str, str], timeout_s: float
) -> list[Outcome]:
    """Run `steps` in one shell, in `folder`, with exactly `env`; stops at the first that fails.

    Args:
        steps: from `steps_of`.
        folder: working folder.
        env: the whole environment; nothing of this process's is inherited.
        timeout_s: limit for all together, only there to end a hang.
    """
    marker = "covey-tour-step-ended"
    script = "".join(
        f'{step.command}\nstatus=$?; echo "{marker} $status"; [ $status -eq 0 ] || exit 0\n'
        for step in steps
    )
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-s"],
        input=script,
        cwd=folder,
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    pieces = re.split(rf"^{marker} (\d+)\n", done.stdout, flags=re.MULTILINE)
    results = zip(steps, pieces[0::2], pieces[1::2], strict=False)
    return [Outcome(step, int(status), output) for step, output, status in results]


def check_document(
    markdown: str, *, folder: Path, env: Mapping[str, str], timeout_s: float = 50
) -> list[Outcome]:
    """Run a document's commands and demand that each does what the document says.

    Returns:
        What each command did, for further checks.

    Raises:
        AssertionError: names the command, what it should print and what it printed.
    """
    steps = steps_of(markdown)
    assert steps, "the document shows no command in a console block"
    outcomes = run_steps(steps, folder=folder, env=env, timeout_s=timeout_s)
    for outcome in outcomes:
        where = f"$ {outcome.step.command}\nprinted:\n{outcome.output}"
        assert outcome.status == 0, f"{where}\nand ended with status {outcome.status}"
        said = "\n".join(outcome.step.expected)
        assert matches(outcome.step.expected, outcome.output), f"{where}\nexpected:\n{said}"
    assert len(outcomes) == len(steps), f"{steps[len(outcomes)].command} did not end"
    return outcomes
