"""A whole memory on a temporary file: database, replica, sealer, front door."""

from __future__ import annotations

import hashlib
import random
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import apsw
import msgspec
import trio

from memory.bodies import NoteBody, encode_body
from memory.embedding.service import Embeddings
from memory.model import Caller, NoteIn, Query, ScopeSet
from memory.records.replica import Replica
from memory.records.writing import Draft
from memory.review.desk import TrustDesk
from memory.storage.behaviour import Behaviour
from memory.storage.connect import APPLICATION_ID, PRAGMAS
from memory.storage.db import Db
from memory.storage.schema import migrate
from memory.store import Memory
from tests.helpers.plain_sealer import PlainRecord, PlainSealer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from memory.bodies import Body
    from memory.model import Hits
    from memory.seams import Cell, Embedder, Scanner
    from memory.storage.txn import MemoryEvent

T = TypeVar("T")

HOME = hashlib.sha256(b"home").digest()
PRIVATE = hashlib.sha256(b"private").digest()
TEAM = hashlib.sha256(b"team").digest()

EVERYTHING = ScopeSet(everything=True)


class Clock:
    """An `Env` whose time the test moves."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.ms = 1_700_000_000_000
        self.faults: set[str] = set()

    def now(self) -> float:
        return self.ms / 1000

    def wall_ms(self) -> int:
        return self.ms

    def fault(self, name: str) -> bool:
        return name in self.faults


class InlineOffload:
    """Blocking work in the loop."""

    async def run(self, fn: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return fn()


@dataclass
class World:
    """Everything a test of the memory touches."""

    db: Db
    replica: Replica
    memory: Memory
    embeddings: Embeddings
    sealer: PlainSealer
    clock: Clock
    behaviour: Behaviour
    desk: TrustDesk
    events: list[MemoryEvent] = field(default_factory=list)

    @property
    def person(self) -> Caller:
        """The person at the terminal."""
        return Caller(
            device=self.sealer.device, agent="", is_owner=True, read=EVERYTHING, write=EVERYTHING
        )

    def agent(
        self, name: str = "claude", read: Sequence[str] = (), write: Sequence[str] = ()
    ) -> Caller:
        """An agent of this machine; without scopes it may everything."""
        return Caller(
            device=self.sealer.device,
            agent=name,
            is_owner=False,
            read=ScopeSet(names=frozenset(read)) if read else EVERYTHING,
            write=ScopeSet(names=frozenset(write)) if write else EVERYTHING,
            session="s1",
        )

    async def say(self, text: str, who: Caller | None = None, **fields: object) -> str:
        """Remember one note; its id."""
        done = await self.memory.remember(
            who or self.agent(), [msgspec.convert({"text": text, **_plain(fields)}, NoteIn)]
        )
        return done[0].id

    async def find(self, words: str, who: Caller | None = None, **fields: object) -> Hits:
        """Recall."""
        return await self.memory.recall(
            who or self.agent(), msgspec.convert({"query": words, **fields}, Query)
        )

    async def sql(self, sql: str, *bound: Cell) -> list[tuple[object, ...]]:
        """Rows of a query."""
        return await self.db.read(lambda c: c.execute(sql, bound).fetchall())

    async def check_index(self) -> None:
        """The full-text indexes hold exactly what the rows say."""

        def check(connection: apsw.Connection) -> None:
            for table in ("main_fts", "low_fts", "cjk_fts"):
                connection.execute(
                    f"INSERT INTO {table}({table}, rank) VALUES ('integrity-check', 1)"
                )
            assert connection.execute("PRAGMA integrity_check").get == "ok"
            wrong = connection.execute(
                "SELECT s.name, s.main_chunks, s.low_chunks FROM scope s WHERE s.main_chunks <>"
                " (SELECT count(*) FROM chunk c JOIN memory m ON m.id = c.memory"
                "  WHERE m.scope = s.id AND m.tier = 0) OR s.low_chunks <>"
                " (SELECT count(*) FROM chunk c JOIN memory m ON m.id = c.memory"
                "  WHERE m.scope = s.id AND m.tier = 1)"
            ).fetchall()
            assert wrong == []

        await self.db.write(check)


def note_body(text: str, **fields: object) -> bytes:
    """A note's body as a peer's Covey encodes it."""
    plain = NoteBody(
        agent="bob",
        scope="main",
        kind="note",
        role="agent",
        speaker=None,
        text=text,
        title=None,
        thread=None,
        pos=1,
        at_ms=1_700_000_000_000,
        valid_from=None,
        valid_to=None,
        tags=[],
        claim=None,
        source=None,
        derived_from=[],
        ttl_s=None,
        idem=None,
    )
    return encode_body(msgspec.structs.replace(plain, **fields))


def _plain(fields: dict[str, object]) -> dict[str, object]:
    """Structs among the fields as what the local RPC would carry."""
    return {name: msgspec.to_builtins(value) for name, value in fields.items()}


class Peer:
    """Another device that writes records of its own."""

    def __init__(self, clock: Clock, seed: int, *, owner: bytes | None = None) -> None:
        self.sealer = PlainSealer(random.Random(seed), clock.wall_ms, owner)
        self._ends: dict[bytes, tuple[int, bytes | None, int]] = {}

    def write(self, group: bytes, body: Body | bytes, relation: str = "other") -> PlainRecord:
        """Seal an entry at the end of the peer's log, as our admission would hand it over."""
        self.sealer.join(group)
        data = body if isinstance(body, bytes) else encode_body(body)
        seq, prev, hlc = self._ends.get(group, (0, None, 0))
        at = _At(self.sealer.log(group, 1), seq + 1, prev, hlc)
        record = self.sealer.seal(Draft(32, data), at)
        self._ends[group] = (record.seq, record.id, record.hlc)
        return record.as_seen(relation)


