"""Where a federation is: which answers can be said at all, and which are believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.rounds import catching_up
from federated.rounds.knocking import Answer, Where, believed
from federated.rounds.numeric import safetensors, tensors
from federated.rounds.protocol.policy import Policy
from tests.helpers.memories import InlineOffload
from tests.helpers.rounds_kit import peers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.post import Post

NAMES = peers(8)
ME = NAMES[0]
POLICY = Policy()


def itself(peer: bytes) -> bytes:
    """Each device has an owner of its own."""
    return peer


def where(round_: int, members: Sequence[bytes], **fields: object) -> Where:
    values: dict[str, object] = {
        "round": round_, "root": bytes([round_ % 256]) * 32, "state_sha": bytes(32), "nbytes": 9,
        "circle": tuple(members), "clip": 1.0, "policy": bytes(32), "schema": bytes(32),
    }  # fmt: skip
    return Where(**{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"circle": ()},
        {"circle": (b"x",)},
        {"circle": tuple(bytes([n]) * 32 for n in range(65))},
        {"clip": -1.0},
        {"round": -1},
        {"round": 2**63},
        {"root": b"short"},
        {"state_sha": b""},
        {"schema": b"x" * 33},
        {"nbytes": 0},
        {"nbytes": 2**40},
    ],
    ids=[
        "nobody",
        "no peer",
        "too many",
        "clip below 0",
        "round below 0",
        "round too high",
        "short root",
        "no state",
        "long schema",
        "empty state",
        "huge state",
    ],
)
def test_an_answer_that_is_none_is_not_decoded(wrong: dict[str, object]) -> None:
    body = msgspec.msgpack.encode(Answer(where(1, NAMES[:3], **wrong)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(body, type=Answer)


@pytest.mark.parametrize(
    "wrong",
    [{"clip": math.inf}, {"clip": math.nan}, {"circle": (NAMES[1], NAMES[1])}],
    ids=["infinite", "no number", "twice"],
)
def test_nor_is_what_no_type_can_say(wrong: dict[str, object]) -> None:
    good = msgspec.to_builtins(Answer(where(1, NAMES[:3])), builtin_types=(bytes,))
    place = Where.__struct_fields__.index(next(iter(wrong)))
    good[0][place] = next(iter(wrong.values()))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(good), type=Answer)


def test_a_quorum_of_its_own_circle_is_believed() -> None:
    here = where(7, NAMES[1:5])
    answers = dict.fromkeys(NAMES[1:4], here)
    assert believed(answers, ME, POLICY, itself) == (here, tuple(sorted(NAMES[1:4])))
    del answers[NAMES[1]]
    assert believed(answers, ME, POLICY, itself) is None


def test_ourselves_apart_the_rest_of_the_circle_is_enough() -> None:
    here = where(7, NAMES[:3])
    assert believed({NAMES[1]: here, NAMES[2]: here}, ME, POLICY, itself) is not None
    assert believed({NAMES[1]: here}, ME, POLICY, itself) is None


def test_of_a_circle_of_two_the_other_is_believed_while_nobody_says_otherwise() -> None:
    here = where(7, NAMES[:2])
    assert believed({NAMES[1]: here}, ME, POLICY, itself) == (here, (NAMES[1],))
    other = where(3, NAMES[2:6])
    assert believed({NAMES[1]: here, NAMES[2]: other}, ME, POLICY, itself) is None


def test_a_circle_of_one_is_believed_where_one_may_be_a_round() -> None:
    alone = {NAMES[1]: where(10**6, NAMES[1:2])}
    assert believed(alone, ME, POLICY, itself) is None
    assert believed(alone, ME, Policy(min_peers=1), itself) is not None


def test_who_is_not_of_the_circle_counts_nothing() -> None:
    here = where(7, NAMES[1:4])
    assert believed({NAMES[1]: here, NAMES[5]: here, NAMES[6]: here}, ME, POLICY, itself) is None
    assert believed({ME: here, NAMES[1]: here}, ME, POLICY, itself) is None


def test_the_smallest_clip_is_taken_and_no_other_difference_is_passed_over() -> None:
    circle = NAMES[1:4]
    answers = {peer: where(7, circle, clip=float(n)) for n, peer in enumerate(circle, 2)}
    found = believed(answers, ME, POLICY, itself)
    assert found is not None
    assert found[0].clip == 2.0
    answers[NAMES[1]] = where(7, circle, state_sha=b"s" * 32)
    answers[NAMES[2]] = where(7, circle, nbytes=10)
    assert believed(answers, ME, POLICY, itself) is None


def test_of_several_the_one_that_most_say_is_taken_then_the_furthest() -> None:
    many, few = where(7, NAMES[1:4]), where(900, NAMES[4:6])
    answers = dict.fromkeys(NAMES[1:4], many) | dict.fromkeys(NAMES[4:6], few)
    found = believed(answers, ME, POLICY, itself)
    assert found is not None
    assert found[0] is not few
    assert found[0].round == 7
    del answers[NAMES[1]]
    found = believed(answers, ME, POLICY, itself)
    assert found is not None
    assert found[0].round == 900


def test_one_owners_many_machines_are_one_voice() -> None:
    many, few = where(900, NAMES[1:5]), where(7, NAMES[5:8])
    answers = dict.fromkeys(NAMES[1:5], many) | dict.fromkeys(NAMES[5:8], few)

    def owner(peer: bytes) -> bytes:
        return b"liar" if peer in NAMES[1:5] else peer

    for owned, round_ in ((owner, 7), (itself, 900), (lambda _: b"us", 900)):
        found = believed(answers, ME, POLICY, owned)
        assert found is not None
        assert found[0].round == round_


def test_from_four_owners_on_a_quorum_of_them_must_say_so() -> None:
    here = where(7, NAMES[1:8])
    answers = dict.fromkeys(NAMES[1:6], here)
    assert believed(answers, ME, POLICY, itself) is not None

    def owner(peer: bytes) -> bytes:
        return b"one" if peer in NAMES[1:5] else peer

    assert believed(answers, ME, POLICY, owner) is None
    answers[NAMES[6]] = here
    assert believed(answers, ME, POLICY, owner) is not None


def test_of_members_that_are_known_enough_must_say_the_same() -> None:
    here = where(7, NAMES[3:7])
    answers = dict.fromkeys(NAMES[3:7], here)
    known = NAMES[:4]
    assert believed(answers, ME, POLICY, itself, known=known, needed=1) is not None
    assert believed(answers, ME, POLICY, itself, known=known, needed=2) is None


def test_a_state_larger_than_the_model_is_not_fetched() -> None:
    schema = tensors.Schema((tensors.TensorSpec("w", (4,), "f32"),))
    largest = 16 + safetensors.HEADER_BYTES_MAX + 8
    asked = []

    class Watched:
        async def fetch_state(self, peer: bytes, federation: bytes, nbytes: int) -> None:
            asked.append((peer, federation, nbytes))

    async def fetch(nbytes: int) -> object:
        there = where(1, NAMES[:3], nbytes=nbytes)
        post: Post = Watched()  # type: ignore[assignment]
        return await catching_up.fetch_state(
            post, InlineOffload(), bytes(32), schema, there, [NAMES[1]]
        )

    assert trio.run(fetch, largest + 1) is None
    assert not asked
    assert trio.run(fetch, largest) is None
    assert [nbytes for _, _, nbytes in asked] == [largest]
