"""Questions to everybody's data from a Python program: numbers or items in, one answer for all.

    with Statistics.open() as everybody:
        print(everybody.mean(latencies, expected=3).value)
        for one in everybody.top_k(words, k=10, epsilon=4.0).items:
            print(one.item, one.count, one.sd)

The same call runs on each machine, with that machine's own data; see docs/guides/rounds.md for what
leaves it. Blocking. Source: docs/specs/local-rpc.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, cast

import msgspec
from typing_extensions import override

from daemon.cli.client import Client, open_client
from daemon.closing import Closes
from daemon.methods.fed import RoundInfo, StatParams, StatResult
from daemon.methods.fed_topk import TopKParams, TopKResult

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack

    from daemon.json_types import Json
    from federated.rounds.statistics.answers import Histogram, Mean, Quantiles, TopK, Way

T = TypeVar("T")


class Who(TypedDict, total=False):
    """Whom a question is for; see `StatParams` for each."""

    name: str
    group: str | None
    expected: int
    wait_s: float
    timeout_s: float
    allow_plain: bool


class Statistics(Closes):
    """Questions by way of a running daemon. Of one thread.

    Args:
        client: a connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.round: RoundInfo | None = None
        """How the last answer came about."""

    @classmethod
    def open(cls, path: str | None = None) -> Statistics:
        """The daemon at the socket `path`; None: this user's, which is started if need be."""
        return cls(open_client(socket_path=path))

    @override
    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def mean(
        self, values: Iterable[float], weights: Iterable[float] | None = None, **who: Unpack[Who]
    ) -> Mean:
        """The weighted mean of all values, and their variance.

        Raises:
            CliError: nobody else asked, or why it cannot be asked.
        """
        weighed = None if weights is None else [float(one) for one in weights]
        answer = self._stat(StatParams(kind="mean", values=_floats(values), weights=weighed, **who))
        assert answer.mean is not None
        return answer.mean

    def histogram(
        self, values: Iterable[float], edges: Iterable[float], **who: Unpack[Who]
    ) -> Histogram:
        """How many values lie between neighbouring edges; raises as `mean`."""
        answer = self._stat(
            StatParams(kind="histogram", values=_floats(values), edges=_floats(edges), **who)
        )
        assert answer.histogram is not None
        return answer.histogram

    def quantiles(
        self, values: Iterable[float], q: Iterable[float], bounds: tuple[float, float],
        **who: Unpack[Who],
    ) -> Quantiles:  # fmt: skip
        """Below which values given shares of all lie; raises as `mean`."""
        answer = self._stat(
            StatParams(kind="quantiles", values=_floats(values), q=_floats(q), bounds=bounds, **who)
        )
        assert answer.quantiles is not None
        return answer.quantiles

    def top_k(
        self, items: Iterable[str], k: int = 20, epsilon: float | None = None,
        mode: Literal["auto", "ldp", "plain", "central"] = "auto",
        vocabulary: Iterable[str] | None = None, search: Way = "graded", **who: Unpack[Who],
    ) -> TopK:  # fmt: skip
        """The most frequent items; see `TopKParams`; raises as `mean`."""
        known = None if vocabulary is None else list(vocabulary)
        params = TopKParams(
            items=list(items), k=k, epsilon=epsilon, mode=mode, vocabulary=known, search=search,
            **who,
        )  # fmt: skip
        answer = self._ask("fed.top_k", params, TopKResult)
        self.round = answer.round
        return answer.top_k

    def _stat(self, params: StatParams) -> StatResult:
        answer = self._ask("fed.stat", params, StatResult)
        self.round = answer.round
        return answer

    def _ask(self, method: str, params: msgspec.Struct, shape: type[T]) -> T:
        sent = cast("dict[str, Json]", msgspec.to_builtins(params))
        return msgspec.convert(self._client.call(method, sent), shape)


def _floats(values: Iterable[float]) -> list[float]:
    # Of arrays, too, whose elements are no floats.
    return [float(one) for one in values]
