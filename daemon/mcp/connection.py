"""One MCP connection: lines of a session in, the SDK's server behind, lines out.

Three tasks. The reader looks at each line, answers what is no message, and passes the rest to the
SDK with the caller in a context variable. The SDK runs the handlers. The writer sends what the SDK
says. Order of the end: input ends, running calls get `EOF_GRACE_S` to be answered, the SDK's input
is closed, the SDK ends, the writer runs dry.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from daemon.errors import RpcError
from daemon.mcp import sdk
from daemon.mcp.lines import (
    REPLAY_METHOD,
    BadLineError,
    decode_cancelled_untrusted,
    decode_line_untrusted,
    decode_replay_untrusted,
    error_line,
)
from daemon.rpc.dispatch import receipt_key

if TYPE_CHECKING:
    from mcp.shared._context_streams import ContextReceiveStream, ContextSendStream
    from mcp.shared.message import SessionMessage

    from daemon.mcp.lines import Incoming, RequestId
    from daemon.rpc.session import LineSession

log = logging.getLogger("covey.mcp")

EOF_GRACE_S: Final = 2.0
"""How long calls may run on after the client closed its side, in seconds (daemon.md 6)."""

IN_FLIGHT_MAX: Final = 64
"""Requests being served; then the connection is left unread (daemon.md 5)."""

BAD_LINES_MAX: Final = 20
"""So many unreadable lines in a row end the connection: it speaks something else (daemon.md 5)."""


class Connection:
    """Serves one session until its input ends.

    Args:
        session: the lines and who is behind them.
        server: the SDK's server.
        line_bytes_max: longer lines are refused, in bytes.
    """

    def __init__(self, session: LineSession, server: sdk.McpServer, *, line_bytes_max: int) -> None:
        self._session = session
        self._server = server
        self._line_bytes_max = line_bytes_max
        # An id may be used twice at a time, by a client's fault; each use is answered.
        self._in_flight: dict[str, int] = {}
        self._changed = trio.Event()
        self._replayed: set[str] = set()
        self._requests = 0
        self._bad_running = 0

    async def run(self) -> None:
        """Serve; returns when everything that can be answered was answered."""
        (to_server, server_in), (server_out, from_server) = sdk.streams()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, from_server)
                async with server_out, trio.open_nursery() as reading:
                    reading.start_soon(self._read, to_server)
                    await self._server.run(server_in, server_out)
                    reading.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            # The client is gone: nobody is left to answer.
            pass
        finally:
            log.info(
                "mcp_closed",
                extra={
                    "f": {
                        "connection": self._session.context.connection,
                        "agent": self._session.context.principal.agent,
                        "requests": self._requests,
                    }
                },
            )

    async def _write(self, from_server: ContextReceiveStream[SessionMessage]) -> None:
        async with from_server:
            async for message in from_server:
                line, answered = sdk.encode_message(message)
                await self._session.send_line(line)
                if answered is not None:
                    self._settle(answered)

    async def _read(self, to_server: ContextSendStream[SessionMessage | Exception]) -> None:
        async with to_server:
            while self._bad_running < BAD_LINES_MAX:
                await self._wait_below(IN_FLIGHT_MAX)
                try:
                    line = await self._session.receive_line()
                except RpcError as error:
                    await self._session.send_line(error_line(None, error.code, error.message))
                    break
                if line is None:
                    break
                await self._take(line, to_server)
            with trio.move_on_after(EOF_GRACE_S):
                await self._wait_below(1)

    async def _take(
        self, line: bytes, to_server: ContextSendStream[SessionMessage | Exception]
    ) -> None:
        if not line.strip():
            return
        try:
            incoming = decode_line_untrusted(line, line_bytes_max=self._line_bytes_max)
            if incoming.method == REPLAY_METHOD:
                # The latest word counts: a set that grew with each would have no bound.
                self._replayed = {str(i) for i in decode_replay_untrusted(incoming.params)}
                return
            message = sdk.decode_message_untrusted(line, incoming.request_id)
        except BadLineError as error:
            self._bad_running += 1
            await self._session.send_line(error.answer())
            return
        self._bad_running = 0
        self._note(incoming)
        # The SDK runs the handler in the context of this very send.
        sdk.ASKED.set(self._asked(incoming))
        await to_server.send(message)

    def _asked(self, incoming: Incoming) -> sdk.Asked:
        context = self._session.context
        if incoming.request_id is None or not context.session:
            return sdk.Asked(context=context)
        name = str(incoming.request_id)
        replay = name in self._replayed
        self._replayed.discard(name)
        request = msgspec.json.encode(incoming.request_id).decode()
        return sdk.Asked(
            context=context,
            receipt_key=receipt_key(context.session, request, incoming.params),
            replay=replay,
        )

    def _note(self, incoming: Incoming) -> None:
        """Keep count of what is owed an answer."""
        if incoming.request_id is not None:
            name = str(incoming.request_id)
            self._in_flight[name] = self._in_flight.get(name, 0) + 1
            self._requests += 1
        elif incoming.method == "notifications/cancelled":
            cancelled = decode_cancelled_untrusted(incoming.params)
            if cancelled is not None:
                # A cancelled request is never answered.
                self._settle(cancelled)

    def _settle(self, request_id: RequestId) -> None:
        name = str(request_id)
        left = self._in_flight.pop(name, 0) - 1
        if left > 0:
            self._in_flight[name] = left
        self._changed.set()
        self._changed = trio.Event()

    async def _wait_below(self, count: int) -> None:
        """Wait until fewer than `count` requests are owed an answer."""
        while sum(self._in_flight.values()) >= count:
            await self._changed.wait()
