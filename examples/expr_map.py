"""Send a small function with a job: it runs on the other machines, in a sandbox, a row at a time.

Run: python examples/expr_map.py
A machine takes code only from those whom its operator named, and needs the extra `expr`:
    pip install 'covey[expr]'
The function sees its row and nothing else: no file, no network, no clock, no chance.
"""

from __future__ import annotations

import importlib.util
import sys

from machines import machines

from federated.jobs.types import Column, JobSpec

SETTINGS = """
[jobs]
expr = ["own"]
"""
CODE = '''
def map(row):
    """Leap years and weekday of the first day, by Zeller's congruence."""
    year = row["year"]
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    last = year - 1
    century, rest = last // 100, last % 100
    day = (1 + 13 * 14 // 5 + rest + rest // 4 + century // 4 + 5 * century) % 7
    names = ["Saturday", "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    return {"year": year, "leap": leap, "begins": names[day]}
'''
# What a sandbox is for: this would read a file of the machine that computes it.
CURIOUS = """
def map(row):
    return {"stolen": open("/etc/passwd").read()}
"""


def main() -> None:
    """Map years, then see what becomes of a function that is curious."""
    if importlib.util.find_spec("pydantic_monty") is None:
        sys.exit("skipped: this example needs the extra `expr`: pip install 'covey[expr]'")
    with machines("desk", "attic", "cellar", settings=SETTINGS) as (desk, *_), desk.jobs() as jobs:
        spec = JobSpec(
            handler="expr:",
            params={"code": CODE},
            rows=[{"year": year} for year in range(1990, 2030)],
            columns=[
                Column(name="year", type="int"),
                Column(name="leap", type="bool"),
                Column(name="begins"),
            ],
        )
        job = jobs.submit(spec)
        state = jobs.wait(job)
        print(f"{state.state}: {state.by_state['ok']} years, by machine {state.peers}")
        for row in jobs.rows(job):
            if row.row["leap"]:
                print(f"  {row.row['year']} is a leap year and begins on a {row.row['begins']}")

        job = jobs.submit(JobSpec(handler="expr:", params={"code": CURIOUS}, rows=[{"n": 1}]))
        state = jobs.wait(job)
        row = jobs.result(job).rows[0]
        print(f"a function that opens a file: {state.state}, {row.reason}, {row.row}")


if __name__ == "__main__":
    main()
