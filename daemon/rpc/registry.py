"""The table of methods: one declaration yields the server, the MCP tools and the documentation.

A handler is an async function of a `Call` and a params struct, declared in `daemon/methods/`:

    @method("memory.recall", scope="read", tool=Tool(name="memory_recall", read_only=True))
    async def recall(call: Call, p: Query) -> Hits: ...

The decorator replaces it by a `Method`; `Registry.of(modules)` collects those. Nothing registers
itself at import, so two registries in one process do not mix.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast, get_type_hints

import msgspec

if TYPE_CHECKING:
    from types import ModuleType

    from daemon.agents import Principal
    from daemon.services import Services
    from memory.model import Caller

API: Final = (1, 0)
"""Version of the local API: fields are only added within a major one."""

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R")


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Params of a method that takes none."""


class ConnectionOps(Protocol):
    """What a method may do with the connection it was called on (not in MCP)."""

    def notify(self, method: str, params: dict[str, object]) -> None:
        """Send a notification; dropped when the connection is gone."""
        ...

    def cancel(self, request: int | str) -> bool:
        """Cancel a request of this connection; False if none of that id is at work."""
        ...

    def attach(self, topics: Sequence[str], since: tuple[str, int] | None) -> tuple[int, bool]:
        """Start to send events; the subscription's number, and whether some may be missing."""
        ...

    def detach(self, subscription: int) -> bool:
        """Stop sending events; False if there is no such subscription."""
        ...


class Progress(Protocol):
    """Where a running call reports how far it is."""

    async def __call__(self, done: int, total: int | None, message: str) -> None:
        """Send `done` of `total` (None: unknown) with a short message; dropped if nobody asked."""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """Who is on a connection: everything about a call but its arguments.

    Attributes:
        services: the running parts of the daemon.
        principal: the person, or the agent the token stands for.
        session: the client's session id (hex), kept over reconnects; empty if it gave none.
        client: what the client calls itself, for logs and `agents list`; never trusted.
        connection: number of the connection since start.
        pid: process id of the client, as the kernel says; 0 if unknown.
        project: scope name of what the client works on; empty if it gave none.
        ops: the connection, None in MCP.
    """

    services: Services
    principal: Principal
    session: str = ""
    client: str = ""
    connection: int = 0
    pid: int = 0
    project: str = ""
    ops: ConnectionOps | None = None

    def caller(self) -> Caller:
        """The principal as the memory sees it."""
        return self.principal.caller(
            bytes(self.services.device), session=self.session, project=self.project
        )


@dataclass(frozen=True, kw_only=True)
class StoredReceipt:
    """Result of a mutating call, stored with its effect (shape of `memory.seams.Receipt`).

    Attributes:
        key: SHA-256 over session, request id and params.
    """

    key: bytes

    def encode(self, result: object, /) -> bytes:
        """The JSON to keep; runs in the writer's transaction."""
        return msgspec.json.encode(result)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request being served.

    Attributes:
        context: who asks, and the parts of the daemon.
        deadline_s: `trio.current_time()` at which it is cancelled; infinite without one.
        progress: report here; cheap when nobody listens.
        receipt_key: key of this call's receipt if it mutates and the session has an id.
    """

    context: Context
    deadline_s: float
    progress: Progress
    receipt_key: bytes | None = None

    @property
    def services(self) -> Services:
        """The running parts of the daemon."""
        return self.context.services

    @property
    def principal(self) -> Principal:
        """Who asks."""
        return self.context.principal

    @property
    def receipt(self) -> StoredReceipt | None:
        """Pass this to the memory's writing methods."""
        return None if self.receipt_key is None else StoredReceipt(key=self.receipt_key)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """How a method appears to a model through MCP.

    Attributes:
        name: tool name, the method's with `_`.
        read_only: changes nothing.
        destructive: may take something away.
        idempotent: repeating it changes nothing more.
        open_world: reaches beyond this machine and its peers' replicated data.
        summary: one or two sentences for the model; no memory text.
        arguments: params struct of the tool, when it is narrower than the method's.
        adapt: makes the method's params of `arguments`.
    """

    name: str
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False
    open_world: bool = False
    summary: str = ""
    arguments: type[msgspec.Struct] | None = None
    adapt: Callable[[msgspec.Struct], msgspec.Struct] | None = None


