"""The process dies at every point at which a blob's files change: no blob is ever wrong.

Each run counts the points it passes and dies at the k-th, for every k. What it leaves is looked at
as it is, and once more as after a power failure: what was not synced is lost, half written or
garbage. Then a new process must find every acknowledged blob, no wrong one, and the progress that
was made durable.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import pytest
import trio
from typing_extensions import override

from p2p.blobs.config import BlobConfig
from p2p.blobs.manifest import CHUNK_BYTES_MIN, BlobId, decode_manifest_untrusted
from p2p.blobs.storage import BlobFiles
from p2p.blobs.store import Store
from p2p.env import SeededEnv
from tests.helpers.blob_kit import GROUP, OTHER_GROUP, Inline, Source, content, keep_blobs
from tests.helpers.fabrics import MEM, Kit, play
from tests.helpers.sometimes import Sometimes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

CONFIG: Final = replace(BlobConfig(), sync_bytes=2 * CHUNK_BYTES_MIN)
DATA: Final = content(7 * CHUNK_BYTES_MIN + 9)
SMALL: Final = content(1000, seed=1)


class Killed(BaseException):
    """The process is dead: nothing below may catch this, or do anything after it."""


class DyingEnv(SeededEnv):
    """A world that ends at the k-th point.

    Args:
        at: which; 0: never.
    """

    def __init__(self, at: int) -> None:
        super().__init__(1, "blobs", trio.current_time)
        self.at = at
        self.passed = 0
        self.names: Counter[str] = Counter()

    @override
    def fault(self, name: str) -> bool:
        """Die, if this is the point; once dead, everything else dies too."""
        self.passed += 1
        self.names[name] += 1
        if self.at and self.passed >= self.at:
            raise Killed
        return False


@dataclass
class Acknowledged:
    """What the dead process had said is done."""

    put: dict[BlobId, bytes] = field(default_factory=dict)
    pinned: set[BlobId] = field(default_factory=set)
    dropped: set[BlobId] = field(default_factory=set)


def new_store(folder: Path) -> Store:
    env = SeededEnv(2, "after", trio.current_time)
    return Store(BlobFiles(folder, env), env, Inline(), CONFIG)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def look(folder: Path, told: Acknowledged) -> Store:
    """A new process: everything here is right, nothing acknowledged is gone."""
    store = new_store(folder)
    await store.load()
    for entry in list(store.entries.values()):
        if entry.whole:
            data = store.path(entry).read_bytes()
            manifest = decode_manifest_untrusted(
                (store.path(entry).parent / f"{entry.id.hex()}.m").read_bytes()
            )
            assert manifest.id == entry.id
            step = manifest.chunk_bytes
            found = [hashlib.sha256(data[i : i + step]).digest() for i in range(0, len(data), step)]
            assert b"".join(found) == manifest.hashes, "a wrong blob under a right name"
            assert await store.check_whole(entry)
    for blob, content_ in told.put.items():
        if blob not in told.dropped:
            assert store.path(store.entries[blob]).read_bytes() == content_
            assert store.entries[blob].pins.pins, "a pin was acknowledged with the put"
    for blob in told.pinned:
        assert ("job", OTHER_GROUP) in store.entries[blob].pins.pins
    for blob in told.dropped:
        assert blob not in store.entries
    assert list((folder / "tmp").iterdir()) == []
    for path in files_in(folder):  # nothing that belongs to no blob is left
        assert BlobId(bytes.fromhex(path.name.partition(".")[0])) in store.entries
    return store


def lose_power(folder: Path, dice: random.Random) -> None:
    """Lose what was not synced: files in `tmp`, and chunks that no map tells of."""
    for path in folder.rglob("*"):
        if path.parent.name == "tmp":
            data = path.read_bytes()
            path.write_bytes(data[: dice.randrange(len(data) + 1)] + dice.randbytes(3))
        elif path.suffix == ".part":
            progress = path.with_suffix(".map")
            have = int.from_bytes(progress.read_bytes(), "little") if progress.exists() else 0
            data = bytearray(path.read_bytes())
            for index in range(-(-len(data) // CHUNK_BYTES_MIN)):
                if not have >> index & 1 and dice.random() < 0.7:
                    start = index * CHUNK_BYTES_MIN
                    data[start : start + 100] = dice.randbytes(len(data[start : start + 100]))
            path.write_bytes(data)


def run_until_dead(act: Callable[[Store], Awaitable[None]], folder: Path, at: int) -> DyingEnv:
    """Run `act` on a store that dies at the k-th point."""
    made: list[DyingEnv] = []

    async def main() -> None:
        env = DyingEnv(at)
        made.append(env)
        store = Store(BlobFiles(folder, env), env, Inline(), CONFIG)
        await store.load()
        await act(store)

    with contextlib.suppress(Killed):
        trio.run(main)
    return made[0]


async def everything(store: Store, told: Acknowledged) -> None:
    """Put, pin, unpin, put again what is here, drop."""
    for data in (SMALL, DATA, SMALL):
        incoming = await store.incoming()
        for start in range(0, len(data), 1_000_000):
            await store.write(incoming, data[start : start + 1_000_000])
        entry = await store.place(incoming, GROUP, "user")
        told.put[entry.id] = data
    small = next(one for one in store.entries.values() if one.size == len(SMALL))
    await store.change_pins(small, lambda pins: pins.with_pin(OTHER_GROUP, "job"))
    told.pinned.add(small.id)
    other = next(one for one in store.entries.values() if one.size == len(DATA))
    told.put.pop(other.id)
    await store.drop(other)
    told.dropped.add(other.id)


def test_a_death_at_every_point_of_putting_pinning_and_dropping(tmp_path: Path) -> None:
    seen = Sometimes("died", "acknowledged", "gone")
    total = run_until_dead(
        lambda store: everything(store, Acknowledged()), tmp_path / "whole", 0
    ).passed
    assert total > 25
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        told = Acknowledged()

        async def act(store: Store, told: Acknowledged = told) -> None:
            await everything(store, told)

        run_until_dead(act, folder, at)
        seen("died")
        seen("acknowledged", len(told.put))
        seen("gone", len(told.dropped) == 0)
        for image in ("as it is", "power"):
            copy = tmp_path / f"{at}-{image}"
            shutil.copytree(folder, copy)
            if image == "power":
                lose_power(copy, random.Random(at))
            trio.run(look, copy, told)
            shutil.rmtree(copy)
    seen.check()


# --- a fetch --------------------------------------------------------------------------------------


@dataclass
class Run:
    """What came of one run of a fetching process."""

    passed: int
    asked: int
    done: bool


def fetch_until_dead(folder: Path, at: int) -> Run:
    """Fetch `DATA` from one source, in a process that dies at the k-th point."""
    found: list[Run] = []

    async def main(kit: Kit) -> None:
        source_member, member = await kit.node(2), await kit.node(1)
        source = Source(source_member.node, DATA)
        env = DyingEnv(at)
        blobs = keep_blobs(member.node, folder, env, config=CONFIG)
        await kit.connect(member, source_member)
        try:
            path = await blobs.fetch(source.id, GROUP)
            assert path.read_bytes() == DATA
            found.append(Run(env.passed, source.asked["get"], done=True))
        finally:
            found.append(Run(env.passed, source.asked["get"], done=False))

    try:
        play(MEM, main)
    except BaseExceptionGroup as group:
        dead, rest = group.split(Killed)
        assert dead is not None
        assert rest is None
    return found[0]


def mapped(folder: Path) -> int:
    """Chunks that the map on disk claims."""
    for path in folder.rglob("*.map"):
        return int.from_bytes(path.read_bytes(), "little").bit_count()
    return 0


def test_a_death_at_every_point_of_a_fetch_keeps_what_was_durable(tmp_path: Path) -> None:
    whole = fetch_until_dead(tmp_path / "whole", 0)
    assert whole.done
    assert whole.asked == 8
    assert whole.passed > 15
    seen = Sometimes("progress", "none", "finished")
    for at in range(1, whole.passed + 1):
        folder = tmp_path / str(at)
        run = fetch_until_dead(folder, at)
        assert not run.done
        if at % 2:
            lose_power(folder, random.Random(at))
        trio.run(look, folder, Acknowledged())
        kept = mapped(folder)
        is_whole = any(len(path.name) == 64 for path in folder.rglob("*"))
        seen("finished" if is_whole else "progress" if kept else "none")
        again = fetch_until_dead(folder, 0)
        assert again.done
        assert again.asked <= (0 if is_whole else 8 - kept), "what was durable was loaded again"
    seen.check()


@pytest.mark.parametrize("how", ["claimed", "garbage", "empty", "long", "missing"])
def test_a_map_is_never_believed(tmp_path: Path, how: str) -> None:
    """Control of the resumption: whatever the map says, only right chunks count."""
    points = fetch_until_dead(tmp_path / "whole", 0).passed
    at = points - 6
    folder = tmp_path / "part"
    fetch_until_dead(folder, at)
    (progress,) = folder.rglob("*.map")
    (part,) = folder.rglob("*.part")
    before = mapped(folder)
    assert before > 2
    match how:
        case "claimed":  # all of it, though one claimed chunk is wrong
            progress.write_bytes(b"\xff")
            data = bytearray(part.read_bytes())
            data[5] ^= 1
            part.write_bytes(data)
        case "garbage":
            progress.write_bytes(random.Random(1).randbytes(1))
        case "empty":
            progress.write_bytes(b"")
        case "long":
            progress.write_bytes(b"\xff" * 10_000)
        case _:
            progress.unlink()
    again = fetch_until_dead(folder, 0)
    assert again.done
    if how in {"empty", "missing"}:
        # Without a map every chunk is looked at: none that is here is loaded again.
        assert again.asked <= 8 - before
