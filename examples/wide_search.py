"""Fill a table from 500 documents on three machines, one of which is killed midway.

Run: python examples/wide_search.py
Each document becomes a row with the columns of a schema. What a machine had in its hands when it
died is done by another. Where a row has no answer, the result says why; once the cause is mended
the gaps alone are done again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from machines import machines

from federated.jobs.types import Column, JobSpec, Table

COUNTRIES = {"Malmo": "Sweden", "Turku": "Finland", "Aarhus": "Denmark", "Bergen": "Norway"}
PRODUCTS = ("oars", "glass beads", "rope", "clocks", "paper", "sails", "bricks")
SCHEMA = [
    Column(name="id"),
    Column(name="name"),
    Column(name="founded", type="int", min=1600, max=2026),
    Column(name="product", max_len=40),
    Column(name="city"),
    Column(name="country", type="enum", enum=sorted(COUNTRIES.values())),
    Column(name="staff", type="int", min=1),
]
# What each machine offers: a function of programs.py, and the folder that it may read.
SETTINGS = """
[jobs.handlers."facts@1"]
run = "programs:facts"
read = ["{folder}"]
deterministic = true
summary = "facts about a company in a document"
"""


def documents(count: int) -> list[dict[str, object]]:
    """The same on every run; a real search would fetch them."""
    cities = list(COUNTRIES)
    return [
        {
            "id": f"doc-{n:03}",
            "document": f"From our visits. Firm {n} & Daughters, founded in {1700 + n % 300},"
            f" makes {PRODUCTS[n % 7]} in {cities[n % 4]} with {5 + n * 37 % 900} people.",
        }
        for n in range(count)
    ]


def main() -> None:
    """Start three machines that can read documents, and search."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(Path(__file__).with_name("programs.py"), folder)
        known = Path(folder) / "countries.json"
        known.write_text(json.dumps({**COUNTRIES, "Turku": None}))  # nobody knows where Turku is
        settings = SETTINGS.format(folder=folder)
        with machines("desk", "attic", "cellar", settings=settings) as (desk, attic, _cellar):
            search(desk, attic, known)


def search(desk, attic, known: Path) -> None:
    """Fill the table, mend what was missing, fill the gaps."""
    spec = JobSpec(
        handler="facts@1",
        rows=documents(500),
        columns=SCHEMA,
        key_columns=["id"],
        reduce=Table(),
        title="companies we visited",
    )
    with desk.jobs() as jobs:
        job = jobs.submit(spec)
        follow(jobs, job, kill_at=100, victim=attic)
        gaps = [row for row in jobs.rows(job) if row.state != "ok"]
        print(f"{len(gaps)} gaps:", dict(Counter(row.reason for row in gaps)))

        known.write_text(json.dumps(COUNTRIES))
        print("Turku is in the list now; the gaps again")
        again = jobs.retry_gaps(job)
        follow(jobs, again)
        table = list(jobs.reduced(again))
    print(f"{len(table)} companies; the oldest:")
    for row in sorted(table, key=lambda row: (row["founded"], row["id"]))[:3]:
        print(f"  {row['founded']}  {row['name']}, {row['city']} ({row['country']})")


def follow(jobs, job: str, *, kill_at: int = 0, victim=None) -> None:
    """Print how far a job is, a line each 100 rows; kill a machine once `kill_at` are done."""
    next_line = 0
    for event in jobs.watch(job):
        if event.name != "progress":
            continue
        done = event.data["done"]
        if done >= next_line:
            print(f"  {done} of {event.data['rows']} rows done")
            next_line = done + 100
        if victim is not None and done >= kill_at:
            victim.kill()
            print(f"  {victim.name} is killed (kill -9)")
            victim = None
    state = jobs.status(job)
    print(f"{state.state}: {state.by_state['ok']} rows of {state.rows}, by machine {state.peers}")


if __name__ == "__main__":
    main()
