"""Figures for monitoring, in the text format that Prometheus reads.

Nothing here is a secret: counts, sizes and times, and the ends of peer ids. Source: Prometheus
exposition format 0.0.4; names as daemon.md s.10 lists them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from p2p.identity import peer_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daemon.services import Services
    from memory.model import Caller

PEERS_MAX: Final = 200
"""Peers with figures of their own: a label for each must stay bounded."""


class Sample:
    """One figure of a family."""

    __slots__ = ("labels", "value")

    def __init__(self, value: float, **labels: str) -> None:
        self.value = value
        self.labels = labels


class Family:
    """Figures with one name.

    Args:
        name: without the prefix `covey_`.
        kind: `counter` or `gauge`.
        help_text: one line for people.
        samples: at least one.
    """

    def __init__(self, name: str, kind: str, help_text: str, samples: Iterable[Sample]) -> None:
        self.name = f"covey_{name}"
        self.kind = kind
        self.help_text = help_text
        self.samples = list(samples)

    def lines(self) -> list[str]:
        """The family as text."""
        return [
            f"# HELP {self.name} {self.help_text}",
            f"# TYPE {self.name} {self.kind}",
            *(f"{self.name}{_labels(s.labels)} {_figure(s.value)}" for s in self.samples),
        ]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    parts = (f'{key}="{_escape(value)}"' for key, value in labels.items())
    return "{" + ",".join(parts) + "}"


def _figure(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(families: Iterable[Family]) -> str:
    """The whole text; families without a figure are left out."""
    lines = [line for family in families if family.samples for line in family.lines()]
    return "\n".join([*lines, ""])


def net_families(services: Services) -> list[Family]:
    """What the mesh does."""
    report = services.node.report()
    peers = list(report.peers.values())[:PEERS_MAX]
    paths = Counter[str](peer.path for peer in report.peers.values())
    shown = {peer.peer: peer_text(peer.peer)[-8:] for peer in peers}
    return [
        Family(
            "peers",
            "gauge",
            "Connected peers by path.",
            [Sample(count, path=path) for path, count in sorted(paths.items())],
        ),
        Family(
            "peer_rtt_seconds",
            "gauge",
            "Round trip to a connected peer.",
            [Sample(p.rtt_s, peer=shown[p.peer]) for p in peers if p.rtt_s is not None],
        ),
        Family(
            "peer_bytes",
            "gauge",
            "Bytes of a peer's live connections.",
            [
                sample
                for p in peers
                for sample in (
                    Sample(p.bytes_in, peer=shown[p.peer], direction="in"),
                    Sample(p.bytes_out, peer=shown[p.peer], direction="out"),
                )
            ],
        ),
        Family(
            "net_events_total",
            "counter",
            "What happened in the mesh since the start, by kind.",
            [Sample(n, kind=kind) for kind, n in sorted(report.counters.items())],
        ),
        Family("net_paused", "gauge", "1 while working offline.", [Sample(report.paused)]),
    ]


def sync_families(services: Services) -> list[Family]:
    """How far the machines agree."""
    status = services.replication.status()
    return [
        Family(
            "sync_missing_records",
            "gauge",
            "Records known to be missing here or there, by peer.",
            [Sample(one.missing, peer=peer_text(one.peer)[-8:]) for one in status[:PEERS_MAX]],
        ),
        Family(
            "sync_records_refused_total",
            "counter",
            "Records of others that were refused since the start.",
            [Sample(services.replication.records_refused)],
        ),
    ]


async def collect(services: Services, who: Caller) -> str:
    """All figures as text; of the memory what `who` may read."""
    stats = await services.memory.stats(who)
    own = [
        Family(
            "loop_lag_seconds",
            "gauge",
            "99th percentile of the loop's lag in the last two minutes.",
            [Sample(services.health.lag_p99_s)],
        ),
        Family("memories", "gauge", "Memories in recall.", [Sample(stats.memories)]),
        Family("records", "gauge", "Records held.", [Sample(stats.records)]),
        Family(
            "db_bytes",
            "gauge",
            "Size of the database's files.",
            [Sample(stats.db_bytes, file="db"), Sample(stats.wal_bytes, file="wal")],
        ),
        Family(
            "redactions_total",
            "counter",
            "Secrets taken out since the start, by kind.",
            [Sample(n, kind=kind) for kind, n in sorted(stats.redactions.items())],
        ),
    ]
    return render([*own, *net_families(services), *sync_families(services)])
