"""Mesh: what a peer call and a bulk transfer cost, beside the limit and beside other meshes."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from typing import TYPE_CHECKING

from benchmarks import blobs_rows, mesh_rows
from benchmarks.peers import LATTICA, PeerMissing, py_libp2p, python_of, subject
from benchmarks.processes import Pair, Subject, python
from benchmarks.report import Target, alternate

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            _calls_beside_lattica(report, options, calls, covey)
        if options.wants("bulk"):
            _bulk(report, options, covey, raw, libp2p)


def _pair(interpreter_path: str, name: str) -> Pair:
    argv = [interpreter_path, subject(name)]
    return Pair([*argv, "serve"], [*argv, "client"])


def _p50_ms(pair: Pair | Subject, calls: int) -> float:
    return pair.ask("rr", calls)["p50_us"] / 1e3


def _calls(
    report: Report, options: Options, calls: int, covey: Pair, raw: Pair, libp2p: Pair | None
) -> None:
    def p50(pair: Pair) -> float:
        return _p50_ms(pair, calls)

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


def _calls_beside_lattica(report: Report, options: Options, calls: int, covey: Pair) -> None:
    name = "peer RPC, 100 B, p50, beside Lattica"
    try:
        with _lattica() as client:
            pair = alternate(
                lambda: _p50_ms(covey, calls), lambda: _p50_ms(client, calls), options.rounds
            )
    except (PeerMissing, OSError, RuntimeError) as error:
        report.missing(name, f"Lattica: {error}")
        return
    report.paired(name, pair, unit="ms", yardstick="Lattica 1.0.21", target=Target("<=", 1))


@contextlib.contextmanager
def _lattica() -> Iterator[Subject]:
    """A client of a server, both in a network of their own without a way out.

    By default it asks other people's STUN servers.
    """
    script = [python_of(*LATTICA), subject("lattica_rpc")]
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    with contextlib.ExitStack() as stack:
        homes = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(2)]
        server = stack.enter_context(Subject([*alone, *script, "serve"], {"HOME": homes[0]}))
        with_it = ["nsenter", f"--target={server.pid}", "--user", "--net", "--preserve-credentials"]
        client = [*with_it, *script, "client", *server.ready.split()]
        yield stack.enter_context(Subject(client, {"HOME": homes[1]}))


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
