"""The local socket: who may connect, the hello, and the caps around every connection.

A connection is admitted by the kernel's word on its user id, then has five seconds for its first
line, `rpc.hello`. That line chooses the dialect: JSON-RPC of our own methods, or MCP.
Source: docs/specs/local-rpc.md.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import trio

import daemon
from daemon.agents import OWNER, Principal, assumed
from daemon.errors import RpcError
from daemon.paths import make_private
from daemon.rpc.connection import Connection, peer_credentials
from daemon.rpc.jsonrpc import (
    JsonRpcSession,
    Request,
    decode_request_untrusted,
    encode_error,
    encode_result,
)
from daemon.rpc.registry import API, Context
from memory.errors import StoreError

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.rpc.registry import Registry
    from daemon.rpc.session import Dialect, Invoker
    from daemon.services import Services

log = logging.getLogger("covey.rpc.server")

HELLO_S: Final = 5.0
"""Time for the first line (daemon.md s.5)."""

HELLO_BYTES_MAX: Final = 8192
"""Of the first line: nobody has proved anything yet."""

BACKLOG: Final = 128
"""Connections the kernel holds for us; Linux caps it at somaxconn anyway."""

# Group (32) / scope (64), see docs/specs/local-rpc.md.
_PROJECT: Final = re.compile(r"(?:[a-z0-9._-]{1,32}/)?[a-z0-9._-]{0,64}")

FEATURES: Final = ("events", "mcp", "progress", "replay")


class HelloParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First line of every connection.

    Attributes:
        client: name and version of the client's software, for people.
        api: version of the API it was written for.
        dialect: what the following lines are.
        agent: whose hands the client is in; without a token it is taken at its word.
        token: an agent's token.
        session: random hex, kept over reconnects: ties replays and lineage together.
        label: name of the client within the agent, for people.
        project: scope name of what the client works on.
    """

    client: str = ""
    api: tuple[int, int] = API
    dialect: Literal["rpc", "mcp"] = "rpc"
    agent: str = ""
    token: str = ""
    session: str = ""
    label: str = ""
    project: str = ""


class HelloResult(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to the hello.

    Attributes:
        server: name of this software.
        version: its version.
        api: version of the API it serves.
        features: what it can do beyond the methods.
        pid: process id of the daemon.
        node_id: its device key, hex.
        epoch: random id of this boot; event numbers start anew with it.
        agent: who the client is taken for; empty for the person.
        scopes: what it may do.
    """

    server: str
    version: str
    api: tuple[int, int]
    features: tuple[str, ...]
    pid: int
    node_id: str
    epoch: str
    agent: str
    scopes: tuple[str, ...]


class RpcServer:
    """Accepts clients on the Unix socket.

    Args:
        services: the running parts.
        registry: the methods.
        invoker: runs them.
        mcp: what serves MCP connections; None refuses them.
    """

    def __init__(
        self, services: Services, registry: Registry, invoker: Invoker, mcp: Dialect | None
    ) -> None:
        self._services = services
        self._registry = registry
        self._invoker = invoker
        self._mcp = mcp
        self._count = 0
        self._live: dict[int, str] = {}
        self._open: dict[int, Connection] = {}
        self.refused = 0
        self.bugs = 0

    @property
    def _config(self) -> Config:
        return self._services.config

    @property
    def connections(self) -> int:
        """Live connections."""
        return len(self._live)

    async def flush(self) -> None:
        """Until all clients that read have what was queued for them."""
        for connection in list(self._open.values()):
            await connection.flush()

    async def run(
        self,
        *,
        sessions: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen until cancelled; connections live on in `sessions`.

        Raises:
            PathsError: the folder of the socket is not ours.
        """
        path = self._services.paths.socket
        listener = _bind(path)
        inode = os.lstat(path).st_ino
        try:
            task_status.started()
            while True:
                sock = await _accept(listener)
                sessions.start_soon(self._admit, sock)
        finally:
            listener.close()
            _unlink(path, inode)

    async def _admit(self, sock: trio.socket.SocketType) -> None:
        try:
            uid, pid = peer_credentials(sock)
        except OSError:
            sock.close()
            return
        full = len(self._live) >= self._config.rpc.connections_max
        if full or (uid != os.getuid() and uid not in self._config.rpc.allow_uids):
            self.refused += 1
            reason = "full" if full else "foreign_user"
            log.warning("connection_refused", extra={"f": {"reason": reason, "uid": uid}})
            sock.close()
            return
        self._count += 1
        number = self._count
        self._live[number] = "hello"
        try:
            await self._serve(trio.SocketStream(sock), number, pid)
        except Exception:
            # A supervisor's edge: a fault of ours in one connection must not stop the daemon.
            self.bugs += 1
            log.exception("session_bug", extra={"f": {"connection": number}})
        finally:
            del self._live[number]

    async def _serve(self, stream: trio.SocketStream, number: int, pid: int) -> None:
        with trio.CancelScope() as scope:

            def dead(why: str) -> None:
                if why == "unread":
                    log.warning("connection_unread", extra={"f": {"connection": number}})
                scope.cancel()

            connection = Connection(
                stream, number=number, line_bytes_max=HELLO_BYTES_MAX, on_dead=dead
            )
            self._open[number] = connection
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.write_loop)
                    await self._greet_and_serve(connection, number, pid)
                    with trio.move_on_after(1.0):
                        await connection.flush()
                    nursery.cancel_scope.cancel()
            finally:
                del self._open[number]
                with trio.move_on_after(1.0, shield=True):
                    await connection.aclose()

    async def _greet_and_serve(self, connection: Connection, number: int, pid: int) -> None:
        greeted: tuple[Context, str] | None = None
        with trio.move_on_after(HELLO_S) as limit:
            greeted = await self._hello(connection, number, pid)
        if greeted is None:
            if limit.cancelled_caught:
                log.info("hello_timeout", extra={"f": {"connection": number, "pid": pid}})
            return
        context, dialect = greeted
        self._live[number] = dialect
        if context.principal.agent_id:
            await self._note_seen(context)
        if dialect == "mcp" and self._mcp is not None:
            connection.line_bytes_max = self._config.mcp.line_bytes_max
            await self._mcp.serve(_McpLines(connection, context))
            return
        connection.line_bytes_max = self._config.rpc.line_bytes_max
        session = JsonRpcSession(
            connection,
            context,
            self._registry,
            self._invoker,
            in_flight_max=self._config.rpc.in_flight_max,
        )
        await session.serve()

    async def _note_seen(self, context: Context) -> None:
        try:
            await self._services.agents.touch(context.principal, context.client)
        except StoreError:
            # A full disk must not keep an agent from reading what is there.
            log.info("agent_not_noted", extra={"f": {"agent": context.principal.agent}})

    async def _hello(
        self, connection: Connection, number: int, pid: int
    ) -> tuple[Context, str] | None:
        """Read the first line; answer it. None when the connection is to end."""
        request_id: int | str | None = None
        try:
            line = await connection.receive_line()
            if line is None:
                return None
            request = decode_request_untrusted(line)
            request_id = None if request.id is msgspec.UNSET else request.id
            hello, answer_id = self._check_hello(request)
            principal = self._principal(hello)
        except RpcError as error:
            self.refused += 1
            log.info(
                "hello_refused", extra={"f": {"connection": number, "pid": pid, "why": error.name}}
            )
            connection.queue(encode_error(request_id, error))
            return None
        context = Context(
            services=self._services,
            principal=principal,
            session=hello.session,
            client=hello.client,
            connection=number,
            pid=pid,
            project=hello.project,
        )
        connection.queue(encode_result(answer_id, self._welcome(principal)))
        return context, hello.dialect

    def _check_hello(self, request: Request) -> tuple[HelloParams, int | str]:
        if request.method != "rpc.hello" or request.id is msgspec.UNSET:
            raise RpcError(
                "invalid_request",
                "the first line must be rpc.hello with an id",
                remedy="Send rpc.hello first; see docs/specs/local-rpc.md.",
            )
        hello = decode_hello_untrusted(bytes(request.params))
        if hello.dialect == "mcp" and self._mcp is None:
            raise RpcError("extra_missing", "this daemon does not speak MCP")
        return hello, request.id

    def _principal(self, hello: HelloParams) -> Principal:
        if hello.token:
            return self._services.agents.authenticate(hello.token)
        return assumed(hello.agent) if hello.agent else OWNER

    def _welcome(self, principal: Principal) -> HelloResult:
        return HelloResult(
            server="covey",
            version=daemon.__version__,
            api=API,
            features=FEATURES,
            pid=os.getpid(),
            node_id=bytes(self._services.device).hex(),
            epoch=self._services.boot_id,
            agent=principal.agent,
            scopes=principal.scopes,
        )


