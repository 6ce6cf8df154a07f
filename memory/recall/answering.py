"""Answering: the cache, the question's vector, and the read transaction, in this order.

The embedder takes milliseconds, so it runs before the transaction that ranks, and not inside one:
an open reader blocks checkpoints and erasure. What it is given depends on the names known in the
scopes, so a question to be embedded opens a first, tiny transaction for those and for the cache.
All three run on one visit to a reader's thread: on a busy machine each way to another thread and
back takes longer than the first transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memory.recall.cache import AnswerCache, Answered, key_of, kind_of, stamp_of
from memory.recall.pool import known_names
from memory.recall.search import Recall, check_query, recall
from memory.scopes import readable
from memory.text.fts import Frequencies
from memory.text.parse import Names, dense_text

if TYPE_CHECKING:
    import apsw
    import numpy as np
    from numpy.typing import NDArray

    from memory.config import MemoryConfig
    from memory.embedding.service import Embeddings
    from memory.embedding.vectors import VectorIndex
    from memory.model import Caller, Query
    from memory.recall.cache import Key, Kind
    from memory.seams import Env
    from memory.storage.db import Db, Reader
    from memory.storage.txn import MemoryEvent


class _Question(NamedTuple):
    """A query on its way."""

    who: Caller
    query: Query
    key: Key
    kind: Kind
    now_ms: int
    flushes: int


class Recaller:
    """Answers queries.

    Args:
        db: the open database.
        env: clocks.
        config: settings.
        embeddings: vectors, None to search by words alone.
    """

    def __init__(
        self, db: Db, env: Env, config: MemoryConfig, embeddings: Embeddings | None = None
    ) -> None:
        self._db = db
        self._env = env
        self._config = config
        self._embeddings = embeddings
        self._frequencies = Frequencies()
        self.cache = AnswerCache()

    async def answer(self, who: Caller, query: Query) -> Answered:
        """Answer a query; the time taken is in its `ms`.

        Raises:
            RefusedError: `invalid`, `too_large` or `forbidden`.
            StoreError: the database cannot serve.
        """
        check_query(query)
        started = self._env.now()
        embeddings = self._embeddings
        if embeddings is None or embeddings.index is None:
            asked = self._question(who, query, "")
            answered = await self._db.read(lambda c: self._answer(c, asked, None, None, None))
        else:
            with embeddings.recalling():
                asked = self._question(who, query, embeddings.index.model)
                answered = await self._db.visit(lambda r: self._visit(r, asked, embeddings))
        answered.hits.ms = round((self._env.now() - started) * 1000, 3)
        return answered

    def hear(self, event: MemoryEvent) -> None:
        """Forget all answers when a text is erased."""
        if event.name == "erased":
            self.cache.clear()

    def _question(self, who: Caller, query: Query, embedder: str) -> _Question:
        return _Question(
            who,
            query,
            key_of(who, query, embedder),
            kind_of(query),
            self._env.wall_ms(),
            self.cache.flushes,
        )

    def _visit(self, reader: Reader, asked: _Question, embeddings: Embeddings) -> Answered:
        """Answer by meaning, on a reader's thread."""
        index = embeddings.index
        assert index is not None, "asked for where there is one"
        found = reader.read(lambda c: self._look_up(c, asked, index))
        if isinstance(found, Answered):
            return found
        vector = embeddings.query_vector(dense_text(asked.query.query, found.all))
        return reader.read(lambda c: self._answer(c, asked, found, index, vector))

    def _look_up(
        self, connection: apsw.Connection, asked: _Question, index: VectorIndex
    ) -> Answered | Names:
        """The answer kept for this, or whom the question names."""
        scopes = readable(connection, asked.who.read, asked.query.scope)
        if self._config.cache:
            stamp = stamp_of(scopes, index)
            kept = self.cache.find(asked.key, asked.kind, stamp, asked.now_ms)
            if kept is not None:
                return kept
        return known_names(connection, asked.query.query, [scope.id for scope in scopes])

    def _answer(
        self,
        connection: apsw.Connection,
        asked: _Question,
        names: Names | None,
        index: VectorIndex | None,
        vector: NDArray[np.float32] | None,
    ) -> Answered:
        """Rank, in one read transaction."""
        scopes = readable(connection, asked.who.read, asked.query.scope)
        stamp = stamp_of(scopes, index)
        if names is None and self._config.cache:
            kept = self.cache.find(asked.key, asked.kind, stamp, asked.now_ms)
            if kept is not None:
                return kept
        answered = recall(
            connection,
            Recall(
                who=asked.who,
                query=asked.query,
                frequencies=self._frequencies,
                postings_max=self._config.postings,
                now_ms=asked.now_ms,
                scopes=scopes,
                names=names,
                vectors=index if vector is not None else None,
                vector=vector,
            ),
        )
        # Without the vector that was asked for the answer is a makeshift: not one to keep.
        if self._config.cache and (index is None or vector is not None):
            self.cache.keep(asked.key, asked.kind, stamp, answered, asked.now_ms, asked.flushes)
        return answered
