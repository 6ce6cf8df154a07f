"""Arrays of a masked round of sums: words, masks, and the sum that is left when they are taken off.

A sum's numbers are whole, so a word is the number itself modulo 2^64 and nothing is rounded. Nobody
here ever sees another member's numbers: what comes is words under masks, of which all that can be
checked is how many there are. The merged part is two sets of members, who shared and whose words
are in it, and their sum as it is under the masks.

Source: docs/specs/masks.md s.2, s.4 and s.5.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np
from typing_extensions import override

from federated.errors import UsageError
from federated.rounds.numeric.payload import MASK_HEAD_BYTES
from federated.rounds.privacy import fixed, masks
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.roster import SET_BYTES, two_thirds
from federated.rounds.protocol.orders import Encoded, Merged, Prepared, SetsRead, SumOpened
from federated.rounds.workshop import Workshop
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from federated.rounds.numeric.payload import Vector
    from federated.rounds.protocol.orders import Cover, Encode, Merge, OpenSum, ReadSets
    from federated.rounds.protocol.wire import PartOf, Plan

    Words = NDArray[np.uint64]

PART: Final = 0
"""A masked sum is one part."""
MASKSETS_KEPT: Final = 16


class MaskedWorkshop(Workshop):
    """One masked round's arrays.

    Args:
        circle: members that the round began with.
    """

    def __init__(self, circle: int) -> None:
        super().__init__()
        self._least = two_thirds(circle)
        self._words: tuple[bytes, Words] | None = None
        """Our words, and the plan that they are for."""
        self._covered: dict[tuple[bytes, bytes], Words] = {}
        """Everybody's masked words by plan and sender."""
        self._masksets: dict[bytes, bytes] = {}
        self._mask: masks.Mask | None = None
        """What is to be added to the decided sum."""

    # ---- our own

    def encode(self, order: Encode) -> Encoded:
        """Words of our vector.

        Raises:
            UsageError: of another length, or with a number that is not whole or too large.
        """
        vector = self.vector
        if vector is None or len(vector) != order.plan.elements:
            raise UsageError("an update of another length than the plan's")
        if (vector != np.rint(vector)).any():
            raise UsageError("masked sums are of whole numbers")
        update = np.ascontiguousarray(vector, np.float64)
        words = fixed.encode(update, fixed.count_scale(len(order.plan.joins)))
        self._words = (order.plan_hash, words.astype(np.uint64, copy=False))
        return Encoded(order.plan_hash, sha256(update.tobytes()).digest(), fixed.digest_of(words))

    def cover(self, order: Cover) -> Prepared:
        """Hide our words.

        Raises:
            UsageError: the mask is for other words.
        """
        plan_hash, words = self._words or (b"", np.empty(0, np.uint64))
        if plan_hash != order.plan_hash or fixed.digest_of(words) != order.words:
            raise UsageError("a mask for words that are not here")
        covered = words.copy()
        masks.apply(covered, order.mask)
        data = covered.astype("<u8").tobytes()
        # Earlier views' too: one of them may have been voted for, and be finished now.
        kept = list(self._masksets.items())[-MASKSETS_KEPT + 1 :]
        self._masksets = {**dict(kept), plan_hash: order.maskset}
        self._at(plan_hash).own[PART] = data
        return Prepared(plan_hash, (sha256(data).digest(),), 0.0)

    # ---- everybody's

    @override
    def accept(self, plan_hash: bytes, part: int, sender: bytes, data: bytes | bytearray) -> str:
        try:
            count = self._at(plan_hash).plan.elements
        except UsageError as error:
            return str(error)
        if len(data) != 8 * count:
            return f"{len(data)} bytes where {8 * count} belong"
        kept = {key: one for key, one in self._covered.items() if key[0] == plan_hash}
        kept[plan_hash, sender] = np.frombuffer(bytes(data), "<u8").astype(np.uint64)
        self._covered = kept
        return ""

    @override
    def merge(self, wanted: Merge) -> Merged:
        plan = self._at(wanted.plan_hash).plan
        maskset = self._masksets.get(wanted.plan_hash)
        rows = [self._covered.get((wanted.plan_hash, peer)) for peer in wanted.order]
        if maskset is None:
            raise UsageError("a masked sum of a set that this machine is not in")
        total = np.zeros(plan.elements, np.uint64)
        for row in rows:
            if row is None:
                raise UsageError("words of a member that are not here")
            total += row
        data = maskset + _set_of(plan, wanted.order) + total.astype("<u8").tobytes()
        digest = sha256(data).digest()
        self.merged[digest] = data
        return Merged(wanted.plan_hash, wanted.part, wanted.counter, len(data), digest)

    @override
    def unfit_merged(self, plan_hash: bytes, codec: str, piece: PartOf, data: bytes) -> str:
        if len(data) != MASK_HEAD_BYTES + 8 * piece.count:
            return "a sum of another length"
        shared = int.from_bytes(data[:SET_BYTES], "little")
        inside = int.from_bytes(data[SET_BYTES:MASK_HEAD_BYTES], "little")
        if inside & ~shared or inside.bit_count() < self._least:
            return "a sum of a set that nobody may open"
        handed = self._masksets.get(plan_hash)
        if handed is not None and data[:SET_BYTES] != handed:
            # Decided, it could never be read: our secrets are shared among another set.
            return "a sum under another set than the coordinator handed out"
        return ""

    # ---- the decided sum

    def sets(self, order: ReadSets) -> SetsRead:
        """The sets that it names."""
        data = self.merged[order.sha256]
        return SetsRead(order.plan_hash, data[:SET_BYTES], data[SET_BYTES:MASK_HEAD_BYTES])

    def open(self, order: OpenSum) -> SumOpened:
        """What is to be taken off it, from the shares that members revealed."""
        try:
            found = order.opening.open()
        except MaskError as error:
            # With the next reveal it may succeed: who spoilt it is looked for when none can come.
            spoilt = order.opening.spoilt() if order.opening.complete else ()
            return SumOpened(order.plan_hash, failure=str(error), spoilt=spoilt)
        self._mask = found.mask
        return SumOpened(order.plan_hash, found.liars, found.secrets)

    @override
    def whole(self, plan: Plan, hashes: Sequence[bytes]) -> Vector:
        """The sum, its masks taken off.

        Raises:
            DecodeError: it is of another length.
            UsageError: nobody has opened it.
        """
        data = self.merged[hashes[0]][MASK_HEAD_BYTES:]
        if len(hashes) != 1 or len(data) != 8 * plan.elements:
            raise DecodeError("a sum of another length")
        if self._mask is None:
            raise UsageError("a masked sum that nobody has opened")
        words = np.frombuffer(data, "<u8").astype(np.uint64)
        masks.apply(words, self._mask)
        return fixed.decode(words, fixed.count_scale(len(plan.joins)))


def _set_of(plan: Plan, peers: Sequence[bytes]) -> bytes:
    """Members as a set of roster places; see `privacy.roster`."""
    places = {one.signer: place for place, one in enumerate(plan.joins)}
    bits = sum(1 << places[peer] for peer in peers)
    return bits.to_bytes(SET_BYTES, "little")
