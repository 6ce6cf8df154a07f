"""What a trainer hands in, and what is refused of it before it can do harm in a round."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import kernels, tensors
from federated.rounds.numeric.limits import WEIGHT_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federated.rounds.numeric.dtypes import F32
    from federated.rounds.protocol.wire import MemberStatus

SQUARE_MAX: Final = 2.0**126
"""Of an update's squared length: products of rows are summed in float32, and the coarsest codec may
decode a value to 4/3 of it."""
METRICS_MAX: Final = 32
METRIC_CHARACTERS_MAX: Final = 200


class Submission(msgspec.Struct, frozen=True):
    """What a trainer made of the state after round `base`."""

    base: int
    update: object
    """float32[n]."""
    weight: float
    metrics: dict[str, float]


def check_figures(weight: float, metrics: Mapping[str, float]) -> None:
    """Refuse a weight or figures that no message can carry.

    Raises:
        UsageError: with what to do.
    """
    if not 0 < weight <= WEIGHT_MAX:
        raise UsageError(f"a weight of {weight}: give a number above 0")
    if len(metrics) > METRICS_MAX:
        raise UsageError(f"{len(metrics)} metrics: give {METRICS_MAX} at most")
    for name, value in metrics.items():
        if not (0 < len(name) <= METRIC_CHARACTERS_MAX and _is_text(name)):
            raise UsageError(
                f"metric {name[:40]!r}: a name has 1 to {METRIC_CHARACTERS_MAX} characters of text"
            )
        if not math.isfinite(value):
            raise UsageError(f"metric {name!r} is {value}: leave out what is not finite")


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_update(schema: tensors.Schema, update: F32) -> None:
    """Refuse an update that cannot be merged. Blocks: run it in a worker.

    Raises:
        UsageError: of another length, not finite, or too long for its norm to be computed.
    """
    tensors.check_update(schema, update)
    square = sum(
        float(np.dot(wide, wide))
        for wide in (update[part].astype(np.float64) for part in kernels.slices(len(update)))
    )
    if square > SQUARE_MAX:
        raise UsageError(
            f"an update {math.sqrt(square):.3g} long: {math.sqrt(SQUARE_MAX):.3g} is the most that"
            " can be merged; training has diverged, begin again from the last state with smaller"
            " steps"
        )


def left_over(
    submission: Submission, statuses: Sequence[MemberStatus], me: bytes
) -> Submission | None:
    """What remains of an update after an applied round: nothing if it was included, else half.

    Args:
        submission: what was handed in.
        statuses: how the members fared, as far as this one heard.
        me: this device.
    """
    included = any(one.peer == me and one.status == "included" for one in statuses)
    if included or not statuses:
        return None
    return msgspec.structs.replace(submission, weight=submission.weight / 2)
