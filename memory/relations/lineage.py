"""Where a text comes from: the memories its writer had just read and now writes down again.

A note cannot be trusted more than what it was taken from, whoever stores it: else a stranger's text
would be an own agent's word as soon as that agent repeats it. Writers name their sources, or not;
so what the same session was shown in the last half hour, and whose words the new text repeats, is a
parent in any case. Source: docs/specs/memory.md, *Lineage*.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from memory.bodies import PARENTS_MAX
from memory.relations.dedupe import LINEAGE_CONTAINMENT, containment, content_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

RECALLED_MAX: Final = 200
"""Memories of a session that are compared, the newest first: some 25 answers, 3 ms to read."""

# An own memory that rests on nothing lends no more than its writer has: as a parent it could only
# take trust away from its children once it is erased.
_READ: Final = """
SELECT r.id, group_concat(c.title || ' ' || c.text, ' ')
FROM json_each(?) j JOIN record r ON r.id = unhex(j.value) JOIN memory m ON m.id = r.n
JOIN author a ON a.id = m.author JOIN chunk c ON c.memory = m.id
WHERE NOT (a.class IN ('own', 'own_device') AND m.role IN ('owner', 'agent')
  AND NOT EXISTS (SELECT 1 FROM parent p WHERE p.memory = m.id))
GROUP BY r.id ORDER BY min(j.key)
"""


COMMON_MIN: Final = 3
"""Common words from which one text is said to be in the other. Guess."""


class Recalled(NamedTuple):
    """A memory that a session was shown.

    Attributes:
        id: its record.
        words: content words of title and text.
    """

    id: bytes
    words: frozenset[str]


def read_recalled(connection: apsw.Connection, ids: Sequence[bytes]) -> list[Recalled]:
    """What a session was shown and could now repeat, in the order given."""
    listed = json.dumps([record_id.hex() for record_id in ids[:RECALLED_MAX]])
    return [
        Recalled(bytes(record_id), content_words(str(text)))
        for record_id, text in connection.execute(_READ, (listed,))
    ]


def parents(text: str, recalled: Sequence[Recalled]) -> tuple[bytes, ...]:
    """Ids of those that the text repeats, at most 16, the closest first.

    Args:
        text: title and text of the new note.
        recalled: the latest first; of equally close ones the latest counts.
    """
    words = content_words(text)
    close = [(_repeated(words, item.words), item.id) for item in recalled]
    close = [(share, record) for share, record in close if share >= LINEAGE_CONTAINMENT]
    close.sort(key=lambda found: -found[0])
    return tuple(record for _, record in close[:PARENTS_MAX])


def _repeated(a: frozenset[str], b: frozenset[str]) -> float:
    """Containment; of one or two common words the share of the larger text.

    Else a peer's note of one word would be in every note that uses it: its author could take the
    trust from them, and by erasing it destroy them.
    """
    common = len(a & b)
    if common < COMMON_MIN:
        return common / max(len(a), len(b), 1)
    return containment(a, b)
