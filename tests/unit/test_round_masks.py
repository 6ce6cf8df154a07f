"""Shares, masks and fixed point: the bytes of an independent encoder, and what is refused."""

from __future__ import annotations

import importlib.util
import math
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.privacy import fixed, masks, shamir
from federated.rounds.privacy.errors import MaskError
from tests.helpers import vectors

if TYPE_CHECKING:
    from types import ModuleType

V = vectors.load("masks_v1.json")
PLAN = bytes.fromhex(V["plan"])
MEMBERS = [{name: bytes.fromhex(text) for name, text in row.items()} for row in V["members"]]
WORDS = {32: np.uint32, 64: np.uint64}


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("maker", vectors.FOLDER / "make_masks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_independent_encoder_writes():
    assert (vectors.FOLDER / "masks_v1.json").read_text("ascii") == maker().text()


# ---- shares


def drawn_from(data: bytes):
    """A source of random bytes that gives these."""
    rest = bytearray(data)

    def draw(count: int) -> bytes:
        taken = bytes(rest[:count])
        del rest[:count]
        assert len(taken) == count
        return taken

    return draw


@pytest.mark.parametrize("case", V["shamir"], ids=lambda case: case["name"])
def test_shares_are_the_vectors_and_give_the_secret(case):
    secret, threshold = bytes.fromhex(case["secret"]), case["threshold"]
    expected = [bytes.fromhex(text) for text in case["shares"]]
    drawn = drawn_from(bytes.fromhex(case["drawn"]))
    assert shamir.split(secret, threshold, len(expected), drawn) == expected
    pairs = list(enumerate(expected, 1))
    assert shamir.combine(pairs, threshold) == secret
    assert shamir.combine(pairs[-threshold:], threshold) == secret


SECRET = bytes(range(32))
SHARES = list(enumerate(shamir.split(SECRET, 6, 9, random.Random(1).randbytes), 1))


def test_fewer_than_the_threshold_give_nothing():
    with pytest.raises(MaskError, match="few_shares"):
        shamir.combine(SHARES[:5], 6)
    # Five shares fit every secret: for any other one there is a polynomial through them.
    other = shamir.split(bytes(32), 6, 9, random.Random(2).randbytes)
    with pytest.raises(MaskError, match="wrong_shares"):
        shamir.combine([*SHARES[:5], (6, other[5])], 6)


def test_a_share_given_twice_counts_for_nothing():
    with pytest.raises(MaskError, match="bad_share"):
        shamir.combine([*SHARES[:5], SHARES[0]], 6)


@pytest.mark.parametrize(
    "share",
    [
        (0, bytes(66)),  # would be the secret itself
        (65, bytes(66)),
        (6, bytes(65)),
        (6, bytes(67)),
        (6, shamir.PRIME.to_bytes(66, "big")),  # 0 in another form
        (6, b"\xff" * 66),
    ],
)
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(MaskError, match="bad_share"):
        shamir.combine([*SHARES[:5], share], 6)


def spoilt(share, by=1):
    x, y = share
    return x, ((int.from_bytes(y, "big") + by) % shamir.PRIME).to_bytes(66, "big")


def test_a_wrong_share_is_found_and_named_where_there_are_more_than_needed():
    lied = [spoilt(SHARES[0]), *SHARES[1:]]
    with pytest.raises(MaskError, match=r"wrong_shares.*\[1\]"):
        shamir.combine(lied, 6)
    assert shamir.recover(lied, 6) == shamir.Recovered(SECRET, (1,))
    # Nine shares of which six are needed correct one; with two wrong there is no knowing.
    with pytest.raises(MaskError, match="wrong_shares"):
        shamir.recover([spoilt(SHARES[0]), spoilt(SHARES[1], 7), *SHARES[2:]], 6)


def test_a_wrong_share_without_a_spare_one_gives_no_secret_by_chance():
    with pytest.raises(MaskError, match="wrong_shares"):
        shamir.combine([spoilt(SHARES[0], 2**300), *SHARES[1:6]], 6)
    # On purpose it can: without a spare share nobody knows, so the sum's norm is looked at, too.
    assert shamir.combine([spoilt(SHARES[0]), *SHARES[1:6]], 6) != SECRET


def test_as_many_wrong_shares_as_can_be_corrected_are():
    shares = list(enumerate(shamir.split(SECRET, 43, 64, random.Random(3).randbytes), 1))
    liars = random.Random(4).sample(range(64), 10)
    for place in liars:
        shares[place] = spoilt(shares[place], place + 1)
    found = shamir.recover(shares, 43)
    assert found == shamir.Recovered(SECRET, tuple(sorted(place + 1 for place in liars)))


@pytest.mark.parametrize(
    ("secret", "threshold", "count"),
    [(bytes(31), 1, 1), (SECRET, 0, 3), (SECRET, 4, 3), (SECRET, 2, 65)],
)
def test_sharing_that_makes_no_sense_is_our_bug(secret, threshold, count):
    with pytest.raises(UsageError):
        shamir.split(secret, threshold, count, random.Random(0).randbytes)


def test_the_secret_zero_is_a_secret():
    shares = list(enumerate(shamir.split(bytes(32), 1, 3, random.Random(5).randbytes), 1))
    assert shamir.combine(shares, 1) == bytes(32)


def test_a_drawn_number_that_is_the_prime_is_drawn_again():
    data = b"\xff" * 66 + (5).to_bytes(66, "big")
    shares = shamir.split(bytes(32), 2, 2, drawn_from(data))
    assert [int.from_bytes(y, "big") for y in shares] == [5, 10]


# ---- masks


def mask_of(place: int) -> masks.Mask:
    me = MEMBERS[place]
    others = {other["id"]: other["mask_public"] for other in MEMBERS if other is not me}
    return masks.member_mask(me["id"], me["mask_private"], me["seed"], others, plan=PLAN)


def test_keys_of_pairs_are_the_vectors_from_either_side():
    found = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        left, right = MEMBERS[a], MEMBERS[b]
        one = masks.pair_key(
            left["id"], left["mask_private"], right["id"], right["mask_public"], plan=PLAN
        )
        two = masks.pair_key(
            right["id"], right["mask_private"], left["id"], left["mask_public"], plan=PLAN
        )
        assert one == two
        found.append(one.hex())
    assert found == V["pairs"]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_masked_words_are_the_vectors_however_they_are_cut(bits, place):
    expected = V["masked"][str(bits)][place]
    mask = mask_of(place)
    for cut in range(22):
        words = np.array(V["plain"][place], WORDS[bits])
        masks.apply(words[:cut], mask)
        masks.apply(words[cut:], mask, start=cut)
        assert words.tolist() == expected


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_of_all_is_read_when_every_seed_is_known(bits):
    total = np.zeros(21, WORDS[bits])
    for place, plain in enumerate(V["plain"]):
        words = np.array(plain, WORDS[bits])
        masks.apply(words, mask_of(place))
        total += words
    publics = {member["id"]: member["mask_public"] for member in MEMBERS}
    rest = masks.leftover([member["seed"] for member in MEMBERS], {}, publics, plan=PLAN)
    masks.apply(total, rest)
    assert total.tolist() == np.sum(V["plain"], axis=0).tolist()


def test_a_piece_longer_than_a_block_is_masked_as_one_stream():
    count = masks.BLOCK_BYTES // 4 * 2 + 5
    mask = masks.Mask(((bytes(32), False),))
    whole, alone = np.zeros(count, np.uint32), np.zeros(3, np.uint32)
    masks.apply(whole, mask)
    masks.apply(alone, mask, start=count - 3)
    assert whole[-3:].tolist() == alone.tolist()
    assert (
        whole[:4].tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    )  # AES-256, zeros: FIPS 197


@pytest.mark.parametrize(
    "words",
    [np.zeros(4, np.float32), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]],
    ids=["float", "matrix", "strided"],
)
def test_masks_are_for_whole_vectors_of_words(words):
    with pytest.raises(UsageError):
        masks.apply(words, mask_of(0))


