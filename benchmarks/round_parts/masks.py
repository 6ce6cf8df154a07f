"""Masks of a member among twenty, beside Flower's generator of mask words, in one process.

CPU seconds of one thread, the least of some repeats in which the contestants take turns. Ours is
all that a member does to 25 M words: keys of 19 pairs, 20 streams, adding them. Flower's rate is
that of making the words alone, without adding them, over 6.25 M words; both count four bytes a word
and stream. Seed bits are those of the shortest key in use; Flower's follow from two keys of 256
bits that its generator cannot tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import peers
from benchmarks.processes import ROOT, Subject
from benchmarks.report import Target

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

MEMBERS: Final = 20
WORDS, WORDS_QUICK = 25_000_000, 6_250_000
ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
}


def run(options: Options, report: Report) -> None:
    """Measure."""
    try:
        python = peers.python_of(*peers.FLOWER)
    except peers.PeerMissing as missing:
        report.missing("masks beside Flower's", str(missing))
        return
    words = WORDS_QUICK if options.quick else WORDS
    with Subject([python, peers.subject("round_masks")], ENVIRONMENT) as both:
        took = both.ask("measure", MEMBERS, words, 3 if options.quick else 7)
    title = f"masks of one of {MEMBERS} members, {words / 1e6:g} M parameters"
    report.value(
        title,
        took["member_s"],
        unit="CPU s",
        target=None if options.quick else Target("<=", 0.5),
        yardstick=f"of which keys of pairs {took['keys_s'] * 1e3:.1f} ms",
    )
    report.value(
        "mask words made and added",
        took["ours_gb_per_s"],
        unit="GB/s",
        yardstick="Flower's pseudo_rand_gen, making alone",
        yardstick_value=took["flower_gb_per_s"],
        target_ratio=Target(">=", 4),
    )
    hours = took["flower_seed_us"] * 2 ** took["flower_seed_bits"] / 3.6e9
    report.value(
        "bits of a mask's seed",
        took["ours_seed_bits"],
        unit="bits",
        target=Target(">=", 256),
        yardstick=f"Flower's {took['flower_seed_bits']:.0f}: all tried in {hours:.0f} core-hours",
    )
