"""MCP in the daemon: loads the official SDK when first needed and serves connections with it.

The SDK's import takes .7 s of CPU, which a daemon that no agent talks to should not pay and a busy
one should not feel: it happens once, in a thread, when the first MCP connection comes or when
`load` is called.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from daemon.errors import RpcError
from daemon.mcp.lines import INTERNAL_ERROR, BadLineError, decode_line_untrusted

if TYPE_CHECKING:
    from daemon.mcp.sdk import McpServer
    from daemon.mcp.tools import Profile
    from daemon.rpc.registry import Registry
    from daemon.rpc.session import Invoker, LineSession
    from p2p.env import Env, Offload

log = logging.getLogger("covey.mcp")

LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Default of `[mcp] line_bytes_max`."""

RESULT_TOKENS_MAX: Final = 2000
"""Default of `[mcp] result_tokens_max`."""


class McpHost:
    """Serves MCP on connections of the local socket; a `Dialect`.

    Args:
        registry: the methods; those with `tool=` become tools.
        invoker: runs them under all rules.
        env: random numbers for delimiters.
        offload: where the SDK is imported.
        version: Covey's, shown to clients.
        profile: which tools clients see.
        result_tokens_max: bodies of one answer, in tokens.
        line_bytes_max: longer lines are refused, in bytes.
    """

    def __init__(
        self,
        registry: Registry,
        invoker: Invoker,
        *,
        env: Env,
        offload: Offload,
        version: str,
        profile: Profile = "standard",
        result_tokens_max: int = RESULT_TOKENS_MAX,
        line_bytes_max: int = LINE_BYTES_MAX,
    ) -> None:
        self._registry = registry
        self._invoker = invoker
        self._env = env
        self._offload = offload
        self._version = version
        self._profile = profile
        self._result_tokens_max = result_tokens_max
        self._line_bytes_max = line_bytes_max
        self._loading = trio.Lock()
        self._server: McpServer | None = None

    @property
    def loaded(self) -> bool:
        """Whether the SDK is there."""
        return self._server is not None

    async def load(self) -> None:
        """Import the SDK and build the server, unless that was done.

        Raises:
            ImportError: the SDK is missing or of another version.
        """
        async with self._loading:
            if self._server is None:
                start = self._env.now()
                self._server = await self._offload.run(self._build)
                took_ms = round((self._env.now() - start) * 1000)
                log.info("mcp_sdk_loaded", extra={"f": {"ms": took_ms}})

    async def serve(self, session: LineSession) -> None:
        """Serve one connection until its input ends.

        Args:
            session: the connection past its hello.
        """
        try:
            await self.load()
        except ImportError as error:
            log.exception("mcp_sdk_missing", extra={"f": {"module": error.name}})
            await self._refuse(session)
            return
        assert self._server is not None
        from daemon.mcp.connection import Connection

        await Connection(session, self._server, line_bytes_max=self._line_bytes_max).run()

    def _build(self) -> McpServer:
        # Both late: they import the SDK. The second one here, so that no connection pays for it.
        import daemon.mcp.connection  # noqa: F401 - see above
        from daemon.mcp.sdk import McpServer

        return McpServer(
            self._registry,
            self._invoker,
            rng=self._env.rng,
            version=self._version,
            profile=self._profile,
            result_tokens_max=self._result_tokens_max,
        )

    async def _refuse(self, session: LineSession) -> None:
        """Answer every request with what is missing: a client should not wait in vain."""
        refusal = BadLineError(
            INTERNAL_ERROR,
            "Covey's MCP support cannot be loaded: install Covey again, `covey down`, `covey up`",
        )
        try:
            while (line := await session.receive_line()) is not None:
                try:
                    incoming = decode_line_untrusted(line, line_bytes_max=self._line_bytes_max)
                except BadLineError as error:
                    await session.send_line(error.answer())
                    continue
                if incoming.request_id is not None:
                    refusal.request_id = incoming.request_id
                    await session.send_line(refusal.answer())
        except (RpcError, trio.BrokenResourceError):
            return
