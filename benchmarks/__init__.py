"""Measured figures: Covey beside its peer or limit, in one run.

`python -m benchmarks NAME [--quick] [--json] [--data DIR]`, NAME one of `NAMES`. Method in
docs/benchmarks.md: alternating rounds, the median of the rounds' ratios, an A/A control of equal
work in every comparison, and no verdict when that control is off.
"""

NAMES = ("main", "memory", "mesh", "replication", "jobs", "rounds")
