"""Every way in for foreign bytes: found by name, called as its signature asks.

A function or method named `*_untrusted` is found by reading the source, so that nobody has to
remember to register it. One that takes just bytes or just text needs nothing more; any other has an
adapter here. What the mutations start from is in `tests.helpers.fuzz_seeds`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import ipaddress
import random
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

import msgspec
import numpy as np

from daemon.errors import RpcError
from daemon.mcp.lines import BadLineError
from federated.rounds.numeric.codec import BLOCK, CODECS, Codec, encoded_size
from federated.rounds.statistics.plain import HistogramQuery, MeanQuery
from memory.errors import DecodeError as MemoryDecodeError
from memory.errors import RefusedError
from p2p.dht.messages import MessageReader
from p2p.errors import AuthError, DecodeError, PeerError
from p2p.identity import KeyFileError
from p2p.nat.lan import MDNS_PORT, LanLink, Neighbours
from p2p.nat.mdns import name_of
from p2p.nat.upnp import HttpUrl
from p2p.replication.messages import FrameReader
from p2p.rpc_frames import FrameBuffer
from p2p.wire.envelope import PEER_RECORD_DOMAIN, PEER_RECORD_TYPE
from p2p.wire.multistream import Dialer, LineReader, Listener
from p2p.wire.noise import NoiseHandshake, Opener
from p2p.wire.session import Session
from p2p.wire.yamux import Yamux
from tests.helpers import fuzz_seeds
from tests.helpers.fuzz import Target
from tests.helpers.fuzz_seeds import IDENTITY, Bag, Params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
ROUTER: Final = HttpUrl("10.77.1.1", 42557, "/rootDesc.xml")
PACKAGES: Final = ("p2p", "memory", "federated", "daemon")


class Untrusted(Protocol):
    """A function that takes foreign bytes; what else it takes is its adapter's matter."""

    def __call__(self, *arguments: object, **named: object) -> object:
        """Decode."""
        ...


def discover() -> list[str]:
    """`module:function` and `module:Class.method` of everything named `*_untrusted`, in order."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for scope, node in _functions(ast.parse(path.read_text("utf-8"))):
                if node.name.endswith("_untrusted"):
                    found.append(f"{module}:{scope}{node.name}")
    return found


def _functions(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of a module and methods of its classes, each with its class's prefix."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.", member


# --- how to call what takes more than bytes -------------------------------------------------------


class _Entry(msgspec.Struct):
    """What the decoder of params reads of a method."""

    name: str = "test.method"
    params: type[msgspec.Struct] = Params


def _first_byte_is_kind(fn: Untrusted, data: bytes) -> object:
    return fn(data[0] if data else 0, data[1:])


def _last_argument_is_kind(fn: Untrusted, data: bytes) -> object:
    return fn(data[1:], data[0] if data else 0)


def _round_codec(fn: Untrusted, data: bytes) -> object:
    """The first byte picks the codec, the length how many values there can be: so most inputs get
    past the check of the length, and every eighth codec byte announces one value too many."""
    name: Codec = CODECS[data[0] % len(CODECS)] if data else "f32"
    kind = data[0] if data else 0
    body = data[1:]
    block = 4 if name == "f32" else encoded_size(name, BLOCK)
    count = len(body) // block * (1 if name == "f32" else BLOCK)
    n = max(0, count - (kind >> 2) % BLOCK if name != "f32" else count) + (kind % 8 == 7)
    return fn(name, body, n)


def _round_codec_slices(fn: Untrusted, data: bytes) -> object:
    def drained(name: object, body: object, n: object) -> object:
        assert isinstance(n, int)
        return list(cast("Iterable[None]", fn(name, body, np.empty(n, np.float32))))

    return _round_codec(cast("Untrusted", drained), data)


ADAPTERS: Final[Mapping[str, Callable[[Untrusted, bytes], object]]] = {
    "p2p.blobs.manifest:decode_bitmap_untrusted": lambda fn, data: fn(data, 20),
    "p2p.identity:_decode_key_file_untrusted": lambda fn, data: fn(data, Path("key")),
    "p2p.nat.upnp:decode_description_untrusted": lambda fn, data: fn(data, ROUTER),
    "p2p.nat.upnp:resolve_untrusted": lambda fn, data: fn(ROUTER, data.decode("utf-8", "replace")),
    "p2p.nat.relay_transport:split_circuit_untrusted": lambda fn, data: fn(
        data.decode("utf-8", "replace")
    ),
    "p2p.replication.canonical:decode_canonical_untrusted": lambda fn, data: fn(
        msgspec.msgpack.Decoder(Bag), data, bytes_max=1 << 20, what="bag"
    ),
    "p2p.replication.ops:decode_payload_untrusted": _first_byte_is_kind,
    "p2p.replication.record:decode_envelope_untrusted": _last_argument_is_kind,
    "p2p.rpc_frames:decode_body_untrusted": lambda fn, data: fn(
        msgspec.msgpack.Decoder(Bag), msgspec.Raw(data)
    ),
    "p2p.wire.envelope:open_envelope_untrusted": lambda fn, data: fn(
        data, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE
    ),
    "p2p.wire.varint:decode_varint_untrusted": lambda fn, data: fn(data),
    "federated.rounds.numeric.codec:decode_untrusted": _round_codec,
    "federated.rounds.numeric.codec:decode_slices_untrusted": _round_codec_slices,
    "federated.rounds.statistics.plain:decode_sums_untrusted": lambda fn, data: fn(
        data, HistogramQuery(edges=(0.0, 1.0)) if len(data) < 100 else MeanQuery()
    ),
    "federated.rounds.numeric.payload:decode_part_untrusted": lambda fn, data: fn(
        "f64", data, len(data) // 8
    ),
    "daemon.rpc.jsonrpc:decode_params_untrusted": lambda fn, data: fn(_Entry(), data),
    "daemon.mcp.lines:decode_line_untrusted": lambda fn, data: fn(data, line_bytes_max=1 << 20),
    "daemon.mcp.sdk:decode_message_untrusted": lambda fn, data: fn(data, 7),
}

ALLOWED: Final[Mapping[str, tuple[type[BaseException], ...]]] = {
    "p2p.identity:_decode_key_file_untrusted": (KeyFileError,),
    "memory.recall.reading:decode_cursor_untrusted": (RefusedError,),
    "p2p.wire.envelope:open_envelope_untrusted": (DecodeError, AuthError),
    "p2p.wire.envelope:open_peer_record_untrusted": (DecodeError, AuthError),
}
"""Errors other than the package's own for bad input."""

