"""Whole daemons for tests: real processes, in folders and an environment of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from daemon.json_types import Json

ROOT = Path(__file__).resolve().parents[2]
COVEY = (sys.executable, "-P", "-m", "daemon")
LIMIT_S = 40.0
"""Ends a hang, decides nothing."""

# Loopback alone, a free port each, drawn once and kept, as on a person's machines: without it a
# daemon that was killed comes back at an address that nobody knows, and if all others did so, too,
# none finds it. No embedder: loading it takes .3 s and 150 MB in each; a test of it asks for it.
CONFIG = """\
[p2p]
preset = "test"
listen = ["/ip4/127.0.0.1/tcp/0"]
draw_port = true

[memory]
embedder = "none"
"""


class Home:
    """One node: its folder, its command line, its daemon.

    Args:
        folder: holds `config.toml`, `state` and `run`.
        name: shown name of the device.
    """

    def __init__(self, folder: Path, name: str = "node") -> None:
        self.folder = folder
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(f'[node]\nname = "{name}"\n{CONFIG}')
        self.work = folder / "work"
        self.work.mkdir(exist_ok=True)

    @property
    def environ(self) -> dict[str, str]:
        """As bare as `env -i`, but for what finds the code and this home."""
        return {
            "COVEY_HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),
        }

    def run(
        self, *words: str, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*COVEY, *words],
            env={**self.environ, **(env or {})},
            cwd=self.work,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def ok(self, *words: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run a command that must succeed; its output."""
        done = self.run(*words, stdin=stdin, env=env)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def popen(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Begin a command; the caller waits for it."""
        return subprocess.Popen(
            [*COVEY, *words],
            env={**self.environ, **(env or {})},
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *words: str, env: Mapping[str, str] | None = None) -> Json:
        """Run a command with --json; its result."""
        return cast("Json", json.loads(self.ok(*words, "--json", env=env)))

    def up(self, **env: str) -> int:
        """Start the daemon; its process id."""
        status = self.json("up", env=env)
        assert isinstance(status, dict)
        inner = status["status"]
        assert isinstance(inner, dict)
        return int(str(inner["pid"]))

    @property
    def pid(self) -> int | None:
        """Process id of the daemon that holds the lock, None if it is gone."""
        try:
            found = json.loads((self.folder / "state" / "lock").read_text())
        except (OSError, ValueError):
            return None
        pid = int(found["pid"])
        return pid if alive(pid) else None

    def kill(self) -> None:
        """SIGKILL the daemon and wait until it is gone."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_gone(pid)

    def stop(self) -> None:
        """End whatever runs here, kindly first."""
        if self.pid is None:
            return
        self.run("down", "--now")
        self.kill()

    def log(self) -> list[dict[str, object]]:
        """The daemon's log, decoded."""
        path = self.folder / "state" / "logs" / "covey.log"
        # What stands behind the last newline is still being written.
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

    def log_text(self) -> str:
        """The daemon's log as it stands in the file."""
        return (self.folder / "state" / "logs" / "covey.log").read_text()

    def texts(self, query: str, *more: str) -> list[str]:
        """Texts that a recall finds."""
        found = self.json("recall", query, *more)
        assert isinstance(found, dict)
        hits = found["hits"]
        assert isinstance(hits, list)
        return [str(cast("dict[str, Json]", hit)["text"]) for hit in hits]


@contextmanager
def joined_homes(folder: Path, *names: str) -> Iterator[tuple[Home, ...]]:
    """Running daemons that the first one invited and is connected with; stopped at the end."""
    homes = tuple(Home(folder / name, name) for name in names)
    try:
        for home in homes:
            home.up()
        for home in homes[1:]:
            ticket = cast("dict[str, Json]", homes[0].json("invite"))["ticket"]
            home.ok("join", str(ticket), "--yes")
        wait_until("all are connected", lambda: connected_peers(homes[0]) == len(homes) - 1)
        yield homes
    finally:
        for home in homes:
            home.stop()


def connected_peers(home: Home) -> int:
    """How many others a daemon is connected with."""
    peers = cast("list[dict[str, Json]]", home.json("rpc", "peers.list", "{}"))
    return sum(1 for peer in peers if peer.get("connected") or peer.get("path"))


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_gone(pid: int) -> None:
    """Until the process has ended."""
    limit = time.monotonic() + LIMIT_S
    while alive(pid):
        assert time.monotonic() < limit, f"process {pid} does not end"
        time.sleep(0.005)


def wait_until(what: str, check: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Until `check()` is true; rows and files of other processes have no event to wait for."""
    limit = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < limit, f"never happened: {what}"
        time.sleep(0.02)


__all__ = ["CONFIG", "COVEY", "Home", "alive", "wait_gone", "wait_until"]
