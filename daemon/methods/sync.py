"""`sync.*`: how far the machines agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from daemon.methods.group import find_group
from daemon.methods.peers import device_names, find_peer, shown_name
from daemon.rpc.registry import Call, method
from p2p.identity import peer_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p2p.replication.views import PeerSync


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
        received: records that came in the last session, of a repair in all of its sessions.
        sent: records that went.
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
    received: int
    sent: int
    bytes: int
    rounds: int
    why: str


async def _rows(
    call: Call, p: SyncParams, results: Sequence[PeerSync] | None = None
) -> list[SyncRow]:
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
            received=one.received,
            sent=one.sent,
            bytes=one.bytes,
            rounds=one.rounds,
            why=one.why,
        )
        for one in (services.replication.status() if results is None else results)
        if wanted_group in {None, one.group} and wanted_peer in {None, one.peer.hex()}
    ]


@method("sync.status", scope="read")
async def status(call: Call, p: SyncParams) -> list[SyncRow]:
    """Show per group and device when they last agreed."""
    return await _rows(call, p)


@method("sync.now", scope="peers")
async def now(call: Call, p: SyncParams) -> list[SyncRow]:
    """Synchronise at once with the members that can be reached."""
    group, peer = await _meant(call, p)
    await call.services.replication.sync_now(group, peer)
    return await _rows(call, p)


@method("sync.repair", scope="peers")
async def repair(call: Call, p: SyncParams) -> list[SyncRow]:
    """Synchronise until both machines hold the same, or no session helps any more.

    Sets that still differ once the logs' ends were exchanged are compared range by range, so that a
    record lost in the middle is found and fetched again.
    """
    group, peer = await _meant(call, p)
    return await _rows(call, p, await call.services.replication.repair(group, peer))


async def _meant(call: Call, p: SyncParams) -> tuple[bytes | None, bytes | None]:
    """The group and the peer of the parameters."""
    services = call.services
    group = None if p.group is None else find_group(services, p.group)
    if p.peer is None:
        return group, None
    return group, bytes.fromhex((await find_peer(services, p.peer)).node_id)


class DifferingRecord(msgspec.Struct, kw_only=True):
    """A record only this machine holds.

    Attributes:
        id: hex.
        author: the device that signed it, by its shown name.
        kind: of the record; 32 a memory, 33 a state value, below 32 an operation of the group.
        at_ms: its clock, Unix milliseconds.
    """

    id: str
    author: str
    kind: int
    at_ms: int


class VerifyRow(msgspec.Struct, kw_only=True):
    """What a comparison of a group with a machine proved.

    Attributes:
        group: local name.
        peer_id: the device's key in text form.
        name: its shown name.
        verdict: `equal`: both hold the same records; `differs`; `unknown`: it could not be reached,
            or the session ended early.
        records: how many records of ours were compared.
        digest: of our set, as `sync.digest`; the same on the other machine if `equal`.
        only_here: how many records only this machine holds.
        only_there: how many only the other holds.
        here: the first of those only this machine holds.
        bytes: carried for the comparison.
        why: why there is no verdict, else empty.
    """

    group: str
    peer_id: str
    name: str
    verdict: Literal["equal", "differs", "unknown"]
    records: int
    digest: str
    only_here: int
    only_there: int
    here: list[DifferingRecord]
    bytes: int
    why: str


@method("sync.verify", scope="peers")
async def verify(call: Call, p: SyncParams) -> list[VerifyRow]:
    """Prove that this machine and others hold the same records, or count what differs.

    Both sides hash what they hold with a salt neither could choose, so no machine can claim a set
    it does not know. Nothing is fetched; `sync.repair` does that.
    """
    group, peer = await _meant(call, p)
    replication = call.services.replication
    results = await replication.verify(group, peer)
    names = await device_names(call.services)
    groups = {view.group: view.name for view in replication.groups()}
    rows = [await _verified(call, one, names, groups) for one in results]
    reached = {one.peer for one in results}
    missing = [] if peer is None or peer in reached else [peer]
    return rows + [
        VerifyRow(
            group=p.group or "",
            peer_id=peer_text(one),
            name=shown_name(names, one, call.services),
            verdict="unknown",
            records=0,
            digest="",
            only_here=0,
            only_there=0,
            here=[],
            bytes=0,
            why="it could not be reached, or shares no group with this machine",
        )
        for one in missing
    ]


async def _verified(
    call: Call, one: PeerSync, names: dict[bytes, str], groups: Mapping[bytes, str]
) -> VerifyRow:
    replication = call.services.replication
    verdict: Literal["equal", "differs", "unknown"] = "unknown"
    if one.verified:
        verdict = "equal" if one.equal else "differs"
    _, digest = await replication.digest(one.group)
    return VerifyRow(
        group=groups.get(one.group, one.group.hex()[:8]),
        peer_id=peer_text(one.peer),
        name=shown_name(names, one.peer, call.services),
        verdict=verdict,
        records=one.records,
        digest=digest.hex(),
        only_here=one.only_here,
        only_there=one.only_there,
        here=[
            DifferingRecord(
                id=record.id.hex(),
                author=shown_name(names, record.author, call.services),
                kind=record.kind,
                at_ms=record.at_ms,
            )
            for record in await replication.describe(one.here)
        ],
        bytes=one.bytes,
        why="" if one.verified else one.why,
    )


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
