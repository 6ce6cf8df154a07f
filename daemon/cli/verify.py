"""`covey verify`: the database against its signed records."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.backup import Meter
from daemon.cli.client import CliError, NotRunning, open_client
from daemon.paths import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json


def configure_verify(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey verify`."""
    parser.epilog = (
        "It works with the daemon running or stopped, and changes nothing.\n"
        "Exit code 1 says that something is wrong.\n\n"
        "examples:\n  covey verify\n  covey verify --json"
    )


def run_verify(args: argparse.Namespace) -> int:
    """Check everything, and say what is wrong and what to do."""
    meter = Meter(quiet=args.quiet or args.json)
    try:
        found = _ask(args, meter)
    finally:
        meter.clear()
    sound = bool(found.get("sound"))
    if args.json:
        out.say_json(found)
        return 0 if sound else 1
    for finding in out.rows(found.get("findings")):
        count = int(out.number(finding.get("count")))
        word = out.paint(f"{out.text(finding.get('check')):<12}", out.RED)
        out.say(f"{word}{count:,}: {out.text(finding.get('message'))}")
        examples = finding.get("examples")
        if isinstance(examples, list) and examples:
            out.say(f"{'':<12}{', '.join(out.text(item) for item in examples)}")
        out.say(f"{'':<12}{out.text(finding.get('remedy'))}")
    numbers = {name: int(out.number(found.get(name))) for name in ("records", "memories", "chunks")}
    counts = ", ".join(f"{value:,} {name}" for name, value in numbers.items())
    if sound:
        out.say(f"{out.paint('sound', out.GREEN)}: {counts}")
    else:
        out.note(f"looked at {counts}")
    return 0 if sound else 1


def _ask(args: argparse.Namespace, meter: Meter) -> dict[str, Json]:
    client = open_client(socket_path=args.socket, autostart=False, timeout_s=args.timeout)
    try:
        return out.mapping(client.call("memory.verify", progress=meter))
    except NotRunning:
        return _read(meter)
    finally:
        client.close()


def _read(meter: Meter) -> dict[str, Json]:
    """Read the file of a stopped node."""
    import os
    from pathlib import Path

    import msgspec

    from daemon.restore import read_erased_ids
    from daemon.verify import StoreCheck, verify_file
    from memory.errors import StoreError
    from p2p.identity import verify

    paths = resolve()
    if not os.path.exists(paths.db):
        raise CliError(
            f"there is no database at {paths.db}",
            4,
            name="not_found",
            remedy="`covey up` makes it.",
        )
    check = StoreCheck(read_erased_ids(Path(paths.state)), verify, whole=True)
    try:
        report = verify_file(Path(paths.db), check, meter)
    except StoreError as error:
        raise CliError(str(error), 1, name="storage_corrupt") from error
    fields: dict[str, Json] = msgspec.to_builtins(report)
    return fields
