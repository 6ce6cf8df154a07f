"""Tasks of Ray that do nothing: its rate, and how long one takes; runs in Ray's own environment.

    python ray_tasks.py TASKS SINGLES

Prints one line of JSON: {"rate": tasks/s, "one_ms": median}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import ray


@ray.remote
def echo(number: int) -> int:
    """The number."""
    return number


def main(tasks: int, singles: int) -> None:
    """Two workers on this machine, no dashboard, nothing said to anybody."""
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=200_000_000,
    )  # fmt: skip
    ray.get([echo.remote(n) for n in range(200)])
    began = time.perf_counter()
    ray.get([echo.remote(n) for n in range(tasks)])
    rate = tasks / (time.perf_counter() - began)
    took = []
    for number in range(singles):
        began = time.perf_counter()
        ray.get(echo.remote(number))
        took.append((time.perf_counter() - began) * 1000)
    print(json.dumps({"rate": rate, "one_ms": statistics.median(took)}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
