"""From the parts' products to one coefficient a row and a word about every member.

Source: docs/specs/rounds.md s.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np

from federated.rounds.numeric import gram as products
from federated.rounds.numeric import rules
from federated.rounds.protocol.policy import quorum_of, voters_of
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from federated.rounds.numeric.engines import F64
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.wire import Commit

SQUARE_LOST: Final = 1e-24
"""What float32 loses of the squares of very small numbers."""
REASONS: Final = {
    "not_finite": "a norm that is no number",
    "norm_not_committed": "another norm than it committed to",
    "norm": "a norm over three times the clip",
}


class Verdict(NamedTuple):
    """What the coordinator signs."""

    coefficients: tuple[float, ...]
    rejected: dict[bytes, str]
    clip: float
    """C of the next round."""


def read_gram(values: bytes, rows: int, *, diagonal: bool) -> F64:
    """A reducer's products.

    Returns:
        float64[rows, rows], or float64[rows] if diagonal.

    Raises:
        DecodeError: of another length, or no products that rows can have.
    """
    wanted = rows if diagonal else rows * (rows + 1) // 2
    if len(values) != 8 * wanted:
        raise DecodeError(f"products of {len(values)} bytes where {8 * wanted} belong")
    flat = np.frombuffer(values, "<f8")
    found = flat.copy() if diagonal else products.from_lower_triangle(flat, rows)
    products.verify_products(found)
    return found


def add_up(order: tuple[bytes, ...]) -> Verdict:
    """The verdict of `sum`: every row once."""
    return Verdict((0.0, *[1.0] * len(order)), {}, 0.0)


def judge(
    setting: Setting, order: Sequence[bytes], commits: Mapping[bytes, Commit],
    parts: Sequence[F64], seed: bytes,
) -> Verdict:  # fmt: skip
    """Coefficients by the plan's rule.

    Args:
        setting: the round's.
        order: the included, as rows 1..K.
        commits: theirs.
        parts: each part's products, all of one shape.
        seed: the plan's hash.
    """
    total = np.sum(parts, axis=0)
    voters = voters_of(order, setting.owners)
    squares = total[1:] if total.ndim == 1 else np.diagonal(total)[1:]
    clip = setting.clip or setting.policy.clip
    committed = [commits[peer].norm for peer in order]
    root = _root_row(setting, order)
    rows = [number for number in range(1, len(order) + 1) if number != root]
    made = np.zeros(len(order) + 1)
    if rows:
        found = rules.coefficients(
            _rule_of(setting, root),
            _chosen(total, [root, *rows]),
            [commits[order[row - 1]].weight for row in rows],
            owners=[voters[row - 1] for row in rows],
            clip=clip,
            committed=[committed[row - 1] for row in rows],
            seed=seed,
            weight_cap=setting.policy.weight_cap,
        )
        made[[root, *rows]] = found
    checks = rules.check_norms(squares, clip, committed)
    rejected = {
        order[row - 1]: REASONS.get(checks[row - 1].reason, checks[row - 1].reason)
        for row in rows
        if checks[row - 1].factor == 0
    }
    return Verdict(tuple(made.tolist()), rejected, _next_clip(clip, squares, voters))


def unbelievable(
    setting: Setting, order: Sequence[bytes], commits: Mapping[bytes, Commit],
    parts: Mapping[int, F64],
) -> str:  # fmt: skip
    """Why the products cannot be right, or nothing: a reducer lied, not the members.

    More members than may be missing cannot all have committed to other norms than they sent, and
    row 0 is the last update, whose norm is known.
    """
    total = np.sum(list(parts.values()), axis=0)
    squares = total if total.ndim == 1 else np.diagonal(total)
    reference = setting.reference_square
    if reference is not None and not _near(squares[0], reference):
        return "row 0 is not the last update"
    wrong = sum(
        not _near(square, commits[peer].norm ** 2)
        for peer, square in zip(order, squares[1:], strict=True)
    )
    if wrong > len(order) - quorum_of(len(order), setting.policy.quorum):
        return f"{wrong} of {len(order)} members' norms are not those that they committed to"
    return ""


def _near(square: float, wanted: float) -> bool:
    return bool(abs(square - wanted) <= 2 * rules.NORM_TOLERANCE * wanted + SQUARE_LOST)


def _root_row(setting: Setting, order: Sequence[bytes]) -> int:
    """Which row the rule compares with: that of the member with root data, else the last update."""
    root = setting.policy.root_data
    return order.index(root) + 1 if setting.rule == "fltrust" and root in order else 0


def _rule_of(setting: Setting, root: int) -> rules.Rule:
    """The plan's rule; without the member whose data it needs, the next best."""
    rule = cast("rules.Rule", setting.rule)
    return "centred_clipping" if rule == "fltrust" and not root else rule


def _chosen(total: F64, rows: list[int]) -> F64:
    return total[rows] if total.ndim == 1 else total[np.ix_(rows, rows)]


def _next_clip(clip: float | None, squares: F64, voters: Sequence[Hashable]) -> float:
    # By owners, so that nobody's many devices move it, and with those whom C rejected: without
    # them every liar would pull C down for the rest.
    if clip is None:
        return rules.median_norm(squares, voters)
    return rules.adapted_clip(clip, rules.share_within(squares, clip, voters))
