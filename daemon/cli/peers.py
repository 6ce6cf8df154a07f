"""`covey peers`: the other machines."""

from __future__ import annotations

import time

from daemon.cli import out
from daemon.cli.memory import connect
from daemon.cli.options import add_verb
from daemon.cli.status import peer_line

PING_EVERY_S = 0.2
"""Between two pings: enough for a person to see a change, not a load."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json


def configure_peers(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey peers`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_verb(verbs, "list", "list them (also without a verb)")
    add_verb(verbs, "pending", "who asks to join")
    for verb, text in (("accept", "let one in"), ("reject", "refuse one")):
        sub = add_verb(verbs, verb, text)
        sub.add_argument("join", help="id of the request, or its beginning")
    sub = add_verb(verbs, "rename", "call one something else on this machine")
    sub.add_argument("peer", help="name, id or its ending")
    sub.add_argument("name", help="empty for its own name")
    sub = add_verb(verbs, "ping", "measure the way to one")
    sub.add_argument("peer", help="name, id or its ending")
    add_verb(verbs, "pause", "work offline: close all connections")
    add_verb(verbs, "resume", "connect again")
    parser.epilog = (
        "examples:\n  covey peers\n  covey peers list --json\n  covey peers pending\n"
        "  covey peers accept 5c1e\n  covey peers reject 5c1e\n"
        "  covey peers rename …7R3pq desk\n  covey peers ping desk\n"
        "  covey peers pause\n  covey peers resume"
    )


def configure_ping(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey ping`."""
    parser.add_argument("peer", help="name, id or its ending")
    parser.add_argument(
        "-c", "--count", type=int, default=4, metavar="N", help="how often (default 4)"
    )
    parser.epilog = "examples:\n  covey ping desk\n  covey ping desk -c 1 --json"


def run_ping(args: argparse.Namespace) -> int:
    """Measure the way to a machine and say how it is reached."""
    client = connect(args)
    pongs: list[dict[str, Json]] = []
    for number in range(max(1, args.count)):
        if number:
            time.sleep(PING_EVERY_S)
        pong = out.mapping(client.call("peers.ping", {"peer": args.peer}))
        pongs.append(pong)
        if not args.json and not args.quiet:
            ms, path = out.number(pong.get("ms")), out.text(pong.get("path"))
            out.say(f"{out.text(pong.get('name'))} answered in {ms:.1f} ms ({path})")
    times = [out.number(pong.get("ms")) for pong in pongs]
    if args.json:
        listed: list[Json] = list(pongs)
        out.say_json({"pongs": listed, "min_ms": min(times), "max_ms": max(times)})
    elif len(times) > 1 or args.quiet:
        mean = sum(times) / len(times)
        out.say(f"min {min(times):.1f} ms, mean {mean:.1f} ms, max {max(times):.1f} ms")
    return 0


def run_peers(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    method, params = _request(verb, args)
    result = connect(args).call(method, params)
    if args.json:
        out.say_json(result)
        return 0
    match verb:
        case "list":
            _say_list(out.rows(result))
        case "pending":
            _say_pending(out.rows(result))
        case "ping":
            pong = out.mapping(result)
            ms, path = out.number(pong.get("ms")), out.text(pong.get("path"))
            out.say(f"{out.text(pong.get('name'))} answered in {ms:.1f} ms ({path})")
        case "rename":
            out.say(f"now called {out.text(out.mapping(result).get('name'))}")
        case "pause" | "resume":
            paused = out.mapping(result).get("paused")
            out.say("working offline" if paused else "connecting to the other machines")
        case _:
            out.say(out.text(out.mapping(result).get("outcome")))
    return 0


def _request(verb: str, args: argparse.Namespace) -> tuple[str, dict[str, Json]]:
    if verb in {"pause", "resume"}:
        return f"net.{verb}", {}
    fields = {
        "accept": ["join"],
        "reject": ["join"],
        "rename": ["peer", "name"],
        "ping": ["peer"],
    }.get(verb, [])
    return f"peers.{verb}", {field: getattr(args, field) for field in fields}


def _say_list(peers: list[dict[str, Json]]) -> None:
    now_ms = time.time_ns() / 1e6
    for peer in peers:
        out.say(peer_line(peer, now_ms))
    if not peers:
        out.note("no other machine yet: `covey invite` makes a ticket for one")


def _say_pending(pending: list[dict[str, Json]]) -> None:
    for one in pending:
        words = one.get("check_words")
        shown = " ".join(map(str, words)) if isinstance(words, list) else ""
        out.say(
            f"{out.text(one.get('join'))[:8]}  …{out.text(one.get('peer_id'))[-8:]}"
            f"  {out.text(one.get('group'))} ({out.text(one.get('role'))})  {out.clean(shown)}"
        )
    if pending:
        out.note("compare the words with the other screen, then: covey peers accept ID")
    else:
        out.note("nobody asks to join")