def test_a_mask_is_not_printed():
    assert repr(mask_of(0)) == "Mask(3 streams)"


# ---- fixed point


@pytest.mark.parametrize("case", V["scales"])
def test_the_scale_is_the_largest_power_of_two_that_cannot_overflow(case):
    scale = fixed.scale_for(case["bound"], case["members"], bits=case["bits"], noise=case["noise"])
    assert scale.exponent == case["exponent"]
    assert scale.largest <= case["bound"] * 2.0 ** case["exponent"]
    assert case["members"] * (scale.largest + case["noise"]) < 2 ** (case["bits"] - 1)


@pytest.mark.parametrize("case", V["words"], ids=lambda case: case["bits"])
def test_words_are_the_vectors_and_read_back(case):
    scale = fixed.Scale(case["exponent"], case["bits"], 2**30)
    if case["bits"] == 64:
        scale = fixed.Scale(case["exponent"], 64, 2**60)
    values = np.array(case["values"])
    words = fixed.encode(values, scale)
    assert words.dtype == WORDS[case["bits"]]
    assert words.tolist() == case["words"]
    assert np.abs(fixed.decode(words, scale) - values).max() <= 0.5 / scale.factor


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("members", [1, 3, 63, 64])
@pytest.mark.parametrize("sign", [1, -1])
def test_all_members_at_the_bound_do_not_overflow(bits, members, sign):
    for bound in (1.0, 0.1, 1 / 3, 123456.789):
        scale = fixed.scale_for(bound, members, bits=bits)
        words = fixed.encode(np.full(3, sign * bound), scale)
        total = np.zeros(3, WORDS[bits])
        for _ in range(members):
            total += words
        found = fixed.decode(total, scale)
        assert found == pytest.approx(np.full(3, sign * members * bound), rel=members * 2e-7)


