"""Where the parts meet: the only module that builds the real `Env` and introduces the packages.

`p2p` and `memory` do not know each other. Here the sealer of the one goes into the replica of the
other, and mypy checks that the shapes fit. Everything is built inert; `daemon.process` starts it.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from typing_extensions import override

import daemon
from daemon.agents import AgentStore
from daemon.backup import Backups
from daemon.errors import ConfigError
from daemon.events import EventHub
from daemon.health import Health
from daemon.job_memory import JobMemory
from daemon.mcp.host import McpHost
from daemon.mesh_door import MeshDoor
from daemon.methods import all_methods
from daemon.receipts import Receipts
from daemon.roles import Roles
from daemon.rpc.dispatch import Dispatcher
from daemon.rpc.registry import Registry
from daemon.rpc.server import RpcServer
from daemon.scanner import TextScanner
from daemon.services import Services
from daemon.shred import shred_backups
from daemon.uploads import Uploads
from federated.errors import HandlerError
from federated.jobs.engines.dask import dask_engines
from federated.jobs.handlers.registry import build_handlers, slots_of
from federated.jobs.machine import Machine
from federated.jobs.manners import Manners
from federated.jobs.quota import WorkQuota
from federated.jobs.service import Jobs
from federated.rounds.service import Rounds
from memory.embedding.embedder import load_embedder, require_embedder
from memory.embedding.service import Embeddings
from memory.erasure.erasing import Eraser, Outlets
from memory.erasure.forgetting import Forgetting
from memory.errors import EmbedError, StoreError
from memory.records.readdress import readdress
from memory.records.replica import Replica
from memory.review.desk import TrustDesk
from memory.review.resolving import ConflictDesk
from memory.storage.behaviour import Behaviour
from memory.storage.db import Db
from memory.store import Memory
from p2p.env import SystemEnv
from p2p.errors import P2pError
from p2p.identity import load_or_create
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from p2p.replication.sealing import GroupSealer
from p2p.replication.service import Replication

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from daemon.config import Config
    from daemon.paths import Paths
    from daemon.services import Control
    from memory.config import MemoryConfig
    from p2p.env import Env
    from p2p.identity import Identity

T = TypeVar("T")

log = logging.getLogger("covey.daemon")

FAULT_VARIABLE: Final = "COVEY_TEST_FAULT"


class ProcessEnv(SystemEnv):
    """The real world, with an end by SIGKILL at a named point for tests.

    `COVEY_TEST_FAULT=store.committed:17` kills this process at the 17th time that point is reached:
    kill -9 at a moment that a test can repeat. Several are separated by commas.

    Raises:
        ConfigError: the variable is malformed.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()
        # A seeded generator in production would leak every key.
        assert isinstance(self.rng, random.SystemRandom)
        self._kills: dict[str, int] = {}
        for part in filter(None, environ.get(FAULT_VARIABLE, "").split(",")):
            name, _, count = part.partition(":")
            if not name or not count.isdigit():
                raise ConfigError(f"{FAULT_VARIABLE}: write it as point:count")
            self._kills[name] = int(count)

    @override
    def fault(self, name: str) -> bool:
        """Die here if told to; never report a failure."""
        left = self._kills.get(name)
        if left is not None:
            self._kills[name] = left - 1
            if left <= 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return False