ALLOWED_BY_PACKAGE: Final[Mapping[str, tuple[type[BaseException], ...]]] = {
    "p2p": (DecodeError,),
    "federated": (DecodeError,),
    "memory": (MemoryDecodeError,),
    "daemon.rpc": (RpcError,),
    "daemon.mcp": (BadLineError,),
    "daemon": (RpcError,),
}
"""The one error for bad input by package, the longest prefix first."""


def all_targets() -> list[Target]:
    """A target for every decoder found that can be called, and one for every state machine."""
    binary, text = fuzz_seeds.binary(), fuzz_seeds.text()
    found = [
        _target(name, function, binary, text)
        for name in discover()
        if name not in METHODS
        for function in [_import(name)]
        if name in ADAPTERS or _what_it_takes(function) != "other"
    ]
    return found + machines(binary)


def _import(name: str) -> Untrusted:
    module_name, _, function_name = name.partition(":")
    return cast("Untrusted", getattr(importlib.import_module(module_name), function_name))


def _target(
    name: str, function: Untrusted, binary: tuple[bytes, ...], text: tuple[bytes, ...]
) -> Target:
    module_name = name.partition(":")[0]
    adapter = ADAPTERS.get(name)
    takes = _what_it_takes(function)
    prefix = max((p for p in ALLOWED_BY_PACKAGE if module_name.startswith(p)), key=len)
    is_text = takes == "text"

    def call(data: bytes) -> object:
        if adapter is not None:
            return adapter(function, data)
        return function(data.decode("utf-8", "replace") if is_text else data)

    json_like = module_name.startswith("daemon") or module_name == "federated.jobs.canon"
    return Target(
        name,
        call,
        ALLOWED.get(name, ALLOWED_BY_PACKAGE[prefix]),
        text if is_text or json_like else binary,
    )


def _what_it_takes(function: Untrusted) -> str:
    """`bytes`, `text` or `other`, from the annotation of its one required parameter."""
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    if len(required) != 1:
        return "other"
    annotation = str(required[0].annotation)
    if annotation == "str":
        return "text"
    return "bytes" if annotation.startswith("bytes") else "other"


# --- state machines -------------------------------------------------------------------------------

