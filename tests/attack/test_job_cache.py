"""Liars and the cache of answers: nothing gets in above its level, nothing of theirs stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from federated.jobs.cache import PUT, drop_caught, put_params
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.types import JobSpec, PerRow
from tests.helpers.jobs_kit import GROUP, play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch
    from federated.jobs.types import RowOut
    from tests.helpers.jobs_kit import Desk, Office

pytestmark = pytest.mark.attack

P, Q, R = b"p" * 32, b"q" * 32, b"r" * 32
HONEST: Final = {"hash": "0"}


class Echo:
    """`echo@1`, but rows with a `bait` get a lie."""

    info: Final = HandlerInfo(id="echo@1", kind="named", deterministic=True)

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        """Each row as it came, or nearly."""
        return [
            (item.k, {**item.row, "n": -1} if "bait" in item.row else item.row, "")
            for item in batch.rows
        ]


async def _run(desk: Desk, rows: list[dict[str, object]], verify: str) -> None:
    spec = JobSpec(handler="echo@1", rows=rows, verify=verify, batch=PerRow(), deadline_s=120)
    ident = await desk.jobs.submit(spec, agent="", group=GROUP)
    await desk.jobs.finished(ident)


async def _entries(desk: Desk) -> list[tuple[bytes, int]]:
    def read(connection: object) -> list[tuple[bytes, int]]:
        return list(
            connection.execute(  # type: ignore[attr-defined]
                "SELECT value, level FROM cache ORDER BY value"
            )
        )

    return await desk.db.read(read)


def test_when_a_liar_is_caught_what_it_alone_gave_is_gone(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, owner=P, handlers=[Echo()])
        await _run(boss, [{"n": 1}, {"n": 2}], "none")
        assert await _entries(boss) == [(b'{"n":1}', 0), (b'{"n":2}', 0)]
        await office.desk(3, owner=Q)
        await _run(boss, [{"n": 3}], "quorum:2")
        assert (await _entries(boss))[2:] == [(b'{"n":3}', 2)]
        await _run(boss, [{"n": 4, "bait": 1}], "quorum:2")
        wall_ms = boss.jobs._env.wall_ms()
        assert boss.jobs.core.board.reputation.quarantined_owners("echo@1", wall_ms) == {P}
        assert await _entries(boss) == [(b'{"bait":1,"n":4}', 3), (b'{"n":3}', 2)]

    play_office(scenario, tmp_path, seed=1)


def test_an_answer_enters_at_the_level_it_earned_and_serves_no_stricter_job(
    tmp_path: Path,
) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, owner=P, handlers=[Echo()])
        await _run(boss, [{"n": 1, "bait": 1}], "none")
        assert await _entries(boss) == [(b'{"bait":1,"n":-1}', 0)]
        await office.desk(3, owner=Q)
        await office.desk(4, owner=R)
        for verify in ("adaptive", "quorum:2", "quorum:3"):
            spec = JobSpec(
                handler="echo@1", rows=[{"n": 1, "bait": 1}], verify=verify, deadline_s=120
            )
            ident = await boss.jobs.submit(spec, agent="", group=GROUP)
            job = boss.jobs.core.job(ident)
            assert job is not None
            if verify == "adaptive":
                assert job.cached == 0, "the claim was never checked"
            await boss.jobs.finished(ident)
            assert await boss.table(ident) == [{"n": 1, "bait": 1}]
        assert await _entries(boss) == [(b'{"bait":1,"n":1}', 3)]

    play_office(scenario, tmp_path, seed=2)


def test_what_was_checked_further_is_not_replaced_by_a_claim(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)

        def put(value: bytes, level: int, *owners: bytes, now_ms: int = 0) -> None:
            backing = frozenset({frozenset(owners)})
            params = put_params(
                b"h" * 32, "a@1", value, level, owners, backing, now_ms=now_ms, keep_ms=100
            )
            puts.append(params)

        async def left() -> list[tuple[bytes, int]]:
            def write(connection: object) -> None:
                for params in puts:
                    connection.execute(PUT, params)  # type: ignore[attr-defined]

            await boss.db.write(write, full=False)
            puts.clear()
            return await _entries(boss)

        puts: list[tuple[object, ...]] = []
        put(b"right", 2, P, Q, R)
        put(b"alone", 1, P)
        put(b"fewer", 2, P, Q)
        assert await left() == [(b"right", 2)]
        put(b"proven", 3, P)
        put(b"voted", 2, P, Q, R)
        assert await left() == [(b"proven", 3)]
        put(b"old one gone", 1, P, now_ms=100)
        assert await left() == [(b"old one gone", 1)]

    play_office(scenario, tmp_path, seed=3)


def test_colluders_are_caught_one_by_one_and_their_entry_goes_with_the_last(
    tmp_path: Path,
) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)

        def check(connection: object) -> list[int]:
            for number, owners in enumerate(([P, Q], [P], [P, R])):
                params = put_params(
                    bytes([number]) * 32, "a@1" if number < 2 else "b@1", b"1", 2, owners,
                    frozenset({frozenset(owners)}), now_ms=0, keep_ms=100,
                )  # fmt: skip
                connection.execute(PUT, params)  # type: ignore[attr-defined]
            bad = {"a@1": {P, Q}, "b@1": {P}}
            return [
                drop_caught(connection, {P}, lambda _handler: {P}),  # type: ignore[arg-type]
                drop_caught(connection, {Q}, lambda handler: bad[handler]),  # type: ignore[arg-type]
                drop_caught(connection, {R}, lambda _handler: {P, R}),  # type: ignore[arg-type]
            ]

        assert await boss.db.write(check, full=False) == [1, 1, 1]

    play_office(scenario, tmp_path, seed=4)
