"""Rows of a benchmark: how a ratio is formed, when it counts, how it is printed."""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CONTROL_MIN, CONTROL_MAX = 0.95, 1.05
"""An A/A control outside this range says that the machine is too noisy for a verdict."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    quick: bool
    data: Path
    only: str = ""

    @property
    def rounds(self) -> int:
        """Alternating rounds of a comparison."""
        return 3 if self.quick else 7

    def wants(self, part: str) -> bool:
        """Whether `part` was asked for."""
        return self.only in part


@dataclass(frozen=True)
class Target:
    """A bound on a ratio or value: `Target("<=", 3)`; `=` is a figure to reproduce."""

    op: str
    bound: float

    def met(self, value: float) -> bool:
        """Whether `value` is within the bound."""
        match self.op:
            case "<=":
                return value <= self.bound
            case ">=":
                return value >= self.bound
            case _:
                return value == self.bound

    def __str__(self) -> str:
        return f"{self.op} {self.bound:g}"


@dataclass(frozen=True)
class Paired:
    """Outcome of alternating rounds of ours against a yardstick.

    Attributes:
        ours: median of our samples.
        yardstick: median of the yardstick's.
        ratios: a ratio a round.
        control: median ratio of the yardstick against itself.
    """

    ours: float
    yardstick: float
    ratios: tuple[float, ...]
    control: float

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def quiet(self) -> bool:
        """Whether the control allows a verdict."""
        return CONTROL_MIN <= self.control <= CONTROL_MAX


def alternate(ours: Callable[[], float], yardstick: Callable[[], float], rounds: int) -> Paired:
    """Measure A B B A a round: the yardstick frames ours, so drift hits both alike.

    The two yardstick samples of a round are its A/A control.
    """
    mine: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    controls: list[float] = []
    for _ in range(rounds):
        before, first, second, after = yardstick(), ours(), ours(), yardstick()
        mine += [first, second]
        theirs += [before, after]
        ratios.append((first + second) / (before + after))
        controls.append(after / before)
    return Paired(
        statistics.median(mine),
        statistics.median(theirs),
        tuple(ratios),
        statistics.median(controls),
    )


class Report:
    """Prints rows as they come and remembers whether all of them hold."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.all_hold = True

    def paired(
        self, name: str, pair: Paired, *, unit: str, yardstick: str, target: Target | None
    ) -> None:
        """A row from alternating rounds; no verdict when its control is off."""
        holds = target.met(pair.ratio) if target and pair.quiet else None
        note = "" if pair.quiet else f"too noisy for a verdict: control {pair.control:.2f}"
        self._row(
            name=name,
            value=round(pair.ours, 4),
            unit=unit,
            yardstick=f"{yardstick} = {pair.yardstick:.4g} {unit}",
            ratio=round(pair.ratio, 3),
            target=f"ratio {target}" if target else "reported",
            holds=holds,
            note=note,
            extra={
                "ratio_min": round(min(pair.ratios), 3),
                "ratio_max": round(max(pair.ratios), 3),
                "rounds": len(pair.ratios),
                "control": round(pair.control, 3),
            },
        )

    def value(
        self,
        name: str,
        value: float,
        *,
        unit: str,
        target: Target | None = None,
        yardstick: str = "-",
        yardstick_value: float | None = None,
        target_ratio: Target | None = None,
    ) -> None:
        """A row with a target for its value or for its ratio to the yardstick, or none."""
        ratio = value / yardstick_value if yardstick_value else None
        bound = f"{target} {unit}" if target else "reported"
        holds = target.met(value) if target else None
        if target_ratio and ratio is not None:
            bound, holds = f"ratio {target_ratio}", target_ratio.met(ratio)
        self._row(
            name=name,
            value=round(value, 4),
            unit=unit,
            yardstick=yardstick
            if yardstick_value is None
            else f"{yardstick} = {yardstick_value:.4g}",
            ratio=None if ratio is None else round(ratio, 3),
            target=bound,
            holds=holds,
            note="",
            extra={},
        )

    def missing(self, name: str, why: str) -> None:
        """A row that could not be measured here; never filled from elsewhere."""
        self._row(
            name=name,
            value=None,
            unit="",
            yardstick="not measured",
            ratio=None,
            target="",
            holds=None,
            note=why,
            extra={},
        )

    def _row(
        self,
        *,
        name: str,
        value: float | None,
        unit: str,
        yardstick: str,
        ratio: float | None,
        target: str,
        holds: bool | None,
        note: str,
        extra: dict[str, float | int],
    ) -> None:
        self.all_hold &= holds is not False
        row = {
            "name": name,
            "value": value,
            "unit": unit,
            "yardstick": yardstick,
            "ratio": ratio,
            "target": target,
            "holds": holds,
        }
        if self._as_json:
            print(json.dumps(row | {"note": note, "load": round(os.getloadavg()[0], 2)} | extra))
        else:
            mark = {True: "holds", False: "MISSED", None: "-"}[holds]
            shown = "-" if value is None else f"{value:g} {unit}"
            share = "" if ratio is None else f"ratio {ratio:g}"
            print(f"{name:44} {shown:>16}  {share:12} {target:16} {mark:7} {yardstick} {note}")
        sys.stdout.flush()

    def close(self) -> None:
        """A last line for people."""
        if not self._as_json:
            print(f"all verdicts hold: {'yes' if self.all_hold else 'no'}")


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile, `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
