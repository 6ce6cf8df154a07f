"""Writes docs/benchmarks.md from runs, and README's table from that document.

`python -m benchmarks.docs [NAME ...] [--quick]` measures all benchmarks or those named, and leaves
the others' sections as they are; `--readme` alone rewrites README's table without measuring.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import TypeAlias

from benchmarks.processes import ROOT, python

MEASURED = ("main", "memory", "mesh", "replication", "jobs", "rounds")

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

HEADLINES = (
    "covey recall, whole process",
    "MCP relay, spawn",
    "idle daemon",
    "durable remember",
    "10 agents at once, durable writes",
    "lexical recall over the socket",
    "recall with MiniLM, 10,000 memories, p50",
    "LoCoMo turns (P1), without a model, R@10",
    "LoCoMo turns (P1), with MiniLM, R@10",
    "plain FTS5, LoCoMo turns (P1), R@10",
    "BEAM (P5), with MiniLM, R@10",
    "plain FTS5, BEAM (P5), R@10",
    "LoCoMo poisoning (P4), stranger: poison",
    "LoCoMo poisoning (P4), member at .5: poison",
    "flood of 200 texts a query, stranger: poison",
    "PoisonedRAG (P8), stranger: poison",
    "T1 gap",
    "T3 bad deeds until blocked after 500",
    "T4 identities",
    "bytes of",
    "peer RPC",
    "bulk upload, MB a CPU second of both, beside py-libp2p",
    "2 agents on 2 machines, 20,000 increments of one cell at once: lost",
    "a fresh machine takes over 100,000 memories: durable",
    "records a second to a newcomer",
    "20,000 shared values to a newcomer",
    "no-op tasks",
    "weighted mean 8 x 100 MB, scipy: share of the triad",
    "median of 16 x",
    "distances of 16 x",
    "100 MB handed over and folded, written in place",
    "8 trainers x 100 MB at once, written in place",
    "deadline by arrivals, 4,000 rounds",
    "Streaming DiLoCo, defaults",
    "centred_clipping, worst of",
    "fltrust, worst of",
    "round in a model, N=30, 100 MB f32, 200 draws: median",
    "round in a model, N=30, the same in E3M0, 200 draws: median",
    "masks of one of 20",
    "mask words made and added",
    "heavy hitters, mean F1",
    "heavy hitters, Shakespeare",
)
"""Beginnings of the rows that README shows; docs/benchmarks.md has them all."""


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
    table += [f"| {' | '.join(row)} |" for row in rows if row[0].startswith(HEADLINES)]
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [before + BEGIN, *table, END + after]
    readme.write_text("\n".join(lines), encoding="utf-8")


def measure() -> None:
    """Run the benchmarks and write their sections."""
    flags = [flag for flag in sys.argv[1:] if flag == "--quick"]
    named = [name for name in sys.argv[1:] if not name.startswith("-")]
    path = ROOT / "docs" / "benchmarks.md"
    sections = _sections(path.read_text(encoding="utf-8")) if named else {}
    for name in named or MEASURED:
        argv = [python(), "-m", "benchmarks", name, "--json", *flags]
        done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        rows: list[Row] = [json.loads(line) for line in done.stdout.splitlines()]
        sections[name] = _table(name, flags, rows)
    parts = [sections[name] for name in MEASURED if name in sections]
    path.write_text("\n".join([HEAD, _machine(), *parts]), encoding="utf-8")


def _sections(document: str) -> dict[str, str]:
    """The document's tables by name, as they stand."""
    found = document.split("\n## ")[1:]
    return {text.split("\n", 1)[0]: f"## {text.rstrip()}\n" for text in found}


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("trio", "cryptography", "msgspec"))
    return f"Python {platform.python_version()}, {platform.machine()}, {packages}.\n"


def _load(rows: list[Row]) -> str:
    """How busy the machine was, this run's own processes included."""
    loads = [float(row["load"] or 0) for row in rows if "load" in row]
    if not loads:
        return ""
    return (
        f"; load {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores. Above the number"
        " of cores, times that have no ratio are the worse for it."
    )


def _table(name: str, flags: list[str], rows: list[Row]) -> str:
    lines = [
        f"## {name}\n",
        f"`python -m benchmarks {' '.join([name, *flags])}`{_load(rows)}\n",
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
