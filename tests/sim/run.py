"""Run seeds of the replication simulation: `make sim`, `make sim SEED=7`, `make sim SEEDS=1000`.

Each seed is one run of `tests.sim.world`. Over a batch every fault and every hostile deed must have
happened; a failure names the one command that repeats its seed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from tests.helpers.det import run_seeded
from tests.helpers.sometimes import Sometimes
from tests.sim.plan import FAULTS, OPERATIONS, VILLAINS, Plan
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MUST_HAPPEN: Final = (
    # What users do, and what became of it.
    *OPERATIONS,
    "cell_lww", "cell_mv", "cell_set", "cell_counter", "cell_map", "counter_exact", "erased",
    "joined", "join_waits", "accepted", "turned_away", "readmitted", "removed", "expelled", "left",
    "promoted", "demoted", "rotated", "closed", "call_refused", "said_again",
    # Faults.
    *(f for f in FAULTS if f != "clock"), "clock_ahead", "clock_back",
    "crash_lost_write", "crash_lost_word", "full_disk_refused",
    "push_lost", "push_twice", "push_mixed", "fork_of_image", "forked_by_image",
    # Hostile members, and that they were noticed.
    *(f"villain_{kind}" for kind in VILLAINS if kind not in {"withhold", "claim"}),
    "villain_withheld", "villain_claimed", "coup_after_expulsion", "throttled", "fork_proved",
    "held", "withheld_noticed", "refused_signature", "refused_stranger",
    "key_withheld_from_expelled",
)  # fmt: skip
"""What each batch of seeds must contain at least once."""


class SeedError(AssertionError):
    """A seed failed.

    Args:
        seed: which.
        why: what was found.
    """

    def __init__(self, seed: int, why: str) -> None:
        super().__init__(f"seed {seed}: {why}; repeat it with: make sim SEED={seed}")
        self.seed = seed


def counts() -> Sometimes:
    """Counters of everything that may happen."""
    return Sometimes(*MUST_HAPPEN, *MAY_HAPPEN)


MAY_HAPPEN: Final = (
    "refused_authority", "refused_body", "refused_encoding", "refused_group", "refused_payload",
    "refused_proof",
)  # fmt: skip
"""Counted, and not demanded."""


def leaves(error: BaseException) -> list[BaseException]:
    """The errors a group of errors is made of."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


def run_seed(seed: int, sometimes: Sometimes) -> str:
    """One run; its trace.

    Raises:
        SeedError: an invariant does not hold, or something raised.
    """
    try:
        return run_seeded(run_world, Plan.draw(seed), sometimes, seed=seed)
    except Exception as error:
        found = leaves(error)
        raise SeedError(seed, f"{type(found[0]).__name__}: {found[0]}") from error


async def run_world(plan: Plan, sometimes: Sometimes) -> str:
    """The world of a plan, inside the loop."""
    return await World(plan, sometimes).main()


def run_one(seed: int) -> tuple[int, dict[str, int], str]:
    """A seed in a process of its own: (seed, counts, what failed)."""
    logging.disable(logging.CRITICAL)
    sometimes = counts()
    try:
        run_seed(seed, sometimes)
    except SeedError as error:
        return seed, sometimes.counts, str(error)
    return seed, sometimes.counts, ""


def run_batch(seeds: Iterable[int], processes: int) -> tuple[Counter[str], list[str]]:
    """Run seeds; counts over all of them, and what failed."""
    total: Counter[str] = Counter()
    failures = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _, counted, failure in pool.imap_unordered(run_one, seeds, chunksize=1):
            total.update(counted)
            if failure:
                failures.append(failure)
                print(failure, flush=True)
    return total, sorted(failures)


def never(total: Counter[str]) -> list[str]:
    """What had to happen in a batch and did not."""
    return [name for name in MUST_HAPPEN if not total[name]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat this one, and say everything")
    parser.add_argument("--seeds", type=int, default=200, help="how many, from 0 on")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    if given.seed is not None:
        print(Plan.draw(given.seed))
        sometimes = counts()
        print("trace", run_seed(given.seed, sometimes))
        print({name: count for name, count in sometimes.counts.items() if count})
        return 0
    total, failures = run_batch(range(given.seeds), given.processes)
    for name in sorted(total):
        print(f"{total[name]:8d} {name}")
    missing = never(total)
    print(f"{given.seeds} seeds, {len(failures)} failed; never happened: {missing or 'nothing'}")
    return 1 if failures or missing else 0


if __name__ == "__main__":
    sys.exit(main())
