"""Subjects of a benchmark as processes: started, asked over a pipe, charged for their CPU time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Answer: TypeAlias = "dict[str, float]"

ROOT = Path(__file__).resolve().parent.parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far (`/proc/PID/stat`, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def private_mb(pid: int) -> float:
    """Private memory of a process in MB: what ends with it."""
    kib = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_"):
            kib += int(line.split()[1])
    return kib * 1024 / 1e6


def rss_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


class Subject:
    """A process that prints a ready line and answers one JSON line a command.

    Args:
        argv: the command; its first output line is the ready line.
        env: extra environment variables.
    """

    def __init__(self, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._proc = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self.ready = self._line()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._proc.pid

    def _line(self) -> str:
        assert self._proc.stdout is not None
        line = self._proc.stdout.readline().decode()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self._proc.args} ended: {self._log.read().decode()[-2000:]}")
        return line.strip()

    def ask(self, *words: object) -> Answer:
        """Send one command line, wait for its answer."""
        assert self._proc.stdin is not None
        self._proc.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self._proc.stdin.flush()
        answer: Answer = json.loads(self._line())
        return answer

    def close(self) -> None:
        """End the process."""
        self._proc.kill()
        self._proc.wait()
        for pipe in (self._proc.stdin, self._proc.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pair:
    """A server and a client of one stack, and the CPU time of both."""

    def __init__(self, server: Sequence[str], client: Sequence[str]) -> None:
        self.server = Subject(server)
        try:
            self.client = Subject([*client, *self.server.ready.split()])
        except BaseException:
            self.server.close()
            raise

    def ask(self, *words: object) -> Answer:
        """Have the client do something; the answer gains `cpu_s` of both processes."""
        before = cpu_s(self.server.pid) + cpu_s(self.client.pid)
        answer = self.client.ask(*words)
        answer["cpu_s"] = cpu_s(self.server.pid) + cpu_s(self.client.pid) - before
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()


def python() -> str:
    """The interpreter that runs Covey."""
    return sys.executable
