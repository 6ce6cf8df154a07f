"""Health and doctor: the worst decides, every finding has a remedy."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import pytest
import trio

from daemon import doctor
from daemon.health import Check, Health, disk_check
from daemon.instance import (
    NETWORK_FILE_SYSTEMS,
    AlreadyRunning,
    InstanceLock,
    RunningMarker,
    file_system_of,
    notify,
    read_lock,
)
from daemon.paths import Paths, make_private, resolve


def check(name: str, status: str) -> Check:
    return Check(name=name, status=status, message="m", remedy="r")  # type: ignore[arg-type]


async def probe_of(found: Check) -> Check:
    await trio.lowlevel.checkpoint()
    return found


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ([], "ok"),
        (["ok"], "ok"),
        (["ok", "degraded"], "degraded"),
        (["degraded", "failed", "ok"], "failed"),
    ],
)
async def test_the_worst_check_decides(statuses: list[str], worst: str) -> None:
    health = Health(trio.current_time)
    health.phase = "ok"
    for number, status in enumerate(statuses):
        found = check(f"c{number}", status)
        health.add(found.name, lambda found=found: probe_of(found))  # type: ignore[misc]
    report = await health.report()
    assert report.status == worst
    assert [one.name for one in report.checks] == sorted(one.name for one in report.checks)
    health.phase = "draining"
    assert (await health.report()).status == "draining"


async def test_a_probe_that_fails_or_hangs_is_a_finding(autojump_clock: object) -> None:
    del autojump_clock
    health = Health(trio.current_time)
    health.phase = "ok"

    async def fails() -> Check:
        raise RuntimeError("inside")

    health.add("fails", fails)
    health.add("hangs", trio.sleep_forever)
    found = {one.name: one for one in (await health.report()).checks}
    assert found["fails"].status == "failed"
    assert "inside" not in found["fails"].message
    assert found["hangs"].message == "no answer in 2 s"


async def test_the_lag_of_the_loop_is_measured(autojump_clock: object) -> None:
    del autojump_clock
    health = Health(trio.current_time)
    with trio.move_on_after(5.5):
        await health.sample_lag()
    assert health.lag_p99_s == pytest.approx(0.0, abs=1e-6)
    late = iter([0.0, 4.0, 4.0, 5.0, 5.0])
    slow = Health(lambda: next(late))
    with trio.move_on_after(2.5):
        await slow.sample_lag()
    assert slow.lag_p99_s == pytest.approx(3.0)
    assert slow.lag_last_s == pytest.approx(0.0)


def test_low_disks_are_told_apart(tmp_path: Path) -> None:
    assert disk_check(str(tmp_path), 0).status == "ok"
    assert disk_check(str(tmp_path), 2**62, full_bytes=0).status == "degraded"
    low = disk_check(str(tmp_path), 2**62, full_bytes=2**61)
    assert (low.status, bool(low.remedy)) == ("failed", True)


def home(folder: Path) -> Paths:
    paths = resolve({"COVEY_HOME": str(folder)})
    for one in (paths.state, paths.runtime):
        make_private(one)
    return paths


def test_the_locks_let_one_in_and_fall_with_their_holder(tmp_path: Path) -> None:
    paths = home(tmp_path)
    first = InstanceLock(paths)
    first.acquire(version="1", now_ms=5)
    assert read_lock(paths.state_lock) == {
        "pid": os.getpid(),
        "start_ms": 5,
        "version": "1",
        "socket": paths.socket,
    }
    # Another runtime folder, the same state: one database must not get two writers.
    other = Paths(paths.config_file, paths.state, str(tmp_path / "other"), paths.socket)
    make_private(other.runtime)
    for one in (paths, other):
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            InstanceLock(one).acquire(version="1", now_ms=6)
    first.release()
    second = InstanceLock(other)
    second.acquire(version="2", now_ms=7)
    assert read_lock(paths.state_lock)["version"] == "2"
    second.release()


def test_the_running_marker_tells_of_a_death(tmp_path: Path) -> None:
    marker = RunningMarker(str(tmp_path / "running"))
    assert marker.set() is False
    assert marker.set() is True
    marker.clear()
    marker.clear()
    assert marker.set() is False


def test_notify_without_a_listener_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify("READY=1")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_system_of_a_folder_is_found() -> None:
    assert file_system_of("/proc/self") == "proc"
    assert file_system_of("/proc") not in NETWORK_FILE_SYSTEMS


def names(checks: list[Check]) -> dict[str, str]:
    return {one.name: one.status for one in checks}


def test_the_doctor_works_without_a_daemon(tmp_path: Path) -> None:
    paths = home(tmp_path)
    found = doctor.examine(paths, socket_path=str(tmp_path / "absent"))
    assert names(found)["daemon"] == "degraded"
    assert names(found)["store.sqlite"] == "ok"
    assert names(found)["package"] == "ok"
    assert all(one.remedy for one in found if one.status != "ok")
    statuses = [one.status for one in found]
    assert statuses == sorted(statuses, key=["failed", "degraded", "ok"].index)


def test_the_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    paths = home(tmp_path)
    (tmp_path / "config.toml").write_text("[rcp]\nx = 1\n")
    (tmp_path / "state" / "key").write_bytes(b"k")
    (tmp_path / "state" / "key").chmod(0o644)
    (tmp_path / "state" / "running").touch()
    (tmp_path / "state" / "covey.db").write_bytes(b"no database at all" * 300)
    found = names(doctor.examine(paths, socket_path=str(tmp_path / "absent")))
    assert found["config"] == "failed"
    assert found["modes.key"] == "failed"
    assert found["last_run"] == "degraded"
    assert found["store.check"] == "failed"


def test_the_doctor_checks_the_structure_of_the_database(tmp_path: Path) -> None:
    paths = home(tmp_path)
    connection = sqlite3.connect(paths.db)
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 500)
    connection.commit()
    connection.close()
    assert doctor.check_database(paths).status == "ok"
    with Path(paths.db).open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    assert doctor.check_database(paths).status == "failed"


def test_a_part_limits_the_doctor(tmp_path: Path) -> None:
    paths = home(tmp_path)
    found = doctor.examine(paths, part="store", socket_path=str(tmp_path / "absent"))
    assert all(one.name.startswith(("store", "modes", "last_run")) for one in found)


def test_the_doctor_of_the_net_says_when_nobody_can_tell(tmp_path: Path) -> None:
    (one,) = doctor.examine(home(tmp_path), part="net", socket_path=str(tmp_path / "absent"))
    assert (one.name, one.status) == ("daemon", "degraded")
    assert one.remedy
