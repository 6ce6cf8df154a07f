"""Answers of statistics, as they are told; no arrays, so that every daemon can name them."""

from __future__ import annotations

import msgspec


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `MeanQuery`.

    Attributes:
        value: the weighted mean.
        var: the weighted variance about it (of the values, not of the mean).
        weight: sum of weights.
        values: how many values there were.
        peers: members that took part.
        noise_sd: standard deviation of the noise in `value`: none.
    """

    value: float
    var: float
    weight: float
    values: int
    peers: int
    noise_sd: float = 0.0


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `HistogramQuery`.

    Attributes:
        edges: n + 1 of them.
        counts: n of them.
        below, above: values outside the edges.
        peers: members that took part.
        noise_sd: of each count: none.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    below: float
    above: float
    peers: int
    noise_sd: float = 0.0


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `QuantilesQuery`.

    Attributes:
        q: the shares.
        values: one a share, right to `resolution`.
        resolution: width of a bin.
        count: values within the bounds.
        outside: values left out because they are not.
        peers: members that took part.
        noise_sd: none.
    """

    q: tuple[float, ...]
    values: tuple[float, ...]
    resolution: float
    count: int
    outside: int
    peers: int
    noise_sd: float = 0.0
