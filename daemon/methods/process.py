"""`daemon.*`: the process itself."""

from __future__ import annotations

import os

import msgspec

import daemon
from daemon.health import Check, HealthReport
from daemon.methods.group import GroupInfo, group_infos
from daemon.methods.peers import PeerRow, peer_rows
from daemon.metrics import collect
from daemon.rpc.registry import Call, Empty, method
from memory.model import Stats
from p2p.identity import peer_text

LOG_LINES_MAX = 1000


class DaemonStatus(msgspec.Struct, kw_only=True):
    """Everything `covey status` shows.

    Attributes:
        name: what the other devices call this one, unless they renamed it.
        node_id: device key, hex.
        peer_id: the same in its text form.
        version: of Covey.
        pid: process id.
        uptime_s: seconds since the start.
        health: worst status word of all checks.
        problems: checks that are not ok.
        listen: addresses at which other machines reach us.
        paused: whether we work offline.
        groups: groups of this device.
        peers: the other devices.
        memory: counts and sizes.
        agents: agents with a valid token.
        connections: clients of the local socket.
    """

    name: str
    node_id: str
    peer_id: str
    version: str
    pid: int
    uptime_s: float
    health: str
    problems: list[Check]
    listen: list[str]
    paused: bool
    groups: list[GroupInfo]
    peers: list[PeerRow]
    memory: Stats
    agents: int


class MetricsText(msgspec.Struct, kw_only=True):
    """Figures in Prometheus' text format."""

    text: str


class PathsInfo(msgspec.Struct, kw_only=True):
    """Where the files are."""

    paths: dict[str, str]


class StopParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How to stop.

    Attributes:
        now: do not wait for requests at work.
    """

    now: bool = False


class Stopping(msgspec.Struct, kw_only=True):
    """The daemon is ending; its socket closes when it is done."""

    pid: int


class TailParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How many of the newest log lines, at most 1,000."""

    lines: int = 100


class LogLines(msgspec.Struct, kw_only=True):
    """Log lines, oldest first, each a JSON object."""

    lines: list[str]


@method("daemon.status", scope="read", unmetered=True)
async def status(call: Call, p: Empty) -> DaemonStatus:
    """Show what this machine is, has and is connected to."""
    del p
    services = call.services
    report = services.node.report()
    health = await services.health.report()
    agents = await services.agents.list()
    return DaemonStatus(
        name=services.config.node.name,
        node_id=bytes(services.device).hex(),
        peer_id=peer_text(services.device),
        version=daemon.__version__,
        pid=os.getpid(),
        uptime_s=(services.env.wall_ms() - services.started_ms) / 1000,
        health=health.status,
        problems=[check for check in health.checks if check.status != "ok"],
        listen=list(report.listen),
        paused=report.paused,
        groups=group_infos(services),
        peers=await peer_rows(services),
        memory=await services.memory.stats(call.context.caller()),
        agents=sum(agent.revoked_ms is None for agent in agents),
    )


@method("daemon.health", scope="", unmetered=True)
async def health(call: Call, p: Empty) -> HealthReport:
    """Ask every part how it is."""
    del p
    return await call.services.health.report()


@method("daemon.metrics", scope="read")
async def metrics(call: Call, p: Empty) -> MetricsText:
    """Show figures for monitoring, in Prometheus' text format."""
    del p
    return MetricsText(text=await collect(call.services, call.context.caller()))


@method("daemon.paths", scope="", unmetered=True)
async def paths(call: Call, p: Empty) -> PathsInfo:
    """Show where the daemon's files are."""
    del p
    return PathsInfo(paths=call.services.paths.as_dict())


@method("daemon.stop", scope="admin", unmetered=True)
async def stop(call: Call, p: StopParams) -> Stopping:
    """Stop the daemon: requests at work are finished first, unless told otherwise."""
    call.services.control.stop(now=p.now)
    return Stopping(pid=os.getpid())


@method("daemon.reload", scope="admin")
async def reload(call: Call, p: Empty) -> Empty:
    """Read the settings again; what needs a restart is named in the log."""
    call.services.control.reload()
    return p


@method("daemon.log_tail", scope="admin")
async def log_tail(call: Call, p: TailParams) -> LogLines:
    """Show the newest lines of the log."""
    count = max(1, min(p.lines, LOG_LINES_MAX))
    return LogLines(lines=tail(call.services.paths.log_file, count))


def tail(path: str, count: int, window_bytes: int = 2**20) -> list[str]:
    """The last `count` lines of a text file, out of its last mebibyte."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - window_bytes))
            data = file.read()
    except FileNotFoundError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    if end > window_bytes:
        del lines[0]
    return lines[-count:]
