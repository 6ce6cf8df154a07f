"""`covey state`: values that agents on several machines change at once."""

from __future__ import annotations

import json

from daemon.cli import out
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json

TYPES = ("lww", "mv", "set", "counter", "map")
VALUE_HELP = "JSON, or else taken as text"
EXAMPLES = (
    "types: lww (last writer wins), mv (all concurrent values), set, counter, map\n\n"
    "examples:\n"
    "  covey state set main/goal 'ship on Friday'\n"
    "  covey state add main/todo 'write the changelog'\n"
    "  covey state remove main/todo 'write the changelog'\n"
    "  covey state get main/todo\n"
    "  covey state incr main/builds\n"
    "  covey state set main/presence/laptop '{\"busy\": true}' --type map\n"
    "  covey state get main/goal --as-of 2026-11-01\n"
    "  covey state watch main/todo\n"
    "  covey state delete main/goal\n"
    "  covey state history main/goal\n"
    "  covey state list main\n"
    "  covey state holders 3fa9c2d1"
)


def configure_state(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey state`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, text, kind in (
        ("get", "read a value", "lww"),
        ("set", "give a value", "lww"),
        ("delete", "empty it", "lww"),
        ("add", "put an element into a set", "set"),
        ("remove", "take an element out of a set", "set"),
        ("incr", "move a counter", "counter"),
        ("history", "every change: who, when, what", "lww"),
        ("watch", "show it now and after each change, until interrupted", "lww"),
    ):
        sub = add_verb(verbs, verb, text)
        sub.add_argument("path", help="its name, such as main/todo; the first part is its scope")
        if verb in {"set", "add", "remove"}:
            sub.add_argument("value", help=VALUE_HELP)
        if verb == "incr":
            sub.add_argument("by", nargs="?", type=int, default=1, help="default 1")
        if kind == "lww":
            sub.add_argument("--type", choices=TYPES, help="default what is there, else lww")
        if verb in {"set", "delete"}:
            sub.add_argument(
                "--expect", metavar="ID", action="append", help="only if these are its heads"
            )
        if verb == "get":
            sub.add_argument("--as-of", metavar="DATE", help="as it stood then")
            sub.add_argument(
                "--without", metavar="MACHINE", action="append", default=[],
                help="as if this machine had never written",
            )  # fmt: skip
        if verb in {"set", "delete", "add", "remove", "incr"}:
            sub.add_argument(
                "--machines", type=int, default=0, metavar="N",
                help="wait until so many machines have it on disk, and say which",
            )  # fmt: skip
        sub.add_argument("--group", default="home", help="default home: your own machines")
    sub = add_verb(verbs, "list", "the values there are (also without a verb)")
    sub.add_argument("path", nargs="?", default="", help="only those below it")
    sub.add_argument("--group", default="home", help="default home: your own machines")
    sub = add_verb(verbs, "holders", "which machines have a write on disk")
    sub.add_argument("id", help="as `covey state history` shows it")
    sub.add_argument("--group", default="home", help="default home: your own machines")
    parser.epilog = EXAMPLES


def run_state(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    if verb == "watch":
        return _watch(args)
    client = connect(args)
    result = client.call(f"state.{verb}", _params(args, verb))
    wanted = getattr(args, "machines", 0)
    held = None
    if wanted and (ids := out.mapping(result).get("ids")) and isinstance(ids, list):
        asked: dict[str, Json] = {"id": ids[-1], "group": args.group, "machines": wanted}
        held = out.mapping(client.call("state.holders", asked))
    if args.json:
        out.say_json(result if held is None else {**out.mapping(result), "holders": held})
    else:
        _show(verb, result)
        if held is not None:
            _show_holders(held)
    return 0 if held is None or len(_names(held, "held")) >= wanted else 1


def _params(args: argparse.Namespace, verb: str) -> dict[str, Json]:
    params: dict[str, Json] = {"group": getattr(args, "group", "home")}
    if verb == "holders":
        params["id"] = args.id
        return params
    params["path"] = getattr(args, "path", "")
    if getattr(args, "type", None):
        params["type"] = args.type
    if hasattr(args, "value"):
        params["value"] = _value(args.value)
    if verb == "incr":
        params["by"] = args.by
    if getattr(args, "expect", None):
        params["expect_ids"] = args.expect
    if verb == "get":
        params["without"] = args.without
        if args.as_of:
            params["as_of"] = args.as_of
    return params


def _value(written: str) -> Json:
    try:
        value: Json = json.loads(written)
    except ValueError:
        return written
    return value


def _text(value: Json) -> str:
    return out.clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _names(held: dict[str, Json], key: str) -> list[str]:
    found = held.get(key)
    return [out.text(one) for one in found] if isinstance(found, list) else []


def _show(verb: str, result: Json) -> None:
    if verb == "list":
        rows = out.rows(result)
        lines = [[out.text(row.get("type")), out.clean(_path(row))] for row in rows]
        out.table(["type", "path"], lines)
        if not rows:
            out.note("no value is shared yet: `covey state set main/goal 'ship on Friday'`")
    elif verb == "history":
        lines = [
            [
                out.text(row.get("at")),
                "@".join(filter(None, [out.text(row.get("agent")), out.text(row.get("author"))])),
                out.text(row.get("op")),
                out.one_line(_text(row.get("value")), 60),
                "replaced" if row.get("superseded") else "",
                out.text(row.get("id"))[:16],
            ]
            for row in out.rows(result)
        ]
        out.table(["at", "by", "did", "value", "", "id"], lines)
    elif verb == "holders":
        _show_holders(out.mapping(result))
    elif verb == "get":
        _show_cell(out.mapping(result))
    else:
        changed = out.mapping(result)
        out.say(_text(changed.get("value")))
        if not changed.get("ids"):
            out.note("there was nothing to remove")


def _path(row: dict[str, Json]) -> str:
    parts = row.get("path")
    return "/".join(out.text(part) for part in parts) if isinstance(parts, list) else ""


def _show_cell(cell: dict[str, Json]) -> None:
    value, keys = cell.get("value"), cell.get("keys")
    if cell.get("exists"):
        if cell.get("type") in {"set", "mv"} and isinstance(value, list):
            for item in value:
                out.say(_text(item))
        else:
            out.say(_text(value))
    elif not keys:
        out.note("no value")
    if isinstance(keys, list):
        for key in keys:
            out.say(_text(key))
    heads = out.rows(cell.get("heads"))
    if heads:
        last = heads[-1]
        who = "@".join(filter(None, [out.text(last.get("agent")), out.text(last.get("author"))]))
        out.note(f"last by {who} at {out.text(last.get('at'))}")


def _show_holders(held: dict[str, Json]) -> None:
    have, lack, silent = (_names(held, key) for key in ("held", "missing", "unknown"))
    out.note(f"on {len(have)} of {len(have) + len(lack) + len(silent)} machines: {', '.join(have)}")
    if lack:
        out.note(f"not yet on {', '.join(lack)}")
    if silent:
        out.note(f"not connected, so not known: {', '.join(silent)}")


def _watch(args: argparse.Namespace) -> int:
    client = connect(args)
    params = _params(args, "watch")
    cell = out.mapping(client.call("state.get", params))
    while True:
        if args.json:
            out.say_json(cell)
        else:
            _show_cell(cell)
        seen: list[Json] = [head.get("id") for head in out.rows(cell.get("heads"))]
        while True:
            cell = out.mapping(client.call("state.watch", {**params, "seen": seen}))
            if [head.get("id") for head in out.rows(cell.get("heads"))] != seen:
                break
