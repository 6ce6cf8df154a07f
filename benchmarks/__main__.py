"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks import NAMES
from benchmarks.report import Options, Report


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark; 0 when every row with a verdict holds, 1 when one does not."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Covey beside its peers, in one run.",
        epilog="example: python -m benchmarks mesh --quick --json",
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; ends within 10 minutes")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--only", default="", help="run only the parts whose name contains this")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with the evaluation data"
    )
    args = parser.parse_args(argv)
    report = Report(as_json=args.json)
    options = Options(quick=args.quick, data=args.data, only=args.only)
    print(f"load before: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    importlib.import_module(f"benchmarks.{args.name}").run(options, report)
    report.close()
    return 0 if report.all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