@pytest.mark.parametrize("value", [1.01, -1.01, math.inf, -math.inf, math.nan, 1e300])
@pytest.mark.parametrize("bits", [32, 64])
def test_a_value_that_could_overflow_is_refused(value, bits):
    scale = fixed.scale_for(1.0, 9, bits=bits)
    with pytest.raises(UsageError, match="beyond the bound"):
        fixed.encode(np.array([0.5, value]), scale)


@pytest.mark.parametrize(
    ("bound", "members", "noise"),
    [(0.0, 9, 0), (math.inf, 9, 0), (math.nan, 9, 0), (1.0, 0, 0), (1.0, 65, 0), (1.0, 9, 2**31),
     (5e-324, 9, 0)],
)  # fmt: skip
def test_a_scale_of_nothing_is_refused(bound, members, noise):
    with pytest.raises(UsageError):
        fixed.scale_for(bound, members, noise=noise)


def test_moments_and_counts_have_scales_of_their_own():
    assert fixed.count_scale(9).factor == 1
    scale = fixed.moment_scale(60.0, 2, 9)
    assert scale == fixed.scale_for(60.0**2 * 2**20, 9, bits=64)
    assert 9 * 2**20 * 60.0**2 * scale.factor < 2**63
    with pytest.raises(UsageError):
        fixed.moment_scale(1e200, 2, 9)


def update(seed: int, size: int = 5000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def test_a_long_update_is_clipped_and_a_short_one_is_not():
    scale = fixed.scale_for(10.0, 9)
    long, short = update(1), update(2) / 10
    words = fixed.encode_update(long, scale, clip=10.0)
    assert fixed.norm_of(fixed.decode(words[:-2], scale)) == pytest.approx(10.0, rel=1e-5)
    assert fixed.read_tail(words, 1) == fixed.Tail(1.0, 0)
    words = fixed.encode_update(short, scale, clip=10.0)
    assert np.abs(fixed.decode(words[:-2], scale) - short).max() <= 1 / scale.factor
    assert fixed.read_tail(words, 1) == fixed.Tail(1.0, 1)


def test_weights_and_clip_bits_add_up_and_the_mean_is_the_weighted_one():
    scale = fixed.scale_for(10.0, 9)
    updates, shares = [update(seed, 500) / 10 for seed in range(9)], np.linspace(0.1, 1.0, 9)
    total = np.zeros(502, np.uint32)
    for one, share in zip(updates, shares, strict=True):
        total += fixed.encode_update(one, scale, clip=2.24, share=float(share))
    tail = fixed.read_tail(total, 9)
    assert tail.within == sum(fixed.norm_of(one) <= 2.24 for one in updates)
    assert 0 < tail.within < 9
    assert tail.weight == pytest.approx(shares.sum(), abs=9 / 2**24)
    mean = fixed.decode(total[:-2], scale, divisor=tail.weight)
    clipped = [one * min(1.0, 2.24 / fixed.norm_of(one)) for one in updates]
    assert mean == pytest.approx(np.average(clipped, axis=0, weights=shares), abs=1e-6)
    fixed.check_norm(mean, scale, tail, clip=2.24, included=9)
    with pytest.raises(MaskError, match="out_of_range"):
        fixed.check_norm(mean * 100, scale, tail, clip=2.24, included=9)


def test_the_zero_update_is_one():
    scale = fixed.scale_for(1.0, 4)
    words = fixed.encode_update(np.zeros(3, np.float32), scale, clip=1.0)
    assert words.tolist() == [0, 0, 0, 2**24, 2**24]


@pytest.mark.parametrize(
    "tail", [(0, 0), (2**24 * 2 + 1, 0), (2**31, 0), (2**24, 5), (2**24, 3 * 2**24)]
)
def test_a_tail_that_honest_members_cannot_have_made_is_refused(tail):
    with pytest.raises(MaskError, match="out_of_range"):
        fixed.read_tail(np.array([7, *tail], np.uint32), 2)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan])
def test_a_weight_is_a_share_of_the_largest(share):
    with pytest.raises(UsageError):
        fixed.encode_update(update(1), fixed.scale_for(1.0, 4), clip=1.0, share=share)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_with_a_number_that_is_none_is_refused(value):
    bad = update(1)
    bad[70] = value
    with pytest.raises(UsageError, match="none"):
        fixed.encode_update(bad, fixed.scale_for(1.0, 4), clip=1.0)
