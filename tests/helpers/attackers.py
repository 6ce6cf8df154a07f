"""Attackers of a whole daemon: raw sockets, a member who lies, a count of what is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity, PeerId
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from p2p.replication.config import ReplicationConfig
from p2p.replication.memstore import MemStore
from p2p.replication.messages import Records, encode_frame
from p2p.replication.push import PROTOCOL
from p2p.replication.sealing import GroupSealer
from p2p.replication.service import Replication
from tests.helpers.daemons import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from daemon.json_types import Json
    from p2p.replication.record import RecordWire
    from tests.helpers.daemons import Home

HELLO: dict[str, Json] = {"jsonrpc": "2.0", "id": 0, "method": "rpc.hello", "params": {}}


# --- what a daemon holds ---------------------------------------------------------------------


@dataclass(frozen=True)
class Vitals:
    """What a process holds at one moment."""

    tasks: int
    files: int
    resident_bytes: int


def vitals(home: Home) -> Vitals:
    """Count the tasks, files and resident bytes of the daemon."""
    pid = home.pid
    assert pid is not None
    trees = _task_trees(home)
    os.kill(pid, signal.SIGUSR1)
    wait_until("the task tree is in the log", lambda: len(_task_trees(home)) > len(trees))
    tasks = _task_trees(home)[-1]["tasks"]
    assert isinstance(tasks, list)
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Vitals(len(tasks), files, pages * os.sysconf("SC_PAGE_SIZE"))


def _task_trees(home: Home) -> list[dict[str, object]]:
    return [line for line in home.log() if line["event"] == "task_tree"]


def wait_until_as_before(home: Home, before: Vitals, *, growth_bytes: int = 8 * 2**20) -> None:
    """Until tasks and files are as few as before; memory may have grown by what pools keep."""
    last = before

    def check() -> bool:
        nonlocal last
        last = vitals(home)
        return last.tasks <= before.tasks and last.files <= before.files

    try:
        wait_until("tasks and files as before", check, 15.0)
    except AssertionError:
        raise AssertionError(f"before: {before}, now: {last}") from None
    grown = last.resident_bytes - before.resident_bytes
    assert grown <= growth_bytes, f"memory grew by {grown} bytes"


# --- the local socket ------------------------------------------------------------------------


class LocalSocket:
    """A client of the local socket that sends any bytes it likes.

    Args:
        home: whose daemon.
    """

    def __init__(self, home: Home) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(15)
        self._socket.connect(str(home.folder / "run" / "daemon.sock"))
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._lines.close()
        self._socket.close()

    def put(self, data: bytes) -> None:
        """Send bytes; a closed connection is an answer too."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def take(self) -> dict[str, Json] | None:
        """The next line; None when the daemon closed the connection."""
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            return None
        return cast("dict[str, Json]", json.loads(line)) if line else None

    def ask(self, message: dict[str, Json]) -> dict[str, Json]:
        """Send a request, return its answer."""
        self.put(json.dumps(message).encode() + b"\n")
        while (answer := self.take()) is not None:
            if answer.get("id") == message["id"]:
                return answer
        raise AssertionError("the daemon closed the connection")

    def greet(self, **params: Json) -> dict[str, Json]:
        """Send a hello; its answer."""
        return self.ask({**HELLO, "params": {"client": "attacker", "api": [1, 0], **params}})

    def call(self, method: str, params: Json = None) -> dict[str, Json]:
        """Call a method; the whole answer."""
        return self.ask({"jsonrpc": "2.0", "id": 7, "method": method, "params": params or {}})


def counters(home: Home) -> dict[str, int]:
    """The daemon's counters of the network."""
    status = home.json("rpc", "net.status")
    assert isinstance(status, dict)
    return cast("dict[str, int]", status["counters"])


# --- the port --------------------------------------------------------------------------------


def port_of(home: Home) -> int:
    """Port at which the daemon listens for peers."""
    status = home.json("rpc", "net.status")
    assert isinstance(status, dict)
    listen = status["listen"]
    assert isinstance(listen, list)
    assert listen, "the daemon does not listen"
    return int(str(listen[0]).rsplit("/", 1)[1])


def knock(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A TCP connection to the port, from a loopback address of the attacker's choice."""
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))


def throw(port: int, data: bytes, source: str = "127.0.0.1", *, limit_s: float = 10.0) -> bytes:
    """Send bytes to the port; all that came back until the daemon hung up.

    Raises:
        TimeoutError: the daemon did not hang up in time.
    """
    got = b""
    with knock(port, source) as remote:
        remote.settimeout(limit_s)
        try:
            remote.sendall(data)
            while piece := remote.recv(65536):
                got += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return got


# --- a member who lies -----------------------------------------------------------------------


@dataclass
class Guest:
    """A member with a node of its own, on real TCP; a `tests.helpers.hostile.Pen` may use it."""

    identity: Identity
    node: Node
    replication: Replication
    sealer: GroupSealer
    env: SystemEnv
    group: bytes

    @property
    def id(self) -> bytes:
        """Peer id."""
        return self.identity.id

    async def push(self, peer: PeerId, wires: Sequence[RecordWire]) -> None:
        """Send records to a member, as if they had just been written."""
        await self.push_bytes(peer, encode_frame(Records(self.group, tuple(wires))))

    async def push_bytes(self, peer: PeerId, data: bytes) -> None:
        """Send anything on a push stream, and wait until the member has ended it."""
        stream = await self.node.fabric.open(peer, PROTOCOL)
        try:
            await stream.send_all(data)
            await stream.send_eof()
            with trio.move_on_after(5):
                while await stream.receive_some(4096):
                    pass
        except trio.BrokenResourceError:
            pass  # the member closed the door: that is an answer too
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def joined_guest(ticket: str) -> AsyncIterator[Guest]:
    """A guest that joined with `ticket` and stays for the block."""
    env = SystemEnv()
    identity = Identity.generate(env.rng)
    config = P2pConfig.test()
    node = Node(identity, config, env, [TcpTransport(config)])
    sealer = GroupSealer(identity, env)
    replication = Replication(node, MemStore(sealer), sealer, env, ReplicationConfig())
    await replication.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await nursery.start(replication.run)
        joined = await replication.join(ticket)
        yield Guest(identity, node, replication, sealer, env, joined.group)
        nursery.cancel_scope.cancel()


__all__ = [
    "HELLO",
    "Guest",
    "LocalSocket",
    "Vitals",
    "counters",
    "joined_guest",
    "knock",
    "port_of",
    "throw",
    "vitals",
    "wait_until_as_before",
]
