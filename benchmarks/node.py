"""A real daemon in a folder of its own, for the time of a measurement."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

from benchmarks.processes import ROOT, python

if TYPE_CHECKING:
    from collections.abc import Sequence

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

# What an agent's or a desktop's environment could leak into the daemon under measurement.
CLEAN = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ}


class DaemonUnderTest:
    """`covey up` in a temporary home; its commands, its process id, a raw client socket.

    Args:
        settings: environment variables such as `COVEY_P2P__LISTEN`.
    """

    def __init__(self, **settings: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="covey-bench-"))
        self.env = {
            **CLEAN,
            "HOME": str(self.home),
            "COVEY_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "COVEY_P2P__PRESET": "test",
            **settings,
        }
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self.covey("up")
        self.pid = int(json.loads((self.home / "state" / "lock").read_text())["pid"])

    def argv(self, *words: str) -> list[str]:
        """The command line of a `covey` command."""
        return [python(), "-m", "daemon", *words]

    def covey(self, *words: str) -> str:
        """Run a command and return its output."""
        done = subprocess.run(
            self.argv(*words), env=self.env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"covey {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    @property
    def socket_path(self) -> str:
        """Where it listens."""
        return str(json.loads((self.home / "state" / "lock").read_text())["socket"])

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.covey("down", "--now")
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingClient:
    """A blocking JSON-RPC client without conveniences, so that it costs little itself."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(path)
        self._lines = self._sock.makefile("rb")
        self._id = 0
        self.call("rpc.hello", {"client": "benchmark", "api": [1, 0]})

    def call(self, method: str, params: Json) -> Json:
        """One call; its result."""
        return self.call_all([(method, params)])[0]

    def call_all(self, calls: Sequence[tuple[str, Json]]) -> list[Json]:
        """Several calls under way at once; their results in the order of the calls.

        Raises:
            RuntimeError: one of them failed.
        """
        first = self._id + 1
        self._id += len(calls)
        requests = (
            {"jsonrpc": "2.0", "id": first + at, "method": method, "params": params}
            for at, (method, params) in enumerate(calls)
        )
        self._sock.sendall(b"".join(json.dumps(one).encode() + b"\n" for one in requests))
        results: dict[int, Json] = {}
        while len(results) < len(calls):
            answer = json.loads(self._lines.readline())
            number = answer.get("id")
            if number is None or not first <= number <= self._id:
                continue
            if "error" in answer:
                raise RuntimeError(f"{calls[number - first][0]}: {answer['error']}")
            results[number] = answer["result"]
        return [results[number] for number in range(first, self._id + 1)]

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._sock.close()
