"""Typed calls between peers: unary and streaming, with deadlines, credit and a proven caller.

Source: docs/specs/rpc.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from p2p.rpc_types import Allow, Caller, CallStream, Code, Method, OutboundCall, Serve, anyone

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from p2p.identity import PeerId

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


class Rpc(Protocol):
    """Calls methods of peers and serves ours."""

    def serve(
        self, method: Method[Q, R], fn: Serve[Q, R], *, allow: Allow | None = None
    ) -> None:
        """Answer `method` with `fn`, in a task per call.

        Args:
            method: its declaration; a name is served once.
            fn: the handler; cancelled at the caller's deadline or when the caller goes away.
            allow: who may call, asked before the request is decoded; None: members of a shared group.
        """

    async def call(
        self, peer: PeerId, method: Method[Q, R], request: Q, *, timeout_s: float = 30.0
    ) -> R:
        """Call and wait for the reply. The time left travels along, bounded by enclosing scopes.

        Raises:
            TimedOut: no reply in time.
            Busy: a limit of theirs is full just now.
            Unreachable: no connection, or it died; whether the call ran is then unknown.
            AuthError: we may not call this.
            RemoteError: any other refusal, with its code.
            DecodeError: the reply is not of the declared type.
            UsageError: the request does not encode, or is over 1 MiB.
        """
        ...

    def stream(
        self, peer: PeerId, method: Method[Q, R], request: Q, *, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[OutboundCall[R]]:
        """Call a streaming method. Leaving the block before the reply cancels the call."""
        ...
