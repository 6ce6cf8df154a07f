"""`covey up, down, demo`: the daemon's life."""

from __future__ import annotations

import os
import sys
import time

from daemon.cli import out
from daemon.cli.client import (
    Client,
    CliError,
    NotRunning,
    open_client,
    socket_candidates,
    try_connect,
    wait_for_socket,
)
from daemon.paths import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json
    from daemon.paths import Paths

UP_TRIES = 3
"""Starts of one `covey up`, where what was found running ends at once."""

DOWN_S = 40.0
"""Longest wait for the end: the drain time, the mesh's goodbye and the last checkpoint."""

# Where the agents that we know keep their settings: shown after the first start.
CLIENTS = (
    ("Claude Code", "~/.claude.json", "claude-code"),
    ("Codex", "~/.codex/config.toml", "codex"),
    ("Cursor", "~/.cursor", "cursor"),
    ("Gemini CLI", "~/.gemini", "gemini"),
)


def configure_up(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey up`."""
    parser.add_argument("--foreground", action="store_true", help="be the daemon, in this process")
    _add_settings(parser)
    parser.epilog = "examples:\n  covey up\n  covey up --foreground --set log.level=debug"


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a setting for this run, such as log.level=debug; repeat for more",
    )


def run_up(args: argparse.Namespace) -> int:
    """Start the daemon, or be it."""
    paths = resolve()
    if args.foreground:
        from daemon.foreground import run_foreground

        return run_foreground(paths, args.set)
    first = not os.path.exists(paths.key)
    started, status = _up(paths, args)
    if args.json:
        out.say_json({"started": started, "first": first, "status": status})
        return 0
    word = "Covey is running" if started else "Covey was running already"
    name = out.text(status.get("name"))
    pid = int(out.number(status.get("pid")))
    out.say(
        f"{out.paint(word, out.GREEN, out.BOLD)} on {out.paint(name, out.BOLD)}, process {pid}."
    )
    if args.quiet:
        return 0
    out.say(f"  this machine   {out.text(status.get('peer_id'))}")
    _next_steps(status, first=first)
    return 0


def _up(paths: Paths, args: argparse.Namespace) -> tuple[bool, dict[str, Json]]:
    """Whether we started it, and the status of the daemon that runs now.

    One that answered and then ended before it could be asked (it was killed, or another start of
    it gave up) is started once more.
    """
    started = False
    for left in reversed(range(UP_TRIES)):
        started = _start(paths, args) or started
        try:
            return started, out.mapping(_client(args).call("daemon.status"))
        except NotRunning:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _start(paths: Paths, args: argparse.Namespace) -> bool:
    """Start a daemon unless one answers; whether we did."""
    sock = try_connect(socket_candidates(paths, os.environ, args.socket))
    if sock is not None:
        sock.close()
        if args.set:
            out.note("covey: the daemon runs already: --set has no effect; `covey down` first")
        return False
    from daemon.cli.start import start_daemon

    extra = tuple(word for flag in args.set for word in ("--set", flag))
    if start_daemon(paths, extra):
        return True
    # Somebody else's start won the race; it is ready when its socket answers.
    sock = wait_for_socket(socket_candidates(paths, os.environ, args.socket))
    if sock is not None:
        sock.close()
    return False


def _client(args: argparse.Namespace) -> Client:
    return open_client(socket_path=args.socket, autostart=False, timeout_s=args.timeout or 30.0)


def _next_steps(status: dict[str, Json], *, first: bool) -> None:
    peers = out.rows(status.get("peers"))
    connected = sum(bool(peer.get("connected")) for peer in peers)
    if peers:
        out.say(f"  other machines {connected} of {len(peers)} connected")
    for problem in out.rows(status.get("problems")):
        line = f"{out.text(problem.get('name'))}: {out.text(problem.get('message'))}"
        out.say("  " + out.paint(line, out.YELLOW))
        if problem.get("remedy"):
            out.say(f"    {out.text(problem.get('remedy'))}")
    memories = int(out.number(out.mapping(status.get("memory")).get("memories")))
    if not first and memories:
        out.say(f"  memories       {memories:,}")
        return
    out.say()
    out.say("What next:")
    out.say('  covey remember "..."   store a note; covey recall ... finds it')
    out.say("  covey invite           add another machine of yours")
    found = [(name, key) for name, path, key in CLIENTS if os.path.exists(os.path.expanduser(path))]
    for name, key in found:
        out.say(f"  covey connect {key:<12} let {name} use it")
    if not found:
        out.say(
            "  covey connect          which agents are here; covey connect CLIENT lets one use it"
        )


def configure_down(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey down`."""
    parser.add_argument("--now", action="store_true", help="do not wait for requests at work")
    parser.epilog = "examples:\n  covey down\n  covey down --now"


def run_down(args: argparse.Namespace) -> int:
    """Stop the daemon and wait until it is gone."""
    try:
        client = _client(args)
        result = out.mapping(client.call("daemon.stop", {"now": args.now}))
    except NotRunning:
        if args.json:
            out.say_json({"stopped": False})
        else:
            out.say("Covey was not running.")
        return 0
    pid = int(out.number(result.get("pid")))
    client.close()
    _wait_gone(pid)
    if args.json:
        out.say_json({"stopped": True, "pid": pid})
    else:
        out.say("Covey stopped.")
    return 0


def configure_restart(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey restart`."""
    configure_down(parser)
    _add_settings(parser)
    parser.epilog = "examples:\n  covey restart\n  covey restart --set log.level=debug"


def run_restart(args: argparse.Namespace) -> int:
    """Stop the daemon if one runs, then start one."""
    try:
        client = _client(args)
        pid = int(out.number(out.mapping(client.call("daemon.stop", {"now": args.now})).get("pid")))
        client.close()
        _wait_gone(pid)
    except NotRunning:
        pass
    args.foreground = False
    return run_up(args)


def _wait_gone(pid: int) -> None:
    """Until the process that held the state lock let it go."""
    import fcntl

    path = resolve().state_lock
    limit = time.monotonic() + DOWN_S  # noqa: TID251 - no Env in this process
    while time.monotonic() < limit:  # noqa: TID251 - no Env in this process
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            _wait_exit(pid)
            return
        finally:
            os.close(fd)
    raise CliError(
        f"process {pid} has not ended in {DOWN_S:.0f} s",
        75,
        remedy="Look at `covey logs`; `covey down --now` does not wait for requests.",
    )


def _wait_exit(pid: int) -> None:
    """A moment for the process itself: it lets the lock go as its last step but one."""
    for _ in range(50):
        if _exited(pid):
            return
        time.sleep(0.02)


def _exited(pid: int) -> bool:
    """Whether a process is gone, or dead and waiting for its parent to notice."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[:1] == ["Z"]
    except ProcessLookupError:
        return True
    except OSError:
        return not os.path.isdir("/proc/self")


def configure_demo(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey demo`."""
    parser.add_argument("--keep", action="store_true", help="leave the demo's folders")
    parser.epilog = "examples:\n  covey demo\n  covey demo --keep"


def run_demo(args: argparse.Namespace) -> int:
    """Show what Covey does, with three daemons on this machine."""
    from daemon.demo.main import main

    sys.stdout.flush()
    return main(keep=args.keep)
