"""What a run is made of, drawn from its seed: nodes, network, disks, faults, who is hostile.

Swarm: each run switches some kinds off and exaggerates others, so that rare mixtures come up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from p2p.replication.config import ReplicationConfig

NODES_MIN: Final = 3
NODES_MAX: Final = 8

OPERATIONS: Final = (
    "write", "burst", "cell", "erase", "invite", "accept", "remove", "leave", "role", "rotate",
    "close",
)  # fmt: skip
"""What honest users do."""

FAULTS: Final = (
    "cut", "one_way", "isolate", "heal", "hang_up", "restart", "crash", "power", "clock", "image",
    "restore", "full", "year",
)  # fmt: skip
"""What happens to nodes, disks and the network between them."""

VILLAINS: Final = (
    "forge", "forge_blank", "fork", "backdate", "ahead", "withhold", "claim", "echo", "flood",
    "replay", "mutate", "coup", "collide",
)  # fmt: skip
"""What hostile members do; `withhold` and `claim` are habits of their stores."""

HOUR_MS: Final = 3_600_000
YEAR_MS: Final = 365 * 24 * HOUR_MS

_ALWAYS: Final = frozenset({"write", "burst", "heal", "accept"})
_COMMON: Final = {
    "write": 6.0,
    "cell": 4.0,
    "heal": 3.0,
    "invite": 3.0,
    "erase": 2.0,
    "accept": 2.0,
}
_RARE: Final = {
    "year": 0.4, "restore": 1.5, "remove": 0.7, "leave": 0.4, "collide": 0.3, "flood": 0.4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run's knobs."""

    seed: int
    members: int
    """Honest nodes that are in from the start."""
    newcomers: int
    """Honest nodes that may come in later."""
    villains: tuple[tuple[str, ...], ...]
    """Of each hostile member, what it does."""
    steps: int
    pause_s: float
    """Longest time between two steps."""
    latency_s: float
    jitter_s: float
    loss: float
    disk_s: float
    push_lost: float
    push_twice: float
    push_mixed: float
    home: bool
    weights: dict[str, float]
    """Of operations and faults."""
    config: ReplicationConfig

    @classmethod
    def draw(cls, seed: int) -> Plan:
        """The plan of a seed."""
        rng = random.Random(f"plan/{seed}")
        nodes = rng.randint(NODES_MIN, NODES_MAX)
        hostile = rng.choice([0, 1, 1, 2]) if nodes > NODES_MIN else rng.choice([0, 0, 1])
        newcomers = rng.randint(0, max(0, nodes - hostile - 2))
        meddled = rng.random() < 0.6
        villains = tuple(_deeds(rng) for _ in range(hostile))
        flooded = any("flood" in deeds for deeds in villains)
        return cls(
            seed=seed,
            members=nodes - hostile - newcomers,
            newcomers=newcomers,
            villains=villains,
            steps=rng.randint(25, 60),
            pause_s=rng.choice([2.0, 10.0, 20.0]),
            latency_s=rng.choice([0.001, 0.02, 0.15]),
            jitter_s=rng.choice([0.0, 0.02, 0.3]),
            loss=rng.choice([0.0, 0.0, 0.05, 0.2]),
            disk_s=rng.choice([0.0, 0.01, 0.3, 1.0]),
            push_lost=rng.choice([0.05, 0.4]) if meddled else 0.0,
            push_twice=rng.choice([0.0, 0.3]) if meddled else 0.0,
            push_mixed=rng.choice([0.0, 0.7]) if meddled else 0.0,
            home=rng.random() < 0.3,
            weights=_weights(rng),
            config=_config(rng, flooded=flooded),
        )


def _deeds(rng: random.Random) -> tuple[str, ...]:
    kinds = [kind for kind in VILLAINS if rng.random() < 0.35 * _RARE.get(kind, 1.0)]
    return tuple(kinds) or (rng.choice(VILLAINS),)


def _weights(rng: random.Random) -> dict[str, float]:
    weights = {}
    for kind in (*OPERATIONS, *FAULTS):
        on = kind in _ALWAYS or rng.random() < 0.7
        factor = rng.choice([1.0, 1.0, 3.0])
        weights[kind] = _COMMON.get(kind, 1.0) * _RARE.get(kind, 1.0) * factor if on else 0.0
    return weights


def _config(rng: random.Random, *, flooded: bool) -> ReplicationConfig:
    """Small limits now and then, so that what happens at a limit happens here."""
    return replace(
        ReplicationConfig.test(),
        push=rng.random() < 0.9,
        push_full_max=rng.choice([16, 16, 1]),
        push_sample=1,
        push_queue_records_max=rng.choice([1000, 1000, 8]),
        records_burst=400 if flooded else rng.choice([20_000, 20_000, 400]),
        quarantine_author_max=rng.choice([1000, 3]),
        pending_records_max=rng.choice([4096, 8]),
    )
