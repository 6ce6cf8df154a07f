"""Events of a job as they are told: the ids in them with the names that people know.

The journal keeps ids, because names change; whoever reads an event wants to know which machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from daemon.methods.peers import device_names, shown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from daemon.services import Services
    from federated.jobs.journal import EventRead


class JobEvent(msgspec.Struct, kw_only=True):
    """Something that happened to a job.

    Attributes:
        seq: grows; may skip.
        at_ms: Unix milliseconds.
        name: state, progress, gap, conflict, peer_lost, quarantine, reopened, tainted.
        data: counts and ids. Beside an owner stand its `machines`, beside a peer its `machine`,
            beside each claim of a conflict the `machine` that made it.
    """

    seq: int
    at_ms: int
    name: str
    data: object


async def told(
    services: Services, group: bytes | None, events: Sequence[EventRead]
) -> list[JobEvent]:
    """Events with names.

    Args:
        services: of this daemon.
        group: the job's.
        events: as the journal has them.
    """
    decoded = [msgspec.json.decode(event.body) for event in events]
    if any(event.kind in _NAMING for event in events):
        names = await device_names(services)

        def machine(device: str) -> str:
            return shown_name(names, bytes.fromhex(device), services)

        for event, data in zip(events, decoded, strict=True):
            if event.kind in _NAMING:
                _name(data, machine, lambda owner: _devices(services, group, owner))
    return [
        JobEvent(seq=event.seq, at_ms=event.at_ms, name=event.kind, data=data)
        for event, data in zip(events, decoded, strict=True)
    ]


_NAMING = frozenset({"conflict", "peer_lost", "quarantine"})


def _devices(services: Services, group: bytes | None, owner: str) -> list[str]:
    """Devices of an owner in the group, as it published them there."""
    if group is None:
        return [owner]
    members = services.replication.members(group)
    return [view.member.hex() for view in members if view.owner.hex() == owner] or [owner]


def _name(
    data: dict[str, object], machine: Callable[[str], str], devices: Callable[[str], list[str]]
) -> None:
    """Put names beside the ids of one event."""
    match data:
        case {"owner": str(owner)}:
            data["machines"] = sorted(machine(device) for device in devices(owner))
        case {"peer": str(peer)}:
            data["machine"] = machine(peer)
        case {"claims": list(claims)}:
            for claim in claims:
                claim["machine"] = machine(claim["device"])
        case _:
            return
