"""Answers of statistics, as they are told; no arrays, so that every daemon can name them."""

from __future__ import annotations

from typing import Literal, TypeAlias

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


Way: TypeAlias = Literal["graded", "tap"]
"""How reports are searched for frequent items: our way, or TAP's (arXiv 2412.14832)."""


class TopItem(msgspec.Struct, frozen=True, kw_only=True):
    """One of the most frequent items.

    Attributes:
        item: as the vocabulary has it, or its first six letters.
        count: records that have it; an estimate where there is noise. Searched by TAP: the sum of
            the machines' estimates that found it by themselves, too high for what is rare.
        sd: standard deviation of that estimate, without the selection that TAP adds.
        sure: whether its count is above `stands_out`; searched by TAP: at one machine.
    """

    item: str
    count: float
    sd: float
    sure: bool


class TopK(msgspec.Struct, frozen=True, kw_only=True):
    """The most frequent items of everybody's data.

    Attributes:
        items: the most frequent first.
        mode: `ldp` (noise in each record's report) or `plain`.
        mechanism: what was done to a record before it left its machine.
        epsilon: what each record's report cost at most; 0: no privacy.
        records: of all members.
        others: records of this machine that have no code, and are counted by no item.
        peers: members that took part.
        noise_sd: standard deviation of the noise in the count of what hardly any record has.
        stands_out: count above which an item is no noise, but in one question of a hundred;
            searched by TAP: at one machine, the one with the most records.
    """

    items: tuple[TopItem, ...]
    mode: str
    mechanism: str
    epsilon: float
    records: int
    others: int
    peers: int
    noise_sd: float
    stands_out: float = 0.0