def decode_hello_untrusted(raw: bytes) -> HelloParams:
    """Read the hello's params.

    Raises:
        RpcError: invalid_params or api_mismatch.
    """
    try:
        hello = msgspec.json.decode(raw, type=HelloParams)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RpcError("invalid_params", "rpc.hello has other params") from None
    if hello.api[0] != API[0]:
        raise RpcError(
            "api_mismatch",
            f"the client speaks API {hello.api[0]}.{hello.api[1]}, the daemon {API[0]}.{API[1]}",
        )
    if not _is_short_text(hello.client, 64) or not _is_short_text(hello.label, 64):
        raise RpcError("invalid_params", "client and label may have 64 printable characters")
    if len(hello.session) > 64 or not all(char in "0123456789abcdef-" for char in hello.session):
        raise RpcError("invalid_params", "session is at most 64 hexadecimal digits")
    if not _PROJECT.fullmatch(hello.project):
        raise RpcError("invalid_params", "project is a scope name")
    return hello


def _is_short_text(text: str, length: int) -> bool:
    return len(text) <= length and (not text or text.isprintable())


class _McpLines:
    """A connection as the MCP host sees it."""

    def __init__(self, connection: Connection, context: Context) -> None:
        self._connection = connection
        self._context = context

    @property
    def context(self) -> Context:
        """Who is there."""
        return self._context

    async def receive_line(self) -> bytes | None:
        """The next line; None at the end of the input."""
        return await self._connection.receive_line()

    async def send_line(self, line: bytes) -> None:
        """Queue one line."""
        await self._connection.send_line(line)


def _bind(path: str) -> trio.socket.SocketType:
    """Listen at `path`, which nobody else can reach. Called under the instance lock."""
    make_private(os.path.dirname(path))
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            # Left by a daemon that died: the instance lock says that nobody serves it.
            os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return trio.socket.from_stdlib_socket(sock)


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            sock, _ = await listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError as error:
            # Out of descriptors: what is open may close; the kernel holds the backlog meanwhile.
            log.warning("accept_failed", extra={"f": {"errno": error.errno}})
            await trio.sleep(0.1)
            continue
        return sock


def _unlink(path: str, inode: int) -> None:
    """Remove our socket, unless somebody put another in its place."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass
