"""Means, medians, distances and codecs beside Flower's, in one process.

CPU seconds of one thread, the least of some repeats in which the contestants take turns; ratios say
how much less ours take. The memory's limit is STREAM's triad in the same process and over arrays of
the same size, the faster of one compiled by the machine's C compiler and one by numba. GB/s count
every row read and every result written once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import peers
from benchmarks.processes import ROOT, Subject
from benchmarks.report import Target

if TYPE_CHECKING:
    from benchmarks.processes import Answer
    from benchmarks.report import Options, Report

ROWS: Final = 8
MEAN_N, MEAN_N_QUICK = 25_000_000, 5_000_000
ROBUST_N, ROBUST_N_QUICK = 2_500_000, 500_000
ONE_THREAD: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
}
NUMPY_LESS: Final = {"flwr_aggregate": 1.7, "flwr_message": 2.5, "flwr_inplace": 8.0}
SCIPY_LESS: Final = {"flwr_aggregate": 2.5, "flwr_message": 4.0, "flwr_inplace": 12.0}
NAMED: Final = {
    "flwr_aggregate": "Flower's aggregate()",
    "flwr_message": "Flower's message API",
    "flwr_inplace": "Flower's aggregate_inplace()",
}
ROBUST_LESS: Final = {"median": 12.0, "trimmed": 12.0, "distances": 13.0}


def run(options: Options, report: Report) -> None:
    """Measure."""
    try:
        python = peers.python_of(*peers.FLOWER)
    except peers.PeerMissing as missing:
        report.missing("kernels beside Flower's", str(missing))
        return
    repeats = 3 if options.quick else 7
    with Subject([python, peers.subject("round_kernels")], ONE_THREAD) as both:
        n = MEAN_N_QUICK if options.quick else MEAN_N
        _mean(both.ask("mean", n, ROWS, repeats), n, report)
        n = ROBUST_N_QUICK if options.quick else ROBUST_N
        for count in (16,) if options.quick else (8, 16, 32):
            _robust(both.ask("robust", n, count, 2 if count == 32 else 3), n, count, report)
        _codecs(both.ask("codecs", MEAN_N_QUICK if options.quick else MEAN_N, repeats), report)


def _mean(took: Answer, n: int, report: Report) -> None:
    title = f"weighted mean {ROWS} x {n * 4 // 1_000_000} MB"
    for engine, least in (("numpy", None), ("scipy", 70.0), ("numba", None)):
        report.value(
            f"{title}, {engine}: share of the triad",
            took[f"{engine}_gb_per_s"] / took["triad_gb_per_s"] * 100,
            unit="%",
            target=None if least is None else Target(">=", least),
            yardstick=f"triad {took['triad_gb_per_s']:.1f} GB/s,"
            f" ours {took[f'{engine}_gb_per_s']:.1f} GB/s, {took[engine]:.4f} s",
        )
    for engine, bounds in (("numpy", NUMPY_LESS), ("scipy", SCIPY_LESS)):
        for name, least in bounds.items():
            report.value(
                f"{title}, {engine}: less CPU than {NAMED[name]}",
                took[name] / took[engine],
                unit="x",
                target=Target(">=", least),
                yardstick=f"{took[name]:.4f} s, ours {took[engine]:.4f} s",
            )
    report.value(
        f"{title}, numpy, into memory never touched: less CPU than {NAMED['flwr_message']}",
        took["flwr_message"] / took["numpy_fresh"],
        unit="x",
        yardstick=f"ours {took['numpy_fresh']:.4f} s, page faults included",
    )


def _robust(took: Answer, n: int, count: int, report: Report) -> None:
    for name, least in ROBUST_LESS.items():
        theirs, ours, compiled = (took[f"{by}{name}"] for by in ("flwr_", "", "numba_"))
        report.value(
            f"{name} of {count} x {n * 4 // 1_000_000} MB, numpy: less CPU than Flower's",
            theirs / ours,
            unit="x",
            target=Target(">=", least) if count == 16 else None,
            yardstick=f"{theirs:.3f} s, ours {ours:.4f} s; numba {compiled:.4f} s,"
            f" {theirs / compiled:.1f} x",
        )


def _codecs(found: Answer, report: Report) -> None:
    for name, most in (("int8", 0.014), ("e3m0", 0.2)):
        report.value(
            f"{name}: error on heavy-tailed updates",
            found[f"{name}_error"],
            unit="",
            target=Target("<=", most),
        )
        for engine in ("numpy", "numba"):
            report.value(
                f"{name}, {engine}: encoded",
                found[f"{name}_{engine}_enc"],
                unit="GB/s",
                yardstick=f"decoded {found[f'{name}_{engine}_dec']:.2f} GB/s",
            )
