"""Options that every command has, before and after its verb."""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    # argparse names this class of what `add_subparsers` returns with an underscore only.
    Verbs: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

SECONDS_MAX = 1e6


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < SECONDS_MAX:
        raise ValueError
    return value


def add_shared(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the shared options.

    Args:
        parser: of a command or a verb.
        again: whether the command has them already: then a verb's absence sets nothing.
    """
    shared = parser.add_argument_group("for every command")

    actions = [
        shared.add_argument("--json", action="store_true", help="print the result as JSON"),
        shared.add_argument("--quiet", action="store_true", help="print the result alone"),
        shared.add_argument("--yes", action="store_true", help="answer questions with yes"),
        shared.add_argument(
            "--timeout", type=_seconds, metavar="S", help="give up after S seconds"
        ),
        shared.add_argument("--socket", metavar="PATH", help="socket of the daemon to talk to"),
        shared.add_argument(
            "--no-autostart", action="store_true", help="do not start a daemon that is not running"
        ),
    ]
    if again:
        for action in actions:
            action.default = argparse.SUPPRESS


def share_examples(parser: argparse.ArgumentParser) -> None:
    """Give each verb's help those of the command's examples that are about it.

    Args:
        parser: of a command, with all its verbs and its epilog.
    """
    lines = (parser.epilog or "").splitlines()
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to its verbs
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - see above
            continue
        for name, verb in action.choices.items():
            begins = f"  {parser.prog} {name}"
            own = [line for line in lines if f"{line} ".startswith(f"{begins} ")]
            if own and verb.epilog is None:
                verb.epilog = "\n".join(["examples:", *own])
                verb.formatter_class = parser.formatter_class


def add_verb(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    """Add a verb of a command, with the shared options."""
    parser = verbs.add_parser(name, help=text, allow_abbrev=False)
    add_shared(parser, again=True)
    return parser
