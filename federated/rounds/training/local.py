"""What members of a round would make of encoded updates, in one process: for trials and tests."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from federated.errors import UsageError
from federated.rounds.numeric import codec as codecs
from federated.rounds.numeric.kernels import weighted_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.numeric.codec import Codec
    from federated.rounds.training.arrays import F32

WEIGHT_CAP: Final = 3.0
"""Medians that a weight counts for at most: weights are claims. Untuned."""


def capped(weights: Sequence[float], cap: float = WEIGHT_CAP) -> list[float]:
    """Weights, none above `cap` times their median.

    Raises:
        UsageError: no weight, or one that is not above 0.
    """
    if not weights or not all(weight > 0 for weight in weights):
        raise UsageError("weights are above 0")
    most = cap * statistics.median(weights)
    return [min(weight, most) for weight in weights]


def merge(codec: Codec, updates: Sequence[tuple[bytes, float]], n: int) -> F32:
    """The merged update as all members decode it: float32[n].

    Args:
        codec: of the updates, and of the result on its way back.
        updates: encoded update and weight of each member, in the roster's order.
        n: values of an update.

    Raises:
        DecodeError: an update of another size or with values that are none.
        UsageError: as `capped`.
    """
    rows = [codecs.decode_untrusted(codec, data, n) for data, _ in updates]
    mean = weighted_mean(rows, capped([weight for _, weight in updates]), strict=True)
    return codecs.decode_untrusted(codec, codecs.encode(codec, mean), n)
