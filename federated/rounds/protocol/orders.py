"""What the round machine asks of its driver, and what the driver tells it.

The machine is sans-IO: it holds hashes and numbers, never tensors. Arrays and bytes are with the
driver's workshop, named by round, part and sender. Orders are carried out in the order in which
they stand; after a `Persist` nothing may leave before it is durable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from federated.rounds.privacy.gather import Opening
    from federated.rounds.privacy.masks import Mask
    from federated.rounds.protocol.wire import Message, Packet, PartOf, Plan, Signed


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a member; it may be lost."""

    to: bytes
    packet: Packet


@dataclass(frozen=True, slots=True)
class Persist:
    """Keep this, durable against a power cut, before anything after it leaves.

    `promised` is the view entered; `vote` (view, root) with what it was about.
    """

    promised: int
    vote: Vote | None


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote and what it was about."""

    view: int
    root: bytes
    plan: Signed
    results: Signed


@dataclass(frozen=True, slots=True)
class Prepare:
    """Cut and encode our update by the plan; answer with `Prepared`."""

    plan_hash: bytes
    plan: Plan


@dataclass(frozen=True, slots=True)
class FetchPart:
    """Get a sender's part; answer with `PartArrived` or `PartFailed`."""

    plan_hash: bytes
    part: int
    sender: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ServePart:
    """From now on `reducer` may have our part."""

    plan_hash: bytes
    part: int
    reducer: bytes


@dataclass(frozen=True, slots=True)
class MakeGram:
    """Products of the rows of a part; answer with `GramMade`."""

    plan_hash: bytes
    part: int
    order: tuple[bytes, ...]
    diagonal: bool


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge a part; answer with `Merged`."""

    plan_hash: bytes
    part: int
    order: tuple[bytes, ...]
    coefficients: tuple[float, ...]
    counter: int


@dataclass(frozen=True, slots=True)
class FetchResult:
    """Get a merged part and try it; answer with `ResultArrived` or `ResultFailed`."""

    plan_hash: bytes
    part: int
    piece: PartOf
    nbytes: int
    sha256: bytes
    holders: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """The round is decided; the merged parts lie with the driver, by hash.

    `clip` is C for the next round; `members` how each fared, as far as this node heard.
    """

    view: int
    root: bytes
    plan: Plan
    plan_hash: bytes
    parts: tuple[PartOf, ...]
    hashes: tuple[bytes, ...]
    proof: Message
    """The `Apply`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt ended without a result; the round goes on in a later view if anyone begins one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Something a person may want to see: `kind` and a line."""

    kind: str
    detail: str
    peer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Encode:
    """Masked: make words of our update; answer with `Encoded`."""

    plan_hash: bytes
    plan: Plan


@dataclass(frozen=True, slots=True)
class Cover:
    """Masked: hide these words, and no others; answer with `Prepared`."""

    plan_hash: bytes
    maskset: bytes
    words: bytes
    """SHA-256."""
    mask: Mask


@dataclass(frozen=True, slots=True)
class ReadSets:
    """Masked: whose words are in the sum that was decided; answer with `SetsRead`."""

    plan_hash: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class OpenSum:
    """Masked: reconstruct what is to be taken off the sum; answer with `SumOpened`."""

    plan_hash: bytes
    opening: Opening


Order: TypeAlias = (
    Send | Persist | Prepare | FetchPart | ServePart | MakeGram | Merge | FetchResult | Decided
    | Ended | Tell | Encode | Cover | ReadSets | OpenSum
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """Our update is cut and encoded."""

    plan_hash: bytes
    hashes: tuple[bytes, ...]
    norm: float


@dataclass(frozen=True, slots=True)
class PartArrived:
    """A sender's part is here, its hash is right; `unfit` says why it cannot be used, if so."""

    plan_hash: bytes
    part: int
    sender: bytes
    unfit: str = ""


@dataclass(frozen=True, slots=True)
class PartFailed:
    """A sender's part could not be had now."""

    plan_hash: bytes
    part: int
    sender: bytes


@dataclass(frozen=True, slots=True)
class GramMade:
    """Lower triangle by rows, or the diagonal, float64 little-endian."""

    plan_hash: bytes
    part: int
    values: bytes


@dataclass(frozen=True, slots=True)
class Merged:
    """A part is merged and encoded."""

    plan_hash: bytes
    part: int
    counter: int
    nbytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """A merged part is here, its hash is right."""

    part: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ResultFailed:
    """A merged part could not be had now; `unfit` says why it is none, if it came and is not."""

    part: int
    sha256: bytes
    unfit: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Our update, and its words, by SHA-256."""

    plan_hash: bytes
    update: bytes
    words: bytes


@dataclass(frozen=True, slots=True)
class SetsRead:
    """The sets of members that a decided sum names."""

    plan_hash: bytes
    maskset: bytes
    included: bytes


@dataclass(frozen=True, slots=True)
class SumOpened:
    """The sum can be read from now on; or why not."""

    plan_hash: bytes
    liars: tuple[bytes, ...] = ()
    """Members whose shares were wrong, by their doing or their dealer's, and were corrected."""
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """By which others can read it, too."""
    failure: str = ""
    spoilt: tuple[bytes, ...] = ()
    """Where it failed with everybody's shares: members whose secret they do not give."""


Event: TypeAlias = (
    Prepared | PartArrived | PartFailed | GramMade | Merged | ResultArrived | ResultFailed
    | Encoded | SetsRead | SumOpened
)  # fmt: skip
