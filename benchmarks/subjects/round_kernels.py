"""Our kernels and Flower's in one process; runs in Flower's environment with our tree on the path.

CPU seconds of one thread, `process_time`, the garbage collected before each measurement; the
contestants take turns in every repeat, and the least of the repeats counts. What ours and theirs
give is compared before anything is measured.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import numpy as np
from contest import least
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.server.strategy.aggregate import (
    _compute_distances,
    aggregate,
    aggregate_inplace,
    aggregate_median,
    aggregate_trimmed_avg,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from federated.rounds.numeric import codec, gram, kernels, order

LAYERS = 20
CHECKED = 1_000_000
TRIAD_C = """
void triad(float *a, const float *b, const float *d, float s, long n) {
    for (long i = 0; i < n; i++) a[i] = b[i] + s * d[i];
}
"""


# --- weighted mean --------------------------------------------------------------------------------


@numba.njit(fastmath=True)
def numba_triad(a, b, d, s):
    """One pass of STREAM's triad."""
    for i in range(a.shape[0]):
        a[i] = b[i] + s * d[i]


def c_triad():
    """The same from the machine's compiler; None without one."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="covey-bench-"))
    try:
        (folder / "triad.c").write_text(TRIAD_C)
        argv = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "triad.c", "-o", "triad.so"]
        if subprocess.run(argv, cwd=folder, capture_output=True, check=False).returncode:
            return None
        library = ctypes.CDLL(str(folder / "triad.so"))
    finally:
        shutil.rmtree(folder)
    pointer = ctypes.POINTER(ctypes.c_float)
    library.triad.argtypes = [pointer, pointer, pointer, ctypes.c_float, ctypes.c_long]
    library.triad.restype = None

    def run(a, b, d, s):
        arrays = [array.ctypes.data_as(pointer) for array in (a, b, d)]
        library.triad(*arrays, s, len(a))

    return run


def layers_of(row):
    """A row as a model's equal layers."""
    return np.split(row, LAYERS)


