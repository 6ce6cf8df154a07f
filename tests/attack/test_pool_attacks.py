"""Trainers that lie to the host pool: bad records, foreign lends, torn writes, other users."""

from __future__ import annotations

import socket
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest
import trio

from federated.rounds.pool.book import PoolLimits, State
from federated.rounds.pool.client import PoolClient, PoolError
from federated.rounds.pool.records import (
    RECORD_BYTES,
    Dtype,
    Kind,
    Reason,
    Record,
    decode_record_untrusted,
)
from tests.helpers.leaks import open_descriptors
from tests.helpers.need import need
from tests.helpers.pool_kit import running, trainer, until

if TYPE_CHECKING:
    from pathlib import Path

    from federated.rounds.pool.server import Pool

pytestmark = [pytest.mark.attack, pytest.mark.usefixtures("no_leaks")]

ITEMS = 1000
LEND = Record(kind=Kind.LEND, dtype=Dtype.F32, nbytes=4 * ITEMS, lane=1)
UPDATE = np.ones(ITEMS, np.float32).tobytes()
BARE = Record(
    kind=Kind.FILLED,
    dtype=Dtype.F32,
    nbytes=4 * ITEMS,
    weight=1,
    round=1,
    lane=1,
    crc32=zlib.crc32(UPDATE),
)


