"""Six words two people compare to know that nobody stands between their devices.

66 bits of a hash over both device keys and the invite's public key, as words of the BIP-39 English
list (2,048 words, 11 bits each). Source: docs/specs/ticket.md s.4.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Final

from p2p import data

DOMAIN_PAIR: Final = b"covey/pair/1\0"
WORDS: Final = 6
WORD_BITS: Final = 11


def check_words(a: bytes, b: bytes, invite_public: bytes) -> list[str]:
    """The six words of a pairing, the same on both sides.

    Args:
        a: one device key.
        b: the other, in any order.
        invite_public: public key of the invite, so that two pairings show different words.
    """
    low, high = sorted((a, b))
    digest = hashlib.sha256(DOMAIN_PAIR + low + high + invite_public).digest()
    bits = int.from_bytes(digest, "big") >> (len(digest) * 8 - WORDS * WORD_BITS)
    words = word_list()
    mask = (1 << WORD_BITS) - 1
    return [words[bits >> shift & mask] for shift in range((WORDS - 1) * WORD_BITS, -1, -WORD_BITS)]


@cache
def word_list() -> tuple[str, ...]:
    """The 2,048 words, in order."""
    text = resources.files(data).joinpath("bip39_english.txt").read_text("ascii")
    words = tuple(text.split())
    assert len(words) == 1 << WORD_BITS, "the word list was damaged"
    return words