@dataclass(frozen=True)
class _At:
    log: tuple[bytes, bytes, int, int]
    seq: int
    prev: bytes | None
    hlc_min: int


@lru_cache(maxsize=1)
def empty_database() -> bytes:
    """A database with its schema and nothing else: making one takes longer than most tests."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "covey.db"
        connection = apsw.Connection(str(path))
        for pragma in (*PRAGMAS, f"application_id={APPLICATION_ID}"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        migrate(connection, path, Clock(), "memory.storage.migrations")
        connection.close()
        return path.read_bytes()


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    seed: int = 1,
    inline: bool = False,
    vfs: str | None = None,
    embedder: Embedder | None = None,
    scanner: Scanner | None = None,
) -> AsyncIterator[World]:
    """A running memory over `folder/covey.db`, with the groups home, private and team.

    Vectors are made if an embedder is given, texts looked through if a scanner is.
    """
    if not (folder / "covey.db").exists():
        (folder / "covey.db").write_bytes(empty_database())
    clock = Clock(seed)
    sealer = PlainSealer(random.Random(seed), clock.wall_ms)
    for group in (HOME, PRIVATE, TEAM):
        sealer.join(group)
    db = Db(folder / "covey.db", clock, inline=inline, vfs=vfs)
    replica = Replica(db, sealer, folder, scanner)
    behaviour = Behaviour(folder / "behaviour.db", clock, inline=inline)
    embeddings = Embeddings(
        db, replica, clock, InlineOffload(), lambda: embedder, wanted=embedder is not None
    )
    memory = Memory(db, replica, clock, sealer.device, behaviour=behaviour, embeddings=embeddings)
    desk = TrustDesk(db, replica, clock, sealer.device, behaviour)
    world = World(db, replica, memory, embeddings, sealer, clock, behaviour, desk)
    memory.subscribe(world.events.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        await replica.admit(
            HOME,
            [],
            [
                ("grp", (HOME, "home", 1, "member")),
                ("grp", (PRIVATE, "private", 0, "member")),
                ("grp", (TEAM, "team", 0, "member")),
            ],
        )
        await nursery.start(embeddings.run)
        yield world
        nursery.cancel_scope.cancel()
