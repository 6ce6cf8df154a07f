"""`covey invite` and `covey join`: two machines become one memory.

Both sides print the same six check words after a join. Whoever compares them knows that nobody
stands between the machines.
"""

from __future__ import annotations

import os
import sys
import time

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.cli.client import Client
    from daemon.json_types import Json

TICKET_VARIABLE = "COVEY_TICKET"

TICKET_CHARS_MAX = 65_536
"""Read of standard input: the longest ticket has 4,096 characters, the rest is line breaks."""

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def duration(text: str) -> int:
    """`90`, `90s`, `10m`, `2h` or `7d` in seconds."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(digits) :] or "s"
    if not digits.isdigit() or unit not in _UNITS:
        raise ValueError(f"{text!r} is no duration such as 90s, 10m, 2h or 7d")
    return int(digits) * _UNITS[unit]


def configure_invite(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey invite`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    sub = add_verb(verbs, "list", "the invites there are, and what became of them")
    sub.add_argument("--of", metavar="GROUP", help="only of this group")
    sub = add_verb(verbs, "revoke", "let nobody in by it any more; who is in stays")
    sub.add_argument("invite", help="id or the beginning of one, as `covey invite list` shows it")
    parser.add_argument("--group", default="home", help="which group (default home)")
    parser.add_argument("--role", choices=["read", "write", "admin"], default="write")
    parser.add_argument("--uses", type=int, default=1, help="how many may join (default 1)")
    parser.add_argument("--expires", type=duration, default=600, metavar="TIME", help="such as 10m")
    parser.add_argument("--confirm", action="store_true", help="who joins waits for your accept")
    parser.add_argument("--qr", action="store_true", help="show the ticket as a QR code as well")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the other machine")
    parser.epilog = (
        "Whoever has the ticket can join: send it over a channel you trust.\n\n"
        "examples:\n  covey invite\n  covey invite --group team --role read --uses 5 --expires 1d\n"
        "  covey invite --qr\n  covey invite list\n  covey invite revoke 3f9a"
    )


def run_invite(args: argparse.Namespace) -> int:
    """Make a ticket and wait until it is used; or carry out the verb."""
    if args.verb is not None:
        return _list_or_revoke(args)
    client = connect(args)
    params: dict[str, Json] = {
        "group": args.group,
        "role": args.role,
        "uses": args.uses,
        "expires_s": args.expires,
        "confirm": args.confirm,
    }
    wait = not (args.no_wait or args.json)
    if wait:
        # Before the ticket exists, so that no join is missed.
        client.call("events.subscribe", {"topics": ["group"]})
    made = out.mapping(client.call("invite.create", params))
    if args.json:
        out.say_json(made)
        return 0
    if args.quiet:
        out.say(out.text(made.get("ticket")))
    else:
        _say_ticket(made, args.expires)
    if args.qr:
        _say_qr(out.text(made.get("ticket")))
    return _wait_for_joins(client, made, args) if wait else 0


def _say_ticket(made: dict[str, Json], expires_s: int) -> None:
    group, role = out.text(made.get("group")), out.text(made.get("role"))
    out.say(f"On the other machine, within {out.span(expires_s)} ({group}, {role}):")
    out.say()
    out.say(f"  covey join {out.text(made.get('ticket'))}")
    out.say()
    if made.get("confirm"):
        out.say("Whoever joins waits for you: `covey peers pending`, then `covey peers accept`.")


def _say_qr(ticket: str) -> None:
    """A QR code of half blocks, light on dark terminals too."""
    import segno

    segno.make(ticket, error="l").terminal(out=sys.stdout, compact=True)


def _list_or_revoke(args: argparse.Namespace) -> int:
    client = connect(args)
    if args.verb == "revoke":
        result = client.call("invite.revoke", {"invite": args.invite})
        if args.json:
            out.say_json(result)
        else:
            row = out.mapping(result)
            out.say(f"nobody joins {out.text(row.get('group'))} by that invite any more")
        return 0
    params: dict[str, Json] = {} if args.of is None else {"group": args.of}
    result = client.call("invite.list", params)
    if args.json:
        out.say_json(result)
        return 0
    rows = out.rows(result)
    lines = [
        [
            out.text(row.get("invite"))[:8],
            out.text(row.get("group")),
            out.text(row.get("role")),
            out.text(row.get("state")),
            f"{int(out.number(row.get('used')))} of {int(out.number(row.get('uses')))}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(out.number(row.get("not_after")))),
        ]
        for row in rows
    ]
    out.table(["id", "group", "role", "state", "used", "until"], lines)
    if not rows:
        out.note("no invite was made yet: `covey invite`")
    return 0


def _wait_for_joins(client: Client, made: dict[str, Json], args: argparse.Namespace) -> int:
    out.note("Waiting for the other machine (Ctrl-C ends the wait, not the invitation) ...")
    left = args.uses
    invite = out.text(made.get("invite"))
    try:
        for message in client.notifications():
            event = out.mapping(message.get("params"))
            data = out.mapping(event.get("data"))
            if message.get("method") != "event" or data.get("invite") not in {invite, None}:
                continue
            name = out.text(event.get("name"))
            if name == "group.member_joined":
                out.say(out.paint("Joined.", out.GREEN, out.BOLD))
                say_words(data.get("check_words"))
                left -= 1
            elif name == "group.join_pending":
                join = out.text(data.get("join"))[:8]
                out.say(f"A machine asks to join: `covey peers accept {join}` lets it in.")
                say_words(data.get("check_words"))
                left -= 1
            if left <= 0:
                return 0
    except KeyboardInterrupt:
        out.note("")
        return 0
    raise CliError("the daemon stopped; the ticket stays good once it runs again", 75)


def say_words(words: Json) -> None:
    """Print the check words."""
    if isinstance(words, str):
        words = list(words.split())
    if not isinstance(words, list) or not words:
        return
    shown = " ".join(out.text(word) for word in words)
    out.say(f"  check words: {out.paint(shown, out.CYAN, out.BOLD)}")
    out.note("  The other screen must show the same six; if not, somebody is in between.")


def configure_join(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey join`."""
    parser.add_argument(
        "ticket",
        nargs="*",
        help="what `covey invite` printed; `-` reads it from standard input, and without it"
        f" {TICKET_VARIABLE} is read",
    )
    parser.epilog = (
        "A ticket among the arguments stands in the list of processes and in the shell's history:\n"
        "on a machine that others use, give it by `covey join -` or in the environment.\n\n"
        "Joining a home makes this machine one of that person's own. The home that was here\n"
        "before stays on this machine under the name home-old.\n\n"
        "examples:\n  covey join COVEY1TCW4...\n  covey join - < ticket.txt"
    )


