"""One of the demo's machines: a real daemon process with a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, TypeVar

import trio

from daemon.client import LocalClient

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.json_types import Json

T = TypeVar("T")

KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TERM", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
"""The rest of the viewer's environment stays out: an agent's marks there would change who asks."""


class CommandFailed(Exception):
    """A `covey` command did not succeed."""


class Machine:
    """A home folder with a daemon.

    Args:
        name: what its device is called.
        home: its folder.
        settings: of its daemon, as environment variables.
    """

    def __init__(self, name: str, home: Path, **settings: str) -> None:
        self.name = name
        self.home = home
        self.env = {key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ}
        self.env |= {
            "HOME": str(home),
            "COVEY_HOME": str(home),
            "COVEY_NODE__NAME": name,
            "COVEY_P2P__PRESET": "test",
            **settings,
        }

    async def covey(self, *words: str) -> str:
        """Run a command as a person would; its output.

        Raises:
            CommandFailed: with what it printed.
        """
        done = await trio.run_process(
            [sys.executable, "-P", "-m", "daemon", *words],
            env=self.env,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise CommandFailed(f"covey {words[0]} on {self.name}: {said}")
        return done.stdout.decode()

    async def covey_json(self, *words: str) -> dict[str, Json]:
        """Run a command with --json; the object it printed."""
        answer = json.loads(await self.covey(*words, "--json"))
        return answer if isinstance(answer, dict) else {"result": answer}

    def _lock(self) -> dict[str, Json]:
        found = json.loads((self.home / "state" / "lock").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        return int(str(self._lock()["pid"]))

    async def connect(self, **hello: Json) -> LocalClient:
        """A connection to its socket."""
        return await LocalClient.connect(str(self._lock()["socket"]), **hello)

    def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        os.kill(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End the daemon, if there is one."""
        await trio.run_process(
            [sys.executable, "-P", "-m", "daemon", "down", "--now"],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
