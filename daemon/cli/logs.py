"""`covey logs, events, rpc`: looking closer."""

from __future__ import annotations

import json
import os
import sys
import time

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import connect
from daemon.paths import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from daemon.json_types import Json

_LEVEL = {"warning": out.YELLOW, "error": out.RED, "critical": out.RED}
_SHOWN = {"at_ms", "level", "log", "event", "traceback"}


def configure_logs(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey logs`."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    parser.add_argument("-n", "--lines", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--level", choices=["debug", "info", "warning", "error"], default="debug")
    parser.epilog = "examples:\n  covey logs -f --level warning\n  covey logs -n 500 --json"


def run_logs(args: argparse.Namespace) -> int:
    """Show the log; works without a daemon."""
    path = resolve().log_file
    lines = _last_lines(path, args.lines)
    if not lines and not os.path.exists(path):
        raise CliError(
            f"there is no log at {path}", 4, name="not_found", remedy="`covey up` makes the first."
        )
    for line in lines:
        _say_line(line, args)
    if args.follow:
        try:
            for line in _follow(path):
                _say_line(line, args)
                sys.stdout.flush()
        except KeyboardInterrupt:
            return 0
    return 0


def _last_lines(path: str, count: int) -> list[str]:
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 2**20))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _follow(path: str) -> Iterator[str]:
    """Lines as they are written, over rotations."""
    file = open(path, "rb")  # noqa: SIM115 - it is replaced at a rotation
    try:
        file.seek(0, os.SEEK_END)
        rest = b""
        while True:
            data = file.read(65536)
            if data:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace")
                continue
            time.sleep(0.2)
            try:
                moved = os.stat(path).st_ino != os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                moved = False
            if moved:
                file.close()
                file = open(path, "rb")  # noqa: SIM115 - see above
                rest = b""
    finally:
        file.close()


_ORDER = ["debug", "info", "warning", "error", "critical"]


def _say_line(line: str, args: argparse.Namespace) -> None:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        out.say(out.clean(line))
        return
    level = str(fields.get("level", "info"))
    if level in _ORDER and _ORDER.index(level) < _ORDER.index(args.level):
        return
    if args.json:
        out.say(line)
        return
    stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(out.number(fields.get("at_ms")) / 1000))
    rest = " ".join(f"{k}={_short(v)}" for k, v in fields.items() if k not in _SHOWN)
    word = out.paint(f"{level:<8}", _LEVEL.get(level, out.DIM))
    event = out.paint(out.text(fields.get("event")), out.BOLD)
    name = out.text(fields.get("log"))
    out.say(f"{out.paint(stamp, out.DIM)} {word}{name}: {event} {out.clean(rest)}")
    if fields.get("traceback"):
        for part in out.text(fields["traceback"]).splitlines():
            out.say(f"    {part}")


def _short(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def configure_events(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey events`."""
    parser.add_argument(
        "topic",
        nargs="*",
        help="memory, peer, group, sync, health, config, agent (default all but the last two)",
    )
    parser.epilog = "examples:\n  covey events\n  covey events memory peer --json"


def run_events(args: argparse.Namespace) -> int:
    """Show what happens as it happens."""
    client = connect(args)
    topics: list[Json] = list(args.topic) or ["memory", "peer", "group", "sync", "health"]
    client.call("events.subscribe", {"topics": topics})
    try:
        for message in client.notifications():
            event = out.mapping(message.get("params"))
            if args.json:
                out.say(json.dumps(event, ensure_ascii=False))
            elif message.get("method") == "event":
                at = time.localtime(out.number(event.get("at_ms")) / 1000)
                data = json.dumps(event.get("data"), ensure_ascii=False)
                name = out.paint(out.text(event.get("name")), out.BOLD)
                out.say(f"{time.strftime('%H:%M:%S', at)}  {name}  {out.clean(data)}")
            else:
                out.say(f"{event.get('from')} to {event.get('to')} were lost: we read too slowly")
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 0
    raise CliError("the daemon stopped", 75, name="draining")


def configure_rpc(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey rpc`."""
    parser.add_argument("method", help="such as daemon.status; rpc.discover describes all")
    parser.add_argument("params", nargs="?", default="{}", help="a JSON object; - reads it")
    parser.epilog = "examples:\n  covey rpc rpc.discover\n  covey rpc memory.list '{\"limit\": 3}'"


def run_rpc(args: argparse.Namespace) -> int:
    """Call any method and print its result as JSON."""
    text = sys.stdin.read() if args.params == "-" else args.params
    try:
        params = json.loads(text)
    except ValueError:
        params = None
    if not isinstance(params, dict):
        raise CliError("the params must be a JSON object", 2, remedy="Try: covey rpc METHOD '{}'")
    client = connect(args)

    def progress(done: int, total: int | None, message: str) -> None:
        out.note(f"{done}/{'?' if total is None else total} {out.clean(message)}")

    out.say_json(client.call(args.method, params, progress=progress))
    return 0
