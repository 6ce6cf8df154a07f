"""Vectors in the background: what has none yet gets one, and recall gets those of its queries.

Theory of operation. There is no queue. Work is whatever indexed chunk has no vector of the model in
use, so a crash, a kill or a full disk lose nothing but the batch at hand. Two ways lead to it: the
memories that a commit touched, newest first, so that a new note has its vector in well under a
second; and a sweep from the newest chunk to the oldest, once after each start and after every
trouble. A batch is chunks of like length, at most about 512 tokens, computed off the loop, and none
begins within 50 ms of a recall. Its vectors are stored in one transaction that looks again whether
the chunk is still there and in an index, and reach the search index after that transaction's
commit.

The search index is changed in the loop alone, in the order of commits: by stored vectors, and by
the places of the memories that each transaction touched. A memory that leaves both indexes loses
its vectors with the transaction that moved it; erasing does the same.

Vectors of another model are kept until the new one has 99 % of a scope, then deleted. Nobody can
ask them meanwhile (their model is not here), but a new model that fails leaves them as they were.

An embedder that fails costs its own work only: the error is logged and shown, the work is tried
again after a pause that doubles up to a minute, and recall goes on by words. A text that fails
alone, while another succeeds, is left out until the next start.

Source: docs/specs/memory.md, *Vectors*; docs/decisions/0008-the-embedder-by-itself.md.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from memory.embedding import vecrows
from memory.embedding.embedder import EXTRA, checked, give_back_memory
from memory.errors import EmbedError, RefusedError, StoreError
from memory.model import EmbedStatus
from memory.storage.sql import number
from memory.tiers import NONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memory.embedding.vecrows import Todo, VectorRow
    from memory.embedding.vectors import VectorIndex
    from memory.records.replica import Replica
    from memory.seams import Embedder, Env, Offload
    from memory.storage.db import Db
    from memory.storage.txn import Place

log = logging.getLogger("covey.memory.embedding")

QUERIES_MAX: Final = 512
"""Query vectors remembered: 1.5 KB each."""

BATCH_CHARS_MAX: Final = 2_000
"""Characters of a batch, each counted as long as its longest: about 512 tokens."""

FRESH_MAX: Final = 4_096
"""Touched memories remembered; more than that are found by a sweep, which keeps no list."""
FRESH_READ: Final = 64
"""Touched memories looked up at a time."""

RETIRE_CHUNKS: Final = 2_000
"""Chunks whose old vectors are deleted in one transaction."""

TAKEOVER_RATIO: Final = 0.99
"""Part of a scope that has new vectors when the old ones go."""

RECALL_WAIT_S: Final = 2.0
"""Longest that recalls in a row hold up a batch: a busy machine's new notes get vectors too."""

QUIET_S: Final = 0.05
"""Without a recall for so long before a batch begins, if one has run: a client that asks again and
again would else share the processor with a batch of 100 ms in each of its own pauses."""

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0

HINT: Final = (
    f"Semantic recall is off: install {EXTRA} to find memories by meaning, not by words alone."
)


