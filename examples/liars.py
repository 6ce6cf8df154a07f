"""Ten machines of other people appraise lots; two of them lie. They are found and asked no more.

Run: python examples/liars.py
Two owners must agree on each value. Where they do not, a machine of yours that can compute the same
decides at once; whoever was wrong is quarantined, and what it had said elsewhere counts no more.
"""

from __future__ import annotations

from pathlib import Path

from machines import machines

from federated.jobs.types import Column, JobSpec

LIARS = {"magpie": "appraise_double", "jackdaw": "appraise_triple"}
GUESTS = ["heron", "magpie", "wren", "finch", "owl", "jackdaw", "stork", "swift", "lark", "crane"]
LOTS = [
    {"lot": n, "of": ("gold", "silver", "amber")[n % 3], "grams": 10 + n * 7 % 90}
    for n in range(400)
]
SETTINGS = """
[jobs.handlers."appraise@1"]
run = "programs:{function}"
read = ["{folder}"]
groups = ["own", "auction"]
deterministic = true
"""


def settings(name: str) -> str:
    """What a machine offers: the honest function, or another under the same name."""
    return SETTINGS.format(function=LIARS.get(name, "appraise"), folder=Path(__file__).parent)


def main() -> None:
    """Start eleven machines, ten of them of other owners, and have the lots appraised."""
    names = ["home", *GUESTS]
    each = {name: settings(name) for name in names}
    with machines(*names, settings=each, group="auction") as made, made[0].jobs() as jobs:
        spec = JobSpec(
            handler="appraise@1",
            rows=LOTS,
            columns=[Column(name="value", type="int", min=0)],
            verify="quorum:2",
            group="auction",
            title="what are they worth",
        )
        job = jobs.submit(spec)
        doubted = watch(jobs, job)
        verdict(jobs, job, doubted)


def watch(jobs, job: str) -> list[int]:
    """Print who is caught; the rows that were answered in several ways."""
    doubted = []
    for event in jobs.watch(job):
        if event.name == "conflict":
            doubted.append(event.data["k"])
        if event.name == "quarantine":
            who, again = event.data["machines"], event.data["reopened"]
            print(f"{', '.join(who)} is caught and asked no more; rows open again: {again}")
    return doubted


def verdict(jobs, job: str, doubted: list[int]) -> None:
    """Print how many rows are right, and how one that was lied about came to its value."""
    state = jobs.status(job)
    rows = list(jobs.rows(job))
    gold = {"gold": 90, "silver": 1, "amber": 4}
    right = sum(row.row["value"] == gold[row.source["of"]] * row.source["grams"] for row in rows)
    print(f"{state.state}: {right} of {len(rows)} values are right, {len(doubted)} conflicts")
    print(f"tasks handed out: {state.executions}; rows by machine: {state.peers}")
    why = jobs.explain(job, doubted[0])
    print(f"row {doubted[0]}: level {why.row.level} of 3, {len(why.attempts)} tries")
    for attempt in why.attempts:
        vouches = "vouches for it" if attempt["owner"] in why.agreed else "says something else"
        print(f"  {attempt['machine']}: {attempt['state']} in {attempt['took_ms']} ms, {vouches}")


if __name__ == "__main__":
    main()
