"""Starting a daemon in the background and waiting until it says that it is ready.

We listen on a notify socket of our own, as systemd would (sd_notify(3)). Whoever loses the race of
two starts gets exit code 6 from its child, which is fine: a daemon is there.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time

from daemon.cli.client import CliError
from daemon.paths import PathsError, make_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.paths import Paths

READY_S = 60.0
"""Longest wait for READY: a large migration may take a while; it reports as it goes."""

ALREADY = 6

# Parts of names of variables that hold secrets; agents redact the same ones.
SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSW", "CREDENTIAL")


def start_daemon(paths: Paths, extra: tuple[str, ...] = ()) -> bool:
    """Start `covey up --foreground` in a session of its own.

    Args:
        paths: of the node.
        extra: more arguments for it.

    Returns:
        Whether we started it; False if another one was there first.

    Raises:
        CliError: it did not come up; with its own words and exit code.
    """
    try:
        make_private(os.path.dirname(paths.socket))
        make_private(paths.logs)
    except PathsError as error:
        raise CliError(str(error), 78, name="configuration") from None
    address = os.path.join(os.path.dirname(paths.socket), f"n{os.getpid()}.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        if os.path.exists(address):
            os.unlink(address)
        before = os.umask(0o177)
        try:
            ready.bind(address)
        finally:
            os.umask(before)
        try:
            return _spawn_and_wait(paths, extra, ready, address)
        finally:
            os.unlink(address)


def _spawn_and_wait(
    paths: Paths, extra: tuple[str, ...], ready: socket.socket, address: str
) -> bool:
    environ = {name: value for name, value in os.environ.items() if not _stays_here(name)}
    environ["NOTIFY_SOCKET"] = address
    fd = os.open(paths.start_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # -P: the folder we are started in may be anybody's; its files must not be imported.
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "daemon", "up", "--foreground", *extra],
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            env=environ,
            start_new_session=True,
            close_fds=True,
        )
    finally:
        os.close(fd)
    deadline = time.monotonic() + READY_S  # noqa: TID251 - no Env in this process
    while time.monotonic() < deadline:  # noqa: TID251 - no Env in this process
        if select.select([ready], [], [], 0.05)[0] and b"READY=1" in ready.recv(4096):
            return True
        code = child.poll()
        if code == ALREADY:
            return False
        if code is not None:
            raise _failed(paths, code)
    raise CliError(
        f"the daemon did not get ready in {READY_S:.0f} s",
        75,
        remedy=f"Look at {paths.log_file}; it may still come up.",
    )


def _stays_here(name: str) -> bool:
    """Whether a variable is ours alone: of our service manager, or likely a secret.

    The daemon lives on for weeks after whoever started it, often an agent with its token and the
    keys of its model in the environment. It needs none of them.
    """
    ours = {"WATCHDOG_USEC", "JOURNAL_STREAM", "LISTEN_FDS"}
    if name in ours | {"COVEY_AGENT", "COVEY_GRANT", "COVEY_TICKET"}:
        return True
    return not name.startswith("COVEY_") and any(word in name.upper() for word in SECRET_WORDS)


def _failed(paths: Paths, code: int) -> CliError:
    try:
        with open(paths.start_log, encoding="utf-8", errors="replace") as file:
            words = file.read()[-2000:].strip()
    except OSError:
        words = ""
    message = words.removeprefix("covey: ") or f"the daemon ended with code {code}"
    exit_code = code if code in {70, 75, 77, 78} else 70
    return CliError(
        message,
        exit_code,
        name={78: "configuration", 77: "locked"}.get(exit_code, "internal"),
        remedy="" if exit_code in {77, 78} else f"Look at {paths.log_file}.",
    )
