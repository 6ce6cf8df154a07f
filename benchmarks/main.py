"""What a person and an agent feel: the command line, the MCP relay, the idle daemon."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from benchmarks.needles import corpus
from benchmarks.node import DaemonUnderTest
from benchmarks.peers import LATTICA, PeerMissing, python_of, subject
from benchmarks.processes import ROOT, Subject, private_mb, python, rss_mib
from benchmarks.report import Target, alternate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.report import Options, Report

NOTES = 1000
BATCH = 250
CALLS_PER_SAMPLE = 10

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "benchmark", "version": "1"},
    },
}


def run(options: Options, report: Report) -> None:
    """Measure."""
    with DaemonUnderTest() as node:
        _fill(node)
        if options.wants("cli"):
            command_line(node, options, report)
        if options.wants("relay"):
            relay(node, options, report)
    if options.wants("idle"):
        idle(report)


def _fill(node: DaemonUnderTest) -> None:
    path = node.home / "notes.jsonl"
    path.write_text(
        "".join(json.dumps({"text": note.text}) + "\n" for note in corpus(NOTES)), encoding="utf-8"
    )
    node.covey("import", str(path))


def command_line(node: DaemonUnderTest, options: Options, report: Report) -> None:
    """CPU of whole commands, beside a bare interpreter."""
    bare = _cpu_sampler([python(), "-I", "-S", "-c", "pass"], node.env)
    for name, words, bound in (
        ("covey recall, whole process, CPU", ("recall", "cache timeout"), 60),
        ("covey status --json, whole process, CPU", ("status", "--json"), 60),
    ):
        pair = alternate(_cpu_sampler(node.argv(*words), node.env), bare, options.rounds)
        report.value(
            name,
            pair.ours,
            unit="ms",
            yardstick="bare interpreter, ms",
            yardstick_value=pair.yardstick,
            target=Target("<=", bound),
        )


def _cpu_sampler(argv: Sequence[str], env: dict[str, str]) -> Callable[[], float]:
    def sample() -> float:
        """CPU milliseconds of a run of `argv`, its children included, mean of a few."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(CALLS_PER_SAMPLE):
            subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return used / CALLS_PER_SAMPLE * 1e3

    sample()  # warm up: byte code, page cache
    return sample


def relay(node: DaemonUnderTest, options: Options, report: Report) -> None:
    """Spawn of `covey mcp` to its first answer, its private memory, a call through it."""
    _first_answer(node)  # the daemon loads the SDK once
    runs = [_first_answer(node) for _ in range(options.rounds * 3)]
    report.value(
        "MCP relay, spawn to first answer",
        statistics.median(seconds for seconds, _, _ in runs) * 1e3,
        unit="ms",
        yardstick="bare interpreter start, ms",
        yardstick_value=_bare_start_ms(node.env),
        target=Target("<=", 60),
    )
    report.value(
        "MCP relay, private memory",
        statistics.median(mb for _, mb, _ in runs),
        unit="MB",
        target=Target("<=", 8),
    )
    report.value(
        "MCP memory_recall through the relay, p50",
        statistics.median(call_s for _, _, call_s in runs) * 1e3,
        unit="ms",
    )


def _bare_start_ms(env: dict[str, str]) -> float:
    took = []
    for _ in range(10):
        start = time.perf_counter()
        subprocess.run([python(), "-I", "-S", "-c", "pass"], env=env, check=True)
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e3


def _first_answer(node: DaemonUnderTest) -> tuple[float, float, float]:
    start = time.perf_counter()
    with subprocess.Popen(
        node.argv("mcp"), env=node.env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as proc:
        assert proc.stdin is not None
        assert proc.stdout is not None

        def ask(message: dict[str, object]) -> bytes:
            assert proc.stdin is not None
            assert proc.stdout is not None
            proc.stdin.write(json.dumps(message).encode() + b"\n")
            proc.stdin.flush()
            return proc.stdout.readline() if "id" in message else b""

        answer = ask(INITIALIZE)
        seconds = time.perf_counter() - start
        if b'"result"' not in answer:
            raise RuntimeError(f"no answer to initialize: {answer!r}")
        ask({"jsonrpc": "2.0", "method": "notifications/initialized"})
        took = []
        for number in range(2, 22):
            began = time.perf_counter()
            answer = ask(
                {
                    "jsonrpc": "2.0",
                    "id": number,
                    "method": "tools/call",
                    "params": {"name": "memory_recall", "arguments": {"query": "cache timeout"}},
                }
            )
            took.append(time.perf_counter() - began)
            if b'"result"' not in answer:
                raise RuntimeError(f"no result: {answer!r}")
        memory = private_mb(proc.pid)
        proc.stdin.close()
        proc.wait(10)
    return seconds, memory, statistics.median(took)


def _lattica_rss_mib() -> float:
    # In a network namespace without a way out: by default it asks other people's STUN servers.
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    with tempfile.TemporaryDirectory() as home:
        argv = [*alone, python_of(*LATTICA), subject("lattica_idle")]
        with Subject(argv, {"HOME": home}) as peer:
            return rss_mib(peer.pid)


def idle(report: Report) -> None:
    """Resident memory of an idle daemon beside an idle Lattica node's."""
    try:
        yardstick = _lattica_rss_mib()
    except (PeerMissing, OSError, RuntimeError) as error:
        report.missing("idle daemon, resident memory", f"Lattica: {error}")
        yardstick = None
    with DaemonUnderTest() as node:
        report.value(
            "idle daemon, resident memory",
            rss_mib(node.pid),
            unit="MiB",
            yardstick="Lattica 1.0.21 idle, MiB",
            yardstick_value=yardstick,
        )
        report.value("load during the run", os.getloadavg()[0], unit="")
