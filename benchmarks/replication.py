"""Replication: what comparing two sets costs, and how fast a newcomer gets everything."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks import ranges_rows
from benchmarks.needles import corpus
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.report import percentile

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

NOTES = 5_000
BATCH = 250
HEADER_BYTES = 195
"""Of a usual data record (docs/specs/record.md)."""
WAIT_S = 120.0


def run(options: Options, report: Report) -> None:
    """Measure."""
    ranges_rows.run(options, report)
    rates, carried = [], []
    for _ in range(1 if options.quick else 3):
        rate, wire_bytes = _newcomer()
        rates.append(rate)
        carried.append(wire_bytes)
    report.value(
        "records a second to a newcomer, two daemons, durable and searchable",
        percentile(rates, 0.5),
        unit="records/s",
        yardstick="Ed25519 verification alone, records/s",
        yardstick_value=_verify_rate(),
    )
    report.value(
        "bytes carried a record, all frames", percentile(carried, 0.5), unit="bytes/record"
    )


def _newcomer() -> tuple[float, float]:
    with DaemonUnderTest() as old, DaemonUnderTest() as new:
        giver, taker = BlockingClient(old.socket_path), BlockingClient(new.socket_path)
        notes = corpus(NOTES)
        for at in range(0, NOTES, BATCH):
            batch = [{"text": note.text} for note in notes[at : at + BATCH]]
            giver.call("memory.remember", {"notes": batch})
        ticket = str(json.loads(old.covey("invite", "--no-wait", "--json"))["ticket"])
        start = time.perf_counter()
        taker.call("invite.join", {"ticket": ticket})
        wanted = _records(giver)
        while _records(taker) < wanted:
            if time.perf_counter() - start > WAIT_S:
                raise RuntimeError(f"{_records(taker)} of {wanted} records after {WAIT_S:.0f} s")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        status = giver.call("sync.status", {})
        assert isinstance(status, list)
        carried = sum(int(row["bytes"]) for row in status)  # type: ignore[call-overload,index,arg-type]
        giver.close()
        taker.close()
    return NOTES / seconds, carried / NOTES


def _records(client: BlockingClient) -> int:
    answer = client.call("sync.digest", {"group": "home"})
    assert isinstance(answer, dict)
    return int(str(answer["records"]))


def _verify_rate() -> float:
    key = Ed25519PrivateKey.generate()
    public, message = key.public_key(), bytes(HEADER_BYTES)
    signature = key.sign(message)
    start = time.perf_counter()
    for _ in range(2000):
        public.verify(signature, message)
    return 2000 / (time.perf_counter() - start)
