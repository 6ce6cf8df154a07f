"""The loops of models and sums: what ends a call, a round or a model here ends nothing else."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
import pytest
import trio
from typing_extensions import override

from federated.errors import RoundError, UsageError
from federated.rounds import catching_up
from federated.rounds.federation import FAULT_RETRY_S
from federated.rounds.federation_store import KEPT_STATES, Kept, Standing, load_all, read_standing
from federated.rounds.history import any_federation
from federated.rounds.knocking import Where
from federated.rounds.numeric import tensors
from federated.rounds.protocol.orders import Persist, Vote
from federated.rounds.protocol.policy import Policy
from federated.rounds.protocol.wire import Signed
from federated.rounds.statefile import load_state
from federated.rounds.workshop import Workshop
from p2p.errors import DecodeError
from tests.helpers.memories import InlineOffload
from tests.helpers.rounds_office import Team, play_team
from tests.unit.test_rounds_models import POLICY, first_state, join_all, state_of, train, update_of
from tests.unit.test_rounds_service import ask, totals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import apsw

    from federated.rounds.federation import Federation
    from federated.rounds.history import RoundReport
    from federated.rounds.numeric.dtypes import Array
    from tests.helpers.rounds_office import Chair


T = TypeVar("T")


async def join_one(chair: Chair, folder: Path, *, expected: int = 0) -> Federation:
    return await (await chair.rounds.models()).join(
        None, "m", POLICY, first_state(folder), expected=expected, wait_s=30
    )


async def submit_all(federations: Sequence[Federation], base: int) -> None:
    for federation in federations:
        await federation.submit(base, update_of(1.0), 1.0, {})


# ---- a round that stands


def test_a_round_that_cannot_be_noted_stands_and_the_next_follows(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)

        async def add(report: RoundReport) -> None:
            raise OSError(errno.ENOSPC, f"no space for {report.id}")

        chairs[0].rounds.history.add = add  # type: ignore[method-assign]
        for number in range(3):
            with trio.fail_after(60):
                await train(federations, [1.0, 2.0, 3.0], number)
        assert len({federation.standing.root for federation in federations}) == 1
        assert np.allclose(state_of(federations[0])["w"], 6.0)

    play_team(scenario, tmp_path, seed=1)


def test_waiters_wake_before_old_files_go(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        sweeping, go_on = trio.Event(), trio.Event()
        sweep = federations[0].store.sweep

        async def slow(standing: Standing) -> None:
            sweeping.set()
            await go_on.wait()
            await sweep(standing)

        federations[0].store.sweep = slow  # type: ignore[method-assign]
        with trio.fail_after(60):
            await train(federations, [1.0, 1.0], 0)
            await sweeping.wait()
        go_on.set()
        for number in range(1, 6):
            await train(federations, [1.0, 1.0], number)
        await trio.sleep(1)
        folder = federations[0].store.state_path(0).parent
        assert len(list(folder.glob("*.safetensors"))) == KEPT_STATES

    play_team(scenario, tmp_path, seed=2)


def test_a_decision_that_comes_while_another_state_is_being_kept_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its update would be added to a state that it does not follow."""

    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        victim = federations[0]
        state = {"b": np.full(300, 7, np.float32), "w": np.full((300, 2), 7, np.float32)}
        there = Where(
            5, b"r" * 32, tensors.genesis_root(victim.schema, state), 9, victim.standing.circle,
            1.0, bytes(32), bytes(32),
        )  # fmt: skip

        async def further(*_: object) -> tuple[Where, tuple[bytes, ...]]:
            return there, ()

        async def fetch_state(*_: object) -> Mapping[str, Array]:
            return state

        kept = victim.store.save

        async def save(standing: Standing, *rest: object) -> None:
            if standing.round == 5:
                seat = victim._seat
                assert seat is not None
                await seat.outcome.finished.wait()
            await kept(standing, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(victim.store, "save", save)
        with monkeypatch.context() as patched:
            patched.setattr(catching_up, "further", further)
            patched.setattr(catching_up, "fetch_state", fetch_state)
            # Only the victim looks out now; the others would be carried away, too.
            for federation in federations[1:]:
                patched.setattr(federation, "_catch_up", trio.sleep_forever)
            victim._ask_now.set()
            await trio.sleep(1)
            await submit_all(federations, 0)
            with trio.fail_after(60):
                await victim.wait(0)
            await trio.sleep(5)
        assert victim.standing.round == 5
        assert victim.standing.root == there.root
        found = load_state(victim.store.state_path(5))
        assert tensors.genesis_root(victim.schema, found) == victim.standing.state_sha
        assert federations[1].standing.round == 1

    play_team(scenario, tmp_path, seed=3)


def test_who_is_second_to_settle_is_dropped(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        one = (await join_all(chairs, tmp_path))[0]
        before = one.standing
        state = load_state(one.store.state_path(0))
        nexts = [msgspec.structs.replace(before, round=number) for number in (1, 4)]
        assert await one._settle(before, nexts[0], state, {})
        assert not await one._settle(before, nexts[1], state, {})
        assert one.standing is nexts[0]

    play_team(scenario, tmp_path, seed=4)


# ---- joining and leaving


def test_two_joins_of_one_name_are_one_member(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        found: list[Federation] = []

        async def join(chair: Chair) -> None:
            found.append(await join_one(chair, tmp_path, expected=2))

        async with trio.open_nursery() as nursery:
            for chair in (chairs[0], chairs[0], chairs[1], chairs[0]):
                nursery.start_soon(join, chair)
        models = await chairs[0].rounds.models()
        assert len({id(one) for one in found}) == 2
        assert len(models.all()) == 1
        await train([models.all()[0], (await chairs[1].rounds.models()).all()[0]], [1.0, 3.0], 0)

    play_team(scenario, tmp_path, seed=5)


def test_names_that_are_being_joined_count_towards_the_limit(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chair = await team.seat(1)
        await team.seat(2)
        models = await chair.rounds.models()
        path = first_state(tmp_path)
        reasons = []

        async def join(name: str) -> None:
            with pytest.raises(RoundError) as caught:
                await models.join(None, name, POLICY, path, expected=2, wait_s=20)
            reasons.append(caught.value.reason)

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(join, f"m{number}")
        assert sorted(reasons) == ["busy"] + ["nobody"] * 8

    play_team(scenario, tmp_path, seed=6)


def test_leaving_waits_for_what_is_being_written_and_nothing_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        leaver = federations[0]
        writing, go_on = trio.Event(), trio.Event()
        kept = leaver.store.save

        async def save(*args: object) -> None:
            writing.set()
            await go_on.wait()
            await kept(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(leaver.store, "save", save)
        await submit_all(federations, 0)
        with trio.fail_after(60):
            await writing.wait()
        async with trio.open_nursery() as nursery:
            models = await chairs[0].rounds.models()
            nursery.start_soon(models.leave, None, "m")
            await trio.sleep(1)
            go_on.set()
        assert not leaver.store.state_path(0).parent.exists()
        assert not await any_federation(chairs[0].rounds._db)
        assert models.all() == []
        assert leaver.ident not in chairs[0].rounds._post._seats

    play_team(scenario, tmp_path, seed=7)


def test_who_waits_for_a_model_that_is_left_is_told(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        one = (await join_all(chairs, tmp_path))[0]
        reasons = []

        async def wait() -> None:
            with pytest.raises(RoundError) as caught:
                await one.wait(0)
            reasons.append(caught.value.reason)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(1)
                await (await chairs[0].rounds.models()).leave(None, "m")
        await wait()
        with pytest.raises(RoundError):
            await one.submit(0, update_of(1.0), 1.0, {})
        assert reasons == ["unknown", "unknown"]

    play_team(scenario, tmp_path, seed=8)


def test_what_was_promised_outlives_a_leave_and_another_join(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0, 1.0], 0)
        await trio.sleep(5)
        leaver = federations[0]
        before, _ = await leaver.store.promised(2)
        assert before >= 0
        await (await chairs[0].rounds.models()).leave(None, "m")
        back = await join_one(chairs[0], tmp_path)
        assert back.standing.round == 1
        assert (await back.store.promised(2))[0] >= before
        await train([*federations[1:], back], [1.0, 1.0, 1.0], 1)
        assert len({one.standing.root for one in (*federations[1:], back)}) == 1

    play_team(scenario, tmp_path, seed=9)


def test_a_kept_vote_about_another_round_binds_nobody(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        one = federations[0]
        vote = Vote(
            3, b"r" * 32, Signed(one.ident, 3, b"no plan", b""), Signed(one.ident, 11, b"", b"")
        )
        # As another start of this machine would have kept it.
        other = (await chairs[0].rounds.models())._store(one.ident)
        other.begin(2)
        await other.persist(Persist(3, vote), Workshop())
        assert await one._promised(2) == (3, None)
        await train(federations, [1.0, 1.0], 0)
        with trio.fail_after(300):
            await train(federations, [1.0, 1.0], 1)
        assert not any(kind == "round.fault" for kind, _ in chairs[0].told)

    play_team(scenario, tmp_path, seed=10)


# ---- faults


def test_a_fault_in_one_model_is_told_and_it_goes_on(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        victim = federations[0]
        kept, left = victim.store.promised, [2]

        async def promised(number: int) -> tuple[int, Vote | None]:
            if left[0]:
                left[0] -= 1
                raise ValueError("a fault of ours")
            return await kept(number)

        victim.store.promised = promised  # type: ignore[method-assign]
        await train(federations, [1.0, 1.0, 1.0], 0)
        for number in (1, 2):
            await submit_all(federations[1:], number)
            for federation in federations[1:]:
                with trio.fail_after(200):
                    await federation.wait(number)
        with trio.fail_after(5 * FAULT_RETRY_S):
            await victim.wait(2)
        assert victim.standing.root == federations[1].standing.root
        faults = [detail for kind, detail in chairs[0].told if kind == "round.fault"]
        assert faults == ["a fault on this machine: ValueError: a fault of ours"] * 2

    play_team(scenario, tmp_path, seed=11)


def test_a_fault_in_a_sum_ends_that_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]

        def broken(*_: object) -> None:
            raise ValueError("a fault of ours")

        reasons = []

        async def one(chair: Chair) -> None:
            with pytest.raises(RoundError) as caught:
                await chair.rounds.total(ask(expected=2, timeout_s=30), np.array([1.0]))
            reasons.append(str(caught.value))

        with monkeypatch.context() as patched:
            patched.setattr(chairs[0].rounds._post, "seat", broken)
            async with trio.open_nursery() as nursery:
                for chair in chairs:
                    nursery.start_soon(one, chair)
        assert "a fault of ours" in reasons[0]
        assert any(kind == "round.fault" for kind, _ in chairs[0].told)
        found = await totals(chairs, [[1], [2]], expected=2)
        assert [total.vector.tolist() for total in found] == [[3], [3]]

    play_team(scenario, tmp_path, seed=12)


def test_a_sum_that_cannot_be_noted_is_given(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]

        async def add(report: RoundReport) -> None:
            raise OSError(errno.ENOSPC, f"no space for {report.id}")

        chairs[0].rounds.history.add = add  # type: ignore[method-assign]
        found = await totals(chairs, [[1], [2]], expected=2)
        assert [total.vector.tolist() for total in found] == [[3], [3]]

    play_team(scenario, tmp_path, seed=13)


def test_a_call_that_is_given_up_leaves_no_round(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        rounds = chairs[0].rounds

        async def meets_only() -> None:
            await chairs[1].rounds.gather(ask(expected=2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(meets_only)
            nursery.start_soon(rounds.total, ask(expected=2), np.array([1.0]))
            await trio.sleep(5)
            assert rounds._present == 1
            assert len(rounds._post._seats) == 1
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert rounds._present == 0
        assert not rounds._post._seats

    play_team(scenario, tmp_path, seed=14)


# ---- rows that are not what was kept


def garbage(ident: bytes, body: bytes) -> Callable[[apsw.Connection], None]:
    def write(db: apsw.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO fed_state (federation, grp, name, body) VALUES (?, ?, ?, ?)",
            (ident, b"", "broken", body),
        )

    return write


def test_a_row_that_cannot_be_read_is_shown_and_ends_nothing(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        body = msgspec.msgpack.encode(msgspec.structs.replace(federations[0].standing, circle=()))
        models = await chairs[0].rounds.models()
        ident = models.find(None, "m").ident[::-1]
        await chairs[0].rounds._db.write(garbage(ident, body))
        fresh = await team.restart(1)
        models = await fresh.rounds.models()
        broken, sound = models.all()
        assert (broken.phase, broken.standing.name) == ("stopped", "broken")
        assert "circle" in broken.last_abort
        with pytest.raises(RoundError, match="leave it"):
            await broken.wait(0)
        with pytest.raises(RoundError, match="leave it"):
            await broken.submit(0, update_of(1.0), 1.0, {})
        await train([sound, federations[1]], [1.0, 1.0], 0)
        assert sound.standing.root == federations[1].standing.root

    play_team(scenario, tmp_path, seed=15)


def test_a_model_that_is_stopped_can_be_left_and_joined_anew(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0], 0)
        ident = federations[0].ident
        await chairs[0].rounds._db.write(garbage(ident, b"\xc1"))
        fresh = await team.restart(1)
        models = await fresh.rounds.models()
        assert models.find(None, "m").phase == "stopped"
        with pytest.raises(RoundError, match="leave it"):
            await join_one(fresh, tmp_path)
        await models.leave(None, "m")
        back = await join_one(fresh, tmp_path)
        assert back.standing.root == federations[1].standing.root

    play_team(scenario, tmp_path, seed=16)


def sound() -> Standing:
    schema = tensors.Schema((tensors.TensorSpec("w", (4,), "f32"),))
    return Standing(
        group=b"", name="m", policy=Policy(), schema=schema.encode(), round=3, root=bytes(32),
        state_sha=bytes(32), circle=(b"a" * 32, b"b" * 32), rule="mean", parts=(bytes(32),),
        counts=(4,),
    )  # fmt: skip


def test_a_standing_is_read_as_it_was_kept() -> None:
    assert read_standing(msgspec.msgpack.encode(sound())) == sound()


@pytest.mark.parametrize(
    "wrong",
    [
        {"circle": (b"a" * 32, b"a" * 32)},
        {"circle": (b"a",)},
        {"round": -1},
        {"root": b""},
        {"clip": -1.0},
        {"clip": float("inf")},
        {"schema": b"\x90"},
        {"counts": ()},
        {"policy": {"quorum": (1, 2)}},
    ],
    ids=["twice", "no peer", "round", "root", "clip", "infinite", "schema", "counts", "policy"],
)
def test_a_standing_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    fields = msgspec.to_builtins(sound(), builtin_types=(bytes,))
    with pytest.raises(DecodeError):
        read_standing(msgspec.msgpack.encode({**fields, **wrong}))


def test_every_row_is_listed_with_its_fault(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chair = await team.seat(1)
        await chair.rounds._db.write(garbage(b"i" * 32, b""))
        rows: list[Kept] = await load_all(chair.rounds._db)
        assert [(row.ident, row.standing.name, bool(row.fault)) for row in rows] == [
            (b"i" * 32, "broken", True)
        ]

    play_team(scenario, tmp_path, seed=17)


# ---- what trainers hand in


def test_what_would_end_a_round_later_is_refused_when_it_is_handed_in(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        one = federations[0]
        for update, metrics in (
            (update_of(1e25), {}),
            (update_of(1.0), {"x" * 201: 1.0}),
            (update_of(1.0), {"loss": float("nan")}),
        ):
            with pytest.raises(UsageError):
                await one.submit(0, update, 1.0, metrics)
        await train(federations, [1.0, 3.0], 0)
        assert np.allclose(state_of(one)["w"], 2.0)

    play_team(scenario, tmp_path, seed=18)


def test_states_are_read_and_hashed_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = [False]

    class Watched(InlineOffload):
        @override
        async def run(self, fn: Callable[[], T]) -> T:
            def marked() -> T:
                inside[0] = True
                try:
                    return fn()
                finally:
                    inside[0] = False

            return await super().run(marked)

    hashed = tensors.genesis_root

    def watched(*args: object) -> bytes:
        assert inside[0]
        return hashed(*args)  # type: ignore[arg-type]

    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        for chair in chairs:
            chair.rounds.offload = Watched()
        monkeypatch.setattr(tensors, "genesis_root", watched)
        await train(await join_all(chairs, tmp_path), [1.0, 1.0], 0)

    play_team(scenario, tmp_path, seed=19)
