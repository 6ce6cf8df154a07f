"""The host pool with a client of the same process: folding, refusals, results, limits."""

from __future__ import annotations

import gc
import socket
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest
import trio

from daemon.paths import SOCKET_PATH_BYTES_MAX, resolve
from federated.errors import UsageError
from federated.rounds.pool import folding, processes
from federated.rounds.pool.book import PoolLimits, State
from federated.rounds.pool.client import PoolClient, PoolError, PoolRefused, PoolTimeout, Result
from federated.rounds.pool.collecting import Schema
from federated.rounds.pool.records import Reason
from tests.helpers.pool_kit import Threads, running, set_mode, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federated.rounds.pool.server import Pool

pytestmark = pytest.mark.usefixtures("no_leaks")

T = TypeVar("T")
ITEMS = 100_000
NO_SHARING = PoolLimits(bytes_max=0, free_bytes_min=0)


async def aside(fn: Callable[..., T], *args: object) -> T:
    """A blocking call beside the pool's loop."""
    return await trio.to_thread.run_sync(fn, *args)


async def connect(pool: Pool, items: int = ITEMS, lane: int = 1) -> PoolClient:
    return await aside(PoolClient, pool._path, lane, items)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def rows(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(size=ITEMS).astype(np.float32) for _ in range(count)]


@pytest.fixture(params=["shared", "socket"])
def limits(request: pytest.FixtureRequest) -> PoolLimits:
    """Enough memory, and none: then bytes go over the socket."""
    return PoolLimits(free_bytes_min=0) if request.param == "shared" else NO_SHARING


async def test_updates_become_a_weighted_sum_and_its_result_is_shown(
    tmp_path: Path, limits: PoolLimits
) -> None:
    updates, weights = rows(3), [1.0, 2.5, 7.0]
    async with running(tmp_path, ITEMS, limits=limits) as (pool, lane):
        client = await connect(pool)
        for update, weight in zip(updates[:2], weights[:2], strict=True):
            await aside(client.submit, update, weight, 1)
        own = await aside(client.lend)
        own[:] = updates[2]
        await aside(client.filled, own, weights[2], 1)
        folded = await lane.folded(1)
        assert (folded.round, folded.count, folded.weight, folded.finite) == (1, 3, 10.5, True)
        expected = sum(u.astype(np.float64) * w for u, w in zip(updates, weights, strict=True))
        np.testing.assert_allclose(folded.total * folded.unit, expected, rtol=1e-5, atol=1e-5)
        folded.mean()
        await lane.publish(1)
        result = await aside(client.wait, 1)
        assert (result.round, result.weight, result.count) == (1, 10.5, 3)
        np.testing.assert_allclose(result.state, expected / 10.5, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="read-only"):
            result.state[0] = 1
        del folded, result
        client.close()


async def test_a_published_state_may_be_another_array_or_bytes(
    tmp_path: Path, limits: PoolLimits
) -> None:
    async with running(tmp_path, ITEMS, limits=limits) as (pool, lane):
        client = await connect(pool)
        for round_, state in enumerate((rows(1)[0], np.arange(99, dtype=np.uint8)), 1):
            assert (await lane.folded(round_)).count == 0
            await lane.publish(round_, state)
            result = await aside(client.wait, round_)
            assert np.array_equal(result.state, state)
            assert result.state.dtype == state.dtype
        del result
        client.close()


async def test_what_was_handed_in_is_read_only_and_handed_in_once(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, _):
        client = await connect(pool)
        update = await aside(client.lend)
        update[:] = 1
        await aside(client.filled, update, 1.0, 1)
        with pytest.raises(ValueError, match="read-only"):
            update[0] = 2
        with pytest.raises(UsageError, match="once"):
            await aside(client.filled, update, 1.0, 1)
        with pytest.raises(UsageError, match="once"):
            await aside(client.give_back, update)
        again = await aside(client.lend)
        assert again.flags.writeable, "the segment is the same, and warm"
        assert len(pool.book) == 2, "one for updates, one for the sum"
        await aside(client.give_back, again)
        assert [e.state for e in pool.book].count(State.FREE) == 1
        client.close()