METHODS: Final[Mapping[str, str]] = {
    "p2p.dht.messages:MessageReader.next_message_untrusted": "machine:dht-messages",
    "p2p.replication.messages:FrameReader.next_message_untrusted": "machine:replication-frames",
}
"""Methods named `*_untrusted`, and the machine below that drives each."""


def _in_pieces(data: bytes) -> Iterator[bytes]:
    """`data` cut at places that follow from it: a machine must not care how bytes arrive."""
    size = 1 + sum(data[:4]) % 97
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _dht_messages(data: bytes) -> None:
    reader = MessageReader()
    for piece in _in_pieces(data):
        reader.feed(piece)
        while reader.next_message_untrusted() is not None:
            pass


def _replication_frames(data: bytes) -> None:
    reader = FrameReader()
    for piece in _in_pieces(data):
        reader.feed(piece)
        while reader.next_message_untrusted() is not None:
            pass


def _rpc_frames(data: bytes) -> None:
    frames = FrameBuffer()
    for piece in _in_pieces(data):
        frames.feed(piece)


def _lines(data: bytes) -> None:
    reader = LineReader()
    for piece in _in_pieces(data):
        reader.feed(piece)
        while reader.next_line() is not None:
            pass


def _dialer(data: bytes) -> None:
    dialer = Dialer("/noise")
    for piece in _in_pieces(data):
        if dialer.receive(piece):
            return


def _listener(data: bytes) -> None:
    listener = Listener({"/noise", "/covey/rpc/1"})
    for piece in _in_pieces(data):
        done = listener.receive(piece)
        listener.to_send()
        if done:
            return


def _noise(data: bytes) -> None:
    # The first byte picks the side, so that both are reached from the same inputs.
    handshake = NoiseHandshake(
        IDENTITY,
        initiator=bool(data[:1] > b"\x7f"),
        static=bytes([1]) * 32,
        ephemeral=bytes([2]) * 32,
    )
    for piece in _in_pieces(data[1:]):
        if handshake.receive(piece):
            return
        handshake.to_send()


def _opener(data: bytes) -> None:
    opener = Opener(bytes(32))
    for piece in _in_pieces(data):
        opener.receive(piece)


def _yamux(data: bytes) -> None:
    mux = Yamux(initiator=bool(data[:1] > b"\x7f"))
    now = 0.0
    # Some state for frames to hit: streams of our own, a ping in flight.
    own = mux.open_stream(now)
    mux.send(own, b"hello")
    mux.ping(now)
    for piece in _in_pieces(data[1:]):
        now += 0.25
        mux.receive(piece, now)
        mux.to_send(4096)


def _session(data: bytes) -> None:
    session = Session(
        IDENTITY,
        initiator=bool(data[:1] > b"\x7f"),
        static=bytes([1]) * 32,
        ephemeral=bytes([2]) * 32,
    )
    now = 0.0
    for piece in _in_pieces(data[1:]):
        now += 0.25
        session.receive(piece, now)
        session.to_send(4096)


def _lan_link(data: bytes) -> None:
    near = ipaddress.ip_interface("192.168.1.5/24")
    service = name_of("_p2p-97bdd6f3c8c2ebbd._udp.local")  # the one of the vectors
    link = LanLink(
        service, [near], ["/ip4/192.168.1.5/tcp/15001"], Neighbours(IDENTITY.id),
        random.Random(1), 0.0,
    )  # fmt: skip
    # A datagram is no stream: it comes whole, and again.
    for now in (0.0, 0.5, 2.0):
        link.receive(data, near.ip, MDNS_PORT, now)
        link.on_timer(now)
        link.to_send()


MACHINES: Final[Mapping[str, Callable[[bytes], None]]] = {
    "lan-link": _lan_link,
    "dht-messages": _dht_messages,
    "replication-frames": _replication_frames,
    "rpc-frames": _rpc_frames,
    "multistream-lines": _lines,
    "multistream-dialer": _dialer,
    "multistream-listener": _listener,
    "noise-handshake": _noise,
    "noise-opener": _opener,
    "yamux": _yamux,
    "session": _session,
}


def machines(binary: tuple[bytes, ...]) -> list[Target]:
    """Targets of the machines: what breaks the protocol is a PeerError, never our assert."""
    framed = [len(seed).to_bytes(4, "big") + seed for seed in binary[:60]]
    seeds = (*binary, *framed, *(b"\x00" + seed for seed in binary[:60]))
    return [
        Target(f"machine:{name}", call, (PeerError,), seeds, measured=False)
        for name, call in typing.cast("dict[str, Callable[[bytes], object]]", MACHINES).items()
    ]
