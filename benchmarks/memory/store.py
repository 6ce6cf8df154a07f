"""A memory in this process for the quality figures: the product's store, recall and trust.

Records are really signed and encrypted, by the tests' small sealer; ranking and trust see nothing
of it. Speed is measured elsewhere, through a daemon.
"""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from memory.bodies import NoteBody, encode_body
from memory.model import NOTES_MAX, NoteIn, Query
from memory.text.cleaning import clean
from tests.helpers.memories import HOME, Peer, World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from memory.model import Caller, Hits
    from memory.seams import Embedder

SCOPE: Final = "main"
ADMIT_BATCH: Final = 500


class Store:
    """One person's memory, and others who write to it.

    Attributes:
        world: the parts.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._strangers = 0

    async def remember(self, notes: Sequence[NoteIn], who: Caller | None = None) -> list[str]:
        """Store notes of the person, or of one of its agents; their ids."""
        author = who or self.world.person
        ids: list[str] = []
        for at in range(0, len(notes), NOTES_MAX):
            done = await self.world.memory.remember(author, notes[at : at + NOTES_MAX])
            ids += [one.id for one in done]
        return ids

    def peer(self, relation: str) -> Foreign:
        """A new device of somebody else: `other` is a stranger, `invited` a member."""
        self._strangers += 1
        return Foreign(self.world, Peer(self.world.clock, 10_000 + self._strangers), relation)

    async def settle(self) -> None:
        """Wait until every chunk has its vector, if there is an embedder."""
        while (status := await self.world.embeddings.status()).state == "ready":
            if not status.backlog:
                return
            await trio.sleep(0.05)

    async def recall(self, query: str, **fields: object) -> Hits:
        """What the person is shown."""
        asked = msgspec.convert({"query": query[:4000], **fields}, Query)
        return await self.world.memory.recall(self.world.person, asked)


class Foreign:
    """Another owner's device, whose records are admitted as a sync would."""

    def __init__(self, world: World, peer: Peer, relation: str) -> None:
        self._world = world
        self._peer = peer
        self.relation = relation

    @property
    def device(self) -> bytes:
        """Its key."""
        return self._peer.sealer.device

    async def write(self, texts: Iterable[str]) -> list[str]:
        """Write notes; their ids."""
        ids: list[str] = []
        batch = []
        for text in texts:
            batch.append(self._peer.write(HOME, self._body(text), self.relation))
            if len(batch) == ADMIT_BATCH:
                ids += await self._admit(batch)
                batch = []
        return ids + await self._admit(batch)

    async def _admit(self, batch: list) -> list[str]:  # type: ignore[type-arg]
        await self._world.replica.admit(HOME, batch)
        return [record.id.hex() for record in batch]

    def _body(self, text: str) -> bytes:
        return encode_body(
            NoteBody(
                agent="agent", scope=SCOPE, kind="note", role="agent", speaker=None,
                text=clean(text), title=None, thread=None, pos=1,
                at_ms=self._world.clock.wall_ms(), valid_from=None, valid_to=None, tags=[],
                claim=None, source=None, derived_from=[], ttl_s=None, idem=None,
            )
        )  # fmt: skip


@asynccontextmanager
async def open_store(*, embedder: Embedder | None = None) -> AsyncIterator[Store]:
    """A fresh memory in a temporary folder, gone afterwards; by words alone without embedder."""
    with tempfile.TemporaryDirectory(prefix="covey-quality-") as folder:
        async with open_world(Path(folder), embedder=embedder) as world:
            yield Store(world)
