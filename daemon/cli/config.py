"""`covey config` and `covey paths`: settings and files; neither needs a daemon."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.options import add_verb
from daemon.paths import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json


def configure_config(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey config`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    sub = add_verb(verbs, "show", "all settings (also without a verb)")
    sub.add_argument("--origin", action="store_true", help="where each came from")
    sub.add_argument("--changed", action="store_true", help="only those that are set")
    sub = add_verb(verbs, "get", "one setting")
    sub.add_argument("key", help="section.key")
    sub = add_verb(verbs, "set", "change one in the file")
    sub.add_argument("key", help="section.key")
    sub.add_argument("value", help="such as 10s or 64MiB")
    parser.epilog = (
        "examples:\n  covey config show --origin --changed\n  covey config get node.name\n"
        "  covey config set node.name desk"
    )


def run_config(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from daemon.config import load
    from daemon.config_text import set_value, settings_of
    from daemon.errors import ConfigError

    paths = resolve()
    verb = args.verb or "show"
    try:
        if verb == "set":
            value = set_value(paths.config_file, args.key, args.value)
            if args.json:
                out.say_json({"key": args.key, "value": value, "file": paths.config_file})
            else:
                out.say(f"{args.key} = {value or 'not set'}")
                out.note(
                    f"written to {paths.config_file}; a running daemon takes it at its restart"
                )
            return 0
        rows = settings_of(load(paths.config_file))
    except ConfigError as error:
        raise CliError(str(error), 78, name="configuration") from None
    if verb == "get":
        found = next((row for row in rows if row.name == args.key), None)
        if found is None:
            raise CliError(
                f"no setting {args.key}",
                4,
                name="not_found",
                remedy="`covey config show` lists them.",
            )
        if args.json:
            out.say_json({"key": found.name, "value": found.value, "origin": found.origin})
        else:
            out.say(found.value)
        return 0
    origin, changed = getattr(args, "origin", False), getattr(args, "changed", False)
    rows = [row for row in rows if not changed or row.origin != "default"]
    if args.json:
        listed: list[Json] = [
            {"key": row.name, "value": row.value, "origin": row.origin} for row in rows
        ]
        out.say_json(listed)
        return 0
    for row in rows:
        tail = out.paint(f"   # {row.origin}", out.DIM) if origin else ""
        out.say(f"{row.name} = {row.value or 'not set'}{tail}")
    return 0


def configure_paths(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    parser.epilog = (
        "COVEY_HOME=/folder puts all of them into one folder.\n\n"
        "examples:\n  covey paths\n  covey paths --json"
    )


def run_paths(args: argparse.Namespace) -> int:
    """Show where the files are."""
    import os

    found = resolve().as_dict()
    if args.json:
        out.say_json(dict(found))
        return 0
    for name, path in found.items():
        mark = "" if os.path.exists(path) else out.paint("  (not there yet)", out.DIM)
        out.say(f"{name:<10}{path}{mark}")
    return 0
