"""Arrays and bytes of one round: cut, encode, check what came, products, merge.

Everything here computes and blocks; the driver calls it in a thread. What the machine knows by hash
lies here under that hash.
"""

from __future__ import annotations

import math
from hashlib import sha256
from typing import TYPE_CHECKING, cast

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import codec, gram, kernels, order, rules
from federated.rounds.protocol.orders import GramMade, Merged, Prepared
from federated.rounds.protocol.policy import voters_of
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from federated.rounds.numeric.engines import F32, F64
    from federated.rounds.protocol.orders import MakeGram, Merge
    from federated.rounds.protocol.wire import Plan

    Vector = NDArray[np.float32] | NDArray[np.float64]
    Check = Callable[[F64], str]


def encoded_bytes(name: str, count: int) -> int:
    """Bytes of `count` values in a codec; `f64` is that of sums."""
    if name == "f64":
        return 8 * count
    return codec.encoded_size(cast("codec.Codec", name), count)


def encode(name: str, values: Vector) -> bytes:
    """Values in a codec.

    Raises:
        UsageError: a value that cannot be encoded.
    """
    if name == "f64":
        if not np.isfinite(values).all():
            raise UsageError("a sum is not finite: the values are too large")
        return np.ascontiguousarray(values, "<f8").tobytes()
    return codec.encode(cast("codec.Codec", name), np.ascontiguousarray(values, np.float32))


def decode_part_untrusted(name: str, data: bytes | bytearray, count: int) -> Vector:
    """A peer's values.

    Raises:
        DecodeError: of another length, or not all finite.
    """
    if name == "f64":
        if len(data) != 8 * count:
            raise DecodeError(f"{len(data)} bytes where {8 * count} belong")
        values = np.frombuffer(bytes(data), "<f8")
        if not np.isfinite(values).all():
            raise DecodeError("a value that is not finite")
        return values
    return codec.decode_untrusted(cast("codec.Codec", name), data, count)


