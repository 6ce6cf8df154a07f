"""Ten agents at once, and SuperLocalMemory doing the same in the same run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio

from benchmarks import peers
from benchmarks.needles import corpus, queries
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.processes import Subject
from benchmarks.report import Target, percentile
from daemon.client import LocalClient

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

AGENTS: Final = 10
NOTES: Final = 1000
LIFTED: Final = {
    "COVEY_RPC__WRITE_RATE_PER_S": "1000000",
    "COVEY_RPC__WRITE_BURST": "1000000",
    "COVEY_RPC__READ_RATE_PER_S": "1000000",
}


def agents(options: Options, report: Report) -> None:
    """Acknowledged writes: one at a time, and of ten agents with tokens of their own."""
    each = 50 if options.quick else 200
    with DaemonUnderTest(**LIFTED) as node:
        alone = _one_at_a_time(node)
        rate, errors, missing = trio.run(_ten, node, each)
        ours = _recall_p50_ms(node)
    report.value(
        "write acknowledged (durable, searchable), one at a time, p50",
        percentile(alone, 0.5),
        unit="ms",
        target=Target("<=", 5),
    )
    report.value(
        f"{AGENTS} agents at once: errors", errors + missing, unit="", target=Target("<=", 0)
    )
    with Subject([peers.python_of(*peers.SUPERLOCALMEMORY), peers.subject("slm")]) as slm:
        theirs = slm.ask("writers", AGENTS, 20)
        slm.ask("fill", NOTES if not options.quick else 200)
        asked = slm.ask("recall", 60)
        slm.ask("stop")
    report.value(
        f"{AGENTS} agents at once, durable writes",
        rate,
        unit="writes/s",
        yardstick="SuperLocalMemory 4.1.18, writes/s",
        yardstick_value=theirs["per_s"],
        target_ratio=Target(">=", 20),
    )
    report.value(
        "recall over the socket as installed, 1,000 needles, p50",
        ours,
        unit="ms",
        yardstick="SuperLocalMemory 4.1.18, ms",
        yardstick_value=asked["p50_ms"],
    )
    report.value("SuperLocalMemory 4.1.18, hit@1 on needles", asked["hit1"], unit="")


def _one_at_a_time(node: DaemonUnderTest) -> list[float]:
    client = BlockingClient(node.socket_path)
    took = []
    for note in corpus(NOTES):
        start = time.perf_counter()
        client.call("memory.remember", {"text": note.text})
        took.append(1e3 * (time.perf_counter() - start))
    client.close()
    return took


def _recall_p50_ms(node: DaemonUnderTest) -> float:
    client = BlockingClient(node.socket_path)
    took = []
    for question, _ in queries(corpus(NOTES), 70):
        start = time.perf_counter()
        client.call("memory.recall", {"query": question, "limit": 10})
        took.append(1e3 * (time.perf_counter() - start))
    client.close()
    return percentile(took[10:], 0.5)


async def _ten(node: DaemonUnderTest, each: int) -> tuple[float, int, int]:
    """(acknowledged writes a second, errors, acknowledged but not there)."""
    person = await LocalClient.connect(node.socket_path)
    clients = []
    for number in range(AGENTS):
        made = await person.call("agents.add", {"name": f"writer-{number}"})
        assert isinstance(made, dict)
        clients.append(await LocalClient.connect(node.socket_path, token=str(made["token"])))
    errors = 0

    async def write(client: LocalClient, number: int) -> None:
        nonlocal errors
        for n in range(each):
            text = f"writer {number} note {n}: gateway {number * 1000 + n} moved to rack {n % 17}"
            try:
                await client.call("memory.remember", {"text": text})
            except Exception:  # noqa: BLE001 - counted: none may fail
                errors += 1

    before = await person.call("memory.stats", {})
    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number, client in enumerate(clients):
            nursery.start_soon(write, client, number)
    seconds = time.perf_counter() - start
    after = await person.call("memory.stats", {})
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    for client in (*clients, person):
        await client.aclose()
    gained = int(after["memories"]) - int(before["memories"])
    return AGENTS * each / seconds, errors, AGENTS * each - errors - gained
