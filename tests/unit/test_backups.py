"""The daemon's own backups: made when due, pruned, swept, told of; under a virtual clock."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import apsw
import pytest
import trio

from daemon.backup import FIRST_AFTER_S, Backups, shred_backups
from daemon.config import BackupConfig
from daemon.errors import RpcError
from daemon.paths import Paths
from memory.errors import StoreError
from memory.transfer.portable import holds_any
from p2p.identity import load_or_create
from tests.helpers.memories import Clock, World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

T = TypeVar("T")


class Inline:
    """Blocking work in the loop: the virtual clock stands still meanwhile."""

    async def run(self, fn: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return fn()


class LoopClock(Clock):
    """Wall time that goes with the loop's."""

    def wall_ms(self) -> int:
        return self.ms + int(trio.current_time() * 1000)


@asynccontextmanager
async def backups(
    folder: Path, *, every_s: float = 3600, keep: int = 2
) -> AsyncIterator[tuple[Backups, World]]:
    state = folder / "state"
    state.mkdir(mode=0o700)
    clock = LoopClock()
    paths = Paths(str(folder / "config.toml"), str(state), str(folder), str(folder / "s"))
    identity = load_or_create(state / "key", clock.rng)
    async with open_world(state, inline=True) as world:
        config = BackupConfig(every_s=every_s, keep=keep)
        yield Backups(paths, config, clock, Inline(), bytes(identity.id)), world


async def test_one_is_made_when_it_is_due_and_the_oldest_go(
    tmp_path: Path, autojump_clock: object
) -> None:
    del autojump_clock
    async with backups(tmp_path) as (made, world), trio.open_nursery() as nursery:
        await world.say("the zebrafish swims")
        nursery.start_soon(made.run)
        await trio.sleep(FIRST_AFTER_S - 10)
        assert await made.listed() == []
        assert (await made.check()).status == "ok"
        await trio.sleep(20)
        assert len(await made.listed()) == 1
        await trio.sleep(5 * 3600)
        found = await made.listed()
        assert len(found) == 2
        assert 3_590_000 < found[0].created_ms - found[1].created_ms < 3_610_000
        assert all(not info.problem and info.memories == 1 for info in found)
        nursery.cancel_scope.cancel()


async def test_none_is_made_when_they_are_off(tmp_path: Path, autojump_clock: object) -> None:
    del autojump_clock
    async with backups(tmp_path, every_s=0) as (made, _), trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await trio.sleep(100 * 86400)
        assert await made.listed() == []
        assert (await made.check()).message == "automatic backups are off"
        nursery.cancel_scope.cancel()


async def test_an_old_newest_one_degrades_the_health(
    tmp_path: Path, autojump_clock: object
) -> None:
    del autojump_clock
    async with backups(tmp_path) as (made, _):
        await made.create()
        assert (await made.check()).status == "ok"
        await trio.sleep(4 * 3600)
        check = await made.check()
        assert check.status == "degraded"
        assert check.remedy


async def test_a_start_shreds_what_a_kill_left_unshredded(tmp_path: Path) -> None:
    async with backups(tmp_path) as (made, world):
        record = bytes.fromhex(await world.say("the xylophone rings"))
        info = await made.create()
        keys = made.folder / info.name / "covey.db.keys"
        assert holds_any(keys, [record])
        await world.db.write(
            lambda c: c.execute("INSERT INTO erased VALUES (?, x'', 1)", (record,)).fetchall()
        )
        with trio.move_on_after(1):
            await made.run()
        assert not holds_any(keys, [record])
        assert (await made.verify(info.name)).problem == ""


async def test_what_was_erased_during_a_copy_has_no_key_in_it(tmp_path: Path) -> None:
    async with backups(tmp_path) as (made, world):
        kept = bytes.fromhex(await world.say("the zebrafish swims"))
        record = bytes.fromhex(await world.say("the xylophone rings"))
        # The database says so; the copy is of a moment before, with the key still in it.
        await world.db.write(
            lambda c: c.execute("INSERT INTO erased VALUES (?, x'', 1)", (record,)).fetchall()
        )
        info = await made.create()
        keys = made.folder / info.name / "covey.db.keys"
        assert not holds_any(keys, [record])
        assert holds_any(keys, [kept])
        assert (await made.verify(info.name)).problem == ""


async def test_shredding_makes_no_altered_keys_look_good(tmp_path: Path) -> None:
    async with backups(tmp_path) as (made, world):
        kept = bytes.fromhex(await world.say("the zebrafish swims"))
        record = bytes.fromhex(await world.say("the xylophone rings"))
        info = await made.create()
        keys = made.folder / info.name / "covey.db.keys"
        connection = apsw.Connection(str(keys))
        connection.execute(
            "UPDATE body_key SET wrap = zeroblob(length(wrap)) WHERE id = ?", (kept,)
        )
        connection.close()
        assert shred_backups(tmp_path / "state", [record]) == 1
        assert not holds_any(keys, [record])
        with pytest.raises(RpcError, match="altered"):
            await made.verify(info.name)


async def test_two_at_once_are_refused(tmp_path: Path) -> None:
    async with backups(tmp_path) as (made, _):
        errors: list[str] = []

        async def one() -> None:
            try:
                await made.create()
            except RpcError as error:
                errors.append(error.name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        assert errors == ["invalid_state"]
        assert len(await made.listed()) == 1


async def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with backups(tmp_path) as (made, _):
        monkeypatch.setattr("daemon.backup.SPARE_BYTES", 1 << 62)
        with pytest.raises(StoreError, match=r"\[backup\] dir") as caught:
            await made.create()
        assert caught.value.reason == "full"
        assert list(made.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../state", "nothing", "/etc", ".making-x"])
async def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    async with backups(tmp_path) as (made, _):
        await made.create()
        (made.folder / ".making-x").mkdir()
        with pytest.raises(RpcError) as caught:
            await made.verify(name)
        assert caught.value.name == "not_found"
