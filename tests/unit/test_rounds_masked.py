"""Masked sums between whole nodes: who can have one, who is refused, and what survives a loss."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from federated.errors import RoundError, UsageError
from federated.rounds.masked_workshop import MaskedWorkshop
from federated.rounds.numeric.payload import encoded_bytes
from federated.rounds.privacy import boxes
from federated.rounds.privacy.masks import Mask
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.orders import Cover, Encode, SumOpened
from federated.rounds.protocol.unmasking import Unmasking
from federated.rounds.protocol.wire import MaskRead, MaskReveal, decode_untrusted
from federated.rounds.seat import Outcome
from federated.rounds.service import Ask
from federated.rounds.statistics.plain import (
    HistogramQuery,
    MeanQuery,
    QuantilesQuery,
    answer,
    contribution,
)
from federated.rounds.sums import SumRound
from p2p.errors import DecodeError
from tests.helpers.masked_world import MaskedWorld, masked_settings
from tests.helpers.memories import InlineOffload
from tests.helpers.rounds_office import Team, play_team

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path
    from typing import TypeVar

    from federated.rounds.history import RoundReport
    from federated.rounds.protocol.wire import Packet
    from federated.rounds.service import Total
    from tests.helpers.rounds_office import Chair

    T = TypeVar("T")

QUESTION = sha256(b"how long").digest()
GROUP = b"g" * 32
"""Any: in these scenarios everybody is of every group."""


def ask(**fields: object) -> Ask:
    return Ask(**{"group": None, "kind": "mean", "question": QUESTION, **fields})  # type: ignore[arg-type]


async def chairs_of(team: Team, owners: str) -> list[Chair]:
    """A node a letter, whose owner the letter is."""
    return [
        await team.seat(number, owner=letter.encode() * 32)
        for number, letter in enumerate(owners, 1)
    ]


async def everybody(
    chairs: list[Chair], vectors: list[np.ndarray], asked: Ask
) -> list[Total | RoundError]:
    """All ask at once; what each was told."""
    found: dict[int, Total | RoundError] = {}

    async def one(index: int) -> None:
        try:
            found[index] = await chairs[index].rounds.total(asked, vectors[index])
        except RoundError as error:
            found[index] = error

    async with trio.open_nursery() as nursery:
        for index in range(len(chairs)):
            nursery.start_soon(one, index)
    return [found[index] for index in sorted(found)]


def vectors_of(count: int) -> list[np.ndarray]:
    return [np.array([float(10**index), -3.0, float(2**52)]) for index in range(count)]


def sums(found: list[Total | RoundError]) -> list[Total]:
    for one in found:
        if isinstance(one, RoundError):
            raise one
    return [one for one in found if not isinstance(one, RoundError)]


@pytest.mark.parametrize("privacy", ["auto", "masked"])
@pytest.mark.parametrize("owners", ["abcd", "aabbccd"])
def test_owners_add_up_without_seeing_each_other(tmp_path: Path, owners: str, privacy: str) -> None:
    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, owners)
        count = len(owners)
        found = await everybody(chairs, vectors_of(count), ask(expected=count, privacy=privacy))
        for total in sums(found):
            assert total.vector.tolist() == np.sum(vectors_of(count), axis=0).tolist()
            assert total.peers == count
            assert total.report.privacy == "masked"
            assert total.report.threshold == -(-2 * count // 3)
        assert len({total.report.root for total in sums(found)}) == 1

    play_team(scenario, tmp_path, seed=1)


@pytest.mark.parametrize(
    ("owners", "fields", "reason", "word"),
    [
        ("aaaa", {"privacy": "masked"}, "no_masks", "1 owners"),
        ("abc", {"privacy": "masked", "allow_plain": True}, "no_masks", "3 owners"),
        ("abc", {}, "plain_refused", "allow-plain"),
        ("abcd", {"privacy": "plain"}, "plain_refused", "allow-plain"),
        ("aabcd", {}, "plain_refused", "a third"),
        ("aabcd", {"privacy": "masked"}, "no_masks", "a third"),
    ],
)
def test_what_masks_cannot_hide_is_refused_and_nothing_is_sent(
    tmp_path: Path, owners: str, fields: dict[str, object], reason: str, word: str
) -> None:
    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, owners)
        count = len(owners)
        found = await everybody(chairs, vectors_of(count), ask(expected=count, **fields))
        for one in found:
            assert isinstance(one, RoundError)
            assert one.reason == reason
            assert word in str(one)
            assert "nothing was sent" in str(one)

    play_team(scenario, tmp_path, seed=1)


@pytest.mark.parametrize(
    ("owners", "fields"),
    [
        ("aaaa", {}),
        ("abc", {"allow_plain": True}),
        ("abcd", {"privacy": "plain", "allow_plain": True}),
    ],
)
def test_plain_where_it_is_allowed(tmp_path: Path, owners: str, fields: dict[str, object]) -> None:
    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, owners)
        count = len(owners)
        found = await everybody(chairs, vectors_of(count), ask(expected=count, **fields))
        for total in sums(found):
            assert total.report.privacy == "plain"
            assert total.peers == count

    play_team(scenario, tmp_path, seed=1)


@pytest.mark.parametrize("query", [
    MeanQuery(), HistogramQuery(edges=(0.0, 1.0, 5.0)), QuantilesQuery(q=(0.5,), bounds=(0.0, 9.0)),
], ids=["mean", "histogram", "quantiles"])  # fmt: skip
def test_a_masked_answer_is_the_plain_one_to_the_last_bit(
    tmp_path: Path, query: MeanQuery | HistogramQuery | QuantilesQuery
) -> None:
    data = [np.random.default_rng(index).exponential(2, 100) for index in range(4)]
    vectors = [contribution(query, one) for one in data]

    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, "abcd")
        found = sums(await everybody(chairs, vectors, ask(expected=4)))
        expected = answer(query, np.sum(vectors, axis=0), 4)
        for total in found:
            assert answer(query, total.vector, total.peers) == expected

    play_team(scenario, tmp_path, seed=2)


def lost_when(kind: str, count: int, who: str) -> Callable[[Team], Awaitable[None]]:
    """A scenario in which a node is killed when a coordinator enters a phase."""

    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, "abcdef"[:count])
        found: dict[int, Total] = {}
        leading = trio.Event()

        async def one(number: int) -> None:
            found[number] = await chairs[number].rounds.total(
                ask(expected=count, timeout_s=200), vectors_of(count)[number]
            )

        async def strike() -> None:
            await leading.wait()
            leader = next(
                number for number, chair in enumerate(chairs)
                if any(told == kind for told, _ in chair.told)
            )  # fmt: skip
            gone = leader if who == "coordinator" else (leader + 1) % count
            chairs[gone].scope.cancel()
            chairs[gone].member.scope.cancel()
            scopes[gone].cancel()

        scopes = {number: trio.CancelScope() for number in range(count)}

        async def seated(number: int) -> None:
            with scopes[number]:
                await one(number)

        for chair in chairs:
            chair.rounds.on_event(lambda _, told, __, ___: leading.set() if told == kind else None)
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(seated, number)
            nursery.start_soon(strike)
        assert len(found) == count - 1
        for total in found.values():
            included = [
                index for index, chair in enumerate(chairs)
                if any(
                    one.peer == bytes(chair.member.id).hex() and one.status == "included"
                    for one in total.report.members
                )
            ]  # fmt: skip
            wanted = np.sum([vectors_of(count)[index] for index in included], axis=0)
            assert total.vector.tolist() == wanted.tolist()
            assert total.report.privacy == "masked"

    return scenario


@pytest.mark.parametrize("who", ["coordinator", "sender"])
@pytest.mark.parametrize("phase", ["round.committing", "round.merge", "round.applied"])
def test_a_machine_is_lost_and_the_others_have_their_sum(
    tmp_path: Path, phase: str, who: str
) -> None:
    play_team(lost_when(phase, 6, who), tmp_path, seed=3)


def unread_by(
    chairs: Sequence[Chair], found: Sequence[object], *, liar: int
) -> Iterator[tuple[Chair, RoundError]]:
    """Who was told that the sum cannot be read, and how; what a liar is told is its own matter."""
    for place, (chair, refused) in enumerate(zip(chairs, found, strict=True)):
        if place != liar:
            assert isinstance(refused, RoundError)
            assert refused.reason == "unread"
            yield chair, refused


@pytest.mark.parametrize("earlier", [[], ["overdue: too few members could fetch the result"]])
def test_a_sum_that_nobody_can_read_is_refused_with_the_name_of_who_spoilt_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: list[str]
) -> None:
    """Not for want of members or of a quorum, whatever attempts ended before."""

    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, "abcd")
        liar = bytes(chairs[1].member.id)
        seal, begun = boxes.seal, Outcome.__init__

        def junk(*shares: bytes, **ways: bytes) -> bytes:
            return bytes(boxes.BOX_BYTES) if ways["sender"] == liar else seal(*shares, **ways)

        def begin(self: Outcome) -> None:
            begun(self)
            self.ended += earlier

        monkeypatch.setattr(boxes, "seal", junk)
        monkeypatch.setattr(Outcome, "__init__", begin)
        found = await everybody(chairs, vectors_of(4), ask(expected=4, timeout_s=30))
        for chair, refused in unread_by(chairs, found, liar=1):
            assert f"3 of 4 members could not open what {liar[:4].hex()} sealed" in str(refused)
            (report,) = await chair.rounds.history.last()
            assert report.outcome == "failed"
            assert report.reason == str(refused)
            (spoiler,) = [one for one in report.members if "did not open" in one.reason]
            assert spoiler.peer == liar.hex()

    play_team(scenario, tmp_path, seed=1)


@pytest.mark.parametrize("withheld", [True, False])
@pytest.mark.parametrize("dealt", ["wrong shares", "junk"])
def test_who_spoils_a_sum_is_named_and_told_once_if_it_reveals_nothing_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dealt: str, withheld: bool
) -> None:
    """Without the last reveal, whose secret does not come out is looked for at the end."""

    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, "abcd")
        liar = bytes(chairs[1].member.id)
        seal, say = boxes.seal, Unmasking._say
        drawn = random.Random(1)

        def wrong(*shares: bytes, **ways: bytes) -> bytes:
            if ways["sender"] != liar:
                return seal(*shares, **ways)
            if dealt == "junk":
                return bytes(boxes.BOX_BYTES)
            return seal(*(b"\0" + drawn.randbytes(65) for _ in shares), **ways)

        def withhold(self: Unmasking, peer: bytes, packet: Packet) -> None:
            said = decode_untrusted(packet.body)
            if self._setting.me != liar or not isinstance(said, MaskReveal | MaskRead):
                say(self, peer, packet)

        monkeypatch.setattr(boxes, "seal", wrong)
        if withheld:
            monkeypatch.setattr(Unmasking, "_say", withhold)
        found = await everybody(chairs, vectors_of(4), ask(expected=4, timeout_s=30))
        for chair, refused in unread_by(chairs, found, liar=1):
            assert says[dealt].format(liar[:4].hex()) in str(refused)
            (report,) = await chair.rounds.history.last()
            (spoiler,) = [one for one in report.members if known[dealt] in one.reason]
            assert spoiler.peer == liar.hex()
            told = [detail for kind, detail in chair.told if kind == "member.spoils_sum"]
            assert told == [spoiler.reason]

    says = {
        "wrong shares": "the secret of {} do not fit together",
        "junk": "members could not open what {} sealed",
    }
    known = {"wrong shares": "do not fit together", "junk": "did not open"}
    play_team(scenario, tmp_path, seed=1)


class SlowToOpen(InlineOffload):
    """A thread that opens the sum, is not abandoned, and ends when it is let.

    Args:
        may_end: waits for that.
    """

    def __init__(self, may_end: Callable[[], Awaitable[None]]) -> None:
        self._may_end = may_end
        self.ended = trio.Event()

    async def run(self, fn: Callable[[], T]) -> T:
        done = await super().run(fn)
        if isinstance(done, SumOpened):
            with trio.CancelScope(shield=True):
                await self._may_end()
            self.ended.set()
        return done


def test_a_sum_that_is_opened_while_its_end_is_noted_is_not_to_be_tried_again(
    tmp_path: Path,
) -> None:
    """Too late for an answer, but read here: no `timeout`, which a script repeats."""

    async def scenario(team: Team) -> None:
        chairs = await chairs_of(team, "abcd")
        late = trio.Event()
        slow, threads = chairs[1].rounds, SlowToOpen(late.wait)
        slow.offload = threads
        add = slow.history.add

        async def note(report: RoundReport) -> None:
            late.set()
            await threads.ended.wait()
            await add(report)

        slow.history.add = note  # type: ignore[method-assign]
        found = await everybody(chairs, vectors_of(4), ask(expected=4, timeout_s=30))
        refused = found.pop(1)
        assert sums(found), "the others have it"
        assert threads.ended.is_set()
        assert isinstance(refused, RoundError)
        assert refused.reason == "unread"
        (report,) = await slow.history.last()
        assert report.reason == str(refused)

    play_team(scenario, tmp_path, seed=1)


def test_a_sum_that_is_opened_in_the_last_instant_is_had_or_not_to_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread ends just when the time does; which comes first is drawn."""
    outcome = SumRound.outcome

    def ending(seed: int) -> str:
        begun: dict[object, float] = {}
        found: list[Total | RoundError] = []

        async def timed(
            self: SumRound, vector: np.ndarray
        ) -> tuple[RoundReport, RoundError | None]:
            begun[self._offload] = trio.current_time()
            return await outcome(self, vector)

        async def scenario(team: Team) -> None:
            chairs = await chairs_of(team, "abcd")
            threads = SlowToOpen(lambda: trio.sleep_until(begun[threads] + 30))
            chairs[1].rounds.offload = threads
            found.extend(await everybody(chairs, vectors_of(4), ask(expected=4, timeout_s=30)))

        monkeypatch.setattr(SumRound, "outcome", timed)
        (tmp_path / str(seed)).mkdir()
        play_team(scenario, tmp_path / str(seed), seed=seed)
        last = found[1]
        return last.reason if isinstance(last, RoundError) else "had"

    ends = {ending(seed) for seed in range(8)}
    assert "had" in ends, "the control: the thread was in time"
    assert ends <= {"had", "unread"}