Handler = Callable[[Call, msgspec.Struct], Awaitable[object]]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One entry of the table.

    Attributes:
        name: `namespace.verb`.
        scope: the token scope it needs; empty: any principal. `owner`: only the person.
        since: API version that has it.
        mutates: its effect is durable, so a replayed request answers from its receipt.
        params: the struct its params are decoded into.
        result: type of its result, for the documentation.
        handler: the function.
        summary: first paragraph of its docstring.
        tool: how MCP shows it, None if it does not.
        unmetered: not counted by the rate limits (pings, cancels, status).
    """

    name: str
    scope: str
    since: tuple[int, int]
    mutates: bool
    params: type[msgspec.Struct]
    result: object
    handler: Handler
    summary: str
    tool: Tool | None
    unmetered: bool


def method(
    name: str,
    *,
    scope: str,
    since: tuple[int, int] = (1, 0),
    mutates: bool = False,
    tool: Tool | None = None,
    unmetered: bool = False,
) -> Callable[[Callable[[Call, P], Awaitable[R]]], Method]:
    """Declare an RPC method; the function's annotations give params and result types.

    Args:
        name: `namespace.verb`.
        scope: the token scope it needs; "" for any principal, "owner" for the person alone.
        since: API version that has it.
        mutates: whether its effect is durable.
        tool: how MCP shows it.
        unmetered: whether the rate limits leave it alone.

    Returns:
        A decorator that makes a `Method` of the function.
    """

    def declare(fn: Callable[[Call, P], Awaitable[R]]) -> Method:
        hints = get_type_hints(fn)
        names = [key for key in hints if key != "return"]
        params = hints[names[1]]
        if not (isinstance(params, type) and issubclass(params, msgspec.Struct)):
            raise TypeError(f"{name}: the second argument must be a msgspec.Struct")
        doc = inspect.getdoc(fn)
        if not doc:
            raise TypeError(f"{name}: a method needs a docstring")
        return Method(
            name=name,
            scope=scope,
            since=since,
            mutates=mutates,
            params=params,
            result=hints["return"],
            handler=cast("Handler", fn),
            summary=" ".join(doc.split("\n\n")[0].split()),
            tool=tool,
            unmetered=unmetered,
        )

    return declare


class Registry:
    """All methods of a daemon, by name.

    Args:
        methods: the entries.

    Raises:
        ValueError: two entries share a method or tool name.
    """

    def __init__(self, methods: Iterable[Method]) -> None:
        self._methods: dict[str, Method] = {}
        self._tools: dict[str, Method] = {}
        for entry in sorted(methods, key=lambda m: m.name):
            if entry.name in self._methods:
                raise ValueError(f"method {entry.name} is declared twice")
            self._methods[entry.name] = entry
            if entry.tool is not None:
                if entry.tool.name in self._tools:
                    raise ValueError(f"tool {entry.tool.name} is declared twice")
                self._tools[entry.tool.name] = entry

    @classmethod
    def of(cls, modules: Iterable[ModuleType]) -> Registry:
        """Collect the `Method`s that stand in `modules`."""
        return cls(
            entry
            for module in modules
            for entry in vars(module).values()
            if isinstance(entry, Method)
        )

    def get(self, name: str) -> Method | None:
        """The method of that name."""
        return self._methods.get(name)

    def __iter__(self) -> Iterator[Method]:
        return iter(self._methods.values())

    def __len__(self) -> int:
        return len(self._methods)

    def tools(self) -> Mapping[str, Method]:
        """Methods that MCP shows, by tool name."""
        return self._tools
