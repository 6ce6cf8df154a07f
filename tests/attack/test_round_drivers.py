"""Members that lie about where a model is, another owner's machine, and floods: what they move."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import trio

from federated.errors import RoundError
from federated.rounds import catching_up
from federated.rounds.federation import LOOK_MIN_S
from federated.rounds.knocking import KNOCK, NOWHERE, Answer, Knock, Where
from federated.rounds.models import Models
from federated.rounds.numeric import tensors
from federated.rounds.post import FETCH, MESSAGE, STATE_PART, Letter, Wanted
from federated.rounds.protocol.wire import NO_PLAN, Packet, Tick, unsigned
from federated.rounds.statefile import write_state
from p2p.errors import RemoteError
from tests.helpers.rounds_office import Team, play_team
from tests.unit.test_rounds_models import POLICY, first_state, join_all, train
from tests.unit.test_rounds_service import ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federated.rounds.federation import Federation
    from p2p.identity import PeerId
    from tests.helpers.rounds_office import Chair

pytestmark = pytest.mark.attack

STRANGER = b"x" * 32
FAR = 10**6


class Liar:
    """What answers knocks in the place of a node's models."""

    def __init__(self, answer: Callable[[PeerId], Where]) -> None:
        self._answer = answer

    def where(self, peer: PeerId, _: Knock) -> Answer:
        return Answer(self._answer(peer))


def lie(chair: Chair, answer: Callable[[PeerId], Where]) -> None:
    """Have a node say that a model is somewhere else."""
    chair.rounds._models = Liar(answer)  # type: ignore[assignment]


def false_where(federation: Federation, circle: tuple[bytes, ...], **fields: object) -> Where:
    """Far ahead, and in everything that is looked at what a member would say."""
    standing = federation.standing
    where = Where(
        FAR, b"r" * 32, b"s" * 32, 4000, (b"c" * 32,), 1e300, standing.policy.digest(),
        sha256(standing.schema).digest(),
    )  # fmt: skip
    # A liar sends what our own types refuse to hold.
    for name, value in {"circle": circle, **fields}.items():
        msgspec.structs.force_setattr(where, name, value)
    return where


async def join(chair: Chair, folder: Path, *, wait_s: float = 10) -> Federation:
    return await (await chair.rounds.models()).join(
        None, "m", POLICY, first_state(folder), expected=0, wait_s=wait_s
    )


async def say(chair: Chair, to: Federation, host: Chair, packet: Packet) -> None:
    """Send a packet past everything that a node's own rounds would check."""
    await chair.member.rpc.call(host.member.id, MESSAGE, Letter(to.ident, packet), timeout_s=10)


def tick(federation: Federation, number: int) -> Packet:
    return unsigned(Tick(federation.ident, number, 0, NO_PLAN, "joining", 1.0))


# ---- one member's word


@pytest.mark.parametrize(
    "shape", ["alone", "with you", "nobody", "with others", "twice", "no clip"]
)
def test_a_liar_does_not_say_where_a_newcomer_begins(tmp_path: Path, shape: str) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0, 1.0], 0)
        honest = federations[0].standing
        liar = await team.seat(4)
        me = bytes(liar.member.id)

        def answer(peer: PeerId) -> Where:
            circle = {
                "alone": (me,), "with you": (me, bytes(peer)), "nobody": (), "twice": (me, me),
                "with others": (me, *honest.circle), "no clip": honest.circle,
            }[shape]  # fmt: skip
            fields: dict[str, object] = {"clip": float("nan")} if shape == "no clip" else {}
            return false_where(federations[0], circle, **fields)

        lie(liar, answer)
        newcomer = await join(await team.seat(5), tmp_path)
        assert newcomer.standing.root == honest.root
        assert newcomer.standing.circle == honest.circle
        assert newcomer.standing.clip == honest.clip

    play_team(scenario, tmp_path, seed=1)


def test_a_liar_alone_founds_nothing_with_a_newcomer(tmp_path: Path) -> None:
    """A circle that could have no round is not believed, and the newcomer is told to try again."""

    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        for chair in chairs:
            me = bytes(chair.member.id)
            lie(chair, lambda _, me=me: false_where(federations[0], (me,)))  # type: ignore[misc]
        fresh = await team.seat(3)
        began = trio.current_time()
        with pytest.raises(RoundError) as caught:
            await join(fresh, tmp_path)
        assert caught.value.reason == "nobody"
        assert trio.current_time() >= began + 10
        assert (await fresh.rounds.models()).all() == []

    play_team(scenario, tmp_path, seed=2)


def test_a_liar_in_the_circle_carries_no_member_away(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0, 1.0], 0)
        me = bytes(chairs[2].member.id)
        lie(chairs[2], lambda peer: false_where(federations[0], (me, bytes(peer))))
        for federation in federations[:2]:
            federation._ask_now.set()
        await trio.sleep(60)
        assert [federation.standing.round for federation in federations] == [1, 1, 1]
        assert not any(kind == "round.caught_up" for kind, _ in chairs[0].told)

    play_team(scenario, tmp_path, seed=3)