def test_only_whole_numbers_are_masked() -> None:
    world = MaskedWorld(1, masked_settings(4))
    world.run(100, done=world.all_decided)
    node = next(iter(world.nodes.values()))
    assert node.decided is not None
    order = Encode(node.decided.plan_hash, node.decided.plan)
    shop = MaskedWorkshop(4)
    for wrong in ([0.5] * 7, [float("nan")] * 7, [2.0**62] * 7, [1.0] * 6):
        shop.vector = np.array(wrong)
        with pytest.raises(UsageError):
            shop.encode(order)
    assert encoded_bytes("mfix64", 7) == 56


def test_words_are_hidden_under_the_mask_that_was_made_for_them_alone() -> None:
    """Two vectors under one mask are their difference in the clear."""
    shop, encode = shop_of()
    words = shop.encode(encode).words
    for plan_hash, of in ((encode.plan_hash, bytes(32)), (bytes(32), words)):
        with pytest.raises(UsageError, match="not here"):
            shop.cover(Cover(plan_hash, b"\x0f" + bytes(7), of, Mask(((bytes(32), False),))))
        assert not shop._at(encode.plan_hash).own
    shop.vector = np.full(7, 2.0)
    shop.encode(encode)
    with pytest.raises(UsageError, match="not here"):
        shop.cover(Cover(encode.plan_hash, b"\x0f" + bytes(7), words, Mask(((bytes(32), False),))))


