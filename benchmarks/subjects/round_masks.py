"""Our masks and Flower's generator in one process, in Flower's environment, our tree on the path.

CPU seconds of one thread, `process_time`, the garbage collected before each measurement; the
contestants take turns in every repeat, and the least of the repeats counts. Before anything is
measured the masks of two members must cancel.
"""

from __future__ import annotations

import json
import random
import sys
import time

import numpy as np
from contest import least
from flwr.common.secure_aggregation import secaggplus_utils

from federated.rounds.privacy import masks

SEEDS_TRIED = 2_000
FLOWER_WORDS = 6_250_000
"""Flower makes its words as int64: 25 M of them with their copies would want a gigabyte."""


def member(count, rng):
    """The mask of one of `count` members: exchange and derivation of its pairs' keys are in it."""
    ids = sorted(rng.randbytes(32) for _ in range(count))
    private = {peer: rng.randbytes(32) for peer in ids}
    public = {peer: masks.public_of(key) for peer, key in private.items()}
    me = ids[count // 2]
    others = {peer: key for peer, key in public.items() if peer != me}
    return lambda: masks.member_mask(me, private[me], bytes(32), others, plan=bytes(32))


def check():
    """Two members' masks leave their own streams alone."""
    one, two, key = b"1" * 32, b"2" * 32, b"k" * 32
    total = np.zeros(100_001, np.uint32)
    masks.apply(total, masks.Mask(((one, False), (key, False))))
    masks.apply(total, masks.Mask(((two, False), (key, True))))
    masks.apply(total, masks.Mask(((one, True), (two, True))))
    assert not total.any()


def measure(members, n, repeats):
    """A member's masking, one stream of Flower's, and what a guess at a seed takes."""
    check()
    rng = random.Random(1)
    make = member(members, rng)
    words = np.zeros(n, np.uint32)
    flower_words = min(n, FLOWER_WORDS)
    shared = rng.randbytes(32)
    generate = secaggplus_utils.pseudo_rand_gen
    took = least(
        {
            "member": lambda: masks.apply(words, make()),
            "keys": make,
            "flower": lambda: generate(shared, 2**32, [(flower_words,)]),
        },
        repeats,
    )
    return {
        "member_s": took["member"],
        "keys_s": took["keys"],
        "ours_gb_per_s": members * words.nbytes / took["member"] / 1e9,
        "flower_gb_per_s": 4 * flower_words / took["flower"] / 1e9,
        "ours_seed_bits": 8 * min(len(key) for key, _ in make().streams),
        "flower_seed_bits": flower_seed_bits(),
        "flower_seed_us": seed_us(),
    }


def flower_seed_bits():
    """Bits that decide Flower's words: what `RandomState` gets is folded from the shared key.

    Found by doing it: the generator is asked with keys whose four-byte words have the same XOR.
    """
    generate = secaggplus_utils.pseudo_rand_gen
    key = bytes(range(32))
    same = key[16:] + key[:16]  # another key of 256 bits with the same XOR
    first, second = (generate(k, 2**32, [(64,)])[0] for k in (key, same))
    return 32 if np.array_equal(first, second) else 8 * len(key)


def seed_us():
    """Microseconds for one guess at a seed of 32 bits, four words of output."""
    began = time.process_time()
    for seed in range(SEEDS_TRIED):
        np.random.RandomState(seed).randint(0, 2**32 - 1, 4, dtype=np.int64)
    return (time.process_time() - began) / SEEDS_TRIED * 1e6


def main():
    """Answer `measure MEMBERS WORDS REPEATS` lines from standard input with one JSON line each."""
    print("ready", flush=True)
    for line in sys.stdin:
        _, *args = line.split()
        print(json.dumps(measure(*map(int, args))), flush=True)


if __name__ == "__main__":
    main()