class Server:
    """What serves a state in the place of a model."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def receive(self, *_: object) -> None:
        """Say nothing to anybody."""

    def serve(self, *_: object) -> bytes:
        """Give the state to whoever asks."""
        return self._data


def capture(liars: list[Chair], one: Federation, folder: Path) -> None:
    """Have machines name each other as the circle, all with the same state far ahead."""
    before = one.store.load_state(one.standing.round)
    state = {name: np.full_like(np.asarray(array), 666) for name, array in before.items()}
    path = folder / "evil.safetensors"
    write_state(path, one.schema, state)
    data = path.read_bytes()
    where = false_where(
        one, tuple(sorted(bytes(liar.member.id) for liar in liars)), nbytes=len(data),
        state_sha=tensors.genesis_root(one.schema, state),
    )  # fmt: skip
    for liar in liars:
        lie(liar, lambda _: where)
        liar.rounds._post._seats[one.ident] = Server(data)  # type: ignore[assignment]


def test_a_liar_with_more_machines_carries_no_member_away(tmp_path: Path) -> None:
    """One seat in the circle, and a circle of its own machines that all say the same."""

    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3, 4)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0] * 4, 0)
        before = federations[0].standing
        extra = [await team.seat(number) for number in (5, 6, 7)]
        capture([chairs[3], *extra], federations[0], tmp_path)
        for federation in federations[:3]:
            federation._ask_now.set()
        await trio.sleep(60)
        for federation in federations[:3]:
            assert (federation.standing.round, federation.standing.root) == (1, before.root)

    play_team(scenario, tmp_path, seed=5)


def test_who_was_away_goes_on_where_its_circle_is_not_where_one_liar_and_its_machines_are(
    tmp_path: Path,
) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3, 4)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0] * 4, 0)
        rest = tuple(sorted(bytes(chair.member.id) for chair in chairs[1:3]))
        told = federations[1].where(bytes(chairs[0].member.id)).where
        assert told is not None
        real = msgspec.structs.replace(told, round=3, circle=rest)
        extra = [await team.seat(number) for number in (5, 6, 7)]
        capture([chairs[3], *extra], federations[0], tmp_path)
        for chair in chairs[1:3]:
            lie(chair, lambda _: real)
        found = await _further(federations[0])
        assert found is not None
        assert found == (real, rest)

    play_team(scenario, tmp_path, seed=6)


async def _further(one: Federation) -> tuple[Where, tuple[bytes, ...]] | None:
    return await catching_up.further(one._mesh, one.ident, one.standing, one._admits)


# ---- another owner


async def with_stranger(team: Team, folder: Path) -> tuple[list[Federation], Chair]:
    """Three machines of one owner that train; then another owner's joins their group."""
    chairs = [await team.seat(number) for number in (1, 2, 3)]
    federations = await join_all(chairs, folder)
    await train(federations, [1.0, 1.0, 1.0], 0)
    return federations, await team.seat(4, owner=STRANGER)


def test_another_owner_learns_nothing_and_is_asked_to_nothing(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        federations, stranger = await with_stranger(team, tmp_path)
        one, host = federations[0], team.chairs[1]
        peer = bytes(stranger.member.id)
        assert await stranger.member.rpc.call(host.member.id, KNOCK, Knock(one.ident)) == NOWHERE
        part = one.standing.parts[0]
        for wanted in (
            Wanted(one.ident, bytes(32), STATE_PART, True, bytes(32), 0),
            Wanted(one.ident, bytes(32), 0, True, part, 0),
        ):
            with pytest.raises(RemoteError):
                async with stranger.member.rpc.stream(host.member.id, FETCH, wanted) as call:
                    await call.receive()
        setting = one._setting()
        assert peer not in setting.newcomers
        assert peer not in setting.candidates
        assert not setting.may_join(peer)
        sent = one._post.bytes_out
        for number in (1, 2, 3):
            await say(stranger, one, host, tick(one, number))
        await trio.sleep(1)
        assert one._post.bytes_out == sent
        assert not one._ahead._kept

    play_team(scenario, tmp_path, seed=4)


def test_another_owner_without_our_checks_does_not_get_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(team: Team) -> None:
        federations, stranger = await with_stranger(team, tmp_path)
        monkeypatch.setattr(Models, "_check_owners", lambda *_: None)
        monkeypatch.setattr(
            Models, "_admitted", lambda self, _: map(bytes, self._mesh.members(None))
        )
        with pytest.raises(RoundError) as caught:
            await join(stranger, tmp_path)
        assert caught.value.reason == "nobody"
        for number in (1, 2, 3):
            await train(federations, [1.0, 1.0, 1.0], number)
        assert bytes(stranger.member.id) not in federations[0].standing.circle
        assert len(federations[0].standing.circle) == 3

    play_team(scenario, tmp_path, seed=5)


def test_a_member_whose_owner_changes_takes_part_no_longer(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0, 1.0], 0)
        gone = chairs[2].member.id
        team.office.owners[gone] = STRANGER
        for number in (1, 2):
            for federation in federations[:2]:
                await federation.submit(number, np.ones(900, np.float32), 1.0, {})
            for federation in federations[:2]:
                with trio.fail_after(300):
                    await federation.wait(number)
        assert bytes(gone) not in federations[0].standing.circle
        assert federations[2].standing.round == 1

    play_team(scenario, tmp_path, seed=6)


