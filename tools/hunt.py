"""`make hunt`: repeat one test while everything that should not matter varies.

Each run has another hash seed, another order of trio's tasks and, every third time, busy cores.
Same commit, same seed, two results is a bug, usually Covey's: this finds the runs that differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOAD_EVERY: Final = 3
TIMEOUT_S: Final = 600


def run_once(test: str, number: int) -> subprocess.CompletedProcess[str]:
    """Run `test` under conditions that follow from `number` alone."""
    busy = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1 if number % LOAD_EVERY == 0 else 0)
    ]
    try:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", test],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONHASHSEED": str(number % 4_294_967_296),
                "COVEY_TEST_SCHEDULE": f"hunt-{number}/",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> int:
    """Hunt; 1 if any run failed, with the command that repeats the first one."""
    if len(sys.argv) < 2 or not sys.argv[1]:
        print("which test? make hunt T=tests/unit/test_x.py::test_y N=200")
        return 2
    test, runs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
    failed = []
    for number in range(runs):
        result = run_once(test, number)
        if result.returncode != 0:
            failed.append(number)
            if len(failed) == 1:
                print(f"\nrun {number} failed:\n{result.stdout[-4000:]}{result.stderr[-2000:]}")
                print(
                    f"again: PYTHONHASHSEED={number} COVEY_TEST_SCHEDULE=hunt-{number}/ "
                    f"make test T={test}"
                )
        print(f"\r{number + 1} of {runs} runs, {len(failed)} failed", end="", flush=True)
    print()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
