"""`sync.*`: how far the machines agree."""

from __future__ import annotations

import msgspec

from daemon.methods.group import find_group
from daemon.methods.peers import device_names, find_peer, shown_name
from daemon.rpc.registry import Call, method
from p2p.identity import peer_text


class SyncParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which pairs: of a group, with a peer, or all."""

    group: str | None = None
    peer: str | None = None


class SyncRow(msgspec.Struct, kw_only=True):
    """How a group stands with a peer.

    Attributes:
        group: local name.
        peer_id: the device's key in text form.
        name: its shown name.
        last_ms: when a session last ended, Unix milliseconds, 0 if never.
        equal: whether both then had the same records.
        missing: records known to be missing.
        bytes: carried in the last session.
        rounds: of the last session.
        why: why it did not end equal, empty if it did.
    """

    group: str
    peer_id: str
    name: str
    last_ms: int
    equal: bool
    missing: int
    bytes: int
    rounds: int
    why: str


async def _rows(call: Call, p: SyncParams) -> list[SyncRow]:
    services = call.services
    names = await device_names(services)
    groups = {view.group: view.name for view in services.replication.groups()}
    wanted_group = None if p.group is None else find_group(services, p.group)
    wanted_peer = None if p.peer is None else (await find_peer(services, p.peer)).node_id
    return [
        SyncRow(
            group=groups.get(one.group, one.group.hex()[:8]),
            peer_id=peer_text(one.peer),
            name=shown_name(names, one.peer, services),
            last_ms=one.last_ms,
            equal=one.equal,
            missing=one.missing,
            bytes=one.bytes,
            rounds=one.rounds,
            why=one.why,
        )
        for one in services.replication.status()
        if wanted_group in {None, one.group} and wanted_peer in {None, one.peer.hex()}
    ]


@method("sync.status", scope="read")
async def status(call: Call, p: SyncParams) -> list[SyncRow]:
    """Show per group and device when they last agreed."""
    return await _rows(call, p)


@method("sync.now", scope="peers")
async def now(call: Call, p: SyncParams) -> list[SyncRow]:
    """Synchronise at once with the members that can be reached."""
    services = call.services
    group = None if p.group is None else find_group(services, p.group)
    peer = None
    if p.peer is not None:
        peer = bytes.fromhex((await find_peer(services, p.peer)).node_id)
    await services.replication.sync_now(group, peer)
    return await _rows(call, p)


class DigestParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whose digest: a group by local name or id."""

    group: str = "home"


class Digest(msgspec.Struct, kw_only=True):
    """One hash over everything a group holds here: equal on two machines, equal sets.

    Attributes:
        group: local name.
        records: how many records count, both lanes.
        digest: SHA-256 over their (hlc, id) pairs in order, hex.
    """

    group: str
    records: int
    digest: str


@method("sync.digest", scope="read")
async def digest(call: Call, p: DigestParams) -> Digest:
    """Hash what a group holds here, to compare with another machine's."""
    group = find_group(call.services, p.group)
    records, value = await call.services.replication.digest(group)
    return Digest(group=p.group, records=records, digest=value.hex())