def _given_ticket(words: list[str]) -> str:
    """The ticket from the arguments, standard input or the environment."""
    # Taken out: a daemon that this command starts has no use for it.
    held = os.environ.pop(TICKET_VARIABLE, "")
    if words == ["-"]:
        if sys.stdin.isatty():
            out.note("Paste the ticket, then Ctrl-D:")
        held = sys.stdin.read(TICKET_CHARS_MAX)
    elif words:
        held = "".join(words)
    ticket = "".join(held.split())
    if not ticket:
        raise CliError(
            "no ticket was given",
            2,
            remedy=f"Give it as `covey join TICKET`, by `covey join -`, or in {TICKET_VARIABLE}.",
        )
    return ticket


def run_join(args: argparse.Namespace) -> int:
    """Join with a ticket."""
    ticket = _given_ticket(args.ticket)
    client = connect(args)
    info = out.mapping(client.call("invite.show", {"ticket": ticket}))
    if info.get("expired"):
        raise CliError(
            "the ticket is too old",
            6,
            name="invalid_state",
            remedy="Ask for a new one: `covey invite` on the other machine.",
        )
    name = out.text(info.get("name"))
    if name == "home" and not args.yes:
        question = (
            "This machine will become one of the inviter's own machines, and its notes will be"
            " shared with them. Join?"
        )
        if not sys.stdin.isatty():
            raise CliError(
                "joining a home needs your word",
                2,
                remedy="Repeat with --yes: this machine then counts as the inviter's own.",
            )
        if not out.confirm(question, yes=False):
            out.say("Nothing was changed.")
            return 0
    started = time.monotonic()  # noqa: TID251 - no Env in this process
    joined = out.mapping(client.call("invite.join", {"ticket": ticket}))
    if args.json:
        out.say_json(joined)
        return 0
    took = time.monotonic() - started  # noqa: TID251 - no Env in this process
    group = out.text(joined.get("name"))
    if joined.get("state") == "pending":
        out.say(f"Asked to join {out.paint(group, out.BOLD)}; the inviter must accept.")
    else:
        word = out.paint(f"Joined {group}", out.GREEN, out.BOLD)
        out.say(f"{word} in {took:.1f} s, invited by …{out.text(joined.get('inviter'))[-8:]}.")
    say_words(joined.get("check_words"))
    return 0
