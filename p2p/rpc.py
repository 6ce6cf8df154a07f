"""Typed calls between peers: unary and streaming, with deadlines, credit and a proven caller.

    ECHO = Method("mesh.echo", request=bytes, reply=bytes, idempotent=True)
    rpc.serve(ECHO, echo)
    answer = await rpc.call(peer, ECHO, b"hello", timeout_s=5)
    async with rpc.stream(peer, UPLOAD, name) as call:
        await call.send(part)
        size = await call.result()

`rpc_types` has what both sides declare, `rpc_frames` the bytes, `rpc_call` the rules of one call,
`rpc_server`, `rpc_client` and `rpc_outbound` the two sides. Source: docs/specs/rpc.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import trio

from p2p.config import P2pConfig
from p2p.errors import UsageError
from p2p.net.seam import PathChanged, PeerDown
from p2p.rpc_client import Client
from p2p.rpc_outbound import StreamCall
from p2p.rpc_server import PROTOCOL, STREAMS_SPARE, Server
from p2p.rpc_types import Allow, Caller, CallStream, Code, Method, OutboundCall, Serve, anyone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from p2p.identity import PeerId
    from p2p.net.seam import Fabric, FabricEvent

__all__ = [
    "Allow",
    "CallStream",
    "Caller",
    "Code",
    "Method",
    "OutboundCall",
    "Rpc",
    "Serve",
    "anyone",
]

Q = TypeVar("Q")
R = TypeVar("R")

TIMEOUT_S: Final = 30.0
"""A unary call's time unless the caller says otherwise."""

STALE_CHECK_S: Final = 15.0
"""How often idle streams are looked at."""


class Rpc:
    """Calls methods of peers and serves ours, over any fabric.

    Args:
        fabric: streams to proven peers.
        config: limits per peer and in all; None: the usual ones.
    """

    def __init__(self, fabric: Fabric, config: P2pConfig | None = None) -> None:
        config = config or P2pConfig()
        self._fabric = fabric
        self._members: Allow | None = None
        self._server = Server(self.is_member, config)
        self._client = Client(fabric, config)
        streams_max = config.rpc_calls_per_peer_max + STREAMS_SPARE
        fabric.handle(PROTOCOL, self._server.handle, per_peer_max=streams_max)

    def serve(self, method: Method[Q, R], fn: Serve[Q, R], *, allow: Allow | None = None) -> None:
        """Answer `method` with `fn`; calls run beside each other.

        Args:
            method: its declaration; a name is served once.
            fn: the handler; cancelled at the caller's deadline or when the caller goes away.
            allow: who may call, asked before the request is decoded; None: members of a group
                shared with us.
        """
        self._server.serve(method, fn, allow=allow)

    def methods(self) -> list[str]:
        """Names of what we serve, ascending."""
        return self._server.methods()

    async def call(
        self, peer: PeerId, method: Method[Q, R], request: Q, *, timeout_s: float = TIMEOUT_S
    ) -> R:
        """Call and wait for the reply. The time left travels along, bounded by enclosing scopes.

        Raises:
            TimedOut: no reply in time.
            Busy: a limit of theirs is full just now.
            Unreachable: no connection, or it died; unless it was never sent, whether it ran is
                unknown, and only idempotent methods are tried again.
            AuthError: we may not call this.
            RemoteError: any other refusal, with its code.
            PeerError: the peer broke the protocol; `DecodeError` if the reply is of another type.
            UsageError: the request does not encode or is too large, or the method has items.
        """
        if method.streaming:
            raise UsageError(f"{method.name} has items: use `stream`")
        return await self._client.call(peer, method, request, timeout_s=timeout_s)

    def stream(
        self, peer: PeerId, method: Method[Q, R], request: Q, *, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[OutboundCall[R]]:
        """Call a method with items. Leaving the block before the reply cancels the call.

        Args:
            peer: the callee.
            method: one with items.
            request: the first message.
            timeout_s: until the reply; None: no limit but enclosing scopes.

        Raises: as `call`, from entering the block and from what is awaited inside.
        """
        if not method.streaming:
            raise UsageError(f"{method.name} has no items: use `call`")
        return StreamCall(self._client, peer, method, request, timeout_s=timeout_s)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after cancelled and streaming calls and idle streams, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._client.run)
            nursery.start_soon(self._watch_fabric)
            task_status.started()

    def set_members(self, fn: Allow) -> None:
        """Tell who may call methods that say nothing else. Before that: nobody."""
        self._members = fn

    def is_member(self, peer: PeerId) -> bool:
        """Whether `peer` shares a group with us, as far as we were told."""
        return self._members is not None and self._members(peer)

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        counted = self._server.counters
        return {
            "rpc_calls_in": counted.calls_in,
            "rpc_calls_out": self._client.calls_out,
            "rpc_refused": counted.refused,
            "rpc_retries": self._client.retries,
            "rpc_violations": counted.violations,
            "bugs": counted.bugs,
        }

    async def _watch_fabric(self) -> None:
        """Close idle streams of connections that ended or moved, and those idle for long."""
        events = self._fabric.events()
        while True:
            self._client.drop_stale()
            with trio.move_on_after(STALE_CHECK_S):
                try:
                    self._noticed(await events.receive())
                except trio.EndOfChannel:  # we were too slow: what we missed may be anything
                    events = self._fabric.events()
                    self._client.drop_all_idle()

    def _noticed(self, event: FabricEvent) -> None:
        if isinstance(event, PeerDown | PathChanged):
            self._client.drop_idle(event.peer)
