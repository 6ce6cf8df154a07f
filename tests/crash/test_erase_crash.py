"""A crash at every write of an erasure: acknowledged means in no file; else whole or gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
import pytest

from memory.erasure.choosing import EraseWhat
from memory.erasure.erasing import Eraser, Outlets
from memory.records.erase import HERE, erase_all
from tests.helpers.crashvfs import Recorder, check_database, images
from tests.helpers.memories import World, open_world
from tests.unit.test_erasing import Inline, Told

if TYPE_CHECKING:
    from pathlib import Path

    from memory.storage.txn import Txn

SEED = 7
WORDS = ("xylophagous", "quicksilvery", "zeugmatical", "jabberwocky")
ROWS = (
    "SELECT r.state, EXISTS (SELECT 1 FROM body WHERE n = r.n), EXISTS (SELECT 1 FROM body_key"
    " WHERE n = r.n), EXISTS (SELECT 1 FROM memory WHERE id = r.n), EXISTS (SELECT 1 FROM chunk"
    " WHERE memory = r.n), EXISTS (SELECT 1 FROM erased WHERE id = r.id) FROM record r"
    " WHERE r.id = ?"
)
WHOLE = ("live", 1, 1, 1, 1, 0)
GONE = ("stub", 0, 0, 0, 0, 1)


async def work(world: World, recorder: Recorder, folder: Path) -> dict[str, bytes]:
    """Store and erase, each step acknowledged; ids by word."""
    eraser = Eraser(
        world.db,
        world.replica,
        world.clock,
        world.sealer.device,
        folder,
        Inline(),
        Outlets(Told().tell),
    )
    ids = {}
    for n in range(12):
        await world.say(f"filler number{n} about this and that " * 8)
    for word in WORDS:
        ids[word] = bytes.fromhex(await world.say(f"the {word} note " + f"{word} text " * 30))
        recorder.ack(("kept", word))
    for word in WORDS[:2]:
        await eraser.erase(world.person, EraseWhat(ids=(ids[word].hex(),)))
        recorder.ack(("erased", word))

    # As replication does it: the transaction, and cleaning up apart from it.
    def unit(txn: Txn) -> None:
        erase_all(txn, ids[WORDS[2]], HERE, 0)

    await world.replica.transact(unit)
    assert (await eraser.clean_up())[0]
    recorder.ack(("erased", WORDS[2]))
    await world.say("one more")
    return ids


async def record_work(folder: Path) -> tuple[Recorder, dict[str, bytes]]:
    """The work over a recorded disk that already holds an empty memory."""
    async with open_world(folder):
        pass
    recorder = Recorder(folder)
    async with open_world(folder, vfs=recorder.vfs_name) as world:
        ids = await work(world, recorder, folder)
    recorder.close()
    return recorder, ids


async def examine(tmp_path: Path, stride: int) -> tuple[int, int]:
    """(images looked at, those after an acknowledged erasure)."""
    recorder, ids = await record_work(_made(tmp_path / "live"))
    seen = after = 0
    for image in images(recorder, seed=SEED, stride=stride):
        erased = {_word(unit) for unit in image.acked if _kind(unit) == "erased"}
        for word in erased:
            assert not image.holds(word.encode()), f"{image}: {word} is in a file"
        image.lay_out(tmp_path / "image")
        db = apsw.Connection(str(tmp_path / "image" / "covey.db"))
        check_database(db)
        for unit in image.acked:
            word = _word(unit)
            row = db.execute(ROWS, (ids[word],)).fetchone()
            assert row in ((GONE,) if word in erased else (WHOLE, GONE)), f"{image}: {word}: {row}"
        db.close()
        seen += 1
        after += bool(erased)
    return seen, after


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _word(unit: object) -> str:
    assert isinstance(unit, tuple)
    return str(unit[1])


def _kind(unit: object) -> str:
    assert isinstance(unit, tuple)
    return str(unit[0])


async def test_an_acknowledged_erasure_is_in_no_file_at_sampled_points(tmp_path: Path) -> None:
    seen, after = await examine(tmp_path, 9)
    assert seen > 30
    assert after > 10


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_acknowledged_erasure_is_in_no_file_at_every_point(tmp_path: Path) -> None:
    seen, after = await examine(tmp_path, 1)
    assert seen > 300
    assert after > 90
