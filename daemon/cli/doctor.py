"""`covey doctor`: what is wrong, problems first, each with what to do."""

from __future__ import annotations

from daemon.cli import out
from daemon.paths import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json

_MARK = {"ok": out.GREEN, "degraded": out.YELLOW, "failed": out.RED}


def configure_doctor(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey doctor`."""
    parser.add_argument(
        "part", nargs="?", choices=["net", "store", "clients"], help="only this part"
    )
    parser.epilog = (
        "Exit code 1 says that something is wrong. It works with and without a daemon.\n\n"
        "examples:\n  covey doctor\n  covey doctor net"
    )


def run_doctor(args: argparse.Namespace) -> int:
    """Look at everything that commonly goes wrong."""
    from daemon.doctor import examine

    checks = examine(resolve(), part=args.part, socket_path=args.socket)
    bad = [check for check in checks if check.status != "ok"]
    if args.json:
        listed: list[Json] = [
            {
                "name": check.name,
                "status": check.status,
                "message": check.message,
                "remedy": check.remedy,
            }
            for check in checks
        ]
        out.say_json({"healthy": not bad, "checks": listed})
        return 1 if bad else 0
    for check in bad if args.quiet else bad + [c for c in checks if c.status == "ok"]:
        word = out.paint(f"{check.status:<9}", _MARK[check.status])
        out.say(f"{word}{check.name:<20}{out.clean(check.message)}")
        if check.remedy:
            out.say(f"{'':<29}{out.clean(check.remedy)}")
    failed = sum(check.status == "failed" for check in bad)
    if failed:
        out.note(f"{failed} of {len(checks)} checks failed")
    elif bad:
        out.note("nothing is broken; see the remarks above")
    else:
        out.note(f"all {len(checks)} checks are fine")
    return 1 if bad else 0