def mean(n, count, repeats):
    """Weighted mean of `count` rows, and what the memory gives at best."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(n, dtype=np.float32)
    rows = [np.roll(base, 7 * i) for i in range(count)]
    weights = rng.integers(50, 200, count)
    out, second = np.empty(n, np.float32), np.empty(n, np.float32)
    models = [layers_of(row) for row in rows]
    results = [(model, int(weight)) for model, weight in zip(models, weights, strict=True)]
    fits = [
        (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(model), weight, {}))
        for model, weight in results
    ]
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({f"l{i}": Array(layer) for i, layer in enumerate(model)}),
                "metrics": MetricRecord({"num-examples": float(weight)}),
            }
        )
        for model, weight in results
    ]
    ours = {
        engine: lambda engine=engine: kernels.weighted_mean(rows, weights, out, engine=engine)
        for engine in ("numpy", "scipy", "numba")
    }
    theirs = {
        "flwr_aggregate": lambda: aggregate(results),
        "flwr_message": lambda: aggregate_arrayrecords(records, "num-examples"),
        "flwr_inplace": lambda: aggregate_inplace(fits),
    }
    expected = weights @ np.array([row[:CHECKED] for row in rows], np.float64) / weights.sum()
    for engine, run in ours.items():
        apart = np.abs(run()[:CHECKED] - expected).max()
        assert apart < 2e-6, (engine, apart)
    flat = np.concatenate(theirs["flwr_aggregate"]())[:CHECKED]
    assert np.abs(flat - expected).max() < 2e-6
    triads = {"triad_numba": lambda: numba_triad(out, rows[0], second, np.float32(0.5))}
    from_c = c_triad()
    if from_c is not None:
        triads["triad_c"] = lambda: from_c(out, rows[0], second, 0.5)
    second[:] = rows[1]
    numba_triad(out[:8], rows[0][:8], second[:8], np.float32(0.5))
    fresh = {"numpy_fresh": lambda: kernels.weighted_mean(rows, weights, engine="numpy")}
    found = least({**ours, **fresh, **theirs, **triads}, repeats)
    triad_s = min(found[name] for name in triads)
    found["triad_gb_per_s"] = 3 * 4 * n / triad_s / 1e9
    for engine in ours:
        found[f"{engine}_gb_per_s"] = (count + 1) * 4 * n / found[engine] / 1e9
    return found


# --- order statistics and products ----------------------------------------------------------------


def robust(n, count, repeats):
    """Median, trimmed mean and Krum's distances of `count` rows."""
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((count, n), dtype=np.float32)
    rows = list(whole)
    results = [([row], 1) for row in rows]
    cut = max(1, count // 8)
    out = np.empty(n, np.float32)

    def distances(engine, given=whole):
        products = gram.gram(given, engine=engine)
        squares = np.diagonal(products)
        return squares[:, None] + squares[None, :] - 2 * products

    for engine in ("numpy", "numba"):  # compile
        order.median([row[:9] for row in rows], engine=engine)
        distances(engine, whole[:, :9].copy())
    contestants = {
        "median": lambda: order.median(rows, out, engine="numpy"),
        "trimmed": lambda: order.trimmed_mean(rows, cut, out, engine="numpy"),
        "distances": lambda: distances("numpy"),
        "numba_median": lambda: order.median(rows, out, engine="numba"),
        "numba_trimmed": lambda: order.trimmed_mean(rows, cut, out, engine="numba"),
        "numba_distances": lambda: distances("numba"),
        "flwr_median": lambda: aggregate_median(results),
        # A hair more than cut/count: the number of values it cuts is rounded down.
        "flwr_trimmed": lambda: aggregate_trimmed_avg(results, cut / count + 1e-9),
        "flwr_distances": lambda: _compute_distances([[row] for row in rows]),
    }
    assert np.array_equal(order.median(rows), contestants["flwr_median"]()[0])
    trimmed = contestants["flwr_trimmed"]()[0]
    assert np.abs(order.trimmed_mean(rows, cut) - trimmed).max() < 1e-6
    theirs = contestants["flwr_distances"]()
    for engine in ("numpy", "numba"):
        apart = np.abs(distances(engine) - theirs)
        assert apart[~np.eye(count, dtype=bool)].max() < 1e-4 * n
    return least(contestants, repeats)


# --- codecs ---------------------------------------------------------------------------------------


def codecs(n, repeats):
    """GB of float32 a second, and the error, of every codec and engine."""
    rng = np.random.default_rng(0)
    scales = 10 ** rng.uniform(-4, -2, 100)
    values = (rng.standard_t(4, (100, n // 100)) * scales[:, None]).astype(np.float32).ravel()
    found = {}
    out = np.empty_like(values)
    for name in ("int8", "e3m0"):
        for engine in ("numpy", "numba"):
            for step, seconds in one_codec(name, engine, values, out, repeats).items():
                found[f"{name}_{engine}_{step}"] = 4 * len(values) / seconds / 1e9
        found[f"{name}_error"] = float(np.linalg.norm(out - values) / np.linalg.norm(values))
    return found


def one_codec(name, engine, values, out, repeats):
    """CPU seconds of encoding `values` and of decoding them into `out`."""
    n = len(values)
    data = bytearray(codec.encoded_size(name, n))
    few = codec.encode(name, values[:999], engine=engine)  # compile
    codec.decode_untrusted(name, few, 999, engine=engine)
    return least(
        {
            "enc": lambda: list(codec.encode_slices(name, values, data, engine=engine)),
            "dec": lambda: codec.decode_untrusted(name, data, n, out, engine=engine),
        },
        repeats,
    )


COMMANDS = {"mean": mean, "robust": robust, "codecs": codecs}


def main():
    """Answer `name arg...` lines from standard input with one JSON line each."""
    print("ready", flush=True)
    for line in sys.stdin:
        name, *args = line.split()
        print(json.dumps(COMMANDS[name](*map(int, args))), flush=True)


if __name__ == "__main__":
    main()
