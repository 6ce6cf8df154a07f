"""What Linux tells of mains, batteries and terminals; elsewhere nothing is known.

Batteries and mains stand in `/sys/class/power_supply`. Somebody typed at a terminal when it was
last read from, which is the time of access of its device; that is what `w` shows as idle. A desktop
session without a terminal is not seen. Source: Linux, Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from federated.jobs.manners import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

POWER: Final = Path("/sys/class/power_supply")
TERMINALS: Final = (("/dev/pts", "[0-9]*"), ("/dev", "tty[1-9]*"))
_MAINS: Final = frozenset({"mains", "usb"})


class Machine:
    """Looks at this machine.

    Args:
        wall_ms: Unix milliseconds now.
        power: the folder of power supplies.
        terminals: (folder, pattern) of terminals' devices.
    """

    def __init__(
        self, wall_ms: Callable[[], int], *, power: Path = POWER,
        terminals: Iterable[tuple[str, str]] = TERMINALS,
    ) -> None:  # fmt: skip
        self._wall_ms = wall_ms
        self._power = power
        self._terminals = tuple(terminals)

    def look(self) -> Reading:
        """What there is to see now."""
        on_ac, percent = self._supply()
        return Reading(on_ac=on_ac, percent=percent, idle_s=self._idle_s())

    def _supply(self) -> tuple[bool, int | None]:
        mains: list[bool] = []
        charges: list[int] = []
        drawn = False
        for supply in _entries(self._power, "*"):
            kind = _word(supply / "type")
            if _word(supply / "scope") == "device":
                continue  # a mouse's battery
            if kind in _MAINS and (online := _number(supply / "online")) is not None:
                mains.append(online > 0)
            if kind == "battery" and (charge := _number(supply / "capacity")) is not None:
                charges.append(charge)
                drawn = drawn or _word(supply / "status") == "discharging"
        percent = sum(charges) // len(charges) if charges else None
        # Some machines have a battery and tell nothing of mains.
        return (any(mains) if mains else not drawn), percent

    def _idle_s(self) -> float | None:
        read_at = [
            stat for folder, pattern in self._terminals
            for one in _entries(Path(folder), pattern) if (stat := _accessed(one)) is not None
        ]  # fmt: skip
        return max(0.0, self._wall_ms() / 1000 - max(read_at)) if read_at else None


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _word(path: Path) -> str:
    try:
        return path.read_text("ascii").strip().lower()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    word = _word(path)
    return int(word) if word.isdecimal() else None


def _accessed(path: Path) -> float | None:
    try:
        return path.stat().st_atime
    except OSError:
        return None