class Raw:
    """A connection that says whatever it wants."""

    def __init__(self, pool: Pool) -> None:
        self._path = str(pool._path)
        self._sock = trio.socket.socket(socket.AF_UNIX)

    async def __aenter__(self) -> Self:
        await self._sock.connect(self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sock.close()

    async def send(self, data: bytes) -> None:
        while data:
            data = data[await self._sock.send(data) :]

    async def answer(self) -> Record | None:
        """The next record; None at the end."""
        data = b""
        while len(data) < RECORD_BYTES:
            with trio.fail_after(10):
                try:
                    piece = await self._sock.recv(RECORD_BYTES - len(data))
                except ConnectionResetError:
                    return None
            if not piece:
                return None
            data += piece
        return decode_record_untrusted(data)

    async def ask(self, record: Record, after: bytes = b"") -> Record:
        await self.send(record.encode() + after)
        answer = await self.answer()
        assert answer is not None
        return answer

    async def lend(self) -> Record:
        answer = await self.ask(LEND)
        assert answer.kind is Kind.LEND
        return replace(BARE, segment=answer.segment, generation=answer.generation, crc32=0)


async def bystander_is_served(pool: Pool) -> None:
    """Somebody else's update is taken whatever was done before."""

    def submit() -> None:
        with PoolClient(pool._path, 1, ITEMS) as client:
            client.submit(np.ones(ITEMS, np.float32), 1.0, 1)

    with trio.fail_after(10):
        await trio.to_thread.run_sync(submit)


def reason(answer: Record) -> Reason:
    assert answer.kind is Kind.NACK
    return answer.reason


@pytest.mark.parametrize(
    "junk",
    [
        b"\0" * 64,
        b"GET / HTTP/1.1\r\n" + b"x" * 64,
        b"CVP1" + b"\xff" * 60,
        b"CVP1\x07" + bytes(59),
        bytes(range(64)),
        Record(kind=Kind.NACK, reason=Reason.FULL, count=1).encode(),
    ],
    ids=["zeros", "http", "ones", "kind", "counting", "nack"],
)
async def test_bytes_that_are_no_record_end_the_connection_alone(
    tmp_path: Path, junk: bytes
) -> None:
    async with running(tmp_path, ITEMS) as (pool, _):
        async with Raw(pool) as raw:
            await raw.send(junk)
            answer = await raw.answer()
            assert answer is None or reason(answer) is Reason.MALFORMED
            assert await raw.answer() is None
        await bystander_is_served(pool)


async def test_a_lend_of_somebody_else_or_of_earlier_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        with trainer(pool._path, ITEMS) as victim:
            assert await trio.to_thread.run_sync(victim.ask, "lend") == "lend"
            (entry,) = pool.book
            async with Raw(pool) as raw:
                foreign = replace(BARE, segment=entry.number, generation=1, crc32=0)
                for wrong in (foreign, replace(foreign, generation=2), replace(foreign, segment=9)):
                    assert reason(await raw.ask(wrong)) is Reason.STALE
                    assert reason(await raw.ask(replace(wrong, kind=Kind.DONE))) is Reason.STALE
                assert entry.state is State.LENT
                own = await raw.lend()
                assert own.segment != entry.number
                assert (await raw.ask(own)).kind is Kind.DONE
                assert reason(await raw.ask(own)) is Reason.STALE, "handed in twice"
                again = await raw.lend()
                assert (again.segment, again.generation) == (own.segment, 2)
                assert reason(await raw.ask(own)) is Reason.STALE, "of the lend before"
                assert (await raw.ask(again)).kind is Kind.DONE
            for order in ("write 3", "fill 1 1"):
                assert await trio.to_thread.run_sync(victim.ask, order) == order.split()[0]
        folded = await lane.folded(1)
        assert folded.count == 3
        del folded, entry


async def test_an_update_that_does_not_fit_the_schema_is_refused_before_anything_is_folded(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        async with Raw(pool) as raw:
            for changes, expected in (
                ({"nbytes": 4 * ITEMS - 4}, Reason.SIZE),
                ({"nbytes": 4 * ITEMS + 4}, Reason.SIZE),
                ({"nbytes": 4 << 30}, Reason.SIZE),
                ({"offset": 4 << 30}, Reason.SIZE),
                ({"offset": (2 << 20) - 64}, Reason.SIZE),
                ({"dtype": Dtype.BYTES}, Reason.DTYPE),
                ({"weight": 0.0}, Reason.WEIGHT),
                ({"round": 0}, Reason.ROUND),
                ({"round": 1 << 60}, Reason.ROUND),
                ({"lane": 5}, Reason.LANE),
            ):
                lent = await raw.lend()
                assert reason(await raw.ask(replace(lent, **changes))) is expected
                assert pool.book.entry(lent.segment).state is State.FREE
            for changes, expected in (
                ({"dtype": Dtype.BYTES}, Reason.DTYPE),
                ({"weight": 0.0}, Reason.WEIGHT),
                ({"round": 5}, Reason.ROUND),
                ({"crc32": BARE.crc32 ^ 1}, Reason.CRC),
            ):
                assert reason(await raw.ask(replace(BARE, **changes), UPDATE)) is expected
            assert (await raw.ask(BARE, UPDATE)).kind is Kind.DONE, "still in step"
            assert reason(await raw.ask(replace(LEND, nbytes=4 << 30))) is Reason.SIZE
            assert reason(await raw.ask(replace(LEND, lane=77))) is Reason.LANE
        folded = await lane.folded(1)
        assert (folded.count, folded.weight) == (1, 1.0)
        del folded
    assert len(pool.book) == 2, "one segment was enough for all lends, and one for the sum"


@pytest.mark.parametrize("size", [1, 63, 64, 64 + 1, 64 + 4 * ITEMS - 1])
async def test_a_write_that_is_cut_off_is_no_update(tmp_path: Path, size: int) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        async with Raw(pool) as raw:
            await raw.send((BARE.encode() + UPDATE)[:size])
        await until(pool, "left")
        await bystander_is_served(pool)
        folded = await lane.folded(1)
        assert folded.count == 1
        del folded


async def test_what_was_half_written_in_a_segment_is_no_update(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        async with Raw(pool) as raw:
            lent = await raw.lend()
            pool.segment(lent.segment).bytes[: 2 * ITEMS] = 1
            await raw.send(lent.encode()[:40])
        await until(pool, "left")
        assert pool.book.entry(lent.segment).state is State.RETIRED, "its process lives"
        await bystander_is_served(pool)
        folded = await lane.folded(1)
        assert (folded.count, folded.total[0]) == (1, 1.0)
        del folded


async def test_who_does_not_read_its_answers_is_cut_off(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS, limits=PoolLimits(free_bytes_min=0)) as (pool, _):
        questions = replace(LEND, lane=9).encode() * 500
        async with Raw(pool) as raw:
            with (
                suppress(BrokenPipeError, ConnectionResetError),
                trio.fail_after(20),
            ):
                while True:
                    await raw.send(questions)
        await bystander_is_served(pool)


async def test_questions_for_results_do_not_pile_up(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        async with Raw(pool) as raw:
            wait = Record(kind=Kind.RESULT, round=1, lane=1)
            await raw.send(wait.encode())
            for _ in range(100):
                assert reason(await raw.ask(wait)) is Reason.TOO_MANY
            assert len(lane.rounds.waiters) == 1
        await until(pool, "left")
        assert not lane.rounds.waiters


async def test_descriptors_that_a_trainer_sends_are_not_taken(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, _), Raw(pool) as raw:
        await raw.lend()
        before = len(open_descriptors())
        for _ in range(20):
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, (0).to_bytes(4, sys.byteorder))
            await raw._sock.sendmsg([replace(LEND, lane=9).encode()], [rights])
            assert reason(await raw.answer() or LEND) is Reason.LANE
        assert len(open_descriptors()) == before


async def test_more_trainers_than_there_may_be_are_turned_away(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, _):
        async with trio.open_nursery() as nursery:
            leave = trio.Event()

            async def stay(*, task_status: trio.TaskStatus[None]) -> None:
                async with Raw(pool) as raw:
                    assert reason(await raw.ask(replace(LEND, lane=9))) is Reason.LANE
                    task_status.started()
                    await leave.wait()

            for _ in range(64):
                await nursery.start(stay)
            async with Raw(pool) as raw:
                assert await raw.answer() is None
            assert pool.refused == 1
            leave.set()
        await until(pool, "left")
        await bystander_is_served(pool)


FOREIGN = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(20)
try:
    s.sendall(bytes.fromhex(sys.argv[2])); print(len(s.recv(64)))
except ConnectionError:
    print(0)
"""


async def test_another_user_is_refused_even_where_the_folder_lets_him_in(tmp_path: Path) -> None:
    need("linux", "root")
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    async with running(folder, ITEMS) as (pool, _):
        for path in (pool._path, *pool._path.parents):
            if path.stat().st_uid == 0 and path.is_relative_to(tmp_path.parents[2]):
                path.chmod(path.stat().st_mode | 0o077)
        done = await trio.run_process(
            [sys.executable, "-I", "-c", FOREIGN, str(pool._path), LEND.encode().hex()],
            capture_stdout=True,
        )
        assert done.stdout.strip() == b"0"
        assert pool.refused == 1
        assert not len(pool.book)
        await bystander_is_served(pool)


def test_a_trainer_does_not_talk_to_another_users_pool(tmp_path: Path) -> None:
    need("linux", "root")
    path = tmp_path / "pool.sock"
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "os.chown(sys.argv[1], 65534, 65534); os.setuid(65534); s.listen(); print('x', flush=True);"
        "c, _ = s.accept(); c.recv(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", script, str(path)], stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with pytest.raises(PoolError, match="user 65534"):
            PoolClient(path, 1, ITEMS)