@pytest.mark.attack
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
async def test_an_update_that_is_not_finite_leaves_no_trace(
    tmp_path: Path, limits: PoolLimits, bad: float
) -> None:
    good, spoilt = rows(2)
    spoilt[ITEMS - 1] = bad
    async with running(tmp_path, ITEMS, limits=limits) as (pool, lane):
        client = await connect(pool)
        for update in (spoilt, good, spoilt):
            if update is good:
                await aside(client.submit, update, 2.0, 1)
                continue
            with pytest.raises(PoolRefused, match="NaN") as refused:
                await aside(client.submit, update, 2.0, 1)
            assert refused.value.reason is Reason.NOT_FINITE
        folded = await lane.folded(1)
        assert (folded.count, folded.weight) == (1, 2.0)
        assert np.array_equal(folded.total, good)
        assert folded.unit == 2.0
        del folded
        client.close()


async def test_updates_that_are_not_wanted_are_refused_with_the_reason(
    tmp_path: Path, limits: PoolLimits
) -> None:
    async with running(tmp_path, ITEMS, limits=limits) as (pool, lane):
        client = await connect(pool)
        update = rows(1)[0]
        await lane.folded(1)
        for round_, reason in ((1, Reason.ROUND), (4, Reason.ROUND), (2, None), (3, None)):
            if reason is None:
                await aside(client.submit, update, 1.0, round_)
                continue
            with pytest.raises(PoolRefused) as refused:
                await aside(client.submit, update, 1.0, round_)
            assert refused.value.reason is reason
        for weight in (0.0, -1.0, 2.0**54, float("nan")):
            with pytest.raises(UsageError, match="weight"):
                await aside(client.submit, update, weight, 2)
        with pytest.raises(UsageError, match="float32"):
            await aside(client.submit, update.astype(np.float64), 1.0, 2)
        folded = await lane.folded(2)
        assert folded.count == 1
        del folded
        client.close()


async def test_a_lane_or_size_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, _):
        for lane, items, reason in ((2, ITEMS, Reason.LANE), (1, ITEMS + 1, Reason.SIZE)):
            client = await connect(pool, items, lane)
            with pytest.raises(PoolRefused) as refused:
                await aside(client.lend)
            assert refused.value.reason is reason
            client.close()


async def test_lends_of_a_process_are_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, _):
        client = await connect(pool)
        lent = [await aside(client.lend) for _ in range(4)]
        with pytest.raises(PoolRefused) as refused:
            await aside(client.lend)
        assert refused.value.reason is Reason.TOO_MANY
        await aside(client.give_back, lent[0])
        await aside(client.lend)
        client.close()


async def test_without_memory_the_system_leaves_the_pool_goes_over_the_socket(
    tmp_path: Path,
) -> None:
    limits = PoolLimits()
    async with running(tmp_path, ITEMS, limits=limits, available_bytes=600 << 20) as (pool, lane):
        client = await connect(pool)
        await aside(client.submit, rows(1)[0], 1.0, 1)
        assert (await lane.folded(1)).count == 1
        assert pool.book.bytes_used == 4 << 20
        client.close()
    low = limits.free_bytes_min + (1 << 20)
    async with running(tmp_path, ITEMS, limits=limits, available_bytes=low) as (pool, lane):
        client = await connect(pool)
        await aside(client.submit, rows(1)[0], 1.0, 1)
        assert (await lane.folded(1)).count == 1
        assert pool.book.bytes_used == 0
        client.close()
    low = limits.free_bytes_min
    async with running(tmp_path, ITEMS, limits=limits, available_bytes=low) as (pool, lane):
        client = await connect(pool)
        with pytest.raises(PoolRefused, match="pool full"):
            await aside(client.submit, rows(1)[0], 1.0, 1)
        with pytest.raises(PoolRefused, match="pool full"):  # the connection is in step
            await aside(client.submit, rows(1)[0], 1.0, 1)
        client.close()


