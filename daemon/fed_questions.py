"""From the parameters of `fed.stat` to a question and this machine's vector.

Loaded by who asks: a daemon that nobody asks needs no arrays.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from federated.errors import UsageError
from federated.rounds.service import Ask
from federated.rounds.statistics.plain import (
    HistogramQuery,
    MeanQuery,
    QuantilesQuery,
    answer,
    call_id,
    contribution,
    fault,
    kind_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daemon.methods.fed import StatParams
    from federated.rounds.service import Total
    from federated.rounds.statistics.plain import Answer, Query


class Question:
    """What is asked, with this machine's part of it.

    Args:
        p: what the caller said.
        group: the group's id; None: our own machines.

    Raises:
        UsageError: what is wrong; nothing has left yet.
    """

    def __init__(self, p: StatParams, group: bytes | None) -> None:
        self._query = _query(p)
        values = np.asarray(p.values, np.float64)
        weights = None if p.weights is None else np.asarray(p.weights, np.float64)
        self.vector: NDArray[np.float64] = contribution(self._query, values, weights)
        check = functools.partial(fault, self._query)
        self.ask = Ask(
            group=group,
            kind=kind_of(self._query),
            question=call_id(self._query, _policy(p)),
            name=p.name,
            expected=p.expected,
            wait_s=p.wait_s,
            timeout_s=p.timeout_s,
            privacy=p.privacy,
            allow_plain=p.allow_plain,
            check=check,
        )

    def answer(self, total: Total) -> Answer:
        """Read off the sum.

        Raises:
            UsageError: no data lead to such a sum.
        """
        return answer(self._query, total.vector, total.peers)


def _policy(p: StatParams) -> bytes:
    """What must be equal for two calls to meet beside what is asked."""
    wish = "" if p.privacy == "auto" else f"{p.privacy}/"
    return (wish + ("plain" if p.allow_plain else "")).encode()


def _query(p: StatParams) -> Query:
    match p.kind:
        case "mean":
            return MeanQuery(name=p.name)
        case "histogram":
            return HistogramQuery(name=p.name, edges=tuple(p.edges))
        case "quantiles":
            if p.bounds is None:
                raise UsageError("bounds: give the numbers between which quantiles are looked for")
            return QuantilesQuery(name=p.name, q=tuple(p.q), bounds=p.bounds)
