"""A local RPC server over a real Unix socket, with methods made for tests, and a client for it."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import trio

from daemon.agents import AgentStore
from daemon.config import Config, decode
from daemon.errors import RpcError
from daemon.events import EventHub
from daemon.health import Health
from daemon.methods import rpc as rpc_methods
from daemon.paths import make_private, resolve
from daemon.receipts import Receipts
from daemon.rpc.dispatch import Dispatcher
from daemon.rpc.registry import Call, Empty, Registry, method
from daemon.rpc.server import RpcServer
from daemon.services import Services
from memory.errors import RefusedError
from memory.storage.db import Db
from p2p.env import SystemEnv

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemon.backup import Backups
    from daemon.json_types import Json
    from daemon.roles import Roles
    from daemon.rpc.session import Dialect
    from daemon.scanner import TextScanner
    from daemon.uploads import Uploads
    from federated.jobs.service import Jobs
    from federated.rounds.service import Rounds
    from memory.embedding.service import Embeddings
    from memory.erasure.erasing import Eraser
    from memory.erasure.forgetting import Forgetting
    from memory.records.replica import Replica
    from memory.review.desk import TrustDesk
    from memory.review.resolving import ConflictDesk
    from memory.storage.behaviour import Behaviour
    from memory.store import Memory
    from p2p.identity import PeerId
    from p2p.node import Node
    from p2p.replication.service import Replication

DEVICE = bytes(range(32))


class EchoParams(msgspec.Struct, forbid_unknown_fields=True):
    """Any text, and how often to answer it."""

    text: str
    times: int = 1


class EchoResult(msgspec.Struct):
    """What came, who sent it."""

    text: str
    agent: str


@method("test.echo", scope="read")
async def echo(call: Call, p: EchoParams) -> EchoResult:
    """Answer the text."""
    return EchoResult(text=p.text * p.times, agent=call.principal.agent)


@method("test.hang", scope="")
async def hang(call: Call, p: Empty) -> Empty:
    """Never answer; reports that it began."""
    await call.progress(0, None, "began")
    await trio.Event().wait()
    return p


@method("test.boom", scope="")
async def boom(call: Call, p: Empty) -> Empty:
    """Fail inside, with a text that must not travel."""
    del call, p
    raise RuntimeError("sentinel-of-the-inside")


@method("test.refuse", scope="")
async def refuse(call: Call, p: Empty) -> Empty:
    """Fail as the memory does."""
    del call, p
    raise RefusedError("unknown_scope", "there is no scope of that name")


class Counted(msgspec.Struct):
    """How many rows the write has made."""

    count: int


@method("test.write", scope="write", mutates=True)
async def write(call: Call, p: EchoParams) -> Counted:
    """Insert a row, its receipt in the same transaction."""

    def unit(connection: object) -> Counted:
        db = cast("msgspec.Raw", connection)
        run = getattr(db, "execute")  # noqa: B009 - apsw's connection, typed where it is used
        run("CREATE TABLE IF NOT EXISTS test_rows (text TEXT)")
        run("INSERT INTO test_rows VALUES (?)", (p.text,))
        (count,) = run("SELECT count(*) FROM test_rows").fetchone()
        done = Counted(count=count)
        if call.receipt is not None:
            run(
                "INSERT INTO receipt (key, result, at_ms) VALUES (?, ?, ?)",
                (call.receipt.key, call.receipt.encode(done), call.services.env.wall_ms()),
            )
        return done

    return await call.services.db.write(unit)


@method("test.admin", scope="admin")
async def admin(call: Call, p: Empty) -> Empty:
    """Needs admin."""
    del call
    return p


@method("test.person", scope="owner")
async def person(call: Call, p: Empty) -> Empty:
    """Needs the person."""
    del call
    return p


class Nobody:
    """A `Control` that notes what it was told."""

    def __init__(self) -> None:
        self.stopped: list[bool] = []

    def stop(self, *, now: bool) -> None:
        """Note it."""
        self.stopped.append(now)

    def reload(self) -> None:
        """Nothing."""


class Kit:
    """A running server and what it stands on."""

    def __init__(self, services: Services, server: RpcServer, dispatcher: Dispatcher) -> None:
        self.services = services
        self.server = server
        self.dispatcher = dispatcher
        self.socket = services.paths.socket
        self._streams: list[trio.SocketStream] = []

    async def raw(self) -> trio.SocketStream:
        """A connection without a hello."""
        stream = await trio.open_unix_socket(self.socket)
        self._streams.append(stream)
        return stream

    async def aclose(self) -> None:
        """Close all client connections."""
        for stream in self._streams:
            await trio.aclose_forcefully(stream)

    async def client(self, **hello: Json) -> RawClient:
        """A connection past its hello."""
        client = RawClient(await self.raw())
        await client.call("rpc.hello", {"api": [1, 0], **hello})
        return client


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, error: dict[str, object]) -> None:
        super().__init__(str(error))
        self.error = error
        self.code = error["code"]


class RawClient:
    """Lines over a connection, as a client of another language would send them."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""
        self._next = 0
        self._early: dict[object, dict[str, object]] = {}

    async def send(self, line: bytes) -> None:
        """Send raw bytes and a newline."""
        await self.stream.send_all(line + b"\n")

    async def request(self, name: str, params: Json = None, *, id: Json = None) -> Json:  # noqa: A002
        """Send a request; its id."""
        if id is None:
            self._next += 1
            id = self._next  # noqa: A001
        message: dict[str, Json] = {"jsonrpc": "2.0", "id": id, "method": name}
        if params is not None:
            message["params"] = params
        await self.send(json.dumps(message).encode())
        return id

    async def line(self) -> dict[str, object] | None:
        """The next line, None at the end."""
        while b"\n" not in self._buffer:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        decoded = json.loads(line)
        assert isinstance(decoded, dict)
        return decoded

    async def answer(self, request: Json) -> object:
        """The result of a request, notifications skipped."""
        while True:
            message = self._early.pop(request, None) or await self.line()
            assert message is not None, "the connection ended"
            if "method" in message:
                continue
            if message.get("id") != request:
                # Answers come in the order in which they are done.
                self._early[message.get("id")] = message
                continue
            if "error" in message:
                raise Refused(cast("dict[str, object]", message["error"]))
            return message["result"]

    async def call(self, name: str, params: Json = None) -> object:
        """Request and answer."""
        return await self.answer(await self.request(name, params))

    async def ended(self) -> bool:
        """Whether the server closed the connection (reads up to there)."""
        while await self.line() is not None:
            pass
        return True


