"""Streaming DiLoCo through the product's `Outer`, beside data-parallel training and FedAvg.

Four workers train the character model of `char_model` on tiny Shakespeare (`--data`); loss is the
validation loss of the common parameters, bytes are what a worker sends towards the reducers (the
merged part costs as much again on the way back). Codec, weights and merging are the product's; all
workers' G and m are checked to be the same bits at the end. FedAvg is the same machine with one
fragment, no overlap, no momentum and f32.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.memory.data import DataMissing
from benchmarks.report import Target
from benchmarks.round_parts.char_model import (
    FRAGMENTS,
    Text,
    Trained,
    data_parallel,
    streaming,
    text,
)
from federated.rounds.training.outer_words import OuterConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.report import Options, Report

SEEDS: Final = (10, 11, 12, 13)
SEEDS_QUICK: Final = (10,)
STEPS: Final = 1200
STEPS_QUICK: Final = 600

DEFAULT: Final = OuterConfig(fragments=FRAGMENTS)
SPARSE: Final = OuterConfig(fragments=FRAGMENTS, inner_steps=60, overlap=5)
FEDAVG: Final = OuterConfig(fragments=1, overlap=0, alpha=0, rate=1, momentum=0, codec="f32")


@dataclass(frozen=True)
class Case:
    """A setting beside data-parallel training.

    Attributes:
        named: what it is called.
        config: of `Outer`.
        fewer: how many times fewer bytes at least.
        worse: loss in percent above data-parallel at most.
        settled: that bound holds after `STEPS` only; a quick run has too few syncs to tell.
    """

    named: str
    config: OuterConfig
    fewer: float | None = None
    worse: float | None = None
    settled: bool = False


CASES: Final = (
    Case("Streaming DiLoCo, defaults", DEFAULT, 240, 1.0),
    Case("Streaming DiLoCo, H=60, overlap 5", SPARSE, 490, 1.0, settled=True),
    Case("FedAvg, H=30, f32", FEDAVG),
)


def run(options: Options, report: Report) -> None:
    """Measure."""
    try:
        told = text(options.data)
    except DataMissing as missing:
        report.missing("outer optimiser on a character model", str(missing))
        return
    seeds, steps = (SEEDS_QUICK, STEPS_QUICK) if options.quick else (SEEDS, STEPS)
    setting = f"{steps:,} steps, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    plain = [data_parallel(told, seed, steps) for seed in seeds]
    losses = {}
    for case in CASES:
        found = [streaming(told, seed, steps, case.config) for seed in seeds]
        losses[case.named] = _loss(found)
        _case(report, case, setting, plain, found, bound=not (options.quick and case.settled))
    _missing(report, told, seeds, steps, setting, losses[CASES[0].named])


def _loss(found: Sequence[Trained]) -> float:
    return statistics.fmean(trained.loss for trained in found)


def _case(
    report: Report,
    case: Case,
    setting: str,
    plain: Sequence[Trained],
    found: Sequence[Trained],
    *,
    bound: bool,
) -> None:
    full, ours = plain[0].sent_bytes, found[0].sent_bytes
    report.value(
        f"{case.named}, {setting}: bytes beside data-parallel",
        full / ours,
        unit="x fewer",
        target=Target(">=", case.fewer) if case.fewer else None,
        yardstick=f"{full / 1e6:.0f} MB a worker; ours {ours / 1e6:.2f}",
    )
    report.value(
        f"{case.named}, {setting}: loss above data-parallel",
        (_loss(found) / _loss(plain) - 1) * 100,
        unit="%",
        target=Target("<=", case.worse) if bound and case.worse else None,
        yardstick=f"validation loss {_loss(plain):.4f}; ours {_loss(found):.4f}",
    )


def _missing(
    report: Report, told: Text, seeds: Sequence[int], steps: int, setting: str, loss: float
) -> None:
    found = [streaming(told, seed, steps, DEFAULT, missing=0.25) for seed in seeds]
    report.value(
        f"{CASES[0].named}, {setting}, a worker misses a sync with 25 %: loss above none missing",
        (_loss(found) / loss - 1) * 100,
        unit="%",
        target=Target("<=", 0.6),
        yardstick=f"none missing {loss:.4f}; with {_loss(found):.4f}",
    )
