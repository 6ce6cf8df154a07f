"""Two agents on two machines change one value at the same time: how many changes are lost."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.report import Target
from benchmarks.two_daemons import NO_MODEL, agree, join

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.node import Json
    from benchmarks.report import Options, Report

WRITES = 10_000
WRITES_QUICK = 1_000
IN_FLIGHT = 32
"""Calls of an agent that are under way at once."""
LATTICA = "Lattica 1.0.21, sub-key writes of two writers, not in this run: 11, 14 and 18 of 40 lost"


def run(options: Options, report: Report) -> None:
    """Measure."""
    each = WRITES_QUICK if options.quick else WRITES
    quick = " (quick set)" if options.quick else ""
    with DaemonUnderTest(**NO_MODEL) as one, DaemonUnderTest(**NO_MODEL) as two:
        join(one, two)
        sides = BlockingClient(one.socket_path), BlockingClient(two.socket_path)
        agree(*sides)
        seconds = _both(one, two, each, _increment)
        agree(*sides)
        values = [_value(side, "main/count", "counter") for side in sides]
        name = f"2 agents on 2 machines, {2 * each:,} increments of one cell at once{quick}"
        report.value(
            f"{name}: lost",
            2 * each - min(int(str(value)) for value in values),
            unit="writes",
            yardstick=LATTICA,
            target=Target("=", 0),
        )
        report.value(f"{name}: durable writes of both", 2 * each / seconds, unit="writes/s")
        seconds = _both(one, two, each, _put)
        agree(*sides)
        wanted = {f"{writer}.{number}" for writer in (0, 1) for number in range(each)}
        lost = max(len(wanted.difference(_keys(side))) for side in sides)
        name = f"2 agents on 2 machines, {2 * each:,} sub-keys of one map at once{quick}"
        report.value(f"{name}: lost", lost, unit="writes", yardstick=LATTICA, target=Target("=", 0))
        report.value(f"{name}: durable writes of both", 2 * each / seconds, unit="writes/s")
        for side in sides:
            side.close()


def _increment(writer: int, number: int) -> tuple[str, Json]:
    del writer, number
    return "state.incr", {"path": "main/count"}


def _put(writer: int, number: int) -> tuple[str, Json]:
    path: Json = ["main", "map", f"{writer}.{number}"]
    return "state.set", {"path": path, "type": "map", "value": number}


def _both(
    one: DaemonUnderTest,
    two: DaemonUnderTest,
    each: int,
    call: Callable[[int, int], tuple[str, Json]],
) -> float:
    """Seconds until both agents' writes were acknowledged.

    Raises:
        RuntimeError: a write was refused or never answered.
    """
    acknowledged = [0, 0]

    def write(writer: int, node: DaemonUnderTest) -> None:
        client = BlockingClient(node.socket_path)
        for at in range(0, each, IN_FLIGHT):
            numbers = range(at, min(at + IN_FLIGHT, each))
            client.call_all([call(writer, number) for number in numbers])
            acknowledged[writer] += len(numbers)
        client.close()

    threads = [
        threading.Thread(target=write, args=(writer, node))
        for writer, node in enumerate((one, two))
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if acknowledged != [each, each]:
        raise RuntimeError(f"{acknowledged} of {each} writes a side were acknowledged")
    return time.perf_counter() - start


def _value(client: BlockingClient, path: str, kind: str) -> Json:
    answer = client.call("state.get", {"path": path, "type": kind})
    assert isinstance(answer, dict)
    return answer["value"]


def _keys(client: BlockingClient) -> set[str]:
    answer = client.call("state.get", {"path": "main/map", "type": "map"})
    assert isinstance(answer, dict)
    keys = answer["keys"]
    assert isinstance(keys, list)
    return {str(key) for key in keys}
