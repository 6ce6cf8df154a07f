"""Liars against the rules: twenty peers with unlike digits, four of them lying.

Five attacks: -3 times the own update; noise of twenty times the honest mean's length; the honest
mean less a deviation (ALIE); minus the honest mean (IPM); swapped labels. A rule's figure is the
worst of the five accuracies, each the mean over the seeds. Settings: `subjects/round_byzantine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import peers
from benchmarks.processes import Subject
from benchmarks.report import Target
from benchmarks.round_parts.kernels import ONE_THREAD

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

SEEDS, SEEDS_QUICK = 9, 2
ATTACKS: Final = ("minus3", "gauss", "alie", "ipm", "labels")
TARGETS: Final = {"centred_clipping": 0.89, "fltrust": 0.91}
REPORTED: Final = (
    "mean", "norm_bounded", "median", "trimmed", "multi_krum", "rfa", "bucketing_rfa",
)  # fmt: skip


def run(options: Options, report: Report) -> None:
    """Measure."""
    try:
        python = peers.python_of(*peers.FLOWER)
    except peers.PeerMissing as missing:
        report.missing("rules against liars", str(missing))
        return
    seeds = SEEDS_QUICK if options.quick else SEEDS
    chosen = (*TARGETS, "mean") if options.quick else (*TARGETS, *REPORTED)
    with Subject([python, peers.subject("round_byzantine")], ONE_THREAD) as digits:
        for rule in chosen:
            found = {
                attack: digits.ask(rule, attack, seeds)["accuracy"] for attack in ("none", *ATTACKS)
            }
            report.value(
                f"{rule}, worst of {len(ATTACKS)} attacks by 4 of 20, {seeds} seeds",
                min(found[attack] for attack in ATTACKS),
                unit="accuracy",
                target=Target(">=", TARGETS[rule]) if rule in TARGETS else None,
                yardstick=", ".join(f"{name} {value:.3f}" for name, value in found.items()),
            )
