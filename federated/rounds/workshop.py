"""Arrays and bytes of one round: cut, encode, check what came, products, merge.

Everything here computes and blocks; the driver calls it in a thread. What the machine knows by hash
lies here under that hash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, cast

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import gram, kernels, order, rules
from federated.rounds.numeric.payload import decode_part_untrusted, encode, join_parts
from federated.rounds.protocol.orders import GramMade, Merged, Prepared
from federated.rounds.protocol.policy import voters_of
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.rounds.numeric.engines import F32, F64
    from federated.rounds.numeric.payload import Vector
    from federated.rounds.protocol.orders import MakeGram, Merge
    from federated.rounds.protocol.wire import PartOf, Plan

    Check = Callable[[F64], str]
    Applies = Callable[[int, Vector], str]


@dataclass
class _Bench:
    """What lies here for one plan.

    A later plan gets a bench of its own: what a thread still does for the earlier one disturbs
    nothing.
    """

    plan_hash: bytes
    plan: Plan
    own: dict[int, bytes] = field(default_factory=dict)
    rows: dict[tuple[int, bytes], Vector] = field(default_factory=dict)


class Workshop:
    """One round's arrays.

    Args:
        reference: the last applied update, row 0 of the rules; None: zeros.
        owners: each member's owner.
        check: what is wrong with a sender's whole vector, or nothing.
        applies: why merged values cannot be applied from an element on, or nothing.
    """

    def __init__(
        self,
        reference: F32 | None = None,
        owners: dict[bytes, bytes] | None = None,
        check: Check | None = None,
        applies: Applies | None = None,
    ) -> None:
        self.vector: Vector | None = None
        self._reference = reference
        self._owners = owners or {}
        self._check = check
        self._applies = applies
        self._bench: _Bench | None = None
        self.merged: dict[bytes, bytes] = {}

    @property
    def has_reference(self) -> bool:
        """Whether row 0 of the rules is here."""
        return self._reference is not None

    def reference_square(self) -> float:
        """Squared norm of row 0; 0 where it is zeros."""
        if self._reference is None:
            return 0.0
        return float(gram.diagonal([self._reference])[0])

    # ---- plans

    def see(self, plan_hash: bytes, plan: Plan) -> None:
        """Work by this plan from now on; what was for another is of no use any more."""
        if self._bench is None or self._bench.plan_hash != plan_hash:
            self._bench = _Bench(plan_hash, plan)

    def _at(self, plan_hash: bytes) -> _Bench:
        bench = self._bench
        if bench is None or bench.plan_hash != plan_hash:
            raise UsageError("a plan that is not worked on here any more")
        return bench

    # ---- our update

    def prepare(self, plan_hash: bytes) -> Prepared:
        """Cut our update by the plan that was seen, and encode it.

        Raises:
            UsageError: it cannot be encoded, or is of another length.
        """
        bench = self._at(plan_hash)
        plan, vector = bench.plan, self.vector
        if vector is None or len(vector) != plan.elements:
            raise UsageError("an update of another length than the plan's")
        hashes, square = [], 0.0
        for number, part in enumerate(plan.parts):
            data = encode(plan.codec, vector[part.start : part.start + part.count])
            bench.own[number] = data
            hashes.append(sha256(data).digest())
            if plan.rule != "sum":
                # The norm is of what others will decode, not of what went into the codec.
                row = decode_part_untrusted(plan.codec, data, part.count)
                square += float(gram.diagonal([cast("F32", row)])[0])
        return Prepared(plan_hash, tuple(hashes), math.sqrt(square))

    def own_part(self, plan_hash: bytes, part: int) -> bytes | None:
        """Our encoded part."""
        bench = self._bench
        return bench.own.get(part) if bench is not None and bench.plan_hash == plan_hash else None

    # ---- others' updates

    def accept(self, plan_hash: bytes, part: int, sender: bytes, data: bytes | bytearray) -> str:
        """Take in a sender's part; what is wrong with it, or nothing."""
        try:
            bench = self._at(plan_hash)
            piece = bench.plan.parts[part]
            row = decode_part_untrusted(bench.plan.codec, data, piece.count)
        except (UsageError, DecodeError) as error:
            return str(error)
        if self._check is not None and piece.count == bench.plan.elements:
            wrong = self._check(row.astype(np.float64))
            if wrong:
                return wrong
        bench.rows[part, sender] = row
        return ""

    def gram(self, wanted: MakeGram) -> GramMade:
        """Products of a part's rows.

        Raises:
            UsageError: the rows are not here any more.
        """
        rows = self._rows_of(self._at(wanted.plan_hash), wanted.part, wanted.order)
        products = gram.diagonal if wanted.diagonal else _triangle
        values = products(rows)
        return GramMade(wanted.plan_hash, wanted.part, values.astype("<f8").tobytes())

    # ---- merging

    def merge(self, wanted: Merge) -> Merged:
        """Merge a part and encode it.

        Raises:
            UsageError: the rows are not here any more, or the coefficients lead beyond the codec.
        """
        bench = self._at(wanted.plan_hash)
        with np.errstate(over="ignore", invalid="ignore"):
            merged = self._sum(bench, wanted) if bench.plan.rule == "sum" else self._combined(
                bench, wanted
            )  # fmt: skip
        data = encode(bench.plan.codec, merged)
        digest = sha256(data).digest()
        self.merged[digest] = data
        return Merged(wanted.plan_hash, wanted.part, wanted.counter, len(data), digest)

    def _sum(self, bench: _Bench, wanted: Merge) -> Vector:
        rows = self._senders_rows(bench, wanted.part, wanted.order)
        total = np.zeros(len(rows[0]))
        for row in rows:
            total += row
        return total

    def _combined(self, bench: _Bench, wanted: Merge) -> Vector:
        rows = self._rows_of(bench, wanted.part, wanted.order)
        if bench.plan.rule not in {"median", "trimmed"}:
            return kernels.combine(rows, wanted.coefficients)
        owners = voters_of(wanted.order, self._owners)
        scales = wanted.coefficients[1:]
        if bench.plan.rule == "median":
            return order.median(rows[1:], scales=scales, owners=owners)
        cut = rules.liars_allowed(rules.count_owners(owners))
        return order.trimmed_mean(rows[1:], cut, scales=scales, owners=owners)

    def _senders_rows(self, bench: _Bench, part: int, senders: Sequence[bytes]) -> list[Vector]:
        try:
            return [bench.rows[part, peer] for peer in senders]
        except KeyError:
            raise UsageError("a part of a member that is not here") from None

    def _rows_of(self, bench: _Bench, part: int, senders: Sequence[bytes]) -> list[F32]:
        piece = bench.plan.parts[part]
        if self._reference is None:
            first = np.zeros(piece.count, np.float32)
        else:
            first = self._reference[piece.start : piece.start + piece.count]
        return [first, *(cast("F32", row) for row in self._senders_rows(bench, part, senders))]

    # ---- merged parts

    def unfit_merged(self, plan_hash: bytes, codec: str, piece: PartOf, data: bytes) -> str:
        """Why a merged part cannot be part of a result, or nothing.

        It is tried before it is voted for: after a decision nobody could do without it.
        """
        del plan_hash
        try:
            values = decode_part_untrusted(codec, data, piece.count)
        except DecodeError as error:
            return str(error)
        return "" if self._applies is None else self._applies(piece.start, values)

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


def _triangle(rows: Sequence[F32]) -> F64:
    return gram.lower_triangle(gram.gram(rows))
