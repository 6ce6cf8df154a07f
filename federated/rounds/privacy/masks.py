"""Masks that cancel: what a member adds to its words so that only the sum can be read.

u sends `x + PRG(b_u) + sum of PRG(k_uv) over v > u - sum of PRG(k_uv) over v < u`, modulo 2^32 or
2^64. k_uv is known to u and v alone, b_u to u until T members give its shares. PRG is the key
stream of AES-256-CTR, counter from 0, read as little-endian words; so whoever has a part of the
words begins at the part's byte, and nobody ever holds a whole mask.

A mask hides one vector. Two vectors under one mask are their difference in the clear: the machine
in `secagg` sees to it that an attempt masks one.

Source: Bonawitz et al., ePrint 2017/281; docs/specs/masks.md s.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from typing_extensions import override

from federated.errors import UsageError
from federated.rounds.privacy.errors import MaskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.hazmat.primitives.ciphers import CipherContext
    from numpy.typing import NDArray

KEY_BYTES: Final = 32
PAIR_INFO: Final = b"covey/fed/mask/1"
BLOCK_BYTES: Final = 131_072
"""Words are masked by so many bytes at a time, which stay in the core's cache while stream after
stream is added. Of 16 KiB..1 MiB: 0.34 s for 20 streams of 100 MB from 128 to 512 KiB, 0.39-0.44 s
at either end."""
AES_BLOCK_BYTES: Final = 16

Words: TypeAlias = "NDArray[np.uint32] | NDArray[np.uint64]"
Stream: TypeAlias = tuple[bytes, bool]
"""(key, whether it is subtracted)."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What one member adds; secret, so it is not printed."""

    streams: tuple[Stream, ...]

    @override
    def __repr__(self) -> str:
        return f"Mask({len(self.streams)} streams)"


def exchange(private: bytes, public: bytes, *, salt: bytes, info: bytes) -> bytes:
    """A key of two members: HKDF-SHA256 of their X25519 secret.

    Raises:
        MaskError: the other's key is of small order, so the secret would be known to all.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise MaskError("bad_roster", "an X25519 key that nobody can exchange with") from error
    return HKDF(SHA256(), KEY_BYTES, salt=salt, info=info).derive(shared)


def public_of(private: bytes) -> bytes:
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def pair_key(me: bytes, private: bytes, other: bytes, public: bytes, *, plan: bytes) -> bytes:
    """k_uv: the same for both of a pair, another one in every plan.

    Args:
        me: this member's id.
        private: its mask key.
        other: the other's id.
        public: the other's mask key.
        plan: the plan's hash.
    """
    info = PAIR_INFO + min(me, other) + max(me, other)
    return exchange(private, public, salt=plan, info=info)


def member_mask(
    me: bytes, private: bytes, seed: bytes, others: Mapping[bytes, bytes], *, plan: bytes
) -> Mask:
    """What `me` adds to its words.

    Args:
        me: this member's id.
        private: its mask key.
        seed: b_u, 32 bytes.
        others: public mask key by id, of the maskset without `me`.
        plan: the plan's hash.
    """
    pairs = (
        (pair_key(me, private, other, public, plan=plan), other < me)
        for other, public in others.items()
    )
    return Mask(((seed, False), *pairs))


def leftover(
    seeds: Sequence[bytes],
    lost: Mapping[bytes, bytes],
    included: Mapping[bytes, bytes],
    *,
    plan: bytes,
) -> Mask:
    """What stays on the sum of the included members' words, with signs so that adding removes it.

    Pairs of two included members have cancelled. Left are each included member's own stream, and
    its pairs with those who are in the maskset and whose words are not here.

    Args:
        seeds: b of every included member.
        lost: private mask key by id, of the maskset's members that are not included.
        included: public mask key by id.
        plan: the plan's hash.
    """
    own = [(seed, True) for seed in seeds]
    pairs = [
        # The included member added it if the lost one's id is greater: so it is subtracted now.
        (pair_key(gone, private, other, public, plan=plan), gone > other)
        for gone, private in lost.items()
        for other, public in included.items()
    ]
    return Mask((*own, *pairs))


def apply(words: Words, mask: Mask, *, start: int = 0) -> None:
    """Add a mask to words in place: a member's to hide them, the `leftover` to read the sum.

    Args:
        words: uint32[n] or uint64[n], one piece of the whole.
        mask: what is added.
        start: place of `words[0]` in the whole, in words.
    """
    if words.dtype not in (np.dtype(np.uint32), np.dtype(np.uint64)) or words.ndim != 1:
        raise UsageError(f"masks are for vectors of uint32 or uint64, not {words.dtype}")
    if not words.flags.c_contiguous or not words.flags.writeable or start < 0:
        raise UsageError("masks are added in place, to a contiguous piece")
    streams = [(_key_stream(key, start * words.itemsize), less) for key, less in mask.streams]
    zeros = memoryview(bytes(BLOCK_BYTES))
    # `update_into` wants room for one block of the cipher less a byte beyond what it writes.
    scratch = bytearray(BLOCK_BYTES + AES_BLOCK_BYTES - 1)
    count = BLOCK_BYTES // words.itemsize
    drawn = np.frombuffer(scratch, dtype=words.dtype.newbyteorder("<"), count=count)
    for begin in range(0, len(words), count):
        piece = words[begin : begin + count]
        taken = drawn[: len(piece)]
        for stream, less in streams:
            stream.update_into(zeros[: piece.nbytes], scratch)
            if less:
                np.subtract(piece, taken, out=piece)
            else:
                np.add(piece, taken, out=piece)


def _key_stream(key: bytes, offset: int) -> CipherContext:
    """AES-256-CTR from byte `offset` of the stream on."""
    blocks, within = divmod(offset, AES_BLOCK_BYTES)
    counter = blocks.to_bytes(AES_BLOCK_BYTES, "big")
    # Every key is of one plan and one use, so a counter from 0 repeats no block of any stream.
    stream = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    stream.update(bytes(within))
    return stream
