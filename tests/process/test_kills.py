"""kill -9 at random moments under writes: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import pytest

from daemon.cli.client import Client, CliError, ConnectionLost
from daemon.paths import resolve
from tests.helpers.daemons import Home

if TYPE_CHECKING:
    from pathlib import Path

WRITERS = 3


class Writer(threading.Thread):
    """Writes numbered notes over one session until told to stop; keeps what was acknowledged."""

    def __init__(self, home: Home, number: int) -> None:
        super().__init__()
        self.number = number
        self.paths = resolve({"COVEY_HOME": str(home.folder), "HOME": str(home.folder)})
        self.acknowledged: dict[str, str] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        client = Client([self.paths.socket], timeout_s=20.0)
        count = 0
        while not self.stop.is_set():
            text = f"writer {self.number} note {count}"
            try:
                result = client.call("memory.remember", {"text": text, "scope": "main"})
            except (CliError, ConnectionLost, OSError):
                client.close()
                time.sleep(0.01)
                continue
            assert isinstance(result, list)
            row = result[0]
            assert isinstance(row, dict)
            self.acknowledged[text] = str(row["id"])
            count += 1
        client.close()


def torture(home: Home, kills: int, seed: int) -> None:
    """Kill the daemon `kills` times while three sessions write, then count."""
    dice = random.Random(seed)
    home.up()
    writers = [Writer(home, number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(kills):
            # The moment is random on purpose: it is the kernel that ends the process somewhere.
            time.sleep(dice.uniform(0.02, 0.25))
            home.kill()
            home.up()
    finally:
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join()
    acknowledged = {text: i for writer in writers for text, i in writer.acknowledged.items()}
    assert len(acknowledged) > kills
    home.ok("down")
    connection = sqlite3.connect(home.folder / "state" / "covey.db")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute(
            "SELECT hex(r.id), c.text FROM memory m JOIN record r ON r.n = m.id"
            " JOIN chunk c ON c.memory = m.id"
        ).fetchall()
    finally:
        connection.close()
    texts = [text for _, text in rows]
    assert len(texts) == len(set(texts)), "a note was stored twice"
    stored = {text: record.lower() for record, text in rows}
    lost = {text for text, i in acknowledged.items() if stored.get(text) != i}
    assert lost == set()


def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    try:
        torture(home, kills=3, seed=1)
    finally:
        home.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_kills_lose_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    try:
        torture(home, kills=50, seed=2)
    finally:
        home.stop()
