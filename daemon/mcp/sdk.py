"""The only module that imports the official MCP SDK. Importing it takes .7 s of CPU.

`daemon.mcp.host` loads it in a thread when a connection first needs it. It turns our registry into
a low-level `Server`, lines into the SDK's messages and back. Both protocol eras, the handshake one
(2024-11-05 to 2025-11-25) and the modern one (2026-07-28), are the SDK's work.

Two habits of the SDK shape this file: it calls a tool handler with unknown names and unchecked
arguments, so both are checked here; and it sends the text of any exception to the client, so every
handler maps its failures first and lets only `MCPError` out.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast

from mcp.server.caching import CacheHint
from mcp.server.lowlevel import Server
from mcp.shared._context_streams import (
    ContextReceiveStream,
    ContextSendStream,
    create_context_streams,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    GetPromptRequestParams,
    GetPromptResult,
    JSONRPCError,
    JSONRPCResponse,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextContent,
    TextResourceContents,
    jsonrpc_message_adapter,
)
from mcp.types import Tool as McpTool
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from daemon.errors import RpcError
from daemon.mcp import resources, texts
from daemon.mcp.lines import INTERNAL_ERROR, INVALID_PARAMS, BadLineError
from daemon.mcp.render import show
from daemon.mcp.tools import build_tools

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from mcp.server.context import ServerRequestContext

    from daemon.json_types import Json
    from daemon.mcp.lines import RequestId
    from daemon.mcp.tools import Profile
    from daemon.rpc.registry import Context, Registry
    from daemon.rpc.session import Invoker

log = logging.getLogger("covey.mcp")

# The SDK logs whole frames at debug level; ours never hold bodies or queries (daemon.md 8).
logging.getLogger("mcp").setLevel(logging.WARNING)

LIST_TTL_MS: Final = 3_600_000
"""How long a modern client may keep our lists: they change with the daemon's version only."""

RESOURCE_NOT_FOUND: Final = -32002
"""The handshake era's code for a missing resource; the modern era uses invalid params."""

TRUST_META: Final = "covey/trust"

T = TypeVar("T")

