"""`peers.*`: the other devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from daemon.errors import RpcError
from daemon.rpc.registry import Call, Empty, Tool, method
from p2p.errors import DecodeError
from p2p.identity import PeerId, parse_peer_untrusted, peer_text

if TYPE_CHECKING:
    import apsw

    from daemon.services import Services

NAME_CHARS_MAX = 64


class PeerRow(msgspec.Struct, kw_only=True):
    """Another device, member of a group of ours.

    Attributes:
        name: shown name: what you call it, else what it calls itself.
        peer_id: its key in text form.
        node_id: its key, hex.
        connected: whether a connection is up.
        path: direct, lan, relay or empty.
        addr: where it is connected from or to.
        rtt_ms: round trip, None if unknown.
        since_ms: when the present connection began, Unix milliseconds, 0 if there is none.
        bytes_in: bytes received over the present connections.
        bytes_out: bytes sent over them.
        software: what the other daemon calls itself; a claim, not a proof.
        groups: groups you share, with its role in each.
        synced_ms: when you last agreed on everything, Unix milliseconds, 0 if never.
        missing: records known to be missing here or there.
        problem: why the last synchronisation failed, empty if it did not.
    """

    name: str
    peer_id: str
    node_id: str
    connected: bool
    path: str
    addr: str
    rtt_ms: float | None
    since_ms: int
    bytes_in: int
    bytes_out: int
    software: str
    groups: dict[str, str]
    synced_ms: int
    missing: int
    problem: str


class PendingRow(msgspec.Struct, kw_only=True):
    """A device that asks to join.

    Attributes:
        join: id of the request, hex; accept or reject it by this or a unique prefix.
        peer_id: its key in text form.
        group: local name of the group.
        role: what the ticket lets it do.
        check_words: six words that its screen must show too.
        at_ms: when it asked, Unix milliseconds.
    """

    join: str
    peer_id: str
    group: str
    role: str
    check_words: list[str]
    at_ms: int


class JoinParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A pending request by its id or a unique prefix of at least 4 digits."""

    join: str


class Decided(msgspec.Struct, kw_only=True):
    """What became of a request: `accepted` or `rejected`."""

    join: str
    outcome: str


class PeerParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A device by shown name, peer id, or unique prefix or ending of either id."""

    peer: str


class RenameParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A new name for a device, shown here only; empty for its own."""

    peer: str
    name: str


class Renamed(msgspec.Struct, kw_only=True):
    """The device and its name from now on."""

    peer_id: str
    name: str


class Pong(msgspec.Struct, kw_only=True):
    """A device answered."""

    peer_id: str
    name: str
    ms: float
    path: str


async def device_names(services: Services) -> dict[bytes, str]:
    """Shown names by device key."""

    def read(connection: apsw.Connection) -> dict[bytes, str]:
        rows = connection.execute("SELECT key, name FROM device WHERE name != ''")
        return {bytes(key): str(name) for key, name in rows}

    return await services.db.read(read)


def shown_name(names: dict[bytes, str], peer: bytes, services: Services) -> str:
    """What to call a device: its name, else the end of its id."""
    if peer == bytes(services.device):
        return services.config.node.name
    engine = services.jobs.engines.by_id.get(PeerId(peer))
    return names.get(peer) or engine or f"…{peer_text(peer)[-8:]}"


async def peer_rows(services: Services) -> list[PeerRow]:
    """All other members of our groups, connected ones first."""
    names = await device_names(services)
    now_s, now_ms = services.env.now(), services.env.wall_ms()
    live = services.node.report().peers
    groups: dict[bytes, dict[str, str]] = {}
    for view in services.replication.groups():
        for member in services.replication.members(view.group):
            if member.member != bytes(services.device) and member.role is not None:
                role = str(getattr(member.role, "name", member.role)).lower()
                groups.setdefault(bytes(member.member), {})[view.name] = role
    synced: dict[bytes, tuple[int, int, str]] = {}
    for one in services.replication.status():
        last, missing, why = synced.get(one.peer, (0, 0, ""))
        synced[one.peer] = (max(last, one.last_ms), missing + one.missing, why or one.why)
    rows = []
    for peer, shared in groups.items():
        info = live.get(PeerId(peer))
        last, missing, why = synced.get(peer, (0, 0, ""))
        rows.append(
            PeerRow(
                name=shown_name(names, peer, services),
                peer_id=peer_text(peer),
                node_id=peer.hex(),
                connected=info is not None,
                path=info.path if info else "",
                addr=info.addr if info else "",
                rtt_ms=None if info is None or info.rtt_s is None else info.rtt_s * 1000,
                since_ms=now_ms - int((now_s - info.since_s) * 1000) if info else 0,
                bytes_in=info.bytes_in if info else 0,
                bytes_out=info.bytes_out if info else 0,
                software=info.agent if info else "",
                groups=shared,
                synced_ms=last,
                missing=missing,
                problem=why,
            )
        )
    return sorted(rows, key=lambda row: (not row.connected, row.name, row.node_id))


