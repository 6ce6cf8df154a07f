"""`covey status`: one screen about this machine."""

from __future__ import annotations

import time

from daemon.cli import out
from daemon.cli.client import NotRunning, open_client

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json

_HEALTH = {"ok": out.GREEN, "degraded": out.YELLOW, "failed": out.RED}


def configure_status(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own: it never starts a daemon."""
    parser.epilog = (
        "It does not start a daemon: exit code 3 says that none is running.\n\n"
        "examples:\n  covey status\n  covey status --json"
    )


def run_status(args: argparse.Namespace) -> int:
    """Show what this machine is, has and is connected to."""
    client = open_client(socket_path=args.socket, autostart=False, timeout_s=args.timeout)
    try:
        status = out.mapping(client.call("daemon.status"))
    except NotRunning:
        if args.json:
            out.say_json({"running": False})
        else:
            out.say(out.paint("Covey is not running.", out.YELLOW))
            out.note("  Start it with `covey up`.")
        return 3
    if args.json:
        out.say_json({"running": True, **status})
        return 0
    _head(status)
    _groups(out.rows(status.get("groups")))
    _peers(out.rows(status.get("peers")))
    _memory(out.mapping(status.get("memory")))
    _problems(out.rows(status.get("problems")))
    return 0


def _head(status: dict[str, Json]) -> None:
    health = out.text(status.get("health"))
    word = out.paint(health, _HEALTH.get(health, out.YELLOW), out.BOLD)
    name = out.paint(out.text(status.get("name")), out.BOLD)
    version = out.text(status.get("version"))
    up = out.span(out.number(status.get("uptime_s")))
    out.say(
        f"{name}  {word}  covey {version}, up {up}, process {int(out.number(status.get('pid')))}"
    )
    out.say(f"  id       {out.text(status.get('peer_id'))}")
    listen = status.get("listen")
    addresses = [out.text(one) for one in listen] if isinstance(listen, list) else []
    if status.get("paused"):
        out.say("  network  " + out.paint("paused (covey peers resume)", out.YELLOW))
    else:
        out.say(f"  listens  {'  '.join(addresses[:3]) or 'not yet'}")
    out.say(f"  agents   {int(out.number(status.get('agents')))} with a token")


def _groups(groups: list[dict[str, Json]]) -> None:
    out.say()
    out.say(out.paint("Groups", out.BOLD))
    for group in groups:
        name = out.text(group.get("name"))
        role = out.text(group.get("role")) or out.text(group.get("state"))
        others = int(out.number(group.get("members"))) - 1
        pending = int(out.number(group.get("pending")))
        what = "this machine alone" if others <= 0 else f"{others} other{'s' if others > 1 else ''}"
        wait = out.paint(f"  {pending} waiting: covey peers pending", out.YELLOW) if pending else ""
        out.say(f"  {name:<12} {role:<8} {what}{wait}")


def _peers(peers: list[dict[str, Json]]) -> None:
    out.say()
    out.say(out.paint("Other machines", out.BOLD))
    if not peers:
        out.say("  none yet: `covey invite` makes a ticket for one")
    now_ms = time.time_ns() / 1e6
    for peer in peers:
        out.say("  " + peer_line(peer, now_ms))


def peer_line(peer: dict[str, Json], now_ms: float) -> str:
    """A device on one line."""
    live = bool(peer.get("connected"))
    mark = out.paint("●", out.GREEN) if live else out.paint("○", out.DIM)
    rtt = peer.get("rtt_ms")
    way = out.text(peer.get("path")) + (f" {out.number(rtt):.0f} ms" if rtt is not None else "")
    state = way if live else "offline"
    if live:
        moved = out.number(peer.get("bytes_in")), out.number(peer.get("bytes_out"))
        since = out.span((now_ms - out.number(peer.get("since_ms"))) / 1000)
        state += f", {since}, ↓{out.size(moved[0])} ↑{out.size(moved[1])}"
    shared = out.mapping(peer.get("groups")).items()
    groups = ", ".join(f"{out.text(group)} ({out.text(role)})" for group, role in shared)
    synced = f"synced {out.ago(out.number(peer.get('synced_ms')), now_ms)}"
    problem = out.text(peer.get("problem"))
    tail = out.paint(f"  {out.one_line(problem, 60)}", out.YELLOW) if problem else ""
    name = out.one_line(out.text(peer.get("name")), 20)
    ending = out.text(peer.get("peer_id"))[-8:]
    return f"{mark} {name:<20} …{ending}  {state:<36} {synced:<18} {groups}{tail}"


def _memory(memory: dict[str, Json]) -> None:
    out.say()
    out.say(out.paint("Memory", out.BOLD))
    count = int(out.number(memory.get("memories")))
    size = out.size(out.number(memory.get("db_bytes")) + out.number(memory.get("wal_bytes")))
    out.say(f"  {count:,} memories in {int(out.number(memory.get('records'))):,} records, {size}")
    embedding = out.text(out.mapping(memory.get("embedding")).get("message"))
    if embedding:
        out.say(f"  {embedding}")
    for title, field in (("from", "by_origin"), ("in", "by_scope")):
        parts = sorted(
            out.mapping(memory.get(field)).items(), key=lambda item: -out.number(item[1])
        )
        if parts:
            shown = ", ".join(f"{out.text(k)} {int(out.number(n)):,}" for k, n in parts[:6])
            out.say(f"  {title} {shown}")
    _count("taken out", "secrets", out.mapping(memory.get("redactions")))
    _count("withheld", "hits", out.mapping(memory.get("withheld")))
    imperative = int(out.number(memory.get("imperative")))
    if imperative:
        out.say(f"  {imperative:,} speak to a model: others' are withheld until backed")


def _count(title: str, what: str, counts: dict[str, Json]) -> None:
    """Counts since the start on one line; nothing when all are none."""
    some = {key: int(out.number(n)) for key, n in counts.items() if out.number(n)}
    if some:
        listed = ", ".join(f"{out.text(key)} {n:,}" for key, n in sorted(some.items()))
        out.say(f"  {title} since the start: {what} {listed}")


def _problems(problems: list[dict[str, Json]]) -> None:
    if not problems:
        return
    out.say()
    out.say(out.paint("Problems", out.BOLD, out.YELLOW))
    for problem in problems:
        out.say(f"  {out.text(problem.get('name'))}: {out.text(problem.get('message'))}")
        if problem.get("remedy"):
            out.say(f"    {out.text(problem.get('remedy'))}")
