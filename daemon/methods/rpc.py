"""`rpc.*` and `events.*`: the connection itself."""

from __future__ import annotations

import msgspec

from daemon.errors import RpcError
from daemon.events import ADMIN_TOPICS
from daemon.rpc.openrpc import describe
from daemon.rpc.registry import Call, Empty, method
from daemon.rpc.server import HelloParams, HelloResult


class Pong(msgspec.Struct, kw_only=True):
    """Answer to a ping: the daemon's wall clock, Unix milliseconds."""

    at_ms: int


class CancelParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which request of this connection to cancel."""

    id: int | str


class Cancelled(msgspec.Struct, kw_only=True):
    """Whether a request of that id was at work."""

    cancelled: bool


class Since(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last event a client saw."""

    epoch: str
    seq: int


class SubscribeParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Topics to hear of, and where to continue.

    Attributes:
        topics: memory, peer, group, sync, trust, job, round, health, config, agent, audit.
        since: the last event seen; without it only new ones come.
    """

    topics: list[str]
    since: Since | None = None


class Subscribed(msgspec.Struct, kw_only=True):
    """A running subscription.

    Attributes:
        sub: its number on this connection.
        epoch: random id of this boot.
        seq: number of the newest event so far.
        reset: events since `since` may be missing: read the state anew.
    """

    sub: int
    epoch: str
    seq: int
    reset: bool


class UnsubscribeParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which subscription to end."""

    sub: int


class Unsubscribed(msgspec.Struct, kw_only=True):
    """Whether there was such a subscription."""

    ended: bool


@method("rpc.hello", scope="", unmetered=True)
async def hello(call: Call, p: HelloParams) -> HelloResult:
    """Say who you are: the first line of every connection, and only the first."""
    del call, p
    raise RpcError("invalid_state", "the hello was said already; open another connection")


@method("rpc.ping", scope="", unmetered=True)
async def ping(call: Call, p: Empty) -> Pong:
    """Ask whether the daemon answers."""
    del p
    return Pong(at_ms=call.services.env.wall_ms())


@method("rpc.cancel", scope="", unmetered=True)
async def cancel(call: Call, p: CancelParams) -> Cancelled:
    """Cancel a request of this connection; it answers with error 1009."""
    ops = call.context.ops
    return Cancelled(cancelled=ops is not None and ops.cancel(p.id))


@method("rpc.discover", scope="", unmetered=True)
async def discover(call: Call, p: Empty) -> dict[str, object]:
    """Describe all methods as an OpenRPC 1.3.2 document."""
    del p
    return dict(describe(call.services.registry))


@method("events.subscribe", scope="read", unmetered=True)
async def subscribe(call: Call, p: SubscribeParams) -> Subscribed:
    """Send `event` notifications of the topics from now on, or from a point in the past."""
    ops, hub = call.context.ops, call.services.events
    if ops is None:
        raise RpcError("invalid_state", "events need a connection of the rpc dialect")
    hidden = ADMIN_TOPICS & set(p.topics)
    if hidden and not call.principal.allows("admin"):
        raise RpcError("forbidden", f"the topic {min(hidden)} needs the scope admin")
    since = None if p.since is None else (p.since.epoch, p.since.seq)
    number, reset = ops.attach(p.topics, since)
    return Subscribed(sub=number, epoch=hub.epoch, seq=hub.seq, reset=reset)


@method("events.unsubscribe", scope="read", unmetered=True)
async def unsubscribe(call: Call, p: UnsubscribeParams) -> Unsubscribed:
    """End a subscription."""
    ops = call.context.ops
    return Unsubscribed(ended=ops is not None and ops.detach(p.sub))
