"""Waiting for a daemon that is only away: stopped for an upgrade, killed, not yet up again."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, TypeVar

from daemon.cli.client import CliError, NotRunning
from federated.rounds.pool.client import PoolError, PoolRefused

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BACK_S: Final = 1.0
"""How often a daemon that went away is looked for."""
PATIENCE_S: Final = 600.0
"""How long it is waited for: longer than an upgrade with a restart takes."""


class Patience:
    """How long a trainer of this process waits for its daemon.

    Args:
        tell: hears that the daemon is gone, and that it is back.
        timeout_s: the time for everything; None: no limit.
    """

    def __init__(self, tell: Callable[[str], None], timeout_s: float | None = None) -> None:
        self._tell = tell
        self._until = math.inf if timeout_s is None else time.perf_counter() + timeout_s

    @property
    def left_s(self) -> float:
        """What is left of the time for everything; 0: it is over."""
        return max(0.0, self._until - time.perf_counter())

    def call(self, ask: Callable[[], T]) -> T:
        """`ask()`, again and again while the daemon is away.

        Raises:
            CliError: it did not come back, or refused.
            PoolError: the same of its pool.
        """
        until = min(time.perf_counter() + PATIENCE_S, self._until)
        gone = False
        while True:
            try:
                answer = ask()
            except (CliError, PoolError) as error:
                if not is_away(error) or time.perf_counter() > until:
                    raise
                if not gone:
                    self._tell("the daemon is gone; training goes on once it is back: `covey up`")
                gone = True
                time.sleep(BACK_S)
            else:
                if gone:
                    self._tell("the daemon is back")
                return answer


def is_away(error: CliError | PoolError) -> bool:
    """Whether a daemon may come back: none answers, or it is stopping."""
    if isinstance(error, PoolError):
        return not isinstance(error, PoolRefused)
    return isinstance(error, NotRunning) or error.name == "draining"
