"""MCP tools made from the method registry: which ones, their descriptions, their arguments.

Knows nothing of the SDK: everything here is plain data, so it can be tested without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

import msgspec

from daemon.errors import RpcError
from daemon.mcp.schema import input_schema
from daemon.sanitise import sanitise_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.json_types import Json
    from daemon.rpc.registry import Method, Registry, Tool

Profile: TypeAlias = Literal["core", "standard", "readonly"]
"""Which tools a connection is shown: the memory's, all, or those that change nothing."""

TOOLS_BYTES_MAX: Final = 10 * 1024
"""Whole tool list as JSON (daemon.md 6): a model reads it at the start of every session."""

_CORE_PREFIX: Final = "memory_"


@dataclass(frozen=True, kw_only=True)
class ToolEntry:
    """A tool as it is listed and called.

    Attributes:
        name: its name for the model.
        method: the registry entry behind it.
        arguments: struct its arguments are decoded into.
        schema: JSON Schema of the arguments.
        description: for the model.
    """

    name: str
    method: Method
    arguments: type[msgspec.Struct]
    schema: dict[str, Json]
    description: str

    @property
    def hints(self) -> dict[str, bool]:
        """All four hints; an absent `destructiveHint` would mean yes."""
        tool = _tool(self.method)
        return {
            "readOnlyHint": tool.read_only,
            "destructiveHint": tool.destructive,
            "idempotentHint": tool.idempotent,
            "openWorldHint": tool.open_world,
        }

    def listed(self) -> dict[str, Json]:
        """The tool as `tools/list` sends it."""
        return {
            "name": self.name,
            "description": self.description,
            "inputSchema": self.schema,
            "annotations": cast("dict[str, Json]", self.hints),
        }

    def params(self, arguments: Mapping[str, object] | None) -> msgspec.Struct:
        """Decode a call's arguments into the method's params.

        Args:
            arguments: as the client sent them, unchecked.

        Returns:
            Params of the method.

        Raises:
            RpcError: `invalid_params`, with the argument that is wrong and what it should be.
        """
        try:
            decoded = msgspec.convert(arguments or {}, self.arguments)
            adapt = _tool(self.method).adapt
            return decoded if adapt is None else adapt(decoded)
        except (msgspec.ValidationError, RecursionError) as error:
            raise RpcError(
                "invalid_params",
                f"{self.name}: {_without_values(error)}",
                remedy=f"Its arguments are: {', '.join(self._argument_names())}.",
            ) from None

    def _argument_names(self) -> list[str]:
        required = {
            field.encode_name for field in msgspec.structs.fields(self.arguments) if field.required
        }
        names = [field.encode_name for field in msgspec.structs.fields(self.arguments)]
        return [f"{name} (required)" if name in required else name for name in names]


def build_tools(registry: Registry, profile: Profile) -> dict[str, ToolEntry]:
    """Tools of a profile, sorted by name (a modern client hashes the list).

    Args:
        registry: the daemon's methods.
        profile: which of them.

    Returns:
        Entries by tool name.
    """
    entries: dict[str, ToolEntry] = {}
    for name, method in sorted(registry.tools().items()):
        tool = _tool(method)
        if profile == "readonly" and not tool.read_only:
            continue
        if profile == "core" and not name.startswith(_CORE_PREFIX):
            continue
        arguments = tool.arguments or method.params
        entries[name] = ToolEntry(
            name=name,
            method=method,
            arguments=arguments,
            schema=input_schema(arguments),
            description=tool.summary or method.summary,
        )
    return entries


def _tool(method: Method) -> Tool:
    if method.tool is None:
        raise ValueError(f"{method.name} is no tool")
    return method.tool


def _without_values(error: Exception) -> str:
    # msgspec quotes unknown field names and wrong enum values: the caller's own words, but shown on
    # one line and without control characters.
    return sanitise_line(str(error))
