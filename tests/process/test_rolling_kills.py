"""Ten daemons of one group, killed one after the other while they write: nothing is lost.

`kill -9` never stops for three minutes: whichever machine the dice name ends in the middle of what
it does, comes back, and goes on. Every note that a machine acknowledged is on every machine at the
end, and all ten hold the same set.
"""

from __future__ import annotations

import random
import secrets
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, cast

import pytest

from daemon.cli.client import Client, CliError, ConnectionLost
from daemon.paths import resolve
from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

MACHINES = 10
KILLING_S = 180.0
WRITE_EVERY_S = 0.5
"""A machine's writer pauses so long: what ten machines write, ten machines have to store."""
AGREE_S = 75.0
"""Ends a hang: until all hold the same after the last kill."""
KILLS_MIN = 10
"""Fewer mean that the machine was too slow for the test to say anything."""
WRITES_MIN = 200

SOON = "\n[p2p.replication]\nsync_interval_s = 5.0\n"
"""A machine that missed pushes while it was down or alone asks again within seconds."""


class Writer(threading.Thread):
    """Writes numbered notes on one machine until told to stop; keeps what was acknowledged."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home
        self.paths = resolve({"COVEY_HOME": str(home.folder), "HOME": str(home.folder)})
        self.acknowledged: dict[str, str] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        client = Client([self.paths.socket], timeout_s=20.0)
        count = 0
        while not self.stop.wait(WRITE_EVERY_S):
            text = f"{self.home.name} saw boat {count} pass"
            try:
                result = client.call("memory.remember", {"text": text, "scope": "main"})
            except (CliError, ConnectionLost, OSError):
                client.close()
                continue
            rows = cast("list[dict[str, Json]]", result)
            self.acknowledged[text] = str(rows[0]["id"])
            count += 1
        client.close()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Home]]:
    homes = [Home(tmp_path / f"h{n}", f"machine{n}") for n in range(MACHINES)]
    for home in homes:
        config = home.folder / "config.toml"
        config.write_text(config.read_text() + SOON)
    try:
        for home in homes:
            home.up()
        for home in homes[1:]:
            made = cast("dict[str, Json]", homes[0].json("invite", "--no-wait"))
            home.ok("join", str(made["ticket"]), "--yes")
        yield homes
    finally:
        for home in homes:
            home.stop()


def digest(home: Home) -> Json:
    """(records, hash) of what a machine holds of the group."""
    return home.json("rpc", "sync.digest", '{"group": "home"}')


def kill_in_turn(homes: list[Home], dice: random.Random, until_s: float) -> int:
    """Kill and restart machines drawn by the dice until the time is over; how many kills."""
    kills = 0
    end = time.monotonic() + until_s
    while time.monotonic() < end:
        # The moment is random on purpose: it is the kernel that ends the process somewhere.
        time.sleep(dice.uniform(0.1, 1.0))
        home = dice.choice(homes)
        home.kill()
        # Sometimes it stays away while the others write on.
        time.sleep(dice.choice((0.0, 0.0, 1.5)))
        home.up()
        kills += 1
    return kills


def stored(home: Home) -> dict[str, str]:
    """Texts and record ids in a machine's database, whose file must be sound."""
    with closing(sqlite3.connect(home.folder / "state" / "covey.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute(
            "SELECT c.text, lower(hex(r.id)) FROM memory m JOIN record r ON r.n = m.id"
            " JOIN chunk c ON c.memory = m.id"
        ).fetchall()
    texts = [str(text) for text, _ in rows]
    assert len(texts) == len(set(texts)), "a note was stored twice"
    return {str(text): str(record) for text, record in rows}


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_three_minutes_of_rolling_kills_lose_no_acknowledged_write(machines: list[Home]) -> None:
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    writers = [Writer(home) for home in machines]
    for writer in writers:
        writer.start()
    try:
        kills = kill_in_turn(machines, random.Random(seed), KILLING_S)
    finally:
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join()
    acknowledged = {text: i for writer in writers for text, i in writer.acknowledged.items()}
    print(f"{kills} kills, {len(acknowledged)} acknowledged writes")
    assert kills >= KILLS_MIN
    assert len(acknowledged) >= WRITES_MIN
    assert all(writer.acknowledged for writer in writers), "a machine never wrote"

    first = machines[0]
    for home in machines[1:]:
        wait_until(
            f"{home.name} holds what {first.name} holds",
            lambda home=home: digest(home) == digest(first),  # type: ignore[misc]
            AGREE_S,
        )
    for home in machines:
        home.ok("down")
    for home in machines:
        here = stored(home)
        lost = {text for text, i in acknowledged.items() if here.get(text) != i}
        assert lost == set(), f"{home.name}, seed {seed}"
