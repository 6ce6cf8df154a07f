"""Blobs that local clients put piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from daemon.errors import RpcError
from daemon.uploads import DONE_MAX, IDLE_S_MAX, UPLOADS_MAX, Uploads
from p2p.errors import DiskFull
from tests.helpers.blob_kit import FaultyEnv, keep_blobs
from tests.helpers.fabrics import MEM, Kit, play

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from p2p.blobs.service import Blobs


class Scene:
    """Uploads into a folder, in virtual time."""

    def __init__(self, env: FaultyEnv, blobs: Blobs, folder: Path) -> None:
        self.env = env
        self.blobs = blobs
        self.uploads = Uploads(blobs, env)
        self.temporary = folder / "tmp"

    def files(self) -> int:
        """Files that are being written."""
        return sum(1 for _ in self.temporary.iterdir())


def scenario(folder: Path, act: Callable[[Scene], Awaitable[None]]) -> None:
    async def main(kit: Kit) -> None:
        env = FaultyEnv(1, "uploads")
        await act(Scene(env, keep_blobs((await kit.node(1)).node, folder, env), folder))

    play(MEM, main)


def test_pieces_in_order_become_a_blob_and_are_told_again(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        name = await scene.uploads.begin("")
        assert await scene.uploads.write(name, "", 0, b"hello ") == 6
        assert await scene.uploads.write(name, "", 0, b"hello ") == 6
        assert await scene.uploads.write(name, "", 6, b"world") == 11
        blob = await scene.uploads.finish(name, "", None, "user")
        assert await scene.uploads.finish(name, "", None, "user") == blob
        path = await scene.blobs.path(next(iter(scene.blobs._store.entries)))
        assert path is not None
        assert path.read_bytes() == b"hello world"
        assert scene.files() == 0

    scenario(tmp_path, act)


def test_one_agents_upload_is_nobody_elses(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        name = await scene.uploads.begin("one")
        with pytest.raises(RpcError, match="no such upload"):
            await scene.uploads.write(name, "two", 0, b"x")
        with pytest.raises(RpcError, match="no such upload"):
            await scene.uploads.finish(name, "", None, None)

    scenario(tmp_path, act)


def test_there_are_so_many_at_once_and_finished_ones_do_not_count(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        for number in range(DONE_MAX + 20):
            name = await scene.uploads.begin("")
            await scene.uploads.write(name, "", 0, bytes([number]))
            await scene.uploads.finish(name, "", None, None)
        assert len(scene.uploads._open) <= DONE_MAX + 1
        for _ in range(UPLOADS_MAX):
            await scene.uploads.begin("")
        with pytest.raises(RpcError, match="too many uploads"):
            await scene.uploads.begin("")
        assert scene.files() == UPLOADS_MAX

    scenario(tmp_path, act)


def test_what_nobody_continues_goes(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.uploads.run)
            left, kept = await scene.uploads.begin(""), await scene.uploads.begin("")
            await trio.sleep(IDLE_S_MAX * 0.7)
            await scene.uploads.write(kept, "", 0, b"x")
            await trio.sleep(IDLE_S_MAX * 0.7)
            assert scene.files() == 1
            with pytest.raises(RpcError):
                await scene.uploads.write(left, "", 0, b"x")
            await scene.uploads.finish(kept, "", None, None)
            nursery.cancel_scope.cancel()

    scenario(tmp_path, act)


def test_a_full_disk_ends_an_upload_and_frees_what_it_took(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        name = await scene.uploads.begin("")
        await scene.uploads.write(name, "", 0, b"x" * 1000)
        scene.env.failing.add("blobs.disk_full")
        with pytest.raises(DiskFull):
            await scene.uploads.write(name, "", 1000, b"y")
        assert scene.files() == 0
        with pytest.raises(RpcError, match="no such upload"):
            await scene.uploads.write(name, "", 1000, b"y")

    scenario(tmp_path, act)