class _QueryVectors:
    """The vectors of the last questions. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._flushes = 0

    def find(self, text: str) -> tuple[NDArray[np.float32] | None, int]:
        """(the vector kept, how often all were forgotten so far)."""
        with self._lock:
            found = self._kept.get(text)
            if found is not None:
                self._kept.move_to_end(text)
            return found, self._flushes

    def keep(self, text: str, vector: NDArray[np.float32], flushes: int) -> None:
        """Keep one, unless all were forgotten since it was begun; the oldest makes room."""
        with self._lock:
            if flushes == self._flushes:
                self._kept[text] = vector
                if len(self._kept) > QUERIES_MAX:
                    self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._flushes += 1
            self._kept.clear()


class Embeddings:
    """Keeps the vectors of a database, and those of recent queries.

    Args:
        db: the open database, or one that will be open when `run` starts.
        replica: tells of commits.
        env: clocks.
        offload: where the embedder works.
        load: makes the embedder, blocking; None if there is to be none.
        ram_bytes_max: see `VectorIndex`.
        wanted: whether the settings want one at all; it decides what the status says without.
    """

    def __init__(
        self,
        db: Db,
        replica: Replica,
        env: Env,
        offload: Offload,
        load: Callable[[], Embedder | None],
        *,
        ram_bytes_max: int = 96 * 2**20,
        wanted: bool = True,
    ) -> None:
        self._db = db
        self._replica = replica
        self._env = env
        self._offload = offload
        self._load = load
        self._ram_bytes_max = ram_bytes_max
        self._wanted = wanted
        self._embedder: Embedder | None = None
        self._state = "loading" if wanted else "off"
        self._problem = ""
        self.index: VectorIndex | None = None
        """None until the embedder is loaded, and for ever without one."""
        self._queries = _QueryVectors()
        self._fresh: set[int] = set()
        self._sweep_below: int | None = None
        """The sweep has seen all chunks from here on; 0 when it is done, None before it begins."""
        self._sweep_again = False
        """Begin anew: a flag of its own, so that no step under way overwrites the wish."""
        self._work = trio.Event()
        self._recalls = 0
        self._recalls_begun = self._recalls_awaited = 0
        """So many began so far, and by the end of the last wait for quiet."""
        self._quiet = trio.Event()
        self._quiet.set()
        self._moved: set[int] | None = None
        """Memories touched while a slice of the index is being read."""
        self._skipped: set[int] = set()
        """Chunks that fail by themselves."""
        self._clearing = False
        self._reload = False
        """Whether a deletion that was cut short, cancelled or failed, left the index wrong."""
        self._busy = False
        """Whether there was work since memory was last given back."""

    # ---- for recall

    def query_vector(self, text: str) -> NDArray[np.float32] | None:
        """float32[dim] of a question; None while there is no embedder, or if it fails.

        Any thread; it computes in the caller's, for milliseconds.
        """
        embedder, asked = self._embedder, text.strip()
        if embedder is None or not asked:
            return None
        known, flushes = self._queries.find(asked)
        if known is not None:
            return known
        try:
            found: NDArray[np.float32] = checked(
                embedder.encode([asked], query=True), 1, embedder.dim
            )[0]
        except Exception as error:  # noqa: BLE001 - a foreign library; recall goes on by words
            self._report(error)
            return None
        self._problem = ""
        self._queries.keep(asked, found, flushes)
        return found

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """No batch begins while one of these is open, nor soon after."""
        self._recalls += 1
        self._recalls_begun += 1
        if self._recalls == 1:
            self._quiet = trio.Event()
        try:
            yield
        finally:
            self._recalls -= 1
            if self._recalls == 0:
                self._quiet.set()

    # ---- for people

    async def status(self) -> EmbedStatus:
        """What is there and what is still to do."""
        chunks = await self._db.read(
            lambda c: number(c, "SELECT sum(main_chunks + low_chunks) FROM scope")
        )
        vectors = 0 if self.index is None else len(self.index)
        embedder = self._embedder
        return EmbedStatus(
            state=self._state,
            model="" if embedder is None else embedder.id,
            vectors=vectors,
            chunks=chunks,
            backlog=max(0, chunks - vectors) if self._state in {"loading", "ready"} else 0,
            message=self._message(vectors, chunks),
            problem=bool(self._problem),
        )

    def _message(self, vectors: int, chunks: int) -> str:
        if self._state == "off":
            return HINT if self._wanted else "Semantic recall is off by [memory] embedder."
        if self._state == "failed":
            return f"Semantic recall is off: {self._problem}"
        if self._state == "loading":
            return f"Loading vectors: {vectors:,} so far."
        done = f"{vectors:,} of {chunks:,} chunks have a vector"
        if self._problem:
            return f"Semantic recall falters: {self._problem}; {done}."
        if self._skipped:
            return f"{done}; {len(self._skipped)} cannot be embedded."
        return f"{done}."

    async def reembed(self) -> int:
        """Drop all vectors and compute them anew in the background; how many chunks that are.

        Recall goes on by words until they are there.

        Raises:
            RefusedError: `state`: there is no embedder, or it is not ready yet.
        """
        index = self.index
        if index is None or self._state != "ready":
            raise RefusedError("state", (await self.status()).message)
        self._clearing = True
        # Until all are gone, what is left belongs to the index and what went does not.
        self._reload = True
        try:
            await self._delete_vectors("TRUE", ())
            index.clear()
            self._reload = False
        finally:
            self._clearing = False
            self._skipped.clear()
            self._restart_sweep()
        return (await self.status()).chunks

    # ---- the task

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load the embedder and the vectors, then work until cancelled. Never fails."""
        task_status.started()
        pause_s = RETRY_FIRST_S
        while await self._opened():
            try:
                await self._load_index()
                self._state = "ready"
                pause_s = RETRY_FIRST_S
                await self._work_on()
            except Exception as error:  # this is the supervisor: recall by words needs none of it
                log.exception("embedding_failed")
                self._report(error)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _opened(self) -> bool:
        """Whether there is an embedder; loads it the first time."""
        if self._embedder is not None:
            return True
        if not self._wanted:
            return False
        try:
            embedder = await self._offload.run(self._load)
        except Exception as error:  # noqa: BLE001 - a foreign library, and its absence stops nothing
            self._state = "failed"
            self._report(error)
            return False
        if embedder is None:
            self._state = "off"
            return False
        from memory.embedding.vectors import VectorIndex

        self.index = VectorIndex(embedder.id, embedder.dim, ram_bytes_max=self._ram_bytes_max)
        self._embedder = embedder
        self._replica.on_touched(self._notice)
        log.info("embedder_loaded", extra={"f": {"model": embedder.id}})
        return True

    def _report(self, error: Exception) -> None:
        """Keep and log a failure; never memory text, which other errors' messages might hold."""
        own = isinstance(error, EmbedError | StoreError)
        self._problem = str(error) if own else type(error).__name__
        log.warning("embedder_failed", extra={"f": {"why": self._problem}})

    # ---- following commits; in the loop

    def _notice(self, places: Mapping[int, Place]) -> None:
        """A transaction has touched these memories."""
        index = self.index
        assert index is not None, "commits are followed once the index exists"
        index.move(places)
        if None in places.values():
            self._queries.clear()  # a question may quote what was erased
        if self._moved is not None:
            self._moved.update(places)
        self._fresh.update(m for m, place in places.items() if place and place[1] != NONE)
        if len(self._fresh) > FRESH_MAX:
            self._fresh.clear()
            self._restart_sweep()
        self._work.set()

    def _restart_sweep(self) -> None:
        self._sweep_again = True
        self._work.set()

    # ---- loading

    async def _load_index(self) -> None:
        """Read the stored vectors, a slice at a time."""
        index, started = self.index, self._env.now()
        assert index is not None, "loaded once there is an embedder"
        index.clear()
        after = 0
        try:
            while True:
                self._moved = set()
                rows = await self._db.read(partial(vecrows.stored, model=index.model, after=after))
                if not rows:
                    break
                after = rows[-1].chunk
                index.add(self._settled(rows))
                await self._load_moved(index)
        finally:
            self._moved = None
        await self._db.read(vecrows.release)
        self._busy = True
        took_ms = round((self._env.now() - started) * 1000)
        log.info("vectors_loaded", extra={"f": {"vectors": len(index), "ms": took_ms}})

    async def _load_moved(self, index: VectorIndex) -> None:
        """Those whose place changed while their slice was read: once more, until it holds still."""
        while self._moved:
            again = list(self._moved)
            self._moved = set()
            rows = await self._db.read(
                partial(vecrows.stored_of, model=index.model, memories=again)
            )
            index.add(self._settled(rows))

    def _settled(self, rows: Sequence[VectorRow]) -> list[VectorRow]:
        """Rows whose memory was not touched since they were read, and whose code is whole."""
        assert self.index is not None, "loaded once there is an embedder"
        assert self._moved is not None, "a slice is being read"
        return [
            row for row in rows if row.memory not in self._moved and len(row.code) == self.index.dim
        ]

    # ---- working

    async def _work_on(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._do_what_there_is()
            except EmbedError as error:
                self._report(error)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                self._restart_sweep()
            else:
                self._problem, pause_s = "", RETRY_FIRST_S
                await self._rest()

    async def _rest(self) -> None:
        """Wait for work; what the batches took of memory goes back first."""
        if self._busy:
            self._busy = False
            await self._offload.run(give_back_memory)
        await self._work.wait()

    async def _do_what_there_is(self) -> None:
        """Work until nothing is left.

        Raises:
            EmbedError: the embedder does not work at present.
        """
        while True:
            self._work = trio.Event()
            if self._reload and not self._clearing:
                self._reload = False
                await self._load_index()
            await self._embed_fresh()
            if self._sweep_again:
                self._sweep_again, self._sweep_below = False, None
            if self._sweep_below == 0:
                if not self._fresh:
                    return
                continue
            await self._sweep_on()
            if self._sweep_below == 0:
                await self._retire_old()

    async def _embed_fresh(self) -> set[int]:
        """Embed what commits have touched; the chunks this took in hand."""
        model = self._model()
        taken: set[int] = set()
        while self._fresh:
            newest = sorted(self._fresh, reverse=True)[:FRESH_READ]
            self._fresh.difference_update(newest)
            missing = partial(vecrows.missing_of, model=model, memories=newest)
            for batch in self._batches(await self._db.read(missing)):
                await self._embed(batch)
                taken.update(item.chunk for item in batch)
        return taken

    async def _sweep_on(self) -> None:
        """One window of the sweep."""
        model, below = self._model(), self._sweep_below
        if below is None:
            below = self._sweep_below = (
                await self._db.read(lambda c: number(c, "SELECT max(id) FROM chunk")) + 1
            )
        todo, rest = await self._db.read(lambda c: vecrows.missing_below(c, model, below))
        done: set[int] = set()
        for batch in self._batches(todo):
            # A new note does not wait for a window of old ones; the window may hold it as well.
            done |= await self._embed_fresh()
            if left := [item for item in batch if item.chunk not in done]:
                await self._embed(left)
        self._sweep_below = rest

    def _model(self) -> str:
        assert self._embedder is not None, "work begins with an embedder"
        return self._embedder.id

    def _batches(self, todo: Sequence[Todo]) -> Iterator[list[Todo]]:
        """Chunks of like length together, newest first within a length."""
        batch: list[Todo] = []
        left = [item for item in todo if item.chunk not in self._skipped]
        for item in sorted(left, key=lambda item: (len(item.document), -item.chunk)):
            if batch and (len(batch) + 1) * len(item.document) > BATCH_CHARS_MAX:
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    async def _embed(self, batch: Sequence[Todo]) -> None:
        await self._wait_for_quiet()
        try:
            vectors = await self._encode([item.document for item in batch])
        except EmbedError:
            await self._embed_singly(batch)
        else:
            await self._store(batch, vectors)

    async def _embed_singly(self, batch: Sequence[Todo]) -> None:
        """After a failure: find the text that is to blame, if it is one.

        Raises:
            EmbedError: it is the embedder.
        """
        for item in batch:
            try:
                vectors = await self._encode([item.document])
            except EmbedError:
                # A harmless text tells whether anything works at all.
                await self._encode(["probe"])
                self._skipped.add(item.chunk)
                log.warning("chunk_skipped", extra={"f": {"chunk": item.chunk}})
            else:
                await self._store([item], vectors)

    async def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        embedder = self._embedder
        assert embedder is not None, "work begins with an embedder"
        self._busy = True
        try:
            return await self._offload.run(
                lambda: checked(embedder.encode(texts, query=False), len(texts), embedder.dim)
            )
        except EmbedError:
            raise
        except Exception as error:
            raise EmbedError("failed", f"the embedder failed: {type(error).__name__}") from error

    async def _store(self, batch: Sequence[Todo], vectors: NDArray[np.float32]) -> None:
        from memory.embedding.segments import quantise

        index, model = self.index, self._model()
        assert index is not None, "there is an index where there is an embedder"
        if self._clearing:
            return  # found again by the sweep that follows
        codes, scales = quantise(vectors)
        coded = [
            (item.chunk, item.memory, scale, code.tobytes())
            for item, scale, code in zip(batch, scales.tolist(), codes, strict=True)
        ]
        await self._db.write(lambda c: vecrows.put(c, model, coded), index.add)

    async def _wait_for_quiet(self) -> None:
        with trio.move_on_after(RECALL_WAIT_S):
            while self._recalls or self._recalls_awaited != self._recalls_begun:
                await self._quiet.wait()
                self._recalls_awaited = self._recalls_begun
                await trio.sleep(QUIET_S)

    # ---- vectors of other models

    async def _retire_old(self) -> None:
        """Delete other models' vectors in scopes where this one has taken over."""
        index, model = self.index, self._model()
        assert index is not None, "there is an index where there is an embedder"
        if not await self._db.read(lambda c: vecrows.other_models(c, model)):
            return
        have = index.counts()
        totals = await self._db.read(vecrows.totals)
        done = [scope for scope, n in totals if have.get(scope, 0) >= TAKEOVER_RATIO * n]
        await self._delete_vectors(
            "model <> ? AND chunk IN (SELECT c.id FROM chunk c JOIN memory m ON m.id = c.memory"
            " WHERE m.scope IN (SELECT value FROM json_each(?)))",
            (model, json.dumps(done)),
        )
        if len(done) == len(totals):
            await self._db.write(lambda c: vecrows.forget_models(c, model))
        log.info("model_took_over", extra={"f": {"model": model, "scopes": len(done)}})

    async def _delete_vectors(self, where: str, bound: Sequence[str]) -> None:
        """Delete rows of `vec`, a slice a transaction."""
        last = await self._db.read(lambda c: number(c, "SELECT max(chunk) FROM vec"))
        sql = f"DELETE FROM vec WHERE chunk > ? AND chunk <= ? AND {where}"  # noqa: S608 - constants of this file
        for start in range(0, last, RETIRE_CHUNKS):
            span = (start, start + RETIRE_CHUNKS)
            await self._db.write(partial(vecrows.execute, sql=sql, bound=(*span, *bound)))
