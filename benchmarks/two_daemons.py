"""Two daemons of one person on loopback: made known to each other, compared, watched."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from benchmarks.processes import cpu_s

if TYPE_CHECKING:
    from benchmarks.node import BlockingClient, DaemonUnderTest

NO_MODEL: Final = {"COVEY_MEMORY__EMBEDDER": "none"}
"""Both daemons share this machine's cores: a model on them would be measured, not replication."""

WAIT_S: Final = 600.0
POLL_S: Final = 0.05
SETTLE_S: Final = 1.0
IDLE_RATIO: Final = 0.05


def ticket(node: DaemonUnderTest) -> str:
    """An invitation to the node's home group."""
    return str(json.loads(node.covey("invite", "--no-wait", "--json"))["ticket"])


def join(one: DaemonUnderTest, two: DaemonUnderTest) -> None:
    """Make the second a machine of the first one's person."""
    two.covey("join", ticket(one), "--yes")


def agree(one: BlockingClient, two: BlockingClient) -> None:
    """Wait until both hold the same set; asked seldom, since an answer reads the whole set.

    Raises:
        RuntimeError: they never did.
    """
    end = time.perf_counter() + WAIT_S
    asked: dict[str, str] = {"group": "home"}
    while one.call("sync.digest", {**asked}) != two.call("sync.digest", {**asked}):
        if time.perf_counter() > end:
            raise RuntimeError(f"still different after {WAIT_S:.0f} s")
        time.sleep(0.5)


def settle(*nodes: DaemonUnderTest) -> None:
    """Wait until what was written before keeps no daemon busy any more.

    Raises:
        RuntimeError: one never came to rest.
    """
    end = time.perf_counter() + WAIT_S
    for node in nodes:
        before = cpu_s(node.pid)
        time.sleep(SETTLE_S)
        while (now := cpu_s(node.pid)) - before > IDLE_RATIO * SETTLE_S:
            if time.perf_counter() > end:
                raise RuntimeError(f"still busy after {WAIT_S:.0f} s")
            before = now
            time.sleep(SETTLE_S)


def durable_records(node: DaemonUnderTest) -> int:
    """Data records on the node's disk without a gap, read from its file: the daemon pays nothing.

    A record, its text and its place in the full-text index are committed in one transaction.
    """
    path = node.home / "state" / "covey.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        row = connection.execute("SELECT sum(contiguous) FROM log WHERE lane = 1").fetchone()
    return int(row[0] or 0)
