"""The running parts of a daemon, as the RPC methods see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import trio

    from daemon.agents import AgentStore
    from daemon.backup import Backups
    from daemon.config import Config
    from daemon.events import EventHub
    from daemon.health import Health
    from daemon.paths import Paths
    from daemon.roles import Roles
    from daemon.rpc.registry import Registry
    from daemon.scanner import TextScanner
    from daemon.uploads import Uploads
    from federated.jobs.service import Jobs
    from federated.rounds.service import Rounds
    from memory.embedding.service import Embeddings
    from memory.erasure.erasing import Eraser
    from memory.erasure.forgetting import Forgetting
    from memory.records.replica import Replica
    from memory.review.desk import TrustDesk
    from memory.review.resolving import ConflictDesk
    from memory.storage.behaviour import Behaviour
    from memory.storage.db import Db
    from memory.store import Memory
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.node import Node
    from p2p.replication.service import Replication


class Control(Protocol):
    """What a method may ask of the process itself."""

    def stop(self, *, now: bool) -> None:
        """End the daemon: drain first, or at once."""
        ...

    def reload(self) -> None:
        """Read the settings again."""
        ...


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a method may use. Built by `daemon.wiring`, and by tests.

    Attributes:
        env: clocks and random numbers.
        config: the settings in force.
        paths: where the files are.
        device: this node's key, which is its peer id.
        memory: the memory.
        conflicts: memories that contradict each other.
        behaviour: what was shown to whom.
        scanner: looks for secrets and orders in texts, and counts them.
        eraser: erases memories.
        forgetting: forgets by rule, and brings back.
        embeddings: vectors of its chunks.
        node: the mesh.
        replication: groups, invites and sync.
        roles: what this device may write where.
        trust: verdicts, quarantine, rollback.
        replica: the records.
        db: the database, for tables of the daemon's own.
        agents: tokens.
        events: what happened, for subscribers.
        health: how the parts are.
        registry: the methods.
        control: the process.
        mesh_up: set once the mesh listens.
        boot_id: random hex of this start, the `epoch` of events.
        started_ms: Unix milliseconds of this start.
        backups: copies of the state.
        uploads: blobs that clients are putting.
        jobs: work handed to peers and taken from them.
        rounds: sums and models that members merge.
    """

    env: Env
    config: Config
    paths: Paths
    device: PeerId
    memory: Memory
    conflicts: ConflictDesk
    behaviour: Behaviour
    scanner: TextScanner
    eraser: Eraser
    forgetting: Forgetting
    embeddings: Embeddings
    node: Node
    replication: Replication
    roles: Roles
    trust: TrustDesk
    replica: Replica
    db: Db
    agents: AgentStore
    events: EventHub
    health: Health
    registry: Registry
    control: Control
    mesh_up: trio.Event
    boot_id: str
    started_ms: int
    backups: Backups
    uploads: Uploads
    jobs: Jobs
    rounds: Rounds
