"""Rows of the mesh about one node or one network: streams, relaying, idling, stalls, the DHT."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.peers import subject
from benchmarks.processes import Pair, Subject, cpu_s, private_mb, python, rss_mib
from benchmarks.report import Target
from benchmarks.surroundings import stall_ms

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

STREAMS = 1000
RELAYED_MIB = 128
PEERS = 4
SETTLE_S = 90.0
"""Until a node has looked for its surroundings, and those that it met were asked who they are."""
DHT_NODES = 60
PY_LIBP2P_DHT_S = 172.0
"""py-libp2p 0.8.1, as many nodes under the same kind of clock; measured once, not in this run."""
MIB = 1024 * 1024


def run(options: Options, report: Report) -> None:
    """Measure what was asked for."""
    for part, rows in (
        ("streams", streams),
        ("relay", relayed),
        ("stall", stalls),
        ("dht", dht),
        ("idle", idle),
    ):
        if options.wants(part):
            rows(options, report)


def streams(options: Options, report: Report) -> None:
    """Many tasks at once: each opens a stream, exchanges 100 bytes, closes it."""
    script = [python(), subject("covey_mesh")]
    with Pair([*script, "serve"], [*script, "client"]) as pair:
        pair.ask("streams", STREAMS)  # warm up
        answers = [pair.ask("streams", STREAMS) for _ in range(options.rounds * 3)]
    name = f"{STREAMS:,} streams at once: open, 100 B there and back, close"
    report.value(
        name,
        statistics.median(answer["seconds"] for answer in answers),
        unit="s",
        target=Target("<=", 0.35),
    )
    report.value(
        f"{name}, CPU of both",
        statistics.median(answer["cpu_s"] for answer in answers),
        unit="s",
    )


def relayed(options: Options, report: Report) -> None:
    """Two nodes that nobody can dial, over a third whose quotas are lifted: three processes."""
    script = [python(), subject("covey_relay")]
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(Subject([*script, "relay"]))
        hidden = stack.enter_context(Subject([*script, "hidden", *relay.ready.split()]))
        client = stack.enter_context(Subject([*script, "client", *hidden.ready.split()]))
        client.ask("bulk", RELAYED_MIB // 4)  # warm up
        rates = [
            RELAYED_MIB * MIB / 1e6 / client.ask("bulk", RELAYED_MIB)["seconds"]
            for _ in range(options.rounds)
        ]
    report.value(
        "bulk upload over a relay, quotas lifted",
        statistics.median(rates),
        unit="MB/s",
        target=Target(">=", 40),
    )


def stalls(options: Options, report: Report) -> None:
    """How long discovery and mapping keep the loop from serving anybody else."""
    runs = [stall_ms() for _ in range(options.rounds)]
    name = "discovery and mapping: longest step of the loop"
    report.value(
        f"{name}, CPU",
        statistics.median(r["cpu_ms"] for r in runs),
        unit="ms",
        target=Target("<=", 5),
    )
    report.value(f"{name}, wall", statistics.median(r["wall_ms"] for r in runs), unit="ms")


def dht(options: Options, report: Report) -> None:
    """CPU seconds to build a network under a virtual clock; nothing sleeps, so it is all work."""
    for kind, runs, target, what in (
        ("mem", options.rounds // 2, Target(">=", 20), "fabric without crypto"),
        ("wire", 0 if options.quick else 1, None, "real wire"),
    ):
        if runs:
            spent_s = statistics.median(_build_s(kind) for _ in range(runs))
            report.value(
                f"DHT of {DHT_NODES} nodes built under a virtual clock, {what}",
                PY_LIBP2P_DHT_S / spent_s,
                unit="x",
                yardstick=f"py-libp2p 0.8.1, not in this run, s = {PY_LIBP2P_DHT_S:g};"
                f" ours, CPU s = {spent_s:.3g}",
                target=target,
            )


def _build_s(kind: str) -> float:
    with Subject([python(), subject("covey_dht"), kind, str(DHT_NODES)]) as built:
        return float(built.ready)


def idle(options: Options, report: Report) -> None:
    """A mesh node (no daemon around it) that keeps four others connected and does nothing else."""
    measured_s = 30.0 if options.quick else 120.0
    script = [python(), subject("covey_idle"), f"bench{os.getpid()}"]
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(Subject(script))
        for _ in range(PEERS):
            stack.enter_context(Subject([*script, *node.ready.split()]))
        time.sleep(SETTLE_S)
        before = cpu_s(node.pid)
        time.sleep(measured_s)
        used_s = cpu_s(node.pid) - before
        private, resident = private_mb(node.pid), rss_mib(node.pid) * MIB / 1e6
        peers = int(node.ask("peers")["peers"])
    if peers != PEERS:
        report.missing("idle mesh node", f"{peers} peers were connected")
        return
    name = f"idle mesh node, {PEERS} peers"
    report.value(f"{name}, private memory", private, unit="MB", target=Target("<=", 45))
    report.value(f"{name}, resident memory", resident, unit="MB")
    report.value(f"{name}, CPU", used_s / measured_s * 100, unit="%", target=Target("<=", 0.2))