@pytest.mark.parametrize("size", [0, 8, 48, 55, 57, 64])
def test_words_of_another_number_than_the_plans_are_not_taken(size: int) -> None:
    shop, encode = shop_of()
    assert shop.accept(encode.plan_hash, 0, bytes(32), bytes(size)) == (
        f"{size} bytes where 56 belong"
    )
    assert not shop.accept(encode.plan_hash, 0, b"\x01" * 32, bytes(56))
    assert [sender for _, sender in shop._covered] == [b"\x01" * 32]


def test_a_sum_of_another_length_is_not_read() -> None:
    shop, encode = shop_of()
    shop._mask = Mask(())
    for size in (55, 57, 48, 64):
        shop.merged[bytes(32)] = bytes(16 + size)
        with pytest.raises(DecodeError, match="length"):
            shop.whole(encode.plan, [bytes(32)])
    shop.merged[bytes(32)] = bytes(16 + 56)
    with pytest.raises(DecodeError, match="length"):
        shop.whole(encode.plan, [bytes(32)] * 2)
    assert shop.whole(encode.plan, [bytes(32)]).tolist() == [0.0] * 7


def shop_of() -> tuple[MaskedWorkshop, Encode]:
    """A workshop with a vector, that works by a plan of four members and seven numbers."""
    world = MaskedWorld(1, masked_settings(4))
    world.run(100, done=world.all_decided)
    decided = next(iter(world.nodes.values())).decided
    assert decided is not None
    shop = MaskedWorkshop(4)
    shop.vector = np.ones(7)
    shop.see(decided.plan_hash, decided.plan)
    return shop, Encode(decided.plan_hash, decided.plan)


def test_a_masked_round_wants_a_source_of_secrets() -> None:
    with pytest.raises(UsageError, match="secrets"):
        Machine(masked_settings(4)[0])
