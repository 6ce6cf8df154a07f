"""`covey connect` and `covey disconnect`: agents get the memory and lose it again."""

from __future__ import annotations

import os
import sys

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import connect
from daemon.paths import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Literal

    from daemon.connect.clients import Client
    from daemon.connect.place import Goal
    from daemon.connect.records import Record, Records
    from daemon.connect.steps import Step
    from daemon.json_types import Json


def configure_connect(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey connect`."""
    parser.add_argument(
        "client", nargs="?", help="claude-code, codex, cursor, vscode, gemini, zed, ...; none: list"
    )
    parser.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="make a token and print the entry, change no file",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done; no token is made"
    )
    parser.add_argument(
        "--hooks", action="store_true", help="also recall unasked, at each session and prompt"
    )
    parser.add_argument(
        "--project", action="store_true", help="for this folder's project alone, in its own file"
    )
    parser.add_argument("--name", help="agent name, default the client's")
    parser.add_argument(
        "--scope", action="append", default=[], help="such as read:*; repeat for more"
    )
    parser.epilog = (
        "examples:\n  covey connect                       which agents are here\n"
        "  covey connect claude-code --hooks\n  covey connect codex --dry-run\n"
        "  covey connect zed --print"
    )


def configure_disconnect(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey disconnect`."""
    parser.add_argument("client", help="claude-code, codex, cursor, vscode or gemini")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done")
    parser.add_argument(
        "--project", action="store_true", help="take it out of this folder's project alone"
    )
    parser.add_argument("--name", help="agent name, default the client's")
    parser.epilog = (
        "examples:\n  covey disconnect claude-code --dry-run\n  covey disconnect codex --project"
    )


def run_connect(args: argparse.Namespace) -> int:
    """Register an agent and write, or print, the entry for its configuration."""
    from daemon.connect.clients import AUTOMATIC

    if args.client is None:
        return _list(args)
    client = _client(args.client)
    if args.show:
        return _print(args, client)
    if client.name not in AUTOMATIC:
        raise CliError(
            f"{client.title} is connected by hand",
            2,
            name="usage",
            remedy=f"Run `covey connect {client.name} --print` and paste what it says.",
        )
    if args.hooks and not client.hooks:
        raise CliError(
            f"{client.title} has no hooks that Covey knows",
            2,
            name="usage",
            remedy=f"Run `covey connect {client.name}` without --hooks.",
        )
    return _connect(args, client)


def _client(name: str) -> Client:
    from daemon.connect.clients import CLIENTS

    if name not in CLIENTS:
        known = ", ".join(sorted(CLIENTS))
        raise CliError(f"unknown client {name!r}", 2, remedy=f"Known: {known}.")
    return CLIENTS[name]


def _agent(args: argparse.Namespace, client: Client) -> str:
    from daemon.mcp.greeting import AGENT_CHARS, AGENT_CHARS_MAX

    name: str = args.name or client.name
    if not (0 < len(name) <= AGENT_CHARS_MAX and AGENT_CHARS.issuperset(name)) or name[0] in "._-":
        raise CliError(
            "an agent's name is 1 to 64 of a-z, 0-9, dot, underscore and hyphen",
            2,
            name="usage",
            remedy="Take another one: --name claude-code",
        )
    return name


def home_env(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that lead a relay to this node, when it is not where a bare environment leads.

    Agents pass on little of their environment, and one started from a menu never had ours.
    """
    if environ.get("COVEY_HOME"):
        return {"COVEY_HOME": os.path.abspath(environ["COVEY_HOME"])}
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME")
    usual = resolve({"HOME": environ["HOME"]} if "HOME" in environ else {})
    here = resolve(environ)
    if (here.state, here.config_file) == (usual.state, usual.config_file):
        return {}
    return {name: environ[name] for name in names if environ.get(name)}


def _goal(args: argparse.Namespace, client: Client) -> Goal:
    from daemon.connect.place import Goal

    env = {"COVEY_AGENT": _agent(args, client), **home_env(os.environ)}
    return Goal(covey_command(), env)


def _print(args: argparse.Namespace, client: Client) -> int:
    from daemon.connect.clients import user_file
    from daemon.connect.render import instructions
    from daemon.connect.tokens import ensure

    goal = _goal(args, client)
    name = goal.env["COVEY_AGENT"]
    token = "TOKEN"  # noqa: S105 - what stands where a token would
    if not args.dry_run:
        token, _ = ensure(
            connect(args),
            resolve(),
            agent=name,
            software=client.name,
            scopes=args.scope,
            socket_path=args.socket,
        )
    text = instructions(
        client,
        file=user_file(client, sys.platform, os.environ),
        command=goal.command,
        env={"COVEY_AGENT": name, "COVEY_GRANT": token, **goal.env},
    )
    if args.json:
        out.say_json({"client": client.name, "agent": name, "token": token, "entry": text})
    else:
        out.say(text)
    return 0


def _connect(args: argparse.Namespace, client: Client) -> int:
    from daemon.connect import steps as doing
    from daemon.connect.files import FileError
    from daemon.connect.place import PlaceError
    from daemon.connect.records import Records
    from daemon.connect.tokens import ensure

    goal = _goal(args, client)
    records = Records(resolve().connections)
    steps = [_planned(args, client, goal, what, records) for what in _parts(args)]
    changing = [step for step in steps if step.changes]
    remarks = _foreign(client, goal, steps[0])
    if args.dry_run:
        return _say(args, client, goal, steps, "planned", remarks)
    if changing:
        _show(args, changing)
        _agree(args, changing, f"covey connect {client.name}")
    _, minted = ensure(
        connect(args),
        resolve(),
        agent=goal.env["COVEY_AGENT"],
        software=client.name,
        scopes=args.scope,
        socket_path=args.socket,
    )
    for step in changing:
        try:
            remark = doing.do_connect(step, records, os.environ)
        except (FileError, PlaceError) as error:
            raise _cannot(args, client, goal, str(error)) from None
        remarks += [remark] if remark else []
    if changing and client.note:
        remarks.append(client.note)
    if changing and args.hooks and client.name == "codex":
        remarks.append("Codex asks once whether it may trust the hooks: say yes there.")
    done = "connected" if changing or minted else "unchanged"
    return _say(args, client, goal, steps, done, remarks)


def _foreign(client: Client, goal: Goal, server: Step) -> list[str]:
    """A remark on what stands in our entry and is not from us."""
    from daemon.connect.place import foreign_env

    names = foreign_env(client, server.document.text, goal)
    if not names:
        return []
    path, more = server.document.path, ", ".join(names)
    return [f"The entry in {path} also sets {more}, which is not from Covey; see that you want it."]


def _parts(args: argparse.Namespace) -> list[Literal["server", "hooks"]]:
    return ["server", "hooks"] if args.hooks else ["server"]


def _planned(
    args: argparse.Namespace,
    client: Client,
    goal: Goal,
    what: Literal["server", "hooks"],
    records: Records,
) -> Step:
    from daemon.connect import steps as doing
    from daemon.connect.files import FileError, check_inside
    from daemon.connect.place import PlaceError

    path, project = _place(args, client, what)
    try:
        if project:
            check_inside(path, os.getcwd())
        return doing.plan_connect(
            client, what, path, goal, project=project, records=records, environ=os.environ
        )
    except (FileError, PlaceError) as error:
        reason = str(error) if path in str(error) else f"{path}: {error}"
        raise _cannot(args, client, goal, reason) from None


def _place(args: argparse.Namespace, client: Client, what: str) -> tuple[str, bool]:
    """The file, and whether it is a project's."""
    from daemon.connect.clients import hooks_file, user_file

    if what == "hooks":
        return _absolute(hooks_file(client, os.environ)), False
    if not args.project:
        return _absolute(user_file(client, sys.platform, os.environ)), False
    if not client.project:
        raise CliError(f"{client.title} has no project file", 2, name="usage")
    return os.path.join(os.getcwd(), client.project), True


def _absolute(path: str) -> str:
    """The path from wherever `disconnect` will be run; without HOME the home of this account."""
    return os.path.abspath(os.path.expanduser(path))


def _cannot(args: argparse.Namespace, client: Client, goal: Goal, reason: str) -> CliError:
    """The file stays as it is, and the person gets what to paste."""
    from daemon.connect.render import snippet

    text = snippet(client, command=goal.command, env=goal.env)
    if not args.json:
        out.say(text)
    return CliError(
        f"nothing was written: {reason}",
        5,
        name="refused",
        remedy="Mend that and repeat, or put the entry in by hand (it is printed above).",
        data={"entry": text},
    )


def _show(args: argparse.Namespace, steps: list[Step]) -> None:
    if args.json or args.quiet:
        return
    for step in steps:
        path, real = step.document.path, step.document.real
        behind = "" if real == path else f" (a link to {real})"
        out.note("would run:" if step.argv else f"would change {path}{behind}:")
        for line in out.clean(step.shown()).splitlines():
            colour = {"+": out.GREEN, "-": out.RED}.get(line[:1], "")
            out.note(f"  {out.paint(line, colour) if colour else line}")


def _agree(args: argparse.Namespace, steps: list[Step], repeat: str) -> None:
    if args.yes:
        return
    what = ", ".join(dict.fromkeys(step.document.path for step in steps))
    if not sys.stdin.isatty():
        raise CliError(
            f"this would change {what}, and nobody is there to agree",
            5,
            name="refused",
            remedy=f"Look with `{repeat} --dry-run`, then `{repeat} --yes`.",
        )
    if not out.confirm("Go ahead?", yes=False):
        raise CliError("nothing was changed", 5, name="refused")


def _say(
    args: argparse.Namespace,
    client: Client,
    goal: Goal,
    steps: list[Step],
    done: str,
    remarks: list[str],
) -> int:
    if args.json:
        listed: list[Json] = [
            {
                "what": step.what,
                "file": step.document.path,
                "changes": step.changes,
                "command": list(step.argv),
                "diff": "" if step.argv else step.shown(),
            }
            for step in steps
        ]
        out.say_json(
            {
                "client": client.name,
                "agent": goal.env["COVEY_AGENT"],
                "done": done,
                "steps": listed,
                "remarks": list(remarks),
            }
        )
        return 0
    if done == "planned":
        _show(args, [step for step in steps if step.changes])
    for remark in remarks:
        out.note(out.clean(remark))
    places = ", ".join(step.document.path for step in steps)
    texts = {
        "planned": "nothing was changed" if any(s.changes for s in steps) else "nothing to do",
        "connected": f"{client.title} is connected ({places}); start it anew",
        "unchanged": f"{client.title} is connected already; nothing was changed",
        "disconnected": f"{client.title} is disconnected; its token has ended",
        "nothing": f"{client.title} was not connected",
        "project": f"the entry of this project was taken out ({places})",
    }
    out.say(texts[done])
    return 0


def run_disconnect(args: argparse.Namespace) -> int:
    """Take out what `connect` put in, and end the token."""
    from daemon.connect import steps as doing
    from daemon.connect.clients import AUTOMATIC
    from daemon.connect.files import FileError
    from daemon.connect.place import Goal, PlaceError
    from daemon.connect.records import Records
    from daemon.connect.tokens import revoke

    client = _client(args.client)
    records = Records(resolve().connections)
    known = records.all(client.name)
    goal = Goal("", {"COVEY_AGENT": _agent(args, client)})
    places = _places_to_leave(args, client, known) if client.name in AUTOMATIC else []
    steps: list[Step] = []
    for what, path, project in places:
        try:
            step = doing.plan_disconnect(
                client, what, path, project=project, records=records, environ=os.environ
            )
        except (FileError, PlaceError) as error:
            raise _cannot_leave(path, error) from None
        steps.append(step)
    changing = [step for step in steps if step.changes]
    if args.dry_run:
        return _say(args, client, goal, steps, "planned", [])
    if changing:
        _show(args, changing)
        _agree(args, changing, f"covey disconnect {client.name}")
    remarks: list[str] = []
    for step in steps:
        try:
            remark = doing.do_disconnect(step, records, os.environ)
        except (FileError, PlaceError) as error:
            raise _cannot_leave(step.document.path, error) from None
        remarks += [remark] if remark else []
    if args.project:
        return _say(args, client, goal, steps, "project" if changing else "nothing", remarks)
    daemon = connect(args)
    agents = dict.fromkeys([goal.env["COVEY_AGENT"], *(record.agent for record in known)])
    ended = [agent for agent in agents if revoke(daemon, agent)]
    done = "disconnected" if changing or ended else "nothing"
    return _say(args, client, goal, steps, done, remarks)


def _places_to_leave(
    args: argparse.Namespace, client: Client, known: list[Record]
) -> list[tuple[Literal["server", "hooks"], str, bool]]:
    """Where something of ours may stand: the usual files, and those that we wrote elsewhere."""
    path, project = _place(args, client, "server")
    places: list[tuple[Literal["server", "hooks"], str, bool]] = [("server", path, project)]
    if args.project:
        return places
    if client.hooks:
        places.append(("hooks", _place(args, client, "hooks")[0], False))
    for record in known:
        place = (record.what, record.path, record.project)
        if place not in places:
            places.append(place)
    return places


def _cannot_leave(path: str, error: Exception) -> CliError:
    reason = str(error) if path in str(error) else f"{path}: {error}"
    return CliError(
        reason,
        5,
        name="refused",
        remedy="Mend that and repeat, or take the entry named covey out by hand.",
    )


def _list(args: argparse.Namespace) -> int:
    from daemon.connect.inspect import survey

    found = survey(os.environ)
    if args.json:
        out.say_json([dict(row._asdict()) for row in found])
        return 0
    lines = [[row.client, row.state, row.hooks, row.file] for row in found]
    out.table(["client", "covey", "hooks", "file"], lines)
    if not found:
        out.note("no agent that Covey knows was found here; `covey connect CLIENT --print` helps")
    elif any(row.state == "no" for row in found):
        out.note("connect one: covey connect CLIENT (with --print for those marked by hand)")
    return 0


def covey_command() -> str:
    """The absolute path of this installation's `covey`.

    Raises:
        CliError: it has none (run as `python -m daemon` from a checkout).
    """
    import shutil

    beside = os.path.join(os.path.dirname(sys.executable), "covey")
    found = beside if os.access(beside, os.X_OK) else shutil.which("covey")
    if found is None:
        raise CliError(
            "this installation has no covey command that an agent could start",
            1,
            remedy="Install it: uv tool install covey, or pip install -e . in a checkout.",
        )
    return os.path.abspath(found)