def config_with(**rpc: object) -> Config:
    """Default settings but for `[rpc]`."""
    base = decode("")
    return replace(base, rpc=replace(base.rpc, **rpc))  # type: ignore[arg-type]


@asynccontextmanager
async def running_kit(
    folder: Path, config: Config | None = None, mcp: Dialect | None = None
) -> AsyncIterator[Kit]:
    """A server in `folder` until the block ends."""
    env = SystemEnv()
    paths = resolve({"COVEY_HOME": str(folder / "h"), "HOME": str(folder)})
    make_private(paths.state)
    db = Db(Path(paths.db), env)
    settings = config or decode("")
    registry = Registry.of([rpc_methods, sys.modules[__name__]])
    agents = AgentStore(db, env.rng, env.wall_ms)
    services = Services(
        env=env,
        config=settings,
        paths=paths,
        device=cast("PeerId", DEVICE),
        memory=cast("Memory", None),
        conflicts=cast("ConflictDesk", None),
        behaviour=cast("Behaviour", None),
        scanner=cast("TextScanner", None),
        eraser=cast("Eraser", None),
        forgetting=cast("Forgetting", None),
        embeddings=cast("Embeddings", None),
        node=cast("Node", None),
        replication=cast("Replication", None),
        roles=cast("Roles", None),
        trust=cast("TrustDesk", None),
        replica=cast("Replica", None),
        db=db,
        agents=agents,
        events=EventHub("boot", env.wall_ms),
        health=Health(env.now),
        registry=registry,
        control=Nobody(),
        mesh_up=trio.Event(),
        boot_id="boot",
        started_ms=env.wall_ms(),
        backups=cast("Backups", None),
        uploads=cast("Uploads", None),
        jobs=cast("Jobs", None),
        rounds=cast("Rounds", None),
    )
    dispatcher = Dispatcher(settings.rpc, Receipts(db, env.wall_ms), env.now)
    server = RpcServer(services, registry, dispatcher, mcp)
    async with trio.open_nursery() as stores:
        await stores.start(db.run)
        await agents.load()
        async with trio.open_nursery() as sessions:

            async def listen(*, task_status: trio.TaskStatus[None]) -> None:
                await server.run(sessions=sessions, task_status=task_status)

            await sessions.start(listen)
            kit = Kit(services, server, dispatcher)
            try:
                yield kit
            finally:
                with trio.CancelScope(shield=True):
                    await kit.aclose()
            sessions.cancel_scope.cancel()
        stores.cancel_scope.cancel()


__all__ = ["Kit", "RawClient", "Refused", "RpcError", "config_with", "running_kit"]
