"""Which blobs go when there are too many: the longest unused that nobody holds.

Source: docs/specs/blobs.md s.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.blobs.manifest import BlobId
    from p2p.blobs.pins import Entry


def choose(
    entries: Iterable[Entry],
    *,
    bytes_max: int,
    to_ratio: float,
    coming_bytes: int = 0,
    keep: BlobId | None = None,
) -> list[BlobId]:
    """What to drop, the longest unused first.

    Args:
        entries: everything that is here.
        bytes_max: what blobs without a pin may take.
        to_ratio: over it they are dropped down to this part of it.
        coming_bytes: of a blob that is about to come.
        keep: stays although nobody holds it: what was just put or fetched.

    Returns:
        Ids; empty when there is room.
    """
    loose = [entry for entry in entries if not entry.pinned]
    used = sum(entry.bytes_used for entry in loose) + coming_bytes
    if used <= bytes_max:
        return []
    chosen = []
    for entry in sorted(loose, key=lambda one: (one.used_ms, one.id)):
        if used <= bytes_max * to_ratio:
            break
        if entry.fetching or entry.id == keep:
            continue
        used -= entry.bytes_used
        chosen.append(entry.id)
    return chosen
