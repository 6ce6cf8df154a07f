"""`covey metrics`: figures for monitoring."""

from __future__ import annotations

import os

from daemon.cli import out
from daemon.cli.memory import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def configure_metrics(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey metrics`."""
    parser.add_argument(
        "--textfile", metavar="PATH", help="write them there at once, for a collector that reads it"
    )
    parser.epilog = (
        "examples:\n  covey metrics\n  covey metrics --textfile /var/lib/node_exporter/covey.prom"
    )


def run_metrics(args: argparse.Namespace) -> int:
    """Print or write the figures."""
    result = out.mapping(connect(args).call("daemon.metrics", {}))
    text = out.text(result.get("text"))
    if args.textfile:
        # The collector must never read half a file.
        part = f"{args.textfile}.part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, args.textfile)
        out.note(f"written to {args.textfile}")
    elif args.json:
        out.say_json(result)
    else:
        print(text, end="")
    return 0
