"""What peer RPC looks like from outside: methods, callers, streams, codes.

A method is declared once, in a place both sides import, and served or called through `p2p.rpc.Rpc`:

    ECHO = Method("mesh.echo", request=bytes, reply=bytes, idempotent=True)
    node.rpc.serve(ECHO, echo)
    answer = await node.rpc.call(peer, ECHO, b"hello", timeout_s=5)

Source: docs/specs/rpc.md.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec
import trio

from p2p.identity import PeerId
from p2p.limits import RPC_METHOD_CHARACTERS_MAX

Q = TypeVar("Q")
R = TypeVar("R")

CONCURRENT_MAX: Final = 16
"""Calls of one method a peer may have running, unless the method says otherwise."""


def _decoder(kind: type[object] | None) -> msgspec.msgpack.Decoder[object] | None:
    return None if kind is None else msgspec.msgpack.Decoder(kind)


class Code(enum.IntEnum):
    """Why a call failed; numbers are append-only. Source: docs/specs/rpc.md s.5."""

    UNKNOWN_METHOD = 1
    BAD_REQUEST = 2
    DENIED = 3
    DEADLINE = 4
    CANCELLED = 5
    BUSY = 6
    TOO_LARGE = 7
    INTERNAL = 8
    APPLICATION = 9
    UNAVAILABLE = 10


@dataclass(frozen=True)
class Method(Generic[Q, R]):
    """A named call with typed request and reply, and optionally items each way.

    Every field type must be something msgspec decodes strictly; use
    `msgspec.Struct(array_like=True, forbid_unknown_fields=True)` for anything with parts.
    """

    name: str
    """Unique on the mesh, `part.verb`, at most 64 characters."""
    request: type[Q]
    reply: type[R]
    item_in: type[object] | None = None
    """What the caller may send while the call lasts; None: nothing."""
    item_out: type[object] | None = None
    """What the callee may send before its reply; None: nothing."""
    idempotent: bool = False
    """Whether running it twice does no harm: only then is a call repeated that may have run."""
    direct_only: bool = False
    """Refuse to travel over a relay."""
    concurrent_max: int = CONCURRENT_MAX
    """Calls of this method one peer may have running here; more are answered busy."""

    request_decoder: msgspec.msgpack.Decoder[Q] = field(init=False, repr=False, compare=False)
    reply_decoder: msgspec.msgpack.Decoder[R] = field(init=False, repr=False, compare=False)
    item_in_decoder: msgspec.msgpack.Decoder[object] | None = field(
        init=False, repr=False, compare=False
    )
    item_out_decoder: msgspec.msgpack.Decoder[object] | None = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= RPC_METHOD_CHARACTERS_MAX:
            raise ValueError(
                f"name needs 1 to {RPC_METHOD_CHARACTERS_MAX} characters: {self.name!r}"
            )
        if self.concurrent_max < 1:
            raise ValueError(f"{self.name}: concurrent_max must be at least 1")
        # Decoders are made once here: building one costs more than a call.
        made = {
            "request_decoder": msgspec.msgpack.Decoder(self.request),
            "reply_decoder": msgspec.msgpack.Decoder(self.reply),
            "item_in_decoder": _decoder(self.item_in),
            "item_out_decoder": _decoder(self.item_out),
        }
        for name, decoder in made.items():
            object.__setattr__(self, name, decoder)

    @property
    def streaming(self) -> bool:
        """Whether items flow in either direction."""
        return self.item_in is not None or self.item_out is not None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. The handshake proved `peer`; nothing in the request can change it."""

    peer: PeerId
    path: str
    """How the call travelled: `direct`, `lan`, `relay` or `mem`."""
    deadline: float
    """`trio.current_time()` at which the handler is cancelled; `inf` for an open-ended stream."""


class CallStream(ABC):
    """The items of one call, seen from either side."""

    @abstractmethod
    async def send(self, item: object) -> None:
        """Send an item of the method's type, waiting while the other side grants no credit.

        Raises:
            UsageError: after `end`, on a method without items this way, or over 1 MiB encoded.
            Unreachable: the stream died.
        """

    @abstractmethod
    async def end(self) -> None:
        """Say that no more items follow. Idempotent; a handler's return implies it."""

    @abstractmethod
    async def receive(self) -> object:
        """The next item, of the method's declared type.

        Raises:
            trio.EndOfChannel: the other side sends no more.
            DecodeError: the item is not of the declared type; the call is over.
        """

    def __aiter__(self) -> CallStream:
        return self

    async def __anext__(self) -> object:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


class OutboundCall(CallStream, Generic[R]):
    """The caller's side of a streaming call; it also waits for the reply."""

    @abstractmethod
    async def result(self) -> R:
        """End our items, let theirs pass unread, and return the reply.

        Raises: what `Rpc.call` raises.
        """


Serve: TypeAlias = Callable[[Caller, Q, CallStream], Awaitable[R]]
"""A handler. To refuse, it raises `RemoteError(Code.APPLICATION, "why")`, `AuthError` or `Busy`."""

Allow: TypeAlias = Callable[[PeerId], bool]
"""Whether a peer may call a method; asked before anything of the request is decoded."""


def anyone(peer: PeerId) -> bool:  # noqa: ARG001 - the shape of `Allow`
    """An `Allow` for methods open to strangers, such as joining a group."""
    return True
