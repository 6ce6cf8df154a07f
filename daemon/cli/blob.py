"""`covey blob`: files by the hash of their content. This process reads and writes the files."""

from __future__ import annotations

import base64
import os
import sys
import time

from daemon.cli import out
from daemon.cli.backup import Meter
from daemon.cli.client import CliError
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import IO

    from daemon.cli.client import Client
    from daemon.json_types import Json

PIECE_BYTES = 512 * 1024
"""Of a file in one call: the daemon takes up to a mebibyte."""

PAGE = 200


def _add_group(parser: argparse.ArgumentParser, text: str) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--group", metavar="NAME", help=f"{text} (default: your own machines)")
    which.add_argument("--public", action="store_true", help="everybody instead")


def configure_blob(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey blob`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    sub = add_verb(verbs, "put", "store a file; prints its id")
    sub.add_argument("file", help="file to read; `-` for standard input")
    _add_group(sub, "who may read it")
    sub.add_argument("--tag", default="user", help="pin it under this name (default user)")
    sub.add_argument("--no-pin", action="store_true", help="it may go when room is needed")
    sub = add_verb(verbs, "get", "fetch a blob from the machines that have it")
    sub.add_argument("id", help="64 hexadecimal digits")
    sub.add_argument("-o", "--output", metavar="FILE", help="write it there; `-`: standard output")
    sub.add_argument("--force", action="store_true", help="replace a file that is there")
    _add_group(sub, "whom to ask")
    add_verb(verbs, "list", "those that are here, the last used first (also without a verb)")
    sub = add_verb(verbs, "stat", "what is here of one, who may read it, who holds it")
    sub.add_argument("id")
    sub = add_verb(verbs, "pin", "keep one that is here, and let a group read it")
    sub.add_argument("id")
    sub.add_argument("--tag", default="user", help="who holds it (default user)")
    _add_group(sub, "who may read it")
    sub = add_verb(verbs, "unpin", "hold it no longer; it may go when room is needed")
    sub.add_argument("id")
    sub.add_argument("--tag", default="user", help="who held it (default user)")
    sub = add_verb(verbs, "rm", "remove one from this machine at once")
    sub.add_argument("id")
    sub.add_argument("--force", action="store_true", help="also if it is pinned")
    parser.epilog = (
        "Whoever has the id can check every byte. An interrupted get goes on where it was.\n\n"
        "examples:\n  covey blob put model.safetensors --group team\n"
        "  covey blob get 5f0c... -o model.safetensors --group team\n"
        "  covey blob list\n"
        "  covey blob stat 5f0c...\n"
        "  covey blob pin 5f0c... --group team\n"
        "  covey blob unpin 5f0c...\n"
        "  covey blob rm 5f0c..."
    )


def run_blob(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verbs = {
        "put": _put,
        "get": _get,
        "list": _list,
        "stat": _stat,
        "pin": _pin,
        "unpin": _unpin,
        "rm": _remove,
    }
    return verbs[args.verb or "list"](args)


def _group_params(args: argparse.Namespace) -> dict[str, Json]:
    params: dict[str, Json] = {}
    if args.group is not None:
        params["group"] = args.group
    if args.public:
        params["public"] = True
    return params


# --- put ------------------------------------------------------------------------------------------


def _put(args: argparse.Namespace) -> int:
    if args.file == "-":
        made = _send(args, sys.stdin.buffer, None)
    else:
        try:
            with open(args.file, "rb") as file:
                made = _send(args, file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise CliError(
                f"{args.file} cannot be read: {error.strerror}", 4, name="not_found"
            ) from None
    if args.json:
        out.say_json(made)
    else:
        out.say(out.text(made.get("id")))
        if not args.quiet:
            out.note(f"{out.size(out.number(made.get('size')))} stored")
    return 0


def _send(args: argparse.Namespace, file: IO[bytes], total: int | None) -> dict[str, Json]:
    client = connect(args)
    meter = Meter(quiet=args.quiet or args.json)
    last: dict[str, Json] = {
        "last": True,
        "tag": "" if args.no_pin else args.tag,
        **_group_params(args),
    }
    upload, offset = "", 0
    try:
        while True:
            data = file.read(PIECE_BYTES)
            params: dict[str, Json] = {
                "upload": upload,
                "offset": offset,
                "data": base64.b64encode(data).decode("ascii"),
            }
            if not data:
                params |= last
            answer = out.mapping(client.call("blob.put", params))
            if not data:
                break
            upload = out.text(answer.get("upload"))
            offset += len(data)
            meter(offset, total, out.size(offset))
    finally:
        meter.clear()
    return {"id": answer.get("id"), "size": answer.get("size")}


# --- get ------------------------------------------------------------------------------------------


def _get(args: argparse.Namespace) -> int:
    target = args.output
    if target and target != "-" and os.path.exists(target) and not args.force:
        raise _exists(target)
    client = connect(args)
    params: dict[str, Json] = {"id": args.id, **_group_params(args)}
    meter = Meter(quiet=args.quiet or args.json)

    def progress(done: int, total: int | None, message: str) -> None:
        meter(done, total, f"{out.size(done)} of {out.size(total or 0)} {message}")

    try:
        found = out.mapping(client.call("blob.get", params, progress=progress))
        size = int(out.number(found.get("size")))
        if target == "-":
            _copy(client, args.id, sys.stdout.buffer, size, meter)
            sys.stdout.buffer.flush()
            return 0
        if target:
            _write_file(client, args, size, meter)
    finally:
        meter.clear()
    if args.json:
        out.say_json({"id": args.id, "size": size, "file": target})
    elif target:
        out.say(f"{out.size(size)} in {target}")
    else:
        out.say(f"{out.size(size)} here; `covey blob get ID -o FILE` writes a file")
    return 0


def _copy(client: Client, ident: str, file: IO[bytes], size: int, meter: Meter) -> None:
    offset = 0
    while offset < size:
        params: dict[str, Json] = {"id": ident, "offset": offset, "length": PIECE_BYTES}
        found = out.mapping(client.call("blob.get", params))
        data = base64.b64decode(out.text(found.get("data")))
        if not data:
            raise CliError("the blob was removed meanwhile", 75, name="aborted")
        file.write(data)
        offset += len(data)
        meter(offset, size, "written")


def _write_file(client: Client, args: argparse.Namespace, size: int, meter: Meter) -> None:
    """Write beside the name, sync, rename: a file of that name is the whole blob."""
    path = args.output
    partial = f"{path}.{os.getpid()}.partial"
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            _copy(client, args.id, file, size, meter)
            file.flush()
            os.fsync(file.fileno())
        if not args.force and os.path.exists(path):
            raise _exists(path)
        os.replace(partial, path)
    except OSError as error:
        raise CliError(
            f"{path} cannot be written: {error.strerror}", 1, remedy="Choose another place."
        ) from None
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def _exists(path: str) -> CliError:
    return CliError(
        f"{path} is there already",
        6,
        name="conflict",
        remedy="Choose another name, or --force to replace it.",
    )


# --- the rest -------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    client = connect(args)
    found: list[dict[str, Json]] = []
    page: dict[str, Json] = {"more": True}
    while page.get("more"):
        params: dict[str, Json] = {"limit": PAGE}
        if found:
            params["after"] = found[-1].get("id")
        page = out.mapping(client.call("blob.list", params))
        found += out.rows(page.get("blobs"))
    if args.json:
        listed: list[Json] = list(found)
        out.say_json(listed)
        return 0
    now_ms = time.time_ns() / 1e6
    lines = [
        [
            out.text(row.get("id")),
            out.size(out.number(row.get("size"))),
            "whole" if row.get("whole") else f"{out.size(out.number(row.get('bytes_here')))} of it",
            _names(row.get("groups")),
            ", ".join(sorted({out.text(pin.get("tag")) for pin in out.rows(row.get("pins"))})),
            out.ago(out.number(row.get("used_ms")), now_ms),
        ]
        for row in found
    ]
    out.table(["id", "size", "here", "readers", "pins", "used"], lines)
    if found:
        out.note(f"{out.size(out.number(page.get('bytes_used')))} in all")
    else:
        out.note("no blobs here yet: `covey blob put FILE` makes one")
    return 0


def _names(value: Json) -> str:
    names = value if isinstance(value, list) else []
    return ", ".join("everybody" if name == "*" else out.text(name) for name in names)


def _show(args: argparse.Namespace, row: dict[str, Json]) -> int:
    if args.json:
        out.say_json(row)
        return 0
    whole = "whole" if row.get("whole") else f"{out.size(out.number(row.get('bytes_here')))} here"
    out.say(f"{out.text(row.get('id'))}  {out.size(out.number(row.get('size')))}  {whole}")
    out.say(f"  readers  {_names(row.get('groups')) or 'nobody'}")
    for pin in out.rows(row.get("pins")):
        out.say(f"  pinned   {out.text(pin.get('tag'))} for {_names([pin.get('group')])}")
    return 0


def _stat(args: argparse.Namespace) -> int:
    return _show(args, out.mapping(connect(args).call("blob.stat", {"id": args.id})))


def _pin(args: argparse.Namespace) -> int:
    params: dict[str, Json] = {"id": args.id, "tag": args.tag, **_group_params(args)}
    return _show(args, out.mapping(connect(args).call("blob.pin", params)))


def _unpin(args: argparse.Namespace) -> int:
    params: dict[str, Json] = {"id": args.id, "tag": args.tag}
    return _done(args, "blob.unpin", params, "unpinned", "it was not pinned so")


def _remove(args: argparse.Namespace) -> int:
    params: dict[str, Json] = {"id": args.id, "force": args.force}
    return _done(args, "blob.drop", params, "removed", "it was not here")


def _done(args: argparse.Namespace, name: str, params: dict[str, Json], yes: str, no: str) -> int:
    answer = out.mapping(connect(args).call(name, params))
    if args.json:
        out.say_json(answer)
    else:
        out.say(yes if answer.get("removed") else no)
    return 0
