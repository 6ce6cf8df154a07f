"""A node of its own in a temporary folder: its daemon, its relays, its end.

Nothing is inherited from the environment of the tests but the path and the repository.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from daemon.cli.client import Client, NotRunning, socket_candidates
from daemon.paths import resolve

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
COVEY = [sys.executable, "-P", "-m", "daemon"]


class Home:
    """One node's folder; a context manager that leaves no daemon behind."""

    def __init__(self, folder: Path, **extra: str) -> None:
        self.folder = folder
        self.paths = resolve({}, home=os.fspath(folder))
        self.environ = {
            "COVEY_HOME": os.fspath(folder),
            "HOME": os.fspath(folder),
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.fspath(ROOT),
            "LANG": "C.UTF-8",
            **extra,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def covey(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*COVEY, *words],
            env={**self.environ, **extra},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def up(self, **extra: str) -> None:
        """Start the daemon and wait until it is ready."""
        done = self.covey("up", **extra)
        assert done.returncode == 0, done.stderr

    def pid(self) -> int | None:
        """Process id of the running daemon, None when there is none."""
        try:
            found = json.loads(Path(self.paths.state_lock).read_text())["pid"]
            os.kill(found, 0)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cast("int", found)

    def kill(self) -> None:
        """kill -9, and wait until the kernel took it away."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # Readable when the process has ended (pidfd_open(2)).
            import select

            select.select([descriptor], [], [], 10)
        finally:
            os.close(descriptor)

    def client(self) -> Client:
        """The person's connection to the running daemon."""
        return Client(socket_candidates(self.paths, {}), timeout_s=30)

    def texts(self) -> list[str]:
        """Texts of all memories, newest first."""
        client = self.client()
        found: list[str] = []
        params: dict[str, object] = {"limit": 200}
        try:
            while True:
                page = cast("dict[str, object]", client.call("memory.list", params))  # type: ignore[arg-type]
                hits = cast("list[dict[str, str]]", page["hits"])
                found += [hit["text"] for hit in hits]
                if page["cursor"] is None:
                    return found
                params["cursor"] = page["cursor"]
        finally:
            client.close()

    def running(self) -> bool:
        """Whether a daemon answers."""
        client = self.client()
        try:
            client.connect()
        except NotRunning:
            return False
        client.close()
        return True

    def relay(self, *words: str, **extra: str) -> RelayProcess:
        """An agent's `covey mcp`."""
        environ = {"COVEY_AGENT": "tester", **self.environ, **extra}
        return RelayProcess([*COVEY, "mcp", *words], environ, self.folder)


class RelayProcess:
    """A relay as an agent sees it: lines in, lines out."""

    def __init__(self, command: list[str], environ: dict[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            command,
            env=environ,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to = self._process.stdin
        self._from = self._process.stdout

    def put(self, *messages: object) -> None:
        """Send messages (bytes as they are)."""
        for message in messages:
            if isinstance(message, bytes):
                self._to.write(message)
            else:
                self._to.write(json.dumps(message).encode() + b"\n")
        self._to.flush()

    def take(self) -> dict[str, object]:
        """The next message."""
        line = self._from.readline()
        assert line, "the relay ended"
        return cast("dict[str, object]", json.loads(line))

    def ask(self, message: dict[str, object]) -> dict[str, object]:
        """Send a request and wait for its answer."""
        self.put(message)
        answer = self.take()
        while answer.get("id") != message["id"]:
            answer = self.take()
        return answer

    def close(self) -> tuple[int, bytes]:
        """Close the input; exit code and standard error."""
        self._to.close()
        code = self._process.wait(15)
        assert self._process.stderr is not None
        errors = self._process.stderr.read()
        self._from.close()
        self._process.stderr.close()
        return code, errors
