"""`net.*`: the way to other machines."""

from __future__ import annotations

import msgspec

from daemon.health import Check
from daemon.methods.peers import device_names, shown_name
from daemon.net_checks import net_checks
from daemon.rpc.registry import Call, Empty, method


class NetStatus(msgspec.Struct, kw_only=True):
    """What the network does right now.

    Attributes:
        listen: addresses at which others reach us.
        paused: whether we work offline.
        connected: live connections to other devices.
        pinned: devices we keep connected.
        counters: counts since the start, such as refused handshakes and records.
    """

    listen: list[str]
    paused: bool
    connected: int
    pinned: int
    counters: dict[str, int]


def _status(call: Call) -> NetStatus:
    report = call.services.node.report()
    return NetStatus(
        listen=list(report.listen),
        paused=report.paused,
        connected=len(report.peers),
        pinned=len(report.pinned),
        counters={
            **report.counters,
            "records_refused": call.services.replication.records_refused,
        },
    )


@method("net.status", scope="read")
async def status(call: Call, p: Empty) -> NetStatus:
    """Show addresses, connections and counters of the network."""
    del p
    return _status(call)


@method("net.report", scope="read")
async def report(call: Call, p: Empty) -> list[Check]:
    """Say how other machines are reached and reach this one, and what to do about it."""
    del p
    services = call.services
    names = await device_names(services)
    return net_checks(services.node.report(), lambda peer: shown_name(names, peer, services))


@method("net.pause", scope="admin")
async def pause(call: Call, p: Empty) -> NetStatus:
    """Work offline: close all connections to other machines and refuse new ones."""
    del p
    call.services.node.pause()
    return _status(call)


@method("net.resume", scope="admin")
async def resume(call: Call, p: Empty) -> NetStatus:
    """Connect to the other machines again."""
    del p
    call.services.node.resume()
    return _status(call)
