"""Ray and Dask beside our jobs: tasks that do nothing, on two workers of this machine.

Each runs in an environment of its own, in the same run as ours. Neither keeps a journal nor
encrypts what it sends, and both have their workers on one machine.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Final

from benchmarks import peers

if TYPE_CHECKING:
    from benchmarks.report import Report

LIMIT_S: Final = 300
CONTESTANTS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "ray": (peers.RAY, "ray_tasks"),
    "dask": (peers.DASK, "dask_tasks"),
}


def run(report: Report, ours: float, *, tasks: int, singles: int) -> None:
    """Measure them.

    Args:
        report: where the rows go.
        ours: our tasks a second in this run.
        tasks: how many for a rate.
        singles: how many one after another.
    """
    for pinned, script in CONTESTANTS.values():
        name = pinned[0].replace("==", " ")
        try:
            found = _measured(peers.python_of(*pinned), script, tasks, singles)
        except (peers.PeerMissing, OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            report.missing(f"no-op tasks, {name}", str(error))
            continue
        report.value(
            f"no-op tasks, {name} with 2 workers, {tasks:,} at once", found["rate"],
            unit="tasks/s", yardstick="ours in this run, tasks/s", yardstick_value=ours,
        )  # fmt: skip
        report.value(
            f"one task after another, {name}, submit to result, p50", found["one_ms"], unit="ms"
        )


def _measured(python: str, script: str, tasks: int, singles: int) -> dict[str, float]:
    argv = [python, peers.subject(script), str(tasks), str(singles)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"{script}: {said}")
    found: dict[str, float] = json.loads(lines[-1])
    return found
