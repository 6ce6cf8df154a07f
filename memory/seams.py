"""What `memory` needs of others, as Protocols of plain bytes.

The record types repeat the shapes of `p2p.replication.store` without importing it: the packages do
not know each other, `daemon.wiring` introduces them and mypy checks there that the shapes fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

LogKey: TypeAlias = tuple[bytes, bytes, int, int]
"""(group, author, incarnation, lane); lane 0 is control, 1 is data."""

Cell: TypeAlias = bytes | str | int | None
"""A bound parameter or a column."""

LocalRow: TypeAlias = tuple[str, tuple[Cell, ...]]
"""(table, columns) of a table that never leaves this node; docs/specs/memory.md lists them."""

R_contra = TypeVar("R_contra", contravariant=True)
T = TypeVar("T")


class Env(Protocol):
    """The part of `p2p.env.Env` that a store uses."""

    rng: random.Random

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def wall_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def fault(self, name: str) -> bool:
        """Whether to fail here; False in production."""
        ...


class Receipt(Protocol[R_contra]):
    """The result of a mutating call, stored with its effect, so that a replay finds it."""

    @property
    def key(self) -> bytes:
        """At most 128 bytes."""
        ...

    def encode(self, result: R_contra, /) -> bytes:
        """The bytes to keep; runs in the writer's transaction."""
        ...


class Draft(Protocol):
    """A record before it has a place in a chain."""

    @property
    def kind(self) -> int:
        """Record kind; under 32 is the control lane."""
        ...

    @property
    def body(self) -> bytes:
        """Plain body or control payload."""
        ...

    @property
    def key_tag(self) -> bytes | None:
        """16 bytes for a state cell, else None."""
        ...

    @property
    def supersedes(self) -> Sequence[bytes]:
        """At most 8 ids, ascending."""
        ...


class Envelope(Protocol):
    """A record's detachable part; of a control record `epoch` and `wrap` are None."""

    @property
    def salt(self) -> bytes:
        """16 bytes."""
        ...

    @property
    def epoch(self) -> bytes | None:
        """16 bytes."""
        ...

    @property
    def wrap(self) -> bytes | None:
        """60 bytes."""
        ...

    @property
    def ct(self) -> bytes:
        """Ciphertext, or the control payload."""
        ...


class Verified(Protocol):
    """A record whose signature and structure hold."""

    @property
    def id(self) -> bytes:
        """32 bytes."""
        ...

    @property
    def group(self) -> bytes:
        """32 bytes."""
        ...

    @property
    def author(self) -> bytes:
        """The writing device's key."""
        ...

    @property
    def incarnation(self) -> int:
        """Life of the log."""
        ...

    @property
    def lane(self) -> int:
        """0 control, 1 data."""
        ...

    @property
    def seq(self) -> int:
        """Place in the log, from 1."""
        ...

    @property
    def prev(self) -> bytes | None:
        """Id of the record before, None at seq 1."""
        ...

    @property
    def hlc(self) -> int:
        """Milliseconds << 16 | counter."""
        ...

    @property
    def kind(self) -> int:
        """Record kind; under 32 is the control lane."""
        ...

    @property
    def key_tag(self) -> bytes | None:
        """16 bytes for a state cell, else None."""
        ...

    @property
    def supersedes(self) -> Sequence[bytes]:
        """At most 8 ids, ascending."""
        ...

    @property
    def header(self) -> bytes:
        """Signed bytes, as received."""
        ...

    @property
    def signature(self) -> bytes:
        """64 bytes."""
        ...

    @property
    def envelope(self) -> Envelope | None:
        """None when only the header is known."""
        ...

    @property
    def plain(self) -> bytes | None:
        """The opened body; None when its key is missing."""
        ...

    @property
    def state(self) -> str:
        """`live`, `sealed`, `void` or `stub`."""
        ...

    @property
    def owner(self) -> bytes:
        """Owner key of the author."""
        ...

    @property
    def relation(self) -> str:
        """`own`, `own_device`, `invited` or `other`."""
        ...


class Position(Protocol):
    """Where in its chain a draft will stand."""

    @property
    def log(self) -> LogKey:
        """The chain."""
        ...

    @property
    def seq(self) -> int:
        """Place in the log, from 1."""
        ...

    @property
    def prev(self) -> bytes | None:
        """Id of the record before, None at seq 1."""
        ...

    @property
    def hlc_min(self) -> int:
        """The new record's hlc must be greater."""
        ...


class Sealer(Protocol):
    """Turns drafts into signed records, inside the writer's transaction: pure CPU, ~60 us."""

    def log(self, group: bytes, lane: int) -> LogKey:
        """Our own log in `group`.

        Raises:
            KeyError: the group is unknown here.
        """
        ...

    def seal(self, draft: Draft, at: Position) -> Verified:
        """Encrypt, sign and date the draft."""
        ...


class Offload(Protocol):
    """Where blocking work runs: threads in the daemon, inline in simulation."""

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` off the loop and return its result."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors. Blocking: call it through `Offload`.

    Attributes:
        id: `name@` and 8 hex digits of the SHA-256 of the weights.
        dim: length of a vector.
    """

    id: str
    dim: int

    def encode(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        """float32[n, dim], rows of length 1.

        Args:
            texts: n texts, cut at what the model can read.
            query: whether these are questions rather than notes.

        Raises:
            EmbedError: the model failed or gave what no vector can be.
        """
        ...


class Scanned(NamedTuple):
    """A text after the scan.

    Attributes:
        text: with secrets replaced by `[REDACTED:kind]`.
        redactions: kinds of what was replaced.
    """

    text: str
    redactions: tuple[str, ...] = ()


class Scanner(Protocol):
    """Looks for secrets and for text that gives orders."""

    @property
    def redactions(self) -> Mapping[str, int]:
        """Secrets taken out since the start, by kind."""
        ...

    def scan(self, text: str, *, foreign: bool, person: bool = False) -> Scanned:
        """A text without its secrets.

        Args:
            text: cleaned text.
            foreign: whether another device wrote it.
            person: whether the person at the terminal writes it.

        Raises:
            RefusedError: `secret`: own text holds one and the setting says to refuse.
        """
        ...

    def flags(self, text: str) -> frozenset[str]:
        """`imperative` for text that speaks to a model rather than about something."""
        ...
