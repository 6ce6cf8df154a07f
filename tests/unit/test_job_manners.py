"""A machine on a low battery, or in use, takes no work of others: it is asked for elsewhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.jobs.machine import Machine
from federated.jobs.manners import Manners, Reading
from federated.jobs.types import JobSpec, PerRow
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.jobs_kit import Office

ROWS: list[dict[str, object]] = [{"n": n} for n in range(40)]


class Told:
    """A probe that says what it was told."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def look(self) -> Reading:
        return self.reading


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        (Reading(), ""),
        (Reading(on_ac=False, percent=19), "battery"),
        (Reading(on_ac=False, percent=20), ""),
        (Reading(on_ac=True, percent=1), ""),
        (Reading(on_ac=False, percent=None), ""),
        (Reading(idle_s=59.9), "in_use"),
        (Reading(idle_s=60.0), ""),
        (Reading(idle_s=None), ""),
    ],
)
def test_what_is_refused(reading: Reading, why: str) -> None:
    manners = Manners(floor_percent=20, user_idle_s=60.0, probe=Told(reading))
    assert manners.refusal() == "", "nothing was seen yet"
    manners.saw(reading)
    assert manners.refusal() == why
    careless = Manners(probe=Told(reading))
    careless.saw(reading)
    assert careless.refusal() == ""
    assert careless.look is None, "nobody needs to look"


def machine(folder: Path, now_s: float = 1000.0) -> Machine:
    return Machine(
        lambda: int(now_s * 1000), power=folder / "power", terminals=((str(folder), "pts*"),)
    )


def supply(folder: Path, name: str, **words: object) -> None:
    place = folder / "power" / name
    place.mkdir(parents=True)
    for word, value in words.items():
        (place / word).write_text(f"{value}\n")


def test_a_machine_without_a_battery_or_a_terminal_knows_nothing(tmp_path: Path) -> None:
    assert machine(tmp_path).look() == Reading(on_ac=True, percent=None, idle_s=None)


def test_a_laptop_tells_its_mains_and_its_batteries(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online=0)
    supply(tmp_path, "BAT0", type="Battery", capacity=30, status="Discharging")
    supply(tmp_path, "BAT1", type="Battery", capacity=11, status="Discharging")
    supply(tmp_path, "mouse", type="Battery", scope="Device", capacity=1, status="Discharging")
    supply(tmp_path, "strange", type="Battery", capacity="much", status="?")
    assert machine(tmp_path).look() == Reading(on_ac=False, percent=20, idle_s=None)
    (tmp_path / "power" / "AC" / "online").write_text("1\n")
    assert machine(tmp_path).look().on_ac


def test_a_battery_that_says_nothing_of_mains_discharges_or_not(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", capacity=50, status="Discharging")
    assert not machine(tmp_path).look().on_ac
    (tmp_path / "power" / "BAT0" / "status").write_text("Charging\n")
    assert machine(tmp_path).look().on_ac


def test_the_terminal_that_was_read_last_counts(tmp_path: Path) -> None:
    for name, read_at in (("pts0", 400.0), ("pts1", 940.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (read_at, read_at))
    assert machine(tmp_path).look().idle_s == 60.0


def test_others_do_the_work_and_no_task_waits_for_the_one_that_rests(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        low = Told(Reading(on_ac=False, percent=5))
        boss = await office.desk(1)
        tired = await office.desk(2, manners=Manners(floor_percent=20, probe=low))
        other = await office.desk(3)
        await trio.sleep(1)
        spec = JobSpec(handler="echo@1", rows=ROWS, batch=PerRow(), cache="off")
        ident = await boss.jobs.submit(spec, agent="", group=None)
        with trio.fail_after(10):
            await boss.jobs.finished(ident)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert set(job.peers) == {other.id}
        assert job.executions == len(ROWS), "a refusal is no execution"
        own = msgspec.structs.replace(spec, engine="local")
        ident = await tired.jobs.submit(own, agent="", group=None)
        await tired.jobs.finished(ident)
        assert await tired.table(ident) == ROWS, "its own work is its own affair"
        low.reading = Reading(on_ac=True, percent=5)
        await trio.sleep(60)
        seen = set[bytes]()
        for _ in range(5):
            ident = await boss.jobs.submit(spec, agent="", group=None)
            await boss.jobs.finished(ident)
            job = boss.jobs.core.job(ident)
            assert job is not None
            seen |= set(job.peers)
        assert tired.id in seen

    play_office(scenario, tmp_path, seed=1)


def test_alone_with_a_machine_in_use_a_job_waits_and_then_goes_on(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        used = Told(Reading(idle_s=1.0))
        boss = await office.desk(1)
        await office.desk(2, manners=Manners(user_idle_s=300.0, probe=used))
        await trio.sleep(1)
        spec = JobSpec(handler="echo@1", rows=ROWS, batch=PerRow(), max_retries=0)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await trio.sleep(100)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert not job.peers
        assert not boss.jobs.core.board.counters.get("attempts_lost")
        used.reading = Reading(idle_s=400.0)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == ROWS

    play_office(scenario, tmp_path, seed=2)
