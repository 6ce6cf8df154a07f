"""Several machines on this one: a real daemon each, in temporary homes, for the other examples.

    with machines("desk", "attic", programs=["facts@1"]) as (desk, attic):
        with desk.jobs() as jobs: ...

The first invites the others; on real machines you do that once, with `covey invite` and
`covey join`. Everything is removed at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from daemon.job_client import BlockingJobs

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
SETTINGS = """\
[node]
name = "{name}"

[p2p]
preset = "test"                     # loopback only; leave it out on real machines
listen = ["/ip4/127.0.0.1/tcp/0"]

[memory]
embedder = "none"

{more}
"""


class Machine:
    """A home folder with a daemon; `settings` is more of its config.toml."""

    def __init__(self, name: str, home: Path, settings: str = "") -> None:
        self.name = name
        self.home = home
        home.mkdir()
        (home / "config.toml").write_text(SETTINGS.format(name=name, more=settings))
        self.environ = {key: os.environ[key] for key in KEPT if key in os.environ}
        self.environ |= {"HOME": str(home), "COVEY_HOME": str(home)}

    def start(self, *words: str) -> subprocess.Popen:
        """Begin a `covey` command."""
        command = [sys.executable, "-P", "-m", "daemon", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environ, stdout=pipe, stderr=pipe, text=True)

    def covey(self, *words: str) -> str:
        """Run a `covey` command as you would; what it printed."""
        return finished(self.start(*words))

    def jobs(self) -> BlockingJobs:
        """A client of this machine's daemon."""
        return BlockingJobs.open(str(self.home / "run" / "daemon.sock"))

    def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        os.kill(json.loads((self.home / "state" / "lock").read_text())["pid"], signal.SIGKILL)


def finished(process: subprocess.Popen) -> str:
    """Wait for a command that must succeed; what it printed."""
    said, problem = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(process.args[4:])}: {said}{problem}")
    return said


def connected_to(host: Machine) -> set[str]:
    """Names of the machines that a machine is connected to."""
    return {peer["name"] for peer in json.loads(host.covey("peers", "--json")) if peer["connected"]}


@contextmanager
def machines(*names: str, settings=None, group: str = ""):
    """Start machines and let the others join the first.

    Args:
        names: of the machines.
        settings: more of config.toml: a text for all, or {name: text}.
        group: join only this group, as other people's machines would; empty: they are all yours.
    """
    with tempfile.TemporaryDirectory(prefix="covey-") as folder:
        each = settings if isinstance(settings, dict) else dict.fromkeys(names, settings or "")
        made = [Machine(name, Path(folder) / name, each.get(name, "")) for name in names]
        try:
            for starting in [machine.start("up") for machine in made]:
                finished(starting)
            host = made[0]
            if group:
                host.covey("group", "create", group)
            for guest in made[1:]:
                into = ("--group", group) if group else ()
                ticket = host.covey("invite", "--no-wait", "--quiet", *into).strip()
                guest.covey("join", ticket, "--yes")
            while not {guest.name for guest in made[1:]} <= connected_to(host):
                time.sleep(0.1)  # names travel as notes do
            yield made
        finally:
            for stopping in [machine.start("down", "--now") for machine in made]:
                stopping.communicate()
