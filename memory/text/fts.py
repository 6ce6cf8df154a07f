"""The full-text side: which index a memory is in, and the expression a query becomes.

Two indexes of one shape, main and low, each over the chunks of its trust tier. They are external
content tables: SQLite keeps the words, `chunk` keeps the text, and leaving an index takes the text
exactly as it was indexed. Source: docs/specs/memory.md, *Full text*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import apsw

from memory.scopes import token
from memory.tiers import LOW, MAIN, NONE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from memory.text.parse import Words

CHUNK_POOL: Final = {MAIN: 300, LOW: 60}
"""Best chunks taken from each index."""

MEMORY_POOL: Final = {MAIN: 100, LOW: 20}
"""Memories made of them."""

POSTINGS_LOW_MAX: Final = 2_000
"""Summed document frequency of a query's terms in the low index."""

_INSERT: Final = {
    MAIN: "INSERT INTO main_fts(rowid, scope_tok, title, text) VALUES (?, ?, ?, ?)",
    LOW: "INSERT INTO low_fts(rowid, scope_tok, title, text) VALUES (?, ?, ?, ?)",
}
_DELETE: Final = {
    MAIN: "INSERT INTO main_fts(main_fts, rowid, scope_tok, title, text)"
    " VALUES ('delete', ?, ?, ?, ?)",
    LOW: "INSERT INTO low_fts(low_fts, rowid, scope_tok, title, text)"
    " VALUES ('delete', ?, ?, ?, ?)",
}
_COUNT: Final = {
    MAIN: "UPDATE scope SET main_chunks = main_chunks + ?, generation = generation + 1"
    " WHERE id = ?",
    LOW: "UPDATE scope SET low_chunks = low_chunks + ?, generation = generation + 1 WHERE id = ?",
    NONE: "UPDATE scope SET generation = generation + 1 WHERE ?1 IS NOT NULL AND id = ?2",
}
_DF: Final = {
    MAIN: "SELECT doc FROM main_vocab WHERE term = ?",
    LOW: "SELECT doc FROM low_vocab WHERE term = ?",
}
_NO_VECTORS: Final = "DELETE FROM vec WHERE chunk IN (SELECT id FROM chunk WHERE memory = ?)"

ChunkRow = tuple[int, str, str, str]
"""(chunk id, scope token, title, text)."""


def add_to_index(connection: apsw.Connection, tier: int, rows: Sequence[ChunkRow]) -> None:
    """Index a memory's chunks in its tier; `count_indexed` has to follow in the transaction."""
    if tier != NONE:
        for row in rows:
            connection.execute(_INSERT[tier], row)


def count_indexed(connection: apsw.Connection, indexed: Mapping[tuple[int, int], int]) -> None:
    """Count what was indexed, by (scope row, tier); a scope's generation rises in any case."""
    for (scope, tier), chunks in indexed.items():
        connection.execute(_COUNT[tier], (chunks, scope))


def move_to_tier(connection: apsw.Connection, memory: int, scope: int, old: int, new: int) -> None:
    """Take a memory out of one index and into another, in this order.

    'delete', tier, insert: a row that left its view before it left its index raises CorruptError.
    What is in no index keeps no vectors. The caller notes the memory in `Txn.touched`.
    """
    rows = cast(
        "list[ChunkRow]",
        connection.execute(
            "SELECT id, scope_tok, title, text FROM chunk WHERE memory = ? ORDER BY i", (memory,)
        ).fetchall(),
    )
    if old != NONE:
        for row in rows:
            connection.execute(_DELETE[old], row)
        connection.execute(_COUNT[old], (-len(rows), scope))
    connection.execute("UPDATE memory SET tier = ? WHERE id = ?", (new, memory))
    if new == NONE:
        connection.execute(_NO_VECTORS, (memory,))
    add_to_index(connection, new, rows)
    connection.execute(_COUNT[new], (len(rows), scope))


def expression(words: Words, terms: Sequence[str], scopes: Sequence[int] | None) -> str:
    """The full-text expression; all of it is quoted, so no text is ever query syntax.

    Args:
        words: the query.
        terms: those of its terms that fit the budget.
        scopes: scope ids, None for all there are.
    """
    wanted = " OR ".join(f'"{item}"' for item in (*terms, *dict.fromkeys(words.phrases)))
    text = f"{{title text}} : ({wanted})"
    if scopes is None:
        return text
    tokens = " OR ".join(f'"{token(scope)}"' for scope in scopes)
    return f"scope_tok : ({tokens}) AND {text}"


class Frequencies:
    """How many chunks hold a term, remembered until the index has grown by a tenth.

    Not needed below the postings budget; beyond it a vocabulary look-up of a frequent term costs up
    to 31 ms, so it is paid once.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], tuple[int, int]] = {}

    def count(self, connection: apsw.Connection, tier: int, stem: str, chunks: int) -> int:
        """Chunks of a tier that hold a stemmed term.

        Args:
            connection: a reader.
            tier: main or low.
            stem: the term as the tokenizer leaves it.
            chunks: chunks in the tier now.
        """
        found = self._known.get((tier, stem))
        if found is not None and found[1] * 0.9 <= chunks <= found[1] * 1.1:
            return found[0]
        row = connection.execute(_DF[tier], (stem,)).fetchone()
        df = 0 if row is None else int(row[0])
        if len(self._known) >= 50_000:
            self._known.clear()
        self._known[tier, stem] = (df, chunks)
        return df


def within_budget(terms: Sequence[str], df: Callable[[str], int], budget: int) -> list[str]:
    """The rarest terms whose summed frequencies stay within the budget; at least one."""
    kept: list[str] = []
    spent = 0
    for count, _, term in sorted((df(term), at, term) for at, term in enumerate(terms)):
        if kept and spent + count > budget:
            break
        kept.append(term)
        spent += count
    return kept


def stem(connection: apsw.Connection, term: str) -> str:
    """The term as the index spells it."""
    tokenizer = connection.fts5_tokenizer("porter", ["unicode61", "remove_diacritics", "2"])
    found = tokenizer(
        term.encode(),
        apsw.FTS5_TOKENIZE_QUERY,
        None,
        include_offsets=False,
        include_colocated=False,
    )
    # With both includes off the tokenizer answers with plain strings.
    return next((str(item) for item in found), term)