async def find_peer(services: Services, wanted: str) -> PeerRow:
    """The device that `wanted` names.

    Raises:
        RpcError: not_found, or conflict when several match.
    """
    rows = await peer_rows(services)
    try:
        exact = bytes(parse_peer_untrusted(wanted)).hex()
    except DecodeError:
        exact = ""
    found = [row for row in rows if row.node_id == exact or row.name == wanted]
    if not found and len(wanted) >= 4:
        found = [
            row
            for row in rows
            if row.peer_id.endswith(wanted.lstrip("…")) or row.node_id.startswith(wanted.lower())
        ]
    if len(found) == 1:
        return found[0]
    if found:
        raise RpcError("conflict", "several devices match: give more of the id")
    raise RpcError(
        "not_found", f"no device is called {wanted!r}", remedy="`covey peers` lists them."
    )


@method(
    "peers.list",
    scope="read",
    tool=Tool(
        name="peers_list",
        read_only=True,
        idempotent=True,
        summary="List the user's other machines and other members: connected, role, last sync.",
    ),
)
async def list_peers(call: Call, p: Empty) -> list[PeerRow]:
    """List the other devices of your groups, connected ones first."""
    del p
    return await peer_rows(call.services)


@method("peers.pending", scope="peers")
async def pending(call: Call, p: Empty) -> list[PendingRow]:
    """List devices that ask to join."""
    del p
    services = call.services
    names = {view.group: view.name for view in services.replication.groups()}
    return [
        PendingRow(
            join=waiting.join_id.hex(),
            peer_id=peer_text(waiting.member),
            group=names.get(waiting.group, waiting.group.hex()[:8]),
            role=str(getattr(waiting.role, "name", waiting.role)).lower(),
            check_words=list(waiting.check_words),
            at_ms=waiting.at_ms,
        )
        for waiting in services.replication.pending()
    ]


def _find_join(services: Services, wanted: str) -> bytes:
    waiting = services.replication.pending()
    found = [one.join_id for one in waiting if one.join_id.hex() == wanted]
    if not found and len(wanted) >= 4:
        found = [one.join_id for one in waiting if one.join_id.hex().startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RpcError("conflict", "several requests begin so: give more digits")
    raise RpcError("not_found", "no such request", remedy="`covey peers pending` lists them.")


@method("peers.accept", scope="admin")
async def accept(call: Call, p: JoinParams) -> Decided:
    """Let a waiting device in; compare the six check words first."""
    join = _find_join(call.services, p.join)
    await call.services.replication.accept(join)
    return Decided(join=join.hex(), outcome="accepted")


@method("peers.reject", scope="admin")
async def reject(call: Call, p: JoinParams) -> Decided:
    """Refuse a waiting device."""
    join = _find_join(call.services, p.join)
    await call.services.replication.reject(join)
    return Decided(join=join.hex(), outcome="rejected")


@method("peers.rename", scope="admin")
async def rename(call: Call, p: RenameParams) -> Renamed:
    """Call a device something else on this machine."""
    if len(p.name) > NAME_CHARS_MAX or (p.name and not p.name.isprintable()):
        raise RpcError(
            "invalid_params", f"a name has at most {NAME_CHARS_MAX} printable characters"
        )
    row = await find_peer(call.services, p.peer)
    key = bytes.fromhex(row.node_id)

    def write(connection: apsw.Connection) -> None:
        connection.execute(
            "INSERT INTO device (key, name, published) VALUES (?, ?, 0)"
            " ON CONFLICT (key) DO UPDATE SET name = excluded.name, published = 0",
            (key, p.name),
        )

    await call.services.db.write(write)
    return Renamed(peer_id=row.peer_id, name=p.name or row.name)


@method("peers.ping", scope="peers")
async def ping(call: Call, p: PeerParams) -> Pong:
    """Connect to a device and measure the way there and back."""
    services = call.services
    row = await find_peer(services, p.peer)
    peer = PeerId(bytes.fromhex(row.node_id))
    before = services.env.now()
    await services.node.fabric.connect(peer)
    stream = await services.node.fabric.open(peer, "/ipfs/ping/1.0.0")
    try:
        payload = services.env.rng.randbytes(32)
        before = services.env.now()
        await stream.send_all(payload)
        echo = b""
        while len(echo) < len(payload):
            data = await stream.receive_some(64)
            if not data:
                break
            echo += data
        took_ms = (services.env.now() - before) * 1000
        await stream.send_eof()
    finally:
        await stream.aclose()
    if echo != payload:
        raise RpcError("peer_unreachable", "the other daemon did not echo the ping")
    return Pong(peer_id=row.peer_id, name=row.name, ms=took_ms, path=stream.path)