RequestContext: TypeAlias = "ServerRequestContext[dict[str, object], object]"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The request a handler serves: set by the connection before the SDK gets the message.

    Attributes:
        context: who is on the connection.
        receipt_key: key of the call's receipt; None without a session id.
        replay: the client may have sent this request before.
    """

    context: Context
    receipt_key: bytes | None = None
    replay: bool = False


ASKED: ContextVar[Asked] = ContextVar("covey_mcp_asked")


def streams() -> tuple[
    tuple[
        ContextSendStream[SessionMessage | Exception],
        ContextReceiveStream[SessionMessage | Exception],
    ],
    tuple[ContextSendStream[SessionMessage], ContextReceiveStream[SessionMessage]],
]:
    """Channels into and out of the server. Unbuffered: a slow side holds the other back."""
    return (
        create_context_streams[SessionMessage | Exception](0),
        create_context_streams[SessionMessage](0),
    )


def decode_message_untrusted(line: bytes, request_id: RequestId | None) -> SessionMessage:
    """The SDK's form of a line whose envelope was already found sound.

    Args:
        line: as received.
        request_id: id to answer when it is not.

    Raises:
        BadLineError: the SDK does not take it (nested too deep, or both result and error).
    """
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError:
        raise BadLineError(INVALID_PARAMS, "the message is not of MCP's form", request_id) from None


def encode_message(message: SessionMessage) -> tuple[bytes, RequestId | None]:
    """A line for the client, and the id of the request it answers (None for notifications)."""
    body = message.message
    answered = body.id if isinstance(body, (JSONRPCResponse, JSONRPCError)) else None
    return body.model_dump_json(by_alias=True, exclude_unset=True).encode(), answered


class McpServer:
    """Our registry behind the SDK's low-level server; one for all connections.

    Args:
        registry: the methods.
        invoker: runs them under all rules.
        rng: draws delimiters.
        version: ours, shown to clients.
        profile: which tools are listed and callable.
        result_tokens_max: bodies of one answer, in tokens.
    """

    def __init__(
        self,
        registry: Registry,
        invoker: Invoker,
        *,
        rng: random.Random,
        version: str,
        profile: Profile,
        result_tokens_max: int,
    ) -> None:
        self._registry = registry
        self._invoker = invoker
        self._rng = rng
        self._tokens_max = result_tokens_max
        self._tools = build_tools(registry, profile)
        self._listed = [
            McpTool.model_validate(entry.listed(), by_name=False) for entry in self._tools.values()
        ]
        kept = CacheHint(ttl_ms=LIST_TTL_MS, scope="private")
        fresh = CacheHint(ttl_ms=0, scope="private")
        self._server: Server[dict[str, object]] = Server(
            "covey",
            version=version,
            title="Covey",
            instructions=texts.instructions(has_feedback="memory_feedback" in self._tools),
            cache_hints={
                "tools/list": kept,
                "prompts/list": kept,
                "resources/list": kept,
                "resources/templates/list": kept,
                "resources/read": fresh,
                "server/discover": kept,
            },
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
        )

    async def run(
        self,
        read: ContextReceiveStream[SessionMessage | Exception],
        write: ContextSendStream[SessionMessage],
    ) -> None:
        """Serve one connection until `read` ends."""
        await self._server.run(read, write, self._server.create_initialization_options())

    async def _list_tools(
        self, ctx: RequestContext, params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        del ctx, params
        return ListToolsResult(tools=self._listed)

    async def _call_tool(
        self, ctx: RequestContext, params: CallToolRequestParams
    ) -> CallToolResult:
        entry = self._tools.get(params.name)
        if entry is None:
            raise MCPError(INVALID_PARAMS, "there is no such tool: tools/list names them")
        return await _mapped(lambda: self._run_tool(ctx, entry.name, params.arguments), _as_result)

    async def _run_tool(
        self, ctx: RequestContext, name: str, arguments: dict[str, object] | None
    ) -> CallToolResult:
        entry = self._tools[name]
        asked = ASKED.get()

        async def progress(done: int, total: int | None, message: str) -> None:
            await ctx.session.report_progress(float(done), total, message)

        result = await self._invoker.invoke(
            asked.context,
            entry.method,
            entry.params(arguments),
            progress=progress,
            receipt_key=asked.receipt_key if entry.method.mutates else None,
            replay=asked.replay,
        )
        shown = show(result, self._rng, tokens_max=self._tokens_max)
        answer = CallToolResult(
            content=[TextContent(type="text", text=shown.text)], structured_content=shown.structured
        )
        if shown.trust is not None:
            answer.meta = {TRUST_META: shown.trust}
        return answer

    async def _list_resources(
        self, ctx: RequestContext, params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        del ctx, params
        return ListResourcesResult(
            resources=[
                Resource(uri=r.uri, name=r.name, description=r.description, mime_type="text/plain")
                for r in resources.FIXED
                if self._registry.get(r.method) is not None
            ]
        )

    async def _list_templates(
        self, ctx: RequestContext, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        del ctx, params
        return ListResourceTemplatesResult(
            resource_templates=[
                ResourceTemplate(
                    uri_template=resources.MEMORY_TEMPLATE,
                    name="memory",
                    description="One memory by its id.",
                    mime_type="text/plain",
                )
            ]
        )

    async def _read_resource(
        self, ctx: RequestContext, params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        missing = INVALID_PARAMS if modern else RESOURCE_NOT_FOUND
        target = resources.decode_uri_untrusted(str(params.uri))
        method = None if target is None else self._registry.get(target.method)
        if target is None or method is None:
            raise MCPError(missing, "there is no such resource: resources/list names them")

        async def read() -> ReadResourceResult:
            result = await self._invoker.invoke(
                ASKED.get().context, method, target.params(method.params)
            )
            shown = show(result, self._rng, tokens_max=self._tokens_max)
            contents = TextResourceContents(uri=target.uri, mime_type="text/plain", text=shown.text)
            if shown.trust is not None:
                contents.meta = {TRUST_META: shown.trust}
            return ReadResourceResult(contents=[contents])

        def failed(error: RpcError) -> ReadResourceResult:
            raise MCPError(
                missing if error.name == "not_found" else error.code,
                error.message,
                {"name": error.name, "remedy": error.remedy},
            )

        return await _mapped(read, failed)

    async def _list_prompts(
        self, ctx: RequestContext, params: PaginatedRequestParams | None
    ) -> ListPromptsResult:
        del ctx, params
        return ListPromptsResult(
            prompts=[
                Prompt(
                    name="recall_context",
                    description="Begin a task with what is remembered about it.",
                    arguments=[
                        PromptArgument(name="task", description="what is to be done", required=True)
                    ],
                ),
                Prompt(
                    name="save_lessons",
                    description="End a session by storing what it taught.",
                ),
            ]
        )

    async def _get_prompt(
        self, ctx: RequestContext, params: GetPromptRequestParams
    ) -> GetPromptResult:
        del ctx
        if params.name == "save_lessons":
            text = texts.save_lessons()
        elif params.name == "recall_context":
            task = (params.arguments or {}).get("task", "").strip()
            if not task:
                raise MCPError(INVALID_PARAMS, "recall_context needs the argument task")
            text = texts.recall_context(task)
        else:
            raise MCPError(INVALID_PARAMS, "there is no such prompt: prompts/list names them")
        message = PromptMessage(role="user", content=TextContent(type="text", text=text))
        return GetPromptResult(messages=[message])


async def _mapped(work: Callable[[], Awaitable[T]], failed: Callable[[RpcError], T]) -> T:
    """Run a handler so that nothing but `MCPError` and cancellation comes out."""
    try:
        return await work()
    except RpcError as error:
        return failed(error)
    except MCPError:
        raise
    except Exception as error:
        # The SDK would send the exception's text to the client.
        log.exception("mcp_handler_failed", extra={"f": {"error": type(error).__name__}})
        raise MCPError(
            INTERNAL_ERROR, "a fault in Covey: look at `covey logs` and report the last lines"
        ) from None


def _as_result(error: RpcError) -> CallToolResult:
    """A failure as a tool result, which models read and correct themselves by."""
    return CallToolResult(
        content=[TextContent(type="text", text=f"{error.message}\n{error.remedy}")],
        structured_content={"error": cast("Json", error.as_json())},
        is_error=True,
    )
