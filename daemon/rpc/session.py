"""The seam between the socket server and whatever speaks on a connection after `rpc.hello`.

The server owns the socket: admission, the hello line, caps and the rate limits. A dialect owns the
lines. Two exist: JSON-RPC (`daemon.rpc.server`) and MCP (`daemon.mcp.host`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import msgspec

    from daemon.rpc.registry import Context, Method, Progress


class LineSession(Protocol):
    """A connection past its hello, line by line."""

    @property
    def context(self) -> Context:
        """Who is there."""
        ...

    async def receive_line(self) -> bytes | None:
        """The next line without its newline; None at the end of the input.

        Raises:
            RpcError: `too_large`, when a line is over the dialect's limit; the connection is then
                of no further use.
        """
        ...

    async def send_line(self, line: bytes) -> None:
        """Queue one line (newline added). Blocks never; over 8 MiB unsent the connection ends.

        Raises:
            trio.BrokenResourceError: the client is gone.
        """
        ...


McpSession = LineSession


class Invoker(Protocol):
    """Runs methods under all rules: scope, rate, deadline, receipts, error map."""

    async def invoke(
        self,
        context: Context,
        entry: Method,
        params: msgspec.Struct,
        *,
        progress: Progress | None = None,
        deadline_ms: int | None = None,
        receipt_key: bytes | None = None,
        replay: bool = False,
    ) -> object:
        """Run `entry`'s handler and return its result (a struct or builtins, for msgspec).

        Args:
            context: who asks.
            entry: the method.
            params: decoded arguments of the method.
            progress: where progress goes; None drops it.
            deadline_ms: cancel after this long; None for the default.
            receipt_key: see `receipt_key(session, request_id, params)`; None: no receipt.
            replay: the client says that it may have sent this request before: answer from the
                receipt if there is one.

        Raises:
            RpcError: every failure; nothing else comes out but cancellation.
        """
        ...


class Dialect(Protocol):
    """What serves the lines of a connection; `daemon.mcp.host.McpHost` is one."""

    async def serve(self, session: LineSession) -> None:
        """Serve until the input ends; returning closes the connection."""
        ...
