"""How the parts are: a status word, and a row per check with what to do.

Checks are made when somebody asks, except the lag of the loop, which only a sampler sees.
"""

from __future__ import annotations

import shutil
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Word = Literal["starting", "ok", "degraded", "draining", "failed"]

LAG_EVERY_S: Final = 1.0
LAG_SAMPLES: Final = 120
# A caller notices a tenth of a second; the aim is 50 ms at the 99th percentile (daemon.md s.13).
LAG_DEGRADED_S: Final = 0.5
CHECK_LIMIT_S: Final = 2.0


class Check(msgspec.Struct, kw_only=True):
    """One thing looked at.

    Attributes:
        name: such as `store.writer`.
        status: ok, degraded or failed.
        message: what was found.
        remedy: what to do; empty when nothing is.
    """

    name: str
    status: Literal["ok", "degraded", "failed"]
    message: str
    remedy: str = ""


class HealthReport(msgspec.Struct, kw_only=True):
    """All checks; the worst decides the status."""

    status: Word
    checks: list[Check]


Probe = "Callable[[], Awaitable[Check]]"


class Health:
    """Collects probes and asks them.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._probes: dict[str, Callable[[], Awaitable[Check]]] = {}
        self._lags: deque[float] = deque(maxlen=LAG_SAMPLES)
        self.phase: Word = "starting"

    def add(self, name: str, probe: Callable[[], Awaitable[Check]]) -> None:
        """Register a probe; it must return within two seconds or counts as failed."""
        self._probes[name] = probe

    async def sample_lag(self) -> None:
        """Measure how late the loop wakes us; runs until cancelled."""
        while True:
            before = self._now()
            await trio.sleep(LAG_EVERY_S)
            self._lags.append(max(0.0, self._now() - before - LAG_EVERY_S))

    @property
    def lag_p99_s(self) -> float:
        """99th percentile of the loop's lag over the last two minutes, seconds."""
        if not self._lags:
            return 0.0
        ordered = sorted(self._lags)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]

    @property
    def lag_last_s(self) -> float:
        """Newest sample, seconds."""
        return self._lags[-1] if self._lags else 0.0

    async def report(self) -> HealthReport:
        """Ask all probes."""
        checks = [self._lag_check()]
        for name, probe in list(self._probes.items()):
            check: Check | None = None
            with trio.move_on_after(CHECK_LIMIT_S):
                try:
                    check = await probe()
                except Exception as error:  # noqa: BLE001 - a probe's failure is its finding
                    check = Check(name=name, status="failed", message=type(error).__name__)
            checks.append(check or Check(name=name, status="failed", message="no answer in 2 s"))
        checks.sort(key=lambda check: check.name)
        return HealthReport(status=self._status(checks), checks=checks)

    def _status(self, checks: list[Check]) -> Word:
        if self.phase in {"starting", "draining"}:
            return self.phase
        found = {check.status for check in checks}
        return "failed" if "failed" in found else "degraded" if "degraded" in found else "ok"

    def _lag_check(self) -> Check:
        lag = self.lag_p99_s
        if lag < LAG_DEGRADED_S:
            return Check(name="loop.lag", status="ok", message=f"{lag * 1000:.0f} ms at the 99th")
        return Check(
            name="loop.lag",
            status="degraded",
            message=f"{lag * 1000:.0f} ms at the 99th percentile",
            remedy="The machine is overloaded: see `covey logs` for what runs long.",
        )


def disk_check(folder: str, low_bytes: int, full_bytes: int = 100 * 2**20) -> Check:
    """Free space of the state folder.

    Args:
        folder: any folder on the disk.
        low_bytes: below it the node is degraded.
        full_bytes: below it writes are refused.
    """
    free = shutil.disk_usage(folder).free
    message = f"{free / 2**20:,.0f} MiB free"
    if free >= low_bytes:
        return Check(name="store.disk", status="ok", message=message)
    return Check(
        name="store.disk",
        status="failed" if free < full_bytes else "degraded",
        message=message,
        remedy=f"Free some space on the disk of {folder}.",
    )
