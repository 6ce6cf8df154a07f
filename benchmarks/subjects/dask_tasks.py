"""Tasks of Dask that do nothing: its rate, and how long one takes; runs in Dask's own environment.

    python dask_tasks.py TASKS SINGLES

Prints one line of JSON: {"rate": tasks/s, "one_ms": median}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from distributed import Client, LocalCluster


def echo(number: int) -> int:
    """The number."""
    return number


def main(tasks: int, singles: int) -> None:
    """Two workers of one thread on this machine, no dashboard."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(echo, range(200), pure=False))
        began = time.perf_counter()
        client.gather(client.map(echo, range(tasks), pure=False))
        rate = tasks / (time.perf_counter() - began)
        took = []
        for number in range(singles):
            began = time.perf_counter()
            client.submit(echo, number, pure=False).result()
            took.append((time.perf_counter() - began) * 1000)
        print(json.dumps({"rate": rate, "one_ms": statistics.median(took)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
