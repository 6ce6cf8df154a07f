"""Masks cancel, whatever is cut, lost or late; shares give the secret, whichever come."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from federated.rounds.privacy import fixed, masks, shamir

PLAN = bytes(31) + b"\x07"
SEEDS = st.integers(0, 2**32 - 1)


class Crew:
    """Members with keys, seeds and ids in no order."""

    def __init__(self, count: int, seed: int) -> None:
        rng = random.Random(seed)
        self.ids = [rng.randbytes(32) for _ in range(count)]
        self.private = {me: rng.randbytes(32) for me in self.ids}
        self.public = {me: masks.public_of(key) for me, key in self.private.items()}
        self.seed = {me: rng.randbytes(32) for me in self.ids}

    def mask(self, me: bytes) -> masks.Mask:
        others = {other: key for other, key in self.public.items() if other != me}
        return masks.member_mask(me, self.private[me], self.seed[me], others, plan=PLAN)

    def leftover(self, included: list[bytes]) -> masks.Mask:
        lost = {me: key for me, key in self.private.items() if me not in included}
        return masks.leftover(
            [self.seed[me] for me in included],
            lost,
            {me: self.public[me] for me in included},
            plan=PLAN,
        )


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[int]:
    inner = draw(st.lists(st.integers(0, size), max_size=5))
    return sorted({0, size, *inner})


@given(st.data(), st.integers(1, 7), st.sampled_from((np.uint32, np.uint64)), SEEDS)
def test_masks_cancel_at_any_cut_with_any_members_lost(data, count, word, seed):
    crew, size = Crew(count, seed), data.draw(st.integers(0, 40))
    included = data.draw(
        st.lists(st.sampled_from(crew.ids), min_size=1, unique=True), label="included"
    )
    rng = np.random.default_rng(seed)
    plain = {me: rng.integers(0, np.iinfo(word).max, size, word) for me in crew.ids}
    total = np.zeros(size, word)
    for me in included:
        words = plain[me].copy()
        for begin, end in pairwise(data.draw(cuts(size))):
            masks.apply(words[begin:end], crew.mask(me), start=begin)
        total += words
    for begin, end in pairwise(data.draw(cuts(size))):
        masks.apply(total[begin:end], crew.leftover(included), start=begin)
    expected = np.zeros(size, word)
    for me in included:
        expected += plain[me]
    assert total.tolist() == expected.tolist()


@given(st.data(), st.integers(1, 12), SEEDS, st.binary(min_size=32, max_size=32))
def test_any_shares_from_the_threshold_on_give_the_secret(data, count, seed, secret):
    threshold = data.draw(st.integers(1, count))
    made = shamir.split(secret, threshold, count, random.Random(seed).randbytes)
    shares = list(enumerate(made, 1))
    chosen = data.draw(
        st.lists(st.sampled_from(shares), min_size=threshold, max_size=count, unique=True)
    )
    assert shamir.combine(chosen, threshold) == secret
    spare = (len(chosen) - threshold) // 2
    liars = data.draw(st.lists(st.sampled_from(chosen), max_size=spare, unique=True))
    told = [
        (x, (int.from_bytes(y, "big") ^ 1).to_bytes(66, "big")) if (x, y) in liars else (x, y)
        for x, y in chosen
    ]
    found = shamir.recover(told, threshold)
    assert found == shamir.Recovered(secret, tuple(sorted(x for x, _ in liars)))


@given(
    st.floats(2.0**-100, 2.0**100),
    st.integers(1, 64),
    st.sampled_from((32, 64)),
    st.lists(st.floats(-1, 1), max_size=9),
)
def test_what_is_within_the_bound_is_read_back_to_half_a_word(bound, members, bits, shares):
    scale = fixed.scale_for(bound, members, bits=bits)
    values = np.array(shares, np.float64) * bound
    found = fixed.decode(fixed.encode(values, scale), scale)
    error = np.abs(found - values)
    # Half a word, one at the very bound; with 64 bits a float's own last place is more than that.
    assert np.all(error <= np.maximum(1.0 / scale.factor, np.abs(values) * 2.0**-51))
