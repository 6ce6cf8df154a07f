"""Sets of items and runs of a reconciliation between two of them."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from p2p.replication.ranges import (
    FINGERPRINT_BYTES,
    MESSAGE_BYTES_MAX,
    ROUNDS_MAX,
    Initiator,
    RangeSet,
    Responder,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

SALT: Final = b"salt of a sessio"
DAY_MS: Final = 86_400_000
START_MS: Final = 1_700_000_000_000


def item(ms: int, record_id: bytes) -> bytes:
    """One item as an index has it."""
    return (ms << 16).to_bytes(8, "big") + record_id


def random_items(rng: random.Random, count: int, span_ms: int = 90 * DAY_MS) -> list[bytes]:
    """Sorted items with clocks spread over a time."""
    return sorted(item(START_MS + rng.randrange(span_ms), rng.randbytes(32)) for _ in range(count))


def packed(items: Iterable[bytes]) -> bytes:
    """As `IdIndex.packed`."""
    return b"".join(sorted(items))


@dataclass
class Run:
    """How a reconciliation went."""

    have: list[bytes]
    need: list[bytes]
    complete: bool
    rounds: int
    bytes: int


def reconcile(
    ours: RangeSet,
    theirs: RangeSet,
    *,
    salt: bytes = SALT,
    message_bytes: int = MESSAGE_BYTES_MAX,
    rounds_max: int = ROUNDS_MAX,
) -> Run:
    """Run one to its end, or to its cap."""
    initiator = Initiator(ours, salt, message_bytes=message_bytes, rounds_max=rounds_max)
    responder = Responder(theirs, salt, message_bytes=message_bytes, rounds_max=rounds_max)
    message: bytes | None = initiator.start()
    carried = 0
    while message is not None:
        answer = responder.receive(message)
        assert max(len(message), len(answer)) <= message_bytes
        carried += len(message) + len(answer)
        message = initiator.receive(answer)
    return Run(
        initiator.have,
        responder.resolve(initiator.need),
        initiator.complete,
        initiator.rounds,
        carried,
    )


class AdditiveSet(RangeSet):
    """The yardstick: negentropy's fingerprint, a hash of the sum of the ids modulo 2**256.

    Summed limb by limb in C, the fastest that plain Python offers; no salt, as its inventor has it.
    """

    __slots__ = ("_limbs",)

    def __init__(self, packed: bytes) -> None:
        super().__init__(packed)
        words = array("Q", packed)
        self._limbs = [words[at::5] for at in range(1, 5)]

    @override
    def fingerprint(self, salt: bytes, first: int, end: int) -> bytes:
        """16 bytes over the sum of the ids and their number."""
        del salt
        total = sum(sum(limb[first:end]) << 64 * at for at, limb in enumerate(self._limbs))
        total &= (1 << 256) - 1
        data = total.to_bytes(32, "little") + (end - first).to_bytes(8, "little")
        return hashlib.sha256(data).digest()[:FINGERPRINT_BYTES]


class XorSet(RangeSet):
    """The other yardstick: iroh-docs' fingerprint, the XOR of the ids."""

    __slots__ = ()

    @override
    def fingerprint(self, salt: bytes, first: int, end: int) -> bytes:
        """16 bytes of the XOR's hash."""
        del salt
        total = 0
        for at in range(first, end):
            total ^= int.from_bytes(self.id_at(at), "big")
        data = total.to_bytes(32, "big") + (end - first).to_bytes(8, "little")
        return hashlib.sha256(data).digest()[:FINGERPRINT_BYTES]
