"""Writes docs/benchmarks.md from a run, and README's table from that document.

`python -m benchmarks.docs [--quick]`; `--readme` alone rewrites the table without measuring.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import TypeAlias

from benchmarks.processes import ROOT, python

MEASURED = ("main", "memory", "mesh", "replication")

Row: TypeAlias = "dict[str, str | float | bool | None]"

HEAD = """# Benchmarks

Written by `python -m benchmarks.docs`; do not edit. Each table comes from the command above it.

**Method.** Covey and its yardstick run in the same run on the same machine, in alternating rounds
(yardstick, Covey, Covey, yardstick). A row's ratio is the median of the rounds' ratios. The two
yardstick samples of each round are an A/A control: where their ratio leaves .95-1.05 the machine
was too noisy and the row carries no verdict. CPU time is that of all processes of a stack. Peers
live in virtual environments of their own, pinned; a peer that cannot be installed is "not
measured", never filled in from elsewhere. Signatures, encryption and durable commits are on.
"""


BEGIN, END = "<!-- figures: written by python -m benchmarks.docs -->", "<!-- end of figures -->"
LEFT_OUT = ("load during the run",)


def main() -> int:
    """Run every benchmark, write the document and README's table."""
    if "--readme" not in sys.argv:
        measure()
    write_readme()
    return 0


def write_readme() -> None:
    """Copy the figures into README, so that both say the same."""
    document = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in document.splitlines()
        if line.startswith("| ") and not line.startswith("| figure")
    ]
    table = ["| figure | Covey | beside | ratio | target | holds |", "|---|---|---|---|---|---|"]
    table += [f"| {' | '.join(row)} |" for row in rows if row[0] not in LEFT_OUT]
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [before + BEGIN, *table, END + after]
    readme.write_text("\n".join(lines), encoding="utf-8")


def measure() -> None:
    """Run every benchmark and write the document."""
    flags = [flag for flag in sys.argv[1:] if flag == "--quick"]
    parts = [HEAD, _machine()]
    for name in MEASURED:
        argv = [python(), "-m", "benchmarks", name, "--json", *flags]
        done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        rows: list[Row] = [json.loads(line) for line in done.stdout.splitlines()]
        parts.append(_table(name, flags, rows))
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("trio", "cryptography", "msgspec"))
    return f"Python {platform.python_version()}, {platform.machine()}, {packages}.\n"


def _table(name: str, flags: list[str], rows: list[Row]) -> str:
    lines = [
        f"## {name}\n",
        f"`python -m benchmarks {' '.join([name, *flags])}`\n",
        "| figure | value | yardstick, same run | ratio (min-max) | target | holds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f" ({row['ratio_min']}-{row['ratio_max']})" if "ratio_min" in row else ""
        ratio = "" if row["ratio"] is None else f"{row['ratio']}{spread}"
        value = "not measured" if row["value"] is None else f"{row['value']:g} {row['unit']}"
        holds = {True: "yes", False: "**no**", None: "-"}[row["holds"]]  # type: ignore[index]
        note = f" {row['note']}" if row.get("note") else ""
        cells = (row["name"], value, f"{row['yardstick']}{note}", ratio, row["target"], holds)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
