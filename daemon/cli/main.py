"""`covey`: finds the command, parses its arguments, prints its result or its error.

Only the chosen command's parser is built and only its module imported: the whole of
`covey recall` is to take 60 ms of CPU. Exit codes: 0 done, 1 error, 2 usage, 3 not running,
4 not found, 5 refused, 6 conflict, 70 internal, 75 try again, 77 key locked, 78 configuration,
130 interrupted.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from types import ModuleType

# name: (module, one line of help); the order is the order of `covey --help`.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Start and look": {
        "up": ("lifecycle", "start the daemon and wait until it is ready"),
        "down": ("lifecycle", "stop the daemon"),
        "restart": ("lifecycle", "stop it and start it again, with the settings as they are now"),
        "status": ("status", "what this machine is, has and is connected to"),
        "demo": ("lifecycle", "three daemons on this machine show what Covey does"),
    },
    "Memory": {
        "remember": ("memory", "store a note"),
        "recall": ("memory", "find notes by words"),
        "get": ("memory", "read notes in full"),
        "list": ("memory", "list notes, newest first"),
        "history": ("memory", "all that was signed about a note"),
        "forget": ("memory", "take a note out of recall, or bring it back"),
        "erase": ("erasing", "destroy notes for ever, and search every file for what is left"),
        "feedback": ("trust", "say what became of relying on a note"),
        "conflicts": ("conflicts", "notes that contradict each other: list, resolve"),
        "import": ("importing", "store the notes of Markdown, text and JSON Lines files"),
        "export": ("export", "write the memory as JSON Lines, Markdown or a SQLite file"),
    },
    "Trust": {
        "trust": ("trust", "whom to believe, and why: show, explain, endorse, distrust"),
        "quarantine": ("trust", "what others wrote and recall does not show: release, reject"),
        "rollback": ("trust", "hide what an author wrote since a time; can be undone"),
    },
    "Machines": {
        "invite": ("pairing", "make a ticket for another machine"),
        "join": ("pairing", "join with a ticket"),
        "peers": ("peers", "the other machines: list, accept, rename, pause"),
        "ping": ("peers", "measure the way to another machine"),
        "group": ("groups", "who shares what: create, members, role, remove, leave, rotate"),
        "state": ("state", "values that agents on several machines change at once"),
        "sync": ("groups", "how far the machines agree; sync now"),
    },
    "Files": {
        "blob": ("blob", "files by the hash of their content: put, get, list, pin, rm"),
    },
    "Work": {
        "job": ("jobs", "hand work to the other machines, get a table back"),
        "fed": ("fed", "sums over everybody's data, models trained together, without a server"),
    },
    "Agents": {
        "mcp": ("", "carry an agent's MCP to the daemon (agents run this)"),
        "hook": ("", "answer an agent's hook with what matters now (agents run this)"),
        "connect": ("connect", "let an agent use the memory: writes its configuration"),
        "disconnect": ("connect", "take that back, and end the agent's token"),
        "agents": ("agents", "tokens of the agents on this machine"),
    },
    "Keep and check": {
        "backup": ("backup", "copies of this machine's state: create, list, verify, prune"),
        "verify": ("verify", "check every record, text and index entry again"),
        "restore": ("backup", "put a backup in the place of the state; the daemon is stopped"),
    },
    "Look closer": {
        "doctor": ("doctor", "find what is wrong and how to mend it"),
        "maintain": ("erasing", "upkeep by hand: build the index anew, forget the feedback log"),
        "logs": ("logs", "show the log"),
        "events": ("logs", "show what happens as it happens"),
        "metrics": ("metrics", "figures for monitoring, in Prometheus' text format"),
        "config": ("config", "show and change settings"),
        "paths": ("config", "where the files are"),
        "rpc": ("logs", "call any method of the daemon"),
    },
}


ALIASES = {"groups": "group"}
"""Former names of commands."""


def find(name: str) -> str | None:
    """Module of a command, None if there is no such command."""
    for group in COMMANDS.values():
        if name in group:
            return group[name][0]
    return None


def usage() -> str:
    """The text of `covey --help`."""
    lines = ["usage: covey COMMAND [options]   (covey COMMAND --help shows more)", ""]
    for title, group in COMMANDS.items():
        lines.append(title)
        lines += [f"  {name:<11}{text}" for name, (_, text) in group.items()]
        lines.append("")
    lines += [
        "First steps",
        "  covey up                          start here",
        "  covey invite                      prints a ticket; on the other machine: covey join ...",
        '  covey remember "..."              then on any of your machines: covey recall ...',
    ]
    return "\n".join(lines)


def base_parser(name: str, text: str) -> argparse.ArgumentParser:
    """A parser with the options that all commands share."""
    # Here, so that a relay and a hook do not wait for it.
    import argparse

    from daemon.cli.options import add_shared

    parser = argparse.ArgumentParser(
        prog=f"covey {name}",
        description=text[:1].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_shared(parser)
    return parser


def _nearest(name: str) -> str:
    import difflib

    names = [known for group in COMMANDS.values() for known in group]
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean `covey {close[0]}`?" if close else " `covey --help` lists them."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; default the process's.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["mcp"]:
        # Before everything: an agent waits for it.
        from daemon.mcp.relay import main as relay

        return relay(words[1:])
    if words[:1] == ["hook"]:
        from daemon.hooks.client import main as hook

        return hook(words[1:])
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if words else 2
    if words[0] in {"-V", "--version", "version"}:
        import daemon

        print(f"covey {daemon.__version__}")
        return 0
    name = ALIASES.get(words[0], words[0])
    module_name = find(name)
    if module_name is None:
        print(f"covey: there is no command {name!r}.{_nearest(name)}", file=sys.stderr)
        return 2
    return _run(name, _load(module_name), words[1:])


def _load(name: str) -> ModuleType:
    # A static import would load all commands; importlib costs nothing, it is loaded already.
    import importlib

    return importlib.import_module(f"daemon.cli.{name}")


def _run(name: str, module: ModuleType, words: list[str]) -> int:
    from daemon.cli.client import CliError
    from daemon.cli.options import share_examples

    text = next(group[name][1] for group in COMMANDS.values() if name in group)
    parser = base_parser(name, text)
    configure: Callable[[argparse.ArgumentParser], None] = getattr(module, f"configure_{name}")
    run: Callable[[argparse.Namespace], int] = getattr(module, f"run_{name}")
    configure(parser)
    share_examples(parser)
    try:
        args = parser.parse_args(words)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 2
    try:
        code = run(args)
        sys.stdout.flush()
    except CliError as error:
        return _fail(error, as_json=args.json)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, a pager) has enough. Nothing must be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return code


def _fail(error: object, *, as_json: bool) -> int:
    from daemon.cli.client import CliError
    from daemon.cli.out import clean, say_json

    assert isinstance(error, CliError)
    if as_json:
        say_json({"error": error.as_json()})
    else:
        print(f"covey: {clean(error.message)}", file=sys.stderr)
        if error.remedy:
            print(f"  {clean(error.remedy)}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