class Workshop:
    """One round's arrays.

    Args:
        reference: the last applied update, row 0 of the rules; None: zeros.
        owners: each member's owner.
        check: what is wrong with a sender's whole vector, or nothing.
    """

    def __init__(
        self,
        reference: F32 | None = None,
        owners: dict[bytes, bytes] | None = None,
        check: Check | None = None,
    ) -> None:
        self.vector: Vector | None = None
        self._reference = reference
        self._owners = owners or {}
        self._check = check
        self._own: dict[tuple[bytes, int], bytes] = {}
        self._rows: dict[tuple[bytes, int, bytes], Vector] = {}
        self.merged: dict[bytes, bytes] = {}
        self._plans: dict[bytes, Plan] = {}

    def prepare(self, plan_hash: bytes, plan: Plan) -> Prepared:
        """Cut our update by the plan and encode it.

        Raises:
            UsageError: it cannot be encoded, or is of another length.
        """
        vector = self.vector
        if vector is None or len(vector) != plan.elements:
            raise UsageError("an update of another length than the plan's")
        self._forget_others(plan_hash)
        self._plans[plan_hash] = plan
        hashes, square = [], 0.0
        for number, part in enumerate(plan.parts):
            data = encode(plan.codec, vector[part.start : part.start + part.count])
            self._own[plan_hash, number] = data
            hashes.append(sha256(data).digest())
            if plan.rule != "sum":
                # The norm is of what others will decode, not of what went into the codec.
                row = decode_part_untrusted(plan.codec, data, part.count)
                square += float(gram.diagonal([cast("F32", row)])[0])
        return Prepared(plan_hash, tuple(hashes), math.sqrt(square))

    def _forget_others(self, plan_hash: bytes) -> None:
        """A view has one plan: what was cut for an earlier one is of no use."""
        self._own = {key: data for key, data in self._own.items() if key[0] == plan_hash}
        self._rows = {key: row for key, row in self._rows.items() if key[0] == plan_hash}

    def see(self, plan_hash: bytes, plan: Plan) -> None:
        """Learn a plan whose parts may come before we have prepared our own."""
        self._plans[plan_hash] = plan

    def own_part(self, plan_hash: bytes, part: int) -> bytes | None:
        """Our encoded part."""
        return self._own.get((plan_hash, part))

    def part_bytes(self, plan_hash: bytes, part: int) -> int:
        """Bytes of a part under a plan that was seen; 0 if it was not."""
        plan = self._plans.get(plan_hash)
        if plan is None or part >= len(plan.parts):
            return 0
        return encoded_bytes(plan.codec, plan.parts[part].count)

    def accept(self, plan_hash: bytes, part: int, sender: bytes, data: bytes | bytearray) -> str:
        """Take in a sender's part; what is wrong with it, or nothing."""
        plan = self._plans[plan_hash]
        try:
            row = decode_part_untrusted(plan.codec, data, plan.parts[part].count)
        except DecodeError as error:
            return str(error)
        if self._check is not None and plan.parts[part].count == plan.elements:
            wrong = self._check(row.astype(np.float64))
            if wrong:
                return wrong
        self._rows[plan_hash, part, sender] = row
        return ""

    def gram(self, wanted: MakeGram) -> GramMade:
        """Products of a part's rows."""
        rows = self._rows_of(wanted.plan_hash, wanted.part, wanted.order)
        products = gram.diagonal if wanted.diagonal else _triangle
        values = products(rows)
        return GramMade(wanted.plan_hash, wanted.part, values.astype("<f8").tobytes())

    def merge(self, wanted: Merge) -> Merged:
        """Merge a part and encode it."""
        plan = self._plans[wanted.plan_hash]
        merged = self._sum(wanted) if plan.rule == "sum" else self._combined(plan, wanted)
        data = encode(plan.codec, merged)
        digest = sha256(data).digest()
        self.merged[digest] = data
        return Merged(wanted.plan_hash, wanted.part, wanted.counter, len(data), digest)

    def _sum(self, wanted: Merge) -> Vector:
        rows = [self._rows[wanted.plan_hash, wanted.part, peer] for peer in wanted.order]
        total = np.zeros(len(rows[0]))
        for row in rows:
            total += row
        return total

    def _combined(self, plan: Plan, wanted: Merge) -> Vector:
        rows = self._rows_of(wanted.plan_hash, wanted.part, wanted.order)
        if plan.rule not in {"median", "trimmed"}:
            return kernels.combine(rows, wanted.coefficients)
        owners = voters_of(wanted.order, self._owners)
        scales = wanted.coefficients[1:]
        if plan.rule == "median":
            return order.median(rows[1:], scales=scales, owners=owners)
        cut = rules.liars_allowed(rules.count_owners(owners))
        return order.trimmed_mean(rows[1:], cut, scales=scales, owners=owners)

    def _rows_of(self, plan_hash: bytes, part: int, senders: Sequence[bytes]) -> list[F32]:
        piece = self._plans[plan_hash].parts[part]
        if self._reference is None:
            first = np.zeros(piece.count, np.float32)
        else:
            first = self._reference[piece.start : piece.start + piece.count]
        return [first, *(cast("F32", self._rows[plan_hash, part, peer]) for peer in senders)]

    # ---- merged parts

    def keep_merged(self, digest: bytes, data: bytes) -> None:
        """A merged part that came, its hash checked."""
        self.merged[digest] = data

    def merged_part(self, digest: bytes) -> bytes | None:
        """A merged part by its hash."""
        return self.merged.get(digest)

    def whole(self, plan: Plan, hashes: Sequence[bytes]) -> Vector:
        """The merged update.

        Raises:
            DecodeError: a reducer merged to bytes that do not decode.
        """
        counts = [part.count for part in plan.parts]
        parts = [self.merged[digest] for digest in hashes]
        return join_parts(plan.codec, list(zip(parts, counts, strict=True)))


def join_parts(name: str, parts: Sequence[tuple[bytes, int]]) -> Vector:
    """The vector of encoded (part, number of values), in order.

    Raises:
        DecodeError: one does not decode.
    """
    pieces = [decode_part_untrusted(name, data, count) for data, count in parts]
    if len(pieces) == 1:
        return pieces[0]
    return cast("Vector", np.concatenate(pieces))


def _triangle(rows: Sequence[F32]) -> F64:
    return gram.lower_triangle(gram.gram(rows))
