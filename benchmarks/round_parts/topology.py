"""Seconds of a round by topology: a star beside the product's parts, in a model of home links.

Uplinks `max(3, 20 exp(.6 z))` Mbit/s, downlinks five times that; 30 % cannot be dialled and send by
a relay of 40 Mbit/s; each peer dies in the round with 5 %, noticed after 5 s; no congestion. The
parts and their reducers are those of `federated.rounds.protocol.topology.parts`. The star's
coordinator is the dialable peer with the best uplink, which flatters it. Both see the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.report import Target
from federated.rounds.protocol.topology import PeerLink, parts

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

DRAWS: Final = 200
DRAWS_QUICK: Final = 60
ELEMENTS: Final = 25_000_000
F32_BYTES: Final = 4 * ELEMENTS
E3M0_BYTES: Final = ELEMENTS * 129 // 256
MBIT: Final = 1e6 / 8
RELAY: Final = 40 * MBIT
DETECTION_S: Final = 5.0
SIZES: Final = (3, 10, 30, 100)


@dataclass(frozen=True)
class Draw:
    """A network: float64[n] rates in bytes/s, bool[n] who can be dialled and who lives."""

    up: np.ndarray
    dialable: np.ndarray
    alive: np.ndarray

    @property
    def down(self) -> np.ndarray:
        """Downlinks."""
        return 5 * self.up

    @property
    def sends(self) -> np.ndarray:
        """Rates at which peers reach others."""
        return np.where(self.dialable, self.up, np.minimum(self.up, RELAY))


@dataclass(frozen=True)
class Took:
    """A round: seconds, and the largest upload of a peer in updates."""

    seconds: float
    upload: float


def draw(n: int, seed: int) -> Draw:
    """A network in which at least two live."""
    rng = np.random.default_rng([n, seed])
    while True:
        up = np.maximum(3, 20 * np.exp(0.6 * rng.standard_normal(n))) * MBIT
        found = Draw(up, rng.random(n) >= 0.3, rng.random(n) >= 0.05)
        if found.alive.sum() > 1:
            return found


def star(net: Draw, size: float) -> Took:
    """All to one, and back."""
    others = int(net.alive.sum()) - 1
    hub = int(np.argmax(net.up * net.dialable))
    seconds = max(others * size / net.down[hub], (size / net.sends[net.alive]).max())
    seconds += max(others * size / net.up[hub], (size / net.down[net.alive]).max())
    if not net.alive.all():
        seconds += DETECTION_S
    if not net.alive[hub]:
        seconds += DETECTION_S + size / np.median(net.up)
    return Took(float(seconds), float(others))


def shares(net: Draw) -> np.ndarray:
    """float64[n]: what the product gives each peer to reduce, at 100 MB whatever the codec."""
    roster = [
        PeerLink(bytes([number]), dialable=bool(seen), up=float(up), down=5 * float(up))
        for number, (up, seen) in enumerate(zip(net.up, net.dialable, strict=True))
    ]
    share = np.zeros(len(roster))
    for part in parts(ELEMENTS, roster, F32_BYTES):
        share[part.reducer[0]] = part.n / ELEMENTS
    return share


def butterfly(net: Draw, size: float) -> Took:
    """Parts to their reducers, a barrier, and back; a dead reducer's part is sent anew."""
    others = int(net.alive.sum()) - 1
    share = shares(net)
    scatter = (size * (1 - share) / net.sends)[net.alive].max()
    scatter = max(scatter, (share * others * size / net.down).max())
    gather = max((share * others * size / net.up).max(), (size / net.down)[net.alive].max())
    again = 0.0
    if not net.alive.all():
        again = DETECTION_S + share[~net.alive].sum() * size / np.median(net.up)
    upload = ((1 - share) + share * others)[net.alive].max()
    return Took(float(scatter + gather + again), float(upload))


def run(options: Options, report: Report) -> None:
    """Measure."""
    draws = DRAWS_QUICK if options.quick else DRAWS
    cases = [(F32_BYTES, "100 MB f32", n, 200.0 if n == 30 else None) for n in SIZES]
    for size, named, n, most in [*cases, (E3M0_BYTES, "the same in E3M0", 30, 30.0)]:
        nets = [draw(n, seed) for seed in range(draws)]
        ours = [butterfly(net, size) for net in nets]
        plain = [star(net, size) for net in nets]
        title = f"round in a model, N={n}, {named}, {draws} draws"
        report.value(
            f"{title}: median",
            float(np.median([took.seconds for took in ours])),
            unit="s",
            target=Target("<=", most) if most else None,
            yardstick="star on the same draws, s",
            yardstick_value=float(np.median([took.seconds for took in plain])),
        )
        report.value(
            f"{title}: largest upload, median",
            float(np.median([took.upload for took in ours])),
            unit="updates",
            yardstick="star",
            yardstick_value=float(np.median([took.upload for took in plain])),
        )
