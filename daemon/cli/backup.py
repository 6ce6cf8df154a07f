"""`covey backup`: copies of this machine's state."""

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

    from daemon.json_types import Json

PASSPHRASE_VARIABLE = "COVEY_PASSPHRASE"  # noqa: S105 - the name of a variable


def configure_backup(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey backup`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    sub = add_verb(verbs, "create", "make one now (also without a verb)")
    sub.add_argument(
        "--with-key", action="store_true", help="with the device key, sealed under a passphrase"
    )
    add_verb(verbs, "list", "those there are, newest first")
    sub = add_verb(verbs, "verify", "check one against its manifest")
    sub.add_argument("name", help="its name, or `latest`")
    sub = add_verb(verbs, "prune", "remove all but the newest")
    sub.add_argument("--keep", type=int, metavar="N", help="how many stay (setting backup.keep)")
    parser.epilog = (
        f"The passphrase is asked for, or taken from {PASSPHRASE_VARIABLE}.\n\n"
        "examples:\n  covey backup\n  covey backup create --with-key\n  covey backup list\n"
        "  covey backup verify latest\n  covey backup prune --keep 3"
    )


def run_backup(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "create"
    if verb == "create":
        return _create(args)
    if verb == "list":
        return _list(args)
    params: dict[str, Json] = {}
    if verb == "verify":
        params["name"] = _newest(args) if args.name == "latest" else args.name
    elif args.keep is not None:
        params["keep"] = args.keep
    result = connect(args).call(f"backup.{verb}", params)
    if args.json:
        out.say_json(result)
    elif verb == "verify":
        found = out.mapping(result)
        out.say(f"{out.text(found.get('name'))} is whole: {_contents(found)}")
        if remark := _remark(found):
            out.note(f"  {remark}")
    else:
        gone = out.mapping(result).get("removed")
        names = [out.text(name) for name in gone] if isinstance(gone, list) else []
        out.say("\n".join(f"removed {name}" for name in names) or "nothing to remove")
    return 0


def _newest(args: argparse.Namespace) -> str:
    """The name that `latest` stands for, as in `covey restore latest`."""
    listed = out.rows(connect(args).call("backup.list"))
    if not listed:
        raise CliError("there is no backup yet", 4, remedy="`covey backup` makes one.")
    return out.text(listed[0].get("name"))


def _create(args: argparse.Namespace) -> int:
    params: dict[str, Json] = {}
    if getattr(args, "with_key", False):
        params = {"with_key": True, "passphrase": ask_passphrase(twice=True)}
    meter = Meter(quiet=args.quiet or args.json)
    try:
        made = out.mapping(connect(args).call("backup.create", params, progress=meter))
    finally:
        meter.clear()
    if args.json:
        out.say_json(made)
        return 0
    out.say(f"backup {out.paint(out.text(made.get('name')), out.BOLD)}: {_contents(made)}")
    if args.quiet:
        return 0
    out.say(f"  {out.text(made.get('path'))}")
    if made.get("outside"):
        out.note("  it lies outside of the state folder: an erasure does not reach it")
    if not made.get("with_key"):
        out.note("  the device key is not in it: keep state/key, or use --with-key")
    return 0


def _contents(found: dict[str, Json]) -> str:
    memories = int(out.number(found.get("memories")))
    return f"{memories:,} memories, {out.size(out.number(found.get('bytes')))}"


def _list(args: argparse.Namespace) -> int:
    found = out.rows(connect(args).call("backup.list"))
    if args.json:
        listed: list[Json] = list(found)
        out.say_json(listed)
        return 0
    now_ms = time.time_ns() / 1e6
    lines = [
        [
            out.text(row.get("name")),
            out.ago(out.number(row.get("created_ms")), now_ms),
            f"{int(out.number(row.get('memories'))):,}",
            out.size(out.number(row.get("bytes"))),
            "yes" if row.get("with_key") else "",
            _remark(row),
        ]
        for row in found
    ]
    out.table(["name", "made", "memories", "size", "key", "remark"], lines)
    if not found:
        out.note("no backup yet: `covey backup` makes one")
    return 0


def _remark(row: dict[str, Json]) -> str:
    if row.get("problem"):
        return out.text(row.get("problem"))
    erased = int(out.number(row.get("erased_since")))
    if not erased:
        return ""
    groups = out.rows(row.get("erased_in"))
    readable = sum(int(out.number(one.get("readable"))) for one in groups)
    where = f"{readable:,} still readable in it: delete it" if readable else "unreadable in it"
    return f"older than an erasure: {_by_group(groups)}, {where}"


def _by_group(groups: list[dict[str, Json]]) -> str:
    """As `3 of team, 1 of home`."""
    return ", ".join(
        f"{int(out.number(one.get('records'))):,} of {out.text(one.get('group'))}" for one in groups
    )


def configure_restore(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey restore`."""
    parser.add_argument("backup", help="its name, a folder's path, or `latest`")
    parser.add_argument(
        "--with-key", action="store_true", help="put the device key of the backup in place too"
    )
    parser.epilog = (
        "Stop the daemon first. The state as it is now is put aside, not deleted.\n\n"
        "examples:\n  covey restore latest\n  covey restore /media/usb/2026-11-25T10-00-00Z"
    )


def run_restore(args: argparse.Namespace) -> int:
    """Put a backup in the place of the state."""
    from daemon.restore_here import restore_here

    passphrase = ask_passphrase(twice=False) if args.with_key else ""
    meter = Meter(quiet=args.quiet or args.json)
    try:
        done = restore_here(args.backup, passphrase, meter)
    finally:
        meter.clear()
    if args.json:
        out.say_json(done)
        return 0
    memories = int(out.number(done.get("memories")))
    out.say(f"restored {out.paint(out.text(done.get('backup')), out.BOLD)}: {memories:,} memories")
    erased = int(out.number(done.get("erased_again")))
    if erased:
        groups = _by_group(out.rows(done.get("erased_in")))
        out.say(f"  {erased:,} records that were erased since stay erased: {groups}")
    sealed = int(out.number(done.get("sealed")))
    if sealed:
        out.say(f"  {sealed:,} bodies wait for a group key from another machine")
    if done.get("aside"):
        out.say(f"  the state as it was: {out.text(done.get('aside'))}")
        out.note("  delete that folder when you no longer need it")
    if not args.quiet:
        out.note("`covey up` starts with it")
    return 0


def ask_passphrase(*, twice: bool) -> str:
    """The passphrase, from the environment or the terminal.

    Raises:
        CliError: nobody can be asked, or two answers differ.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given
    if not sys.stdin.isatty():
        raise CliError(
            "a passphrase is needed and there is no terminal to ask on",
            2,
            remedy=f"Set {PASSPHRASE_VARIABLE}.",
        )
    from getpass import getpass

    first = getpass("Passphrase for the device key: ")
    if twice and getpass("Again: ") != first:
        raise CliError("the two passphrases differ", 2, remedy="Repeat the command.")
    return first


class Meter:
    """A bar on standard error, where there is a terminal.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._on = not quiet and sys.stderr.isatty()

    def __call__(self, done: int, total: int | None, message: str) -> None:
        """Show how far it is."""
        if not self._on:
            return
        if total:
            ratio = min(1.0, done / total)
            bar = "█" * int(ratio * 30)
            text = f"{bar:<30} {ratio:4.0%}  {out.clean(message)}"
        else:
            text = f"{done:,}  {out.clean(message)}"
        sys.stderr.write(f"\r\x1b[K{text} ")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the bar away."""
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
