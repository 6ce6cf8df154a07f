"""Mesh: what a peer call and a bulk transfer cost, beside the limit and beside other meshes."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from benchmarks import blobs_rows, mesh_rows
from benchmarks.peers import PeerMissing, py_libp2p, subject
from benchmarks.processes import Pair, python
from benchmarks.report import Target, alternate

if TYPE_CHECKING:
    from benchmarks.report import Options, Report


def run(options: Options, report: Report) -> None:
    """Measure."""
    if options.wants("rpc") or options.wants("bulk"):
        _beside_others(options, report)
    mesh_rows.run(options, report)
    if options.wants("blobs"):
        blobs_rows.run(options, report)


def _beside_others(options: Options, report: Report) -> None:
    calls = 1000 if options.quick else 2000
    with contextlib.ExitStack() as stack:
        covey = stack.enter_context(_pair(python(), "covey_mesh"))
        raw = stack.enter_context(_pair(python(), "raw_tcp"))
        try:
            libp2p = stack.enter_context(_pair(py_libp2p(), "py_libp2p"))
        except (PeerMissing, RuntimeError) as error:
            print(error, file=sys.stderr)
            libp2p = None
        if options.wants("rpc"):
            _calls(report, options, calls, covey, raw, libp2p)
        if options.wants("bulk"):
            _bulk(report, options, covey, raw, libp2p)


def _pair(interpreter_path: str, name: str) -> Pair:
    argv = [interpreter_path, subject(name)]
    return Pair([*argv, "serve"], [*argv, "client"])


def _calls(
    report: Report, options: Options, calls: int, covey: Pair, raw: Pair, libp2p: Pair | None
) -> None:
    def p50(pair: Pair) -> float:
        return pair.ask("rr", calls)["p50_us"] / 1e3

    p50(covey), p50(raw)  # warm up
    name = "peer RPC, 100 B, p50"
    report.paired(
        f"{name}, beside the limit",
        alternate(lambda: p50(covey), lambda: p50(raw), options.rounds),
        unit="ms",
        yardstick="raw trio TCP + MessagePack",
        target=Target("<=", 3),
    )
    if libp2p is None:
        report.missing(f"{name}, beside py-libp2p", "py-libp2p 0.8.1 could not be installed")
        return
    report.paired(
        f"{name}, beside py-libp2p",
        alternate(lambda: p50(covey), lambda: p50(libp2p), options.rounds),
        unit="ms",
        yardstick="py-libp2p 0.8.1",
        target=Target("<=", 0.5),
    )


def _bulk(report: Report, options: Options, covey: Pair, raw: Pair, libp2p: Pair | None) -> None:
    # CPU time is counted in ticks of 10 ms: each transfer is long enough to take many.
    sizes = {covey: 192, raw: 768, libp2p: 64}

    def mb_per_cpu_s(pair: Pair) -> float:
        mib = sizes[pair]
        return (mib << 20) / 1e6 / pair.ask("bulk", mib)["cpu_s"]

    mb_per_cpu_s(covey)  # warm up
    name = "bulk upload, MB a CPU second of both"
    report.paired(
        f"{name}, beside the limit",
        alternate(lambda: mb_per_cpu_s(covey), lambda: mb_per_cpu_s(raw), options.rounds),
        unit="MB/s",
        yardstick="raw trio TCP",
        target=None,
    )
    if libp2p is None:
        report.missing(f"{name}, beside py-libp2p", "py-libp2p 0.8.1 could not be installed")
        return
    report.paired(
        f"{name}, beside py-libp2p",
        alternate(lambda: mb_per_cpu_s(covey), lambda: mb_per_cpu_s(libp2p), options.rounds),
        unit="MB/s",
        yardstick="py-libp2p 0.8.1",
        target=Target(">=", 3),
    )