def test_a_circle_with_another_owner_is_not_caught_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(team: Team) -> None:
        federations, stranger = await with_stranger(team, tmp_path)
        one = federations[0]
        circle = (*one.standing.circle, bytes(stranger.member.id))

        async def ask_where(*_: object) -> dict[bytes, Where]:
            others = [peer for peer in circle if peer != bytes(one._mesh.id)]
            return dict.fromkeys(others, false_where(one, circle))

        monkeypatch.setattr(catching_up, "ask_where", ask_where)
        assert await _further(one) is None
        team.office.owners[stranger.member.id] = b"o" * 32
        assert await _further(one) is not None

    play_team(scenario, tmp_path, seed=7)


def test_nobodies_are_not_heard(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        federations, other = await with_stranger(team, tmp_path)
        team.office.owners[other.member.id] = b"o" * 32
        await say(other, federations[0], team.chairs[1], tick(federations[0], 3))
        assert len(federations[0]._ahead._kept) == 1
        team.office.nobodies.add(other.member.id)
        await say(other, federations[0], team.chairs[1], tick(federations[0], 3))
        assert len(federations[0]._ahead._kept) == 1

    play_team(scenario, tmp_path, seed=8)


def test_another_owner_that_comes_while_a_question_waits_gets_no_sums(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        reasons: list[str] = []

        async def honest() -> None:
            with pytest.raises(RoundError) as caught:
                await chairs[0].rounds.total(ask(expected=2, wait_s=60), np.array([1.0]))
            reasons.append(caught.value.reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(honest)
            await trio.sleep(3)
            stranger = chairs[1]
            team.office.owners[stranger.member.id] = STRANGER
            # It says that all may see all; that is for each to say for itself.
            theirs = ask(expected=2, wait_s=10, timeout_s=30, allow_plain=True)
            with pytest.raises(RoundError):
                await stranger.rounds.total(theirs, np.array([1.0]))
        assert reasons == ["plain_refused"]
        assert chairs[0].rounds._post.bytes_out == 0

    play_team(scenario, tmp_path, seed=9)


def test_another_owner_that_comes_while_a_model_is_founded_gets_no_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        reasons: list[str] = []

        async def found(chair: Chair) -> None:
            models = await chair.rounds.models()
            with pytest.raises(RoundError) as caught:
                await models.join(None, "m", POLICY, first_state(tmp_path), expected=2, wait_s=30)
            reasons.append(caught.value.reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(found, chairs[0])
            await trio.sleep(3)
            team.office.owners[chairs[1].member.id] = STRANGER
            theirs = await chairs[1].rounds.models()
            monkeypatch.setattr(theirs, "_check_owners", lambda *_: None)
            await theirs.join(None, "m", POLICY, first_state(tmp_path), expected=2, wait_s=30)
        assert reasons == ["plain_refused"]
        assert (await chairs[0].rounds.models()).all() == []

    play_team(scenario, tmp_path, seed=12)


# ---- floods


def test_a_member_that_cries_ahead_makes_others_ask_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        asked: list[float] = []
        further = catching_up.further

        async def counted(*args: object) -> object:
            if args[0] is federations[0]._mesh:
                asked.append(trio.current_time())
            return await further(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(catching_up, "further", counted)
        for _ in range(200):
            await say(chairs[2], federations[0], chairs[0], tick(federations[0], FAR))
            await trio.sleep(0.1)
        pauses = np.diff(asked)
        assert len(asked) > 3
        assert pauses.min() >= LOOK_MIN_S
        assert len(federations[0]._ahead._kept) <= 32

    play_team(scenario, tmp_path, seed=10)


def test_a_decided_round_is_told_to_one_member_now_and_then(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0, 1.0], 0)
        await trio.sleep(5)
        one = federations[0]
        sent = one._post.bytes_out
        for _ in range(100):
            await say(chairs[2], one, chairs[0], tick(one, 1))
        cost = one._post.bytes_out - sent
        assert 0 < cost < 3 * len(one.standing.proof)

    play_team(scenario, tmp_path, seed=11)
