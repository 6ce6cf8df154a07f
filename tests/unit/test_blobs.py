"""The face of blobs: what one node puts another fetches, and what is kept, shared and collected."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.blobs.config import BlobConfig
from p2p.blobs.manifest import CHUNK_BYTES_MIN, BlobId, Manifest, decode_manifest_untrusted
from p2p.blobs.messages import GetQuery, Held, Piece
from p2p.blobs.pins import PUBLIC
from p2p.blobs.storage import Incoming
from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.errors import Busy, TransientError, Unreachable, UsageError
from p2p.identity import Identity, PeerId
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from tests.helpers.blob_kit import (
    GROUP,
    OTHER_GROUP,
    FaultyEnv,
    Source,
    content,
    keep_blobs,
)
from tests.helpers.cancel import Cut, cancel_at_every_step
from tests.helpers.fabrics import MEM, Kit, NodeMember, play
from tests.helpers.leaks import Census

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from p2p.blobs.fetch import Progress
    from p2p.blobs.service import Blobs
    from p2p.rpc import CallStream

DATA = content(6 * CHUNK_BYTES_MIN + 7)
CHUNKS = 7


@asynccontextmanager
async def running_node(folder: Path) -> AsyncIterator[Node]:
    env, config = SystemEnv(), P2pConfig.test()
    node = Node(Identity.generate(env.rng), config, env, [TcpTransport(config)])
    node.set_members(lambda _peer: True)
    keep_blobs(node, folder, env, threads=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        nursery.cancel_scope.cancel()


async def test_what_one_node_puts_another_fetches_verified_over_tcp(tmp_path: Path) -> None:
    data = content(3_000_000)
    async with running_node(tmp_path / "a") as first, running_node(tmp_path / "b") as second:
        assert first.blobs is not None
        assert second.blobs is not None
        blob = await first.blobs.put([data[:1_000_001], data[1_000_001:]], GROUP)
        await second.fabric.connect(first.id, first.fabric.addrs())
        told: list[Progress] = []
        path = await second.blobs.fetch(blob, GROUP, on_progress=told.append)
        assert path.read_bytes() == data
        assert told[-1].bytes_done == told[-1].bytes_total == len(data)
        assert [one.bytes_done for one in told] == sorted(one.bytes_done for one in told)
        assert max(one.sources for one in told) == 1
        # What was fetched is served on.
        again = await first.blobs.fetch(blob, GROUP)
        assert again.read_bytes() == data
        assert second.blobs.report().bytes_in == len(data)
        assert first.blobs.report().bytes_out == len(data)


class Scene:
    """A node with blobs, and sources that a test writes by hand."""

    def __init__(self, kit: Kit, member: NodeMember, folder: Path, config: BlobConfig) -> None:
        self.kit = kit
        self.member = member
        self.folder = folder
        self.env = FaultyEnv(1, "blobs")
        self.blobs = keep_blobs(member.node, folder, self.env, config=config)

    async def source(self, number: int, data: bytes = DATA) -> Source:
        member = await self.kit.node(number)
        source = Source(member.node, data)
        await self.kit.connect(self.member, member)
        return source


def scenario(
    folder: Path,
    act: Callable[[Scene], Awaitable[None]],
    config: BlobConfig | None = None,
) -> None:
    async def main(kit: Kit) -> None:
        await act(Scene(kit, await kit.node(1), folder, config or BlobConfig()))

    play(MEM, main)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def file_of(folder: Path, blob: BlobId, ending: str = "") -> Path:
    return folder / blob.hex()[:2] / (blob.hex() + ending)


# --- putting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES_MIN, CHUNK_BYTES_MIN + 1, 3_000_000])
def test_the_id_is_the_hash_of_the_list_of_chunk_hashes(tmp_path: Path, size: int) -> None:
    async def act(scene: Scene) -> None:
        data = content(size)

        async def in_pieces() -> AsyncIterator[bytes]:
            for start in range(0, size, 77_777):
                yield data[start : start + 77_777]

        blob = await scene.blobs.put(in_pieces(), GROUP)
        chunks = [data[i : i + CHUNK_BYTES_MIN] for i in range(0, size, CHUNK_BYTES_MIN)]
        hashes = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
        assert blob == Manifest(size, hashes).id
        assert file_of(tmp_path, blob).read_bytes() == data
        assert decode_manifest_untrusted(file_of(tmp_path, blob, ".m").read_bytes()).size == size
        path = await scene.blobs.path(blob)
        assert path == file_of(tmp_path, blob)
        assert await scene.blobs.read(blob, 1, 10) == data[1:11]
        # The same bytes are the same blob, and hold nothing twice.
        assert await scene.blobs.put([data], GROUP) == blob
        assert scene.blobs.report().blobs == 1
        assert file_of(tmp_path, blob).stat().st_mode & 0o777 == 0o600

    scenario(tmp_path, act)


def test_a_large_blobs_chunks_are_hashed_again_at_their_size(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "x", FaultyEnv(1, "x"))
    incoming.write(DATA)
    step = 2 * CHUNK_BYTES_MIN
    hashes = [hashlib.sha256(DATA[i : i + step]).digest() for i in range(0, len(DATA), step)]
    assert incoming._hash_again(step) == b"".join(hashes)
    incoming.abort()
    incoming.abort()
    assert not (tmp_path / "x").exists()


def test_a_put_that_fails_or_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            raise ValueError("the source broke")

        async def slow() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            await trio.sleep_forever()

        with pytest.raises(ValueError, match="the source broke"):
            await scene.blobs.put(broken(), GROUP)
        with trio.move_on_after(1):
            await scene.blobs.put(slow(), GROUP)
        with pytest.raises(UsageError, match="tag"):
            await scene.blobs.put([b"x"], GROUP, tag="a" * 65)
        with pytest.raises(UsageError, match="32 bytes"):
            await scene.blobs.put([b"x"], b"short")
        assert files_in(scene.folder) == []
        assert scene.blobs.report().blobs == 0

    scenario(tmp_path, act)


# --- fetching -------------------------------------------------------------------------------------


def test_a_blob_that_is_here_is_not_asked_for_and_serves_its_new_group(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        source = await scene.source(2)
        blob = await scene.blobs.put([DATA], OTHER_GROUP)
        path = await scene.blobs.fetch(blob, GROUP)
        assert path.read_bytes() == DATA
        assert source.asked.total() == 0
        info = await scene.blobs.stat(blob)
        assert info is not None
        assert set(info.groups) == {GROUP, OTHER_GROUP}

    scenario(tmp_path, act)


def test_an_empty_blob_needs_no_chunk(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        source = await scene.source(2, b"")
        path = await scene.blobs.fetch(source.id, GROUP)
        assert path.read_bytes() == b""
        assert source.asked["get"] == 0

    scenario(tmp_path, act)


def test_two_callers_share_a_fetch_and_one_may_leave(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        source = await scene.source(2)
        go = trio.Event()

        async def wait(query: GetQuery, stream: CallStream) -> None:
            if source.asked["get"] > 4:
                await go.wait()
            await source.send_chunks(query, stream)

        source.give = wait
        told: list[Progress] = []
        paths: list[Path] = []

        async def second() -> None:
            paths.append(await scene.blobs.fetch(source.id, GROUP, on_progress=told.append))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1.0):
                nursery.start_soon(second)
                await scene.blobs.fetch(source.id, GROUP)
            assert told, "who waits hears how far it is"
            go.set()
        assert paths[0].read_bytes() == DATA
        assert told[-1].bytes_done == len(DATA)
        assert source.asked["get"] == CHUNKS + 3, "what came was not asked again"
        assert scene.blobs._turns == {}

    scenario(tmp_path, act)


def test_a_peer_that_connects_or_gets_the_blob_meanwhile_is_asked(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        later = await scene.source(2)
        later.held = None
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.blobs.fetch, later.id, GROUP)
            await trio.sleep(10)
            later.held = Held(len(DATA), b"")
        assert trio.current_time() - started < 15
        other = content(9 * CHUNK_BYTES_MIN, seed=5)
        new_id = Source((await scene.kit.node(9)).node, other).id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.blobs.fetch, new_id, GROUP)
            await trio.sleep(5)
            before = trio.current_time()
            await scene.source(3, other)
        assert trio.current_time() - before < 1.5

    scenario(tmp_path, act)


def test_a_source_that_dies_is_replaced_and_one_alone_may_come_back(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.source(2)
        second = await scene.source(3)

        async def die(query: GetQuery, stream: CallStream) -> None:
            if first.asked["get"] > 2:
                scene.kit.net.kill("10.0.0.2")
                await trio.sleep_forever()
            await first.send_chunks(query, stream)

        first.give = die
        path = await scene.blobs.fetch(first.id, GROUP)
        assert path.read_bytes() == DATA
        assert second.asked["get"] >= CHUNKS - 3

    scenario(tmp_path, act)


def test_nobody_outside_of_the_group_learns_what_is_looked_for(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        friend, stranger = await scene.source(2), await scene.source(3)
        scene.blobs.set_readers(lambda group, peer: group == GROUP and peer == friend.peer)
        await scene.blobs.fetch(friend.id, GROUP)
        assert stranger.asked.total() == 0

    scenario(tmp_path, act)


@dataclass
class Somebody:
    """A provider as the DHT would tell of it."""

    peer: PeerId
    addrs: Sequence[str]


class Directory:
    """Who has what, and who said so."""

    def __init__(self, known: dict[bytes, list[Somebody]]) -> None:
        self.known = known
        self.provided: list[bytes] = []
        self.asked: list[bytes] = []

    async def providers(self, key: bytes) -> list[Somebody]:
        """What is known."""
        self.asked.append(key)
        return self.known.get(key, [])

    async def provide(self, key: bytes) -> int:
        """Remember it."""
        self.provided.append(key)
        return 1


def test_public_blobs_are_looked_up_and_offered_in_the_dht_and_no_others(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        member = await scene.kit.node(2)
        source = Source(member.node, DATA)
        key = b"\x12\x20" + source.id
        gone = Somebody(PeerId(bytes(32)), ["/ip4/10.9.9.9/tcp/1"])
        us = Somebody(scene.member.id, [])
        found = Somebody(member.id, member.fabric.addrs())
        directory = Directory({key: [gone, us, found]})
        scene.blobs.set_providers(directory)
        assert (await scene.blobs.fetch(source.id, PUBLIC)).read_bytes() == DATA
        assert directory.asked == [key]
        assert directory.provided == [key]
        await scene.blobs.put([b"secret"], GROUP)
        await scene.blobs.put([b"own"], None)
        blob = await scene.blobs.put([b"news"], PUBLIC)
        assert directory.provided == [key, b"\x12\x20" + blob]
        # After a start, what is public is offered again.
        directory.provided.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.blobs.run)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert sorted(directory.provided) == sorted([key, b"\x12\x20" + blob])

    scenario(tmp_path, act)


def test_an_end_without_a_source_says_why_and_when(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        started = trio.current_time()
        with pytest.raises(Unreachable, match="no reachable peer has this blob"):
            await scene.blobs.fetch(BlobId(bytes(32)), GROUP)
        assert trio.current_time() - started == pytest.approx(30, abs=1)
        assert scene.blobs._turns == {}

    scenario(tmp_path, act)


def test_a_fetch_cut_at_any_step_leaves_nothing_open_and_can_go_on(tmp_path: Path) -> None:
    runs = 0
    before = Census.take()

    async def scenario_of(cut: Cut) -> None:
        nonlocal runs
        runs += 1
        folder = tmp_path / str(runs)
        async with trio.open_nursery() as nursery:
            kit = Kit(MEM, nursery)
            scene = Scene(kit, await kit.node(1), folder, BlobConfig())
            source = await scene.source(2, content(5_000))
            finished = await cut.attempt(lambda: scene.blobs.fetch(source.id, GROUP))
            for entry in scene.blobs._store.entries.values():
                assert not entry.fetching
            if finished:
                assert await scene.blobs.path(source.id) is not None
            path = await scene.blobs.fetch(source.id, GROUP)
            assert path.read_bytes() == source.data
            assert list((folder / "tmp").iterdir()) == []
            nursery.cancel_scope.cancel()

    cut_runs = cancel_at_every_step(scenario_of)
    assert cut_runs > 50
    Census.take().assert_nothing_new(before)


# --- what is here ---------------------------------------------------------------------------------


def test_a_blob_that_went_bad_is_mended_by_loading_the_bad_chunk_alone(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        blob = await scene.blobs.put([DATA], GROUP, tag="user")
        file = file_of(tmp_path, blob)
        data = bytearray(file.read_bytes())
        data[3 * CHUNK_BYTES_MIN + 1] ^= 1
        file.write_bytes(data)
        # A new process looks at bytes before it gives them to anybody.
        scene = Scene(scene.kit, await scene.kit.node(7), tmp_path, BlobConfig())
        assert await scene.blobs.path(blob) is None
        info = await scene.blobs.stat(blob)
        assert info is not None
        assert not info.whole
        assert info.pins == (("user", GROUP),)
        assert scene.blobs.report().damaged == 1
        mender = await scene.kit.node(8)
        source = Source(mender.node, DATA)
        await scene.kit.connect(scene.member, mender)
        path = await scene.blobs.fetch(blob, GROUP)
        assert path.read_bytes() == DATA
        assert source.asked["get"] == 1

    scenario(tmp_path, act)


@pytest.mark.parametrize("what", ["cut", "longer", "gone", "manifest", "pins"])
def test_files_that_somebody_changed_are_noticed(tmp_path: Path, what: str) -> None:
    async def act(scene: Scene) -> None:
        blob = await scene.blobs.put([DATA], GROUP, tag="user")
        file = file_of(tmp_path, blob)
        match what:
            case "cut":
                file.write_bytes(DATA[:-1])
            case "longer":
                file.write_bytes(DATA + b"x")
            case "gone":
                file.unlink()
            case "manifest":
                file_of(tmp_path, blob, ".m").write_bytes(b"\x94")
            case _:
                file_of(tmp_path, blob, ".pins").write_bytes(b"\xff")
        scene = Scene(scene.kit, await scene.kit.node(7), tmp_path, BlobConfig())
        path = await scene.blobs.path(blob)
        if what == "pins":  # kept, for our own devices alone
            assert path is not None
            info = await scene.blobs.stat(blob)
            assert info is not None
            assert info.pins == (("unreadable", None),)
            return
        assert path is None
        mender = await scene.kit.node(8)
        Source(mender.node, DATA)
        await scene.kit.connect(scene.member, mender)
        assert (await scene.blobs.fetch(blob, GROUP)).read_bytes() == DATA

    scenario(tmp_path, act)


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        for name in ("readme", "ab/notes.txt", "zz/file", "cd/" + "ab" * 32, "ab/" + "ab" * 32):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
        assert await scene.blobs.listed() == []
        left = {str(path.relative_to(tmp_path)) for path in files_in(tmp_path)}
        # But a blob's name without a manifest is what a crash leaves.
        assert left == {"readme", "ab/notes.txt", "zz/file", "cd/" + "ab" * 32}

    scenario(tmp_path, act)


def test_pins_keep_and_the_longest_unused_goes(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async def put(seed: int, tag: str | None = None) -> BlobId:
            await trio.sleep(60)
            return await scene.blobs.put([content(100_000, seed)], GROUP, tag=tag)

        kept = await put(1, "user")
        first, second, third = [await put(seed) for seed in (2, 3, 4)]
        await trio.sleep(60)
        assert await scene.blobs.path(first) is not None  # used again
        fourth = await put(5)
        here = [info.id for info in await scene.blobs.listed()]
        # Room for 350,000; down to 90 % of it, the least used of those nobody holds went.
        assert here == [fourth, first, third, kept]
        assert second not in here
        assert scene.blobs.report().collected == 1
        assert scene.blobs.report().bytes_pinned == 100_000
        # When nobody holds it any more, it is one of them.
        assert await scene.blobs.unpin(kept, "user")
        assert await scene.blobs.stat(kept) is None
        assert not await scene.blobs.unpin(kept, "user")

    scenario(tmp_path, act, replace(BlobConfig(), unpinned_bytes_max=350_000))


def test_a_blob_larger_than_the_room_is_kept_until_the_next_comes(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        source = await scene.source(2)
        await scene.blobs.fetch(source.id, GROUP)
        assert await scene.blobs.path(source.id) is not None
        await trio.sleep(60)
        blob = await scene.blobs.put([b"x"], GROUP)
        assert [info.id for info in await scene.blobs.listed()] == [blob]

    scenario(tmp_path, act, replace(BlobConfig(), unpinned_bytes_max=1000))


def test_what_is_not_here_cannot_be_pinned_read_or_dropped(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        blob = BlobId(bytes(32))
        for ask in (
            scene.blobs.pin(blob, GROUP, "x"),
            scene.blobs.read(blob, 0, 1),
        ):
            with pytest.raises(Unreachable, match="not here"):
                await ask
        assert not await scene.blobs.drop(blob)
        assert not await scene.blobs.unpin(blob, "x")
        assert await scene.blobs.stat(blob) is None
        real = await scene.blobs.put([b"x"], GROUP)
        with pytest.raises(UsageError, match="tag"):
            await scene.blobs.pin(real, GROUP, "")
        for number in range(1024):
            scene.blobs._store.entries[real].pins = scene.blobs._store.entries[real].pins.with_pin(
                GROUP, str(number)
            )
        with pytest.raises(UsageError, match="at most 1024"):
            await scene.blobs.pin(real, GROUP, "one more")

    scenario(tmp_path, act)


def test_a_blob_under_fetch_cannot_be_dropped_and_survives_collection(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        source = await scene.source(2)
        go = trio.Event()

        async def wait(query: GetQuery, stream: CallStream) -> None:
            if source.asked["get"] > 3:
                await go.wait()
            await source.send_chunks(query, stream)

        source.give = wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.blobs.fetch, source.id, GROUP)
            await trio.sleep(1)
            with pytest.raises(Busy, match="being fetched"):
                await scene.blobs.drop(source.id)
            await scene.blobs.put([content(5000)], GROUP)
            assert scene.blobs.report().fetches == 1
            go.set()
        assert await scene.blobs.path(source.id) is not None

    scenario(tmp_path, act, replace(BlobConfig(), unpinned_bytes_max=4000))


def test_a_folder_that_cannot_be_read_is_said_and_tried_again(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        (tmp_path / "file").write_text("no folder")
        blobs: Blobs = keep_blobs((await scene.kit.node(5)).node, tmp_path / "file", scene.env)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blobs.run)
            await trio.sleep(1)
            with pytest.raises(TransientError, match="opening the blobs"):
                await blobs.listed()
            (tmp_path / "file").unlink()
            assert await blobs.listed() == []
            nursery.cancel_scope.cancel()

    scenario(tmp_path, act)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_max": 1},
        {"sources_max": 0},
        {"stall_s": -1.0},
        {"collect_to_ratio": 1.5},
        {"fetch_bytes_max": 1 << 40},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(BlobConfig(), **wrong)  # type: ignore[arg-type]


def test_a_piece_is_what_the_messages_say() -> None:
    # The usual chunk is one item, whose credit every call starts with.
    assert Piece(0, 0, bytes(CHUNK_BYTES_MIN)).data == bytes(CHUNK_BYTES_MIN)