async def test_a_result_is_waited_for_and_a_wait_may_be_repeated(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        client = await connect(pool)
        with pytest.raises(PoolTimeout):
            await aside(client.wait, 1, 0.0)
        await aside(client.submit, rows(1)[0], 1.0, 1)  # an answer in between is no trouble
        results: list[Result] = []

        async def wait() -> None:
            results.append(await aside(client.wait, 2, 50.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for round_ in (1, 2):
                await lane.folded(round_)
                await lane.publish(round_)
        assert results[0].round == 2, "the answer to the first question was not what is wanted now"
        results.clear()
        client.close()


async def test_a_round_that_is_given_up_tells_who_waits_and_may_be_collected_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        client = await connect(pool)
        update = rows(1)[0]
        await aside(client.submit, update, 1.0, 1)

        async def wait() -> None:
            with pytest.raises(PoolRefused, match="given up"):
                await aside(client.wait, 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while not lane.rounds.waiters:  # noqa: ASYNC110
                await trio.sleep(0.001)
            await lane.folded(1)
            lane.abort(1)
        await aside(client.submit, update, 3.0, 1)
        assert (await lane.folded(1)).weight == 3.0
        client.close()


async def test_results_are_memory_that_is_used_again_when_nobody_reads_it(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        client = await connect(pool)
        kept: list[Result] = []
        for round_ in range(1, 9):
            await aside(client.submit, np.full(ITEMS, round_, np.float32), 1.0, round_)
            await lane.folded(round_)
            await lane.publish(round_)
            result = await aside(client.wait, round_)
            assert (result.round, result.state[0]) == (round_, round_)
            if round_ in (2, 5):
                kept.append(result)
            del result
            gc.collect()
        assert [float(result.state[-1]) for result in kept] == [2.0, 5.0], "not written over"
        shown = [entry for entry in pool.book if entry.shown]
        assert len(shown) <= 5, "two kept, one shown, one being made, one on its way back"
        kept.clear()
        client.close()


async def test_lanes_do_not_mix(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, first):
        second = pool.open(Schema(10), first_round=7)
        assert (first.number, second.number) == (1, 2)
        one, two = await connect(pool), await connect(pool, 10, 2)
        await aside(one.submit, np.full(ITEMS, 1, np.float32), 1.0, 1)
        await aside(two.submit, np.full(10, 2, np.float32), 3.0, 7)
        assert (await first.folded(1)).weight == 1.0
        folded = await second.folded(7)
        assert (folded.weight, folded.unit, folded.total.tolist()) == (3.0, 3.0, [2.0] * 10)
        second.close()
        with pytest.raises(PoolRefused) as refused:
            await aside(two.lend)
        assert refused.value.reason is Reason.LANE
        assert pool.open(Schema(10)).number == 2
        del folded
        one.close()
        two.close()


async def test_memory_goes_back_to_the_system_when_nothing_is_collected(
    tmp_path: Path, limits: PoolLimits
) -> None:
    async with running(tmp_path, ITEMS, limits=limits) as (pool, lane):
        client = await connect(pool)
        await aside(client.submit, rows(1)[0], 1.0, 1)
        await lane.folded(1)
        await lane.publish(1)
        lane.close()
        assert [e.holder for e in pool.book] == [1] * (limits is not NO_SHARING), "it lives"
        assert len(pool._staging) == 0
        client.close()


async def test_a_lane_closed_while_it_folds_lets_nobody_wait(tmp_path: Path) -> None:
    class Gate(Threads):
        def __init__(self) -> None:
            self.reached, self.open = trio.Event(), trio.Event()

        async def run(self, fn: Callable[[], T]) -> T:
            self.reached.set()
            await self.open.wait()
            return await super().run(fn)

    gate = Gate()
    async with running(tmp_path, ITEMS, limits=NO_SHARING, offload=gate) as (pool, lane):
        clients = [await connect(pool), await connect(pool)]
        outcomes: list[str] = []

        async def submit(client: PoolClient) -> None:
            try:
                await aside(client.submit, rows(1)[0], 1.0, 1)
                outcomes.append("folded")
            except PoolRefused as refused:
                outcomes.append(refused.reason.name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, clients[0])
            await gate.reached.wait()
            nursery.start_soon(submit, clients[1])
            lane.close()
            gate.open.set()
        assert sorted(outcomes) in (["LANE", "folded"], ["CLOSED", "folded"])
        for client in clients:
            client.close()


@pytest.mark.parametrize("folded_before", [0, 1])
async def test_a_fault_while_adding_refuses_that_update_and_the_pool_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    folded_before: int,
) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        client = await connect(pool)
        ones = np.ones(ITEMS, np.float32)
        for _ in range(folded_before):
            await aside(client.submit, ones, 1.0, 1)
        with monkeypatch.context() as patch:

            async def fails(total: np.ndarray, *_: object, **__: object) -> None:
                total[-1] = 7.0  # it had begun
                raise MemoryError

            patch.setattr(folding, "add", fails)
            with pytest.raises(PoolRefused) as caught:
                await aside(client.submit, ones, 1.0, 1)
        assert (caught.value.reason, pool.bugs) == (Reason.FAULT, 1)
        folded = await lane.folded(1)
        assert folded.count == folded_before
        assert folded.finite == (not folded_before), "what may be half in a sum is used by nobody"
        await aside(client.submit, ones, 1.0, 2)
        folded = await lane.folded(2)
        np.testing.assert_array_equal(folded.mean(), ones)
        del folded, caught
        client.close()
        pool.bugs = 0  # it was ours
    caplog.clear()  # its record has the frames, and they the memory
    gc.collect()


async def test_a_sum_that_leaves_the_range_of_its_type_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        client = await connect(pool)
        large = np.full(ITEMS, 3e38, np.float32)
        await aside(client.submit, large, 2.0**53, 1)
        folded = await lane.folded(1)
        assert (folded.finite, folded.mean()[0]) == (True, np.float32(3e38)), "weights are relative"
        for _ in range(2):
            await aside(client.submit, large, 2.0**53, 2)
        folded = await lane.folded(2)
        assert (folded.count, folded.finite) == (2, False)
        del folded
        client.close()


async def test_misuse_is_an_error_here(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (_, lane):
        with pytest.raises(UsageError, match="not the next"):
            await lane.folded(2)
        with pytest.raises(UsageError, match="not closed"):
            await lane.publish(1)
        await lane.folded(1)
        await lane.publish(1)
        with pytest.raises(UsageError, match="published already"):
            await lane.publish(1)
        await lane.folded(2)
        with pytest.raises(UsageError, match="float32 or bytes"):
            await lane.publish(2, np.zeros(3))  # type: ignore[arg-type]
    for items in (0, 1 + (1 << 30)):
        with pytest.raises(UsageError, match="4 GiB"):
            Schema(items)


async def test_a_pool_that_ends_says_so_and_leaves_no_file(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, _):
        assert (tmp_path / "pool.sock").stat().st_mode & 0o777 == 0o600
        client = await connect(pool)
    with pytest.raises(PoolError, match="has ended"):
        client.lend()
    client.close()
    assert names(tmp_path) == []
    with pytest.raises(PoolError, match="covey up"):
        PoolClient(tmp_path / "pool.sock", 1, ITEMS)


async def test_two_pools_do_not_share_a_socket_but_a_dead_ones_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with running(tmp_path):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with running(tmp_path):
                pass
        assert caught.group_contains(UsageError, match="another pool")
    set_mode(tmp_path, 0o755)
    with pytest.raises(UsageError, match="yours alone"):
        processes.bind(path)


# --- folding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_a_batch_is_folded_as_one_after_the_other_would_be(workers: int) -> None:
    rng = np.random.default_rng(3)
    items = 3 * folding.FOLD_BLOCK + 17
    updates = [rng.normal(size=items).astype(np.float32) for _ in range(4)]
    weights = [1.0, 3.0, 0.25, 10.0]
    one = np.empty(items, np.float32)
    for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        folding.fold_block(one, [update], [weight], first=number == 0)
    many = np.full(items, np.nan, np.float32)
    await folding.add(many, updates, weights, Threads(), workers, first=True)
    assert np.array_equal(one, many)


@pytest.mark.parametrize("at", [0, 65_535, 65_536, 99_999])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_place_is_looked_at(at: int, bad: float) -> None:
    row = np.zeros(100_000, np.float32)
    assert folding.all_finite(row)
    row[at] = bad
    assert not folding.all_finite(row)


def test_large_numbers_are_finite() -> None:
    largest = np.full(70_000, np.finfo(np.float32).max, np.float32)
    assert folding.all_finite(largest)
    assert folding.all_finite(-largest)
    largest[-1] = np.nan
    assert not folding.all_finite(largest)


async def test_verdicts_are_of_each_row() -> None:
    good = np.ones(100_000, np.float32)
    bad = good.copy()
    bad[5] = np.nan
    assert await folding.check([good, bad, good], Threads(), 2) == [True, False, True]


def test_workers_follow_what_keeps_waiting() -> None:
    pressure = folding.Pressure(4)
    assert [pressure.measured(n) for n in (1, 2, 3, 3)] == [1, 1, 2, 2]
    assert [pressure.measured(n) for n in (20, 20)] == [4, 4]
    assert pressure.measured(0) == 3  # .3 * what was: 5.0
    assert [pressure.measured(0) for _ in range(3)] == [1, 1, 1]


async def test_events_say_what_happened(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        client = await connect(pool)
        await aside(partial(client.submit, rows(1)[0], 1.0, 1))
        await lane.folded(1)
        await lane.publish(1)
        client.close()
        for kind in ("joined", "lent", "folded", "published", "left"):
            with trio.fail_after(5):
                await until(pool, kind)


def test_the_socket_lies_beside_the_daemons_however_long_the_folder(tmp_path: Path) -> None:
    assert resolve({"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/h"}).pool_socket == (
        "/run/user/7/covey/pool.sock"
    )
    assert len(resolve(home=str(tmp_path / ("x" * 120))).pool_socket) <= SOCKET_PATH_BYTES_MAX
