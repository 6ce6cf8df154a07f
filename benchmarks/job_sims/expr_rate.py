"""Fresh `expr` sessions a second on one node, beside bare Monty, in one run.

    python -m benchmarks.job_sims.expr_rate --rounds 7

Both compute the same function of the same rows, a session a row, in two worker processes. Bare
Monty: two threads, no limits, no policy, values in and out. Ours: tasks through the handler, with
limits, the frozen clock, the seed by code and row, canonical JSON and the checks of the answer.
Rounds alternate (A B B A); the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from federated.jobs.handlers.base import Batch, BatchRow, TaskCtx, TaskLimits
from federated.jobs.handlers.expr import Expr

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_monty import Monty

    from p2p.identity import PeerId

T = TypeVar("T")

CODE: Final = "def map(row):\n    return {'y': row['x'] * 2}"
SLOTS: Final = 2
PEER: Final[PeerId] = bytes(32)  # type: ignore[assignment]


class _Threads:
    async def run(self, fn: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(fn)


CTX: Final = TaskCtx(
    caller=PEER, owner=PEER, trust="own", group=None, limits=TaskLimits(), offload=_Threads()
)


def bare_per_s(pool: Monty, executor: ThreadPoolExecutor, sessions: int) -> float:
    """Sessions a second of Monty alone."""

    def some(first: int) -> None:
        for x in range(first, sessions, SLOTS):
            with pool.checkout() as session:
                found = session.feed_run(CODE + "\nmap(row)", inputs={"row": {"x": x}})
            assert found == {"y": 2 * x}

    began = time.perf_counter()
    list(executor.map(some, range(SLOTS)))
    return sessions / (time.perf_counter() - began)


async def _ours(handler: Expr, sessions: int, rows: int) -> None:
    starts = iter(range(0, sessions, rows))

    async def lane() -> None:
        for start in starts:
            items = [BatchRow(k=k, row={"x": start + k}) for k in range(rows)]
            answers = await handler.run(Batch(rows=items, params={"code": CODE}), CTX)
            assert [row for _, row, _ in answers] == [{"y": 2 * (start + k)} for k in range(rows)]

    async with trio.open_nursery() as nursery:
        for _ in range(SLOTS):
            nursery.start_soon(lane)


async def ours_per_s(handler: Expr, sessions: int, rows: int) -> float:
    """Sessions a second through the handler, `rows` rows a task."""
    began = time.perf_counter()
    await _ours(handler, sessions, rows)
    return sessions / (time.perf_counter() - began)


async def rates(rounds: int, sessions: int) -> dict[str, list[float]]:
    """Sessions a second of each contestant in each round; the rounds alternate.

    Raises:
        ImportError: the extra `expr` is not installed.
    """
    from pydantic_monty import Monty

    handler = Expr(slots=SLOTS)
    found: dict[str, list[float]] = {"bare": [], "1 row a task": [], "32 rows a task": []}
    with Monty(max_processes=SLOTS) as pool, ThreadPoolExecutor(SLOTS) as executor:
        bare_per_s(pool, executor, SLOTS * 32)
        await _ours(handler, SLOTS * 32, 1)
        for number in range(rounds):
            order = list(found) if number % 2 == 0 else list(reversed(found))
            for name in order:
                if name == "bare":
                    found[name].append(bare_per_s(pool, executor, sessions))
                else:
                    rows = int(name.split(maxsplit=1)[0])
                    found[name].append(await ours_per_s(handler, sessions, rows))
    await handler.aclose()
    return found


def beside_bare(found: dict[str, list[float]], name: str) -> float:
    """Median of the rounds' ratios to bare Monty."""
    return statistics.median(
        ours / bare for ours, bare in zip(found[name], found["bare"], strict=True)
    )


async def measure(rounds: int, sessions: int) -> None:
    """Print the table."""
    found = await rates(rounds, sessions)
    print(f"load {os.getloadavg()[0]:.1f}, {rounds} rounds of {sessions} sessions, {SLOTS} workers")
    for name, of_it in found.items():
        print(f"{name:15} {statistics.median(of_it):7.0f}/s ({min(of_it):.0f} to {max(of_it):.0f})"
              f"  {beside_bare(found, name):.2f} of bare")  # fmt: skip


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="fresh sessions of expr a second")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sessions", type=int, default=3200)
    args = parser.parse_args()
    trio.run(measure, args.rounds, args.sessions)


if __name__ == "__main__":
    main()
