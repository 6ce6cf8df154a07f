"""What a node may tune of its blobs."""

from __future__ import annotations

from dataclasses import dataclass, fields

from p2p.blobs.manifest import BLOB_BYTES_MAX
from p2p.errors import UsageError

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, kw_only=True)
class BlobConfig:
    """Limits and times of blobs. Seconds are floats, sizes are bytes."""

    unpinned_bytes_max: int = 10 * GIB
    """Blobs that nobody pinned may take so much; over it the longest unused go."""
    collect_to_ratio: float = 0.9
    """Down to which part of `unpinned_bytes_max` they go, so that collecting is rare."""
    fetch_bytes_max: int = BLOB_BYTES_MAX
    """Largest blob that is fetched: the manifest tells before the first chunk."""
    sources_max: int = 8
    """Peers that one fetch loads from at once."""
    window_max: int = 16
    """Chunks under way from one source: 4 MiB, which is 40 MB/s at 100 ms. At least 2."""
    in_flight_bytes_max: int = 32 * MIB
    """Chunks of one fetch under way from all sources: what it may hold in memory."""
    fetches_max: int = 8
    """Fetches at once; more wait."""
    chunk_s_min: float = 2.0
    """A chunk is asked of another source after this, or after four times what it should take."""
    stall_s: float = 30.0
    """A fetch to which no chunk came for so long ends as unreachable; its progress is kept."""
    ask_again_s: float = 3.0
    """How often peers that have a part, or nothing yet, are asked again what they have."""
    sync_bytes: int = 8 * MIB
    """Received bytes after which progress is made durable: so much is loaded again after a
    crash."""
    serve_stall_s: float = 60.0
    """A peer that takes no piece of what it asked for in this time is served no longer."""
    serve_reads_max: int = 4
    """Pieces read from the disk for peers at once: a flood of requests takes no more threads."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise UsageError(f"blobs: {field.name} is {value}: it must be above 0")
        if self.window_max < 2:
            raise UsageError("blobs: window_max is at least 2")
        if self.collect_to_ratio > 1:
            raise UsageError("blobs: collect_to_ratio is at most 1")
        if self.fetch_bytes_max > BLOB_BYTES_MAX:
            raise UsageError(f"blobs: fetch_bytes_max is at most {BLOB_BYTES_MAX}")
