"""What the verbs of `covey fed` have alike: the data, whom to meet, and the wait for the others."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.fed_input import above_0, peer_count
from daemon.cli.memory import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json


def add_data(sub: argparse.ArgumentParser, text: str) -> None:
    """The file that this machine brings.

    Args:
        sub: of the verb.
        text: what the file holds.
    """
    sub.add_argument("file", help=f"{text}; `-`: standard input")
    sub.add_argument(
        "--column", metavar="NAME",
        help="column of CSV (name, or number from 1) or key of JSON Lines",
    )  # fmt: skip


def add_meeting(sub: argparse.ArgumentParser, *, named: bool = True) -> None:
    """Whom to meet, and how long to wait for them.

    Args:
        sub: of the verb.
        named: whether the meeting's name is an option; a model's is none.
    """
    if named:
        sub.add_argument("--name", default="", help="what it is about: only equal names meet")
    sub.add_argument("--group", metavar="NAME", help="whose machines (default: your own)")
    sub.add_argument(
        "--peers", type=peer_count, default=0, metavar="N", help="begin when N are there"
    )
    sub.add_argument(
        "--wait", type=above_0, default=60.0, metavar="S", help="how long to wait for others (60)"
    )


def meeting_of(args: argparse.Namespace) -> dict[str, Json]:
    """What `add_meeting` was given, as a method's parameters."""
    params: dict[str, Json] = {"name": args.name, "expected": args.peers, "wait_s": args.wait}
    if args.group is not None:
        params["group"] = args.group
    return params


def note_wait(args: argparse.Namespace) -> None:
    """Say what the command waits for, and what ends that."""
    if not args.quiet and not args.json:
        out.note("waiting for the other machines: run the same command there")


def ask_everybody(args: argparse.Namespace, method: str, params: dict[str, Json]) -> Json:
    """The answer of a method that waits until the other machines call it, too.

    Raises:
        CliError: nobody else asked, or why it cannot be asked.
    """
    note_wait(args)
    return connect(args).call(method, params)
