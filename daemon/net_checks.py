"""The way to other machines in plain words: what is found, what it means, what to do.

Pure: it reads a snapshot of the mesh and returns rows for `covey doctor net`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from daemon.health import Check
from p2p.nat.reachability import Reach
from p2p.wire.multiaddr import tcp_addr_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.identity import PeerId
    from p2p.node import NetReport

_WAY = {"direct": "directly", "lan": "in the local network", "relay": "over a relay"}


def net_checks(report: NetReport, name_of: Callable[[PeerId], str]) -> list[Check]:
    """Rows about reachability, NAT, router, relays, local network, DHT and connections.

    Args:
        report: of the node.
        name_of: what to call a peer.
    """
    rows = [_paths(report)]
    if report.traversal is not None:
        rows += [*_reach(report), *_nat(report), *_relays(report, name_of)]
    if report.surroundings is not None:
        rows += [*_router(report), *_neighbours(report, name_of)]
    rows += _dht(report)
    return rows


def _ok(name: str, message: str) -> Check:
    return Check(name=name, status="ok", message=message)


def _warn(name: str, message: str, remedy: str) -> Check:
    return Check(name=name, status="degraded", message=message, remedy=remedy)


def _paths(report: NetReport) -> Check:
    if report.paused:
        return _warn("mesh.paths", "working offline", "`covey peers resume` connects again.")
    paths = Counter[str](info.path for info in report.peers.values())
    parts = [f"{count} {_WAY.get(path, path)}" for path, count in sorted(paths.items())]
    return _ok("mesh.paths", "connected: " + (", ".join(parts) or "to nobody now"))


def _is_lost(report: NetReport) -> bool:
    """Whether nobody outside can reach us, not even over a relay."""
    traversal = report.traversal
    return (
        traversal is not None
        and traversal.reachability.state is Reach.PRIVATE
        and not traversal.relay.relays
    )


def _port(report: NetReport) -> int | None:
    for addr in report.listen:
        tcp = tcp_addr_untrusted(addr)
        if tcp is not None:
            return tcp.port
    return None


def _reach(report: NetReport) -> list[Check]:
    """Who can dial us."""
    assert report.traversal is not None
    reach = report.traversal.reachability
    why = f": {reach.why}" if reach.why else ""
    each = [
        Check(
            name="mesh.addr",
            status="ok",
            message=f"{row.addr}: {row.state.value}"
            + (f" (proved by {row.proved_by})" if row.proved_by else ""),
        )
        for row in reach.addrs
    ]
    match reach.state:
        case Reach.PUBLIC:
            return [_ok("mesh.reach", f"every machine can dial this one{why}"), *each]
        case Reach.LIKELY:
            return [_ok("mesh.reach", f"others can probably dial this machine{why}"), *each]
        case Reach.UNKNOWN:
            return [_ok("mesh.reach", f"not known yet whether others can dial us{why}"), *each]
        case Reach.PRIVATE:
            pass
    if not _is_lost(report):
        return [_ok("mesh.reach", f"behind a NAT, reached over relays{why}"), *each]
    port = _port(report)
    where = f"TCP port {port}" if port else "the TCP port of `[p2p] listen`"
    return [
        _warn(
            "mesh.reach",
            f"nobody outside can dial this machine, and no relay knows it{why}",
            f"Forward {where} on the router to this machine, or run Covey on one machine of yours"
            " that can be dialled: it relays for the others.",
        ),
        *each,
    ]


def _nat(report: NetReport) -> list[Check]:
    assert report.traversal is not None
    symmetric = report.traversal.reachability.symmetric
    if symmetric is None:
        return []
    if symmetric:
        return [
            _warn(
                "mesh.nat",
                "the NAT draws another port for each target (symmetric)",
                "Two such NATs, or one and a strict one, meet over a relay only; a forwarded port"
                " on one side makes it direct.",
            )
        ]
    return [_ok("mesh.nat", "the NAT keeps our port for all targets: direct connections work")]


def _relays(report: NetReport, name_of: Callable[[PeerId], str]) -> list[Check]:
    assert report.traversal is not None
    relay = report.traversal.relay
    rows = []
    if relay.relays:
        rows.append(_ok("mesh.relays", "reached over " + ", ".join(map(name_of, relay.relays))))
    if relay.serving or relay.holders:
        rows.append(
            _ok("mesh.relay", f"relays for {relay.holders} machines, {relay.circuits} circuits now")
        )
    return rows


def _router(report: NetReport) -> list[Check]:
    assert report.surroundings is not None
    around = report.surroundings
    if around.mapping_note:
        return [_ok("mesh.router", around.mapping_note)]
    # Many routers forward nothing by themselves; that matters where nothing else helps.
    status: Literal["ok", "degraded"] = "degraded" if _is_lost(report) else "ok"
    rows = []
    for row in around.mapping:
        if row.problem:
            rows.append(
                Check(name="mesh.router", status=status, message=row.problem, remedy=row.remedy)
            )
        elif row.external:
            rows.append(
                _ok("mesh.router", f"port {row.internal_port} is {row.external} ({row.kind})")
            )
        else:
            rows.append(_ok("mesh.router", f"port {row.internal_port}: {row.state}"))
    return rows


def _neighbours(report: NetReport, name_of: Callable[[PeerId], str]) -> list[Check]:
    assert report.surroundings is not None
    lan = report.surroundings.lan
    rows = [_warn("mesh.lan", problem, "Other ways go on.") for problem in lan.problems]
    if lan.interfaces:
        heard = ", ".join(name_of(peer) for peer, _, _ in lan.neighbours[:8]) or "nobody"
        rows.append(_ok("mesh.lan", f"on {', '.join(lan.interfaces)}: heard {heard}"))
    return rows


def _dht(report: NetReport) -> list[Check]:
    dht = report.dht
    if dht is None:
        return []
    size = f", about {dht.network_nodes} nodes serve" if dht.network_nodes else ""
    return [
        _ok("mesh.dht", f"{dht.mode}, {dht.table} nodes known{size}, {dht.stored} entries held")
    ]
