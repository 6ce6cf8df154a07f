"""The parts replication is made of, handed around as one.

Nothing here has a life of its own: the driver runs tasks, the store keeps records, everything else
computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from p2p.env import Env
    from p2p.identity import Signer, Verifier
    from p2p.replication.admission import Admission
    from p2p.replication.config import ReplicationConfig
    from p2p.replication.events import Events
    from p2p.replication.groups import Groups
    from p2p.replication.keeper import Keeper
    from p2p.replication.quota import Quota
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.store import RecordStore


@dataclass(frozen=True, kw_only=True)
class Core:
    """Everything a protocol of replication needs."""

    signer: Signer
    """This device."""
    verify: Verifier
    store: RecordStore
    sealer: GroupSealer
    env: Env
    config: ReplicationConfig
    groups: Groups
    quota: Quota
    events: Events
    admission: Admission
    keeper: Keeper
    new_lock: Callable[[], AbstractAsyncContextManager[None]]
    """A lock of the running loop."""
    checkpoint: Callable[[], Awaitable[None]]

    @property
    def me(self) -> bytes:
        """Our key."""
        return self.signer.id