class ThreadOffload:
    """Blocking work in trio's threads."""

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` in a thread and return its result."""
        return await trio.to_thread.run_sync(fn)  # noqa: TID251 - this is the Offload


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a daemon runs, in the order in which it starts."""

    env: Env
    identity: Identity
    db: Db
    jobs_db: Db
    replica: Replica
    replication: Replication
    memory: Memory
    node: Node
    services: Services
    dispatcher: Dispatcher
    mcp: McpHost
    server: RpcServer
    receipts: Receipts


def build(config: Config, paths: Paths, env: Env, control: Control) -> Parts:
    """Build all parts; nothing runs yet.

    Args:
        config: the settings in force.
        paths: where the files are; the folders exist.
        env: clocks and random numbers.
        control: the process.

    Raises:
        ConfigError: a setting that only its part can judge.
        KeyFileError: the device key cannot be used.
    """
    state = Path(paths.state)
    identity = load_or_create(Path(paths.key), env.rng)
    db = Db(Path(paths.db), env)
    sealer = GroupSealer(identity, env)
    scanner = TextScanner(config.security)
    replica = Replica(db, sealer, state, scanner)
    tcp = TcpTransport(config.p2p)
    for addr in config.p2p.listen:
        if not tcp.dials(addr):
            raise ConfigError(
                f"[p2p] listen: {addr} is no address to listen at; write it as"
                " /ip4/0.0.0.0/tcp/15001 or /ip6/::/tcp/15001"
            )
    node = Node(identity, config.p2p, env, [tcp], book_path=Path(paths.book))
    blobs = node.keep_blobs(state / "blobs", env, ThreadOffload(), config.blobs)
    replication = Replication(node, replica, sealer, env, config.replication, readdress=readdress)
    blobs.set_readers(replication.may_read)
    behaviour = Behaviour(state / "behaviour.db", env)
    embeddings = _embeddings(config.memory, db, replica, env)
    telling = partial(_tell_erased, replication)
    memory = Memory(
        db, replica, env, bytes(identity.id), config.memory, behaviour, embeddings=embeddings
    )
    roles = Roles(replication)
    trust = TrustDesk(db, replica, env, bytes(identity.id), behaviour, may_write=roles.may_write)
    agents = AgentStore(db, env.rng, env.wall_ms)
    receipts = Receipts(db, env.wall_ms)
    jobs_db = Db(state / "jobs.db", env, migrations="federated.migrations")
    door = MeshDoor(node, replication, config.jobs.friends)
    search = JobMemory(memory, db, replication, identity.id)
    try:
        handlers = build_handlers(config.jobs, search=search, named=door.group_named)
    except HandlerError as error:
        raise ConfigError(f"[jobs] {error}") from None
    jobs = Jobs(
        door,
        jobs_db,
        env,
        ThreadOffload(),
        handlers,
        slots=slots_of(config.jobs),
        engines=dask_engines(config.jobs, ThreadOffload()),
        quota=WorkQuota(
            friend_s_per_h=config.jobs.friend_work_s_per_h,
            stranger_s_per_h=config.jobs.stranger_work_s_per_h,
        ),
        blobs=blobs,
        manners=Manners(
            floor_percent=config.node.battery_floor_percent,
            user_idle_s=config.jobs.user_idle_s,
            probe=Machine(env.wall_ms),
        ),
    )
    boot_id = env.rng.randbytes(8).hex()
    registry = Registry.of(all_methods())
    services = Services(
        env=env,
        config=config,
        paths=paths,
        device=identity.id,
        memory=memory,
        conflicts=ConflictDesk(db, replica, env),
        behaviour=behaviour,
        scanner=scanner,
        eraser=Eraser(
            db,
            replica,
            env,
            bytes(identity.id),
            state,
            ThreadOffload(),
            Outlets(
                telling,
                behaviour.erase,
                partial(shred_backups, state),
                replication.membership,
                partial(_erase_quoted, jobs, jobs_db),
            ),
        ),
        forgetting=Forgetting(db, replica, env, config.memory, telling),
        embeddings=embeddings,
        node=node,
        replication=replication,
        roles=roles,
        trust=trust,
        replica=replica,
        db=db,
        agents=agents,
        events=EventHub(boot_id, env.wall_ms),
        health=Health(env.now),
        registry=registry,
        control=control,
        mesh_up=trio.Event(),
        boot_id=boot_id,
        started_ms=env.wall_ms(),
        backups=Backups(paths, config.backup, env, ThreadOffload(), bytes(identity.id)),
        uploads=Uploads(blobs, env),
        jobs=jobs,
        rounds=Rounds(
            door, jobs_db, env, ThreadOffload(), state / "models", Path(paths.pool_socket)
        ),
    )
    dispatcher = Dispatcher(config.rpc, receipts, env.now)
    mcp = McpHost(
        registry,
        dispatcher,
        env=env,
        offload=ThreadOffload(),
        version=daemon.__version__,
        profile=config.mcp.profile,
        result_tokens_max=config.mcp.result_tokens_max,
        line_bytes_max=config.mcp.line_bytes_max,
    )
    server = RpcServer(services, registry, dispatcher, mcp)
    return Parts(
        env=env,
        identity=identity,
        db=db,
        jobs_db=jobs_db,
        replica=replica,
        replication=replication,
        memory=memory,
        node=node,
        services=services,
        dispatcher=dispatcher,
        mcp=mcp,
        server=server,
        receipts=receipts,
    )


async def _erase_quoted(jobs: Jobs, jobs_db: Db, records: Sequence[bytes]) -> bool:
    """Take erased memories out of the jobs; False: once more, later."""
    try:
        await jobs.erase(records)
        return await jobs_db.settle_wal()
    except StoreError as error:
        log.warning("jobs_erasure_waits", extra={"f": {"why": error.reason}})
        return False


async def _tell_erased(replication: Replication, group: bytes) -> Sequence[bytes]:
    """Have a group told what of ours was erased; its other members.

    What fails is made up for by replication's upkeep: the texts are gone here in any case.
    """
    try:
        return await replication.publish_erasures(group)
    except (P2pError, StoreError) as error:
        log.warning("erasure_untold", extra={"f": {"why": type(error).__name__}})
        return []


def _embeddings(config: MemoryConfig, db: Db, replica: Replica, env: Env) -> Embeddings:
    """Vectors in the background.

    Raises:
        ConfigError: the settings insist on an embedder that is not installed.
    """
    try:
        require_embedder(config)
    except EmbedError as error:
        raise ConfigError(f"[memory] embedder: {error}") from None
    return Embeddings(
        db,
        replica,
        env,
        ThreadOffload(),
        lambda: load_embedder(config),
        ram_bytes_max=config.vector_ram_bytes,
        wanted=config.embedder != "none",
    )
