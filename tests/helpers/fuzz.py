"""A deterministic fuzzer: mutate known inputs, and demand one error type, bounded time and memory.

Foreign bytes reach Covey only through functions named `*_untrusted`. For each of them (and each
state machine that takes foreign bytes) `tests.helpers.fuzz_targets` knows how to call it and what
it may raise. Here inputs are made: whole and broken seeds, mutations of them, and bombs (deep
nesting, huge announced lengths). All from one seed, so that a run repeats; what it finds goes into
`tests/fuzz/corpus/<target>/` and is replayed for ever.

`python -m tests.helpers.fuzz --target TEXT --seconds 60 --seed 0` runs it by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
CORPUS: Final = ROOT / "tests" / "fuzz" / "corpus"
INPUT_BYTES_MAX: Final = 64 * 1024
PEAK_PER_BYTE_MAX: Final = 80
"""Peak memory of a decoder: this many bytes for each byte of its input ..."""
PEAK_BYTES_FREE: Final = 64 * 1024
"""... plus this, for what any call costs."""
INPUT_S_MAX: Final = 2.0
"""No input of 64 KiB may take so long; the slowest takes some milliseconds. Only there to end a
hang: on a loaded machine a decision by time would differ from run to run."""
MEMORY_EVERY: Final = 16
"""Memory is measured for one input in so many: measuring takes ten times the call itself."""


@dataclass(frozen=True)
class Target:
    """One way in for foreign bytes."""

    name: str
    """`module:function`; unique, and the name of the corpus folder (with `-` for `:`)."""
    call: Callable[[bytes], object]
    """Feeds one input."""
    allowed: tuple[type[BaseException], ...]
    """What a bad input may raise."""
    seeds: tuple[bytes, ...] = ()
    """Inputs to start from, good ones among them."""
    measured: bool = True
    """Whether the memory bound holds: a machine keeps buffers of its own."""

    @property
    def corpus(self) -> Path:
        """Folder of inputs that once broke it, or that reach far into it."""
        return CORPUS / self.name.replace(":", "-")


@dataclass(frozen=True)
class Finding:
    """An input that broke its target."""

    target: str
    data: bytes
    problem: str

    @override
    def __str__(self) -> str:
        shown = self.data.hex() if len(self.data) <= 512 else f"{self.data[:512].hex()}..."
        digest = hashlib.sha256(self.data).hexdigest()[:12]
        folder = f"tests/fuzz/corpus/{self.target.replace(':', '-')}"
        return (
            f"{self.target}: {self.problem}\n  input ({len(self.data)} bytes): {shown}\n"
            f"  fix it, then keep the input as {folder}/{digest}"
        )


# Bytes that mean something to msgpack, protobuf, JSON, Noise, Yamux or text.
_TELLING: Final = bytes.fromhex("00 01 7f 80 81 90 91 9f a0 c0 c1 c4 c6 cf d3 d9 db dc dd de df ff")
_TOKENS: Final = (
    b"\xff" * 9,
    b"\x80" * 10 + b"\x01",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xcb\x7f\xf8" + bytes(6),
    b"\xed\xa0\x80",
    b"\xc3\x28",
    b"\x00\x00",
    b"\r\n",
    b'"',
    b"{",
    b"[",
    b"null",
    b"1e999",
    b"\\ud800",
    b"9" * 40,
    b"/p2p/",
    b"/ip4/",
    "\u202e".encode(),
)
_NESTING: Final = (
    (b"\x91", b""),
    (b"\x92\x90", b""),
    (b"\x81\xa0", b""),
    (b"[", b"]"),
    (b'{"a":', b"}"),
    (b"\xdc\x00\x01", b""),
    (b"\x0a\x7f", b""),
)


def bombs(size: int) -> Iterator[bytes]:
    """Inputs of about `size` bytes that break a careless decoder whatever its format."""
    for opening, closing in _NESTING:
        depth = size // (len(opening) + len(closing))
        yield opening * depth + closing * depth
    for filler in (b"\x00", b"\xff", b"\x90", b"\xc0", b"a", b" ", b"/", b"\x80"):
        yield filler * size
    for token in _TOKENS:
        yield token
        yield token + bytes(min(size, 1024))
    yield b"\xdc" + (size % 65536).to_bytes(2, "big") + b"\x90" * size


def mutate(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """One to four random changes of `data`, at most 64 KiB long."""
    buffer = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(buffer, others, rng)
    return bytes(buffer[:INPUT_BYTES_MAX])


def _change(buffer: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(buffer) + 1)
    end = min(len(buffer), at + rng.choice((1, 1, 2, 4, 8, 32, 256)))
    match rng.randrange(9):
        case 0 if at < len(buffer):
            buffer[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(buffer):
            buffer[at] = rng.choice(_TELLING)
        case 2:
            buffer[at:at] = rng.choice(_TOKENS)
        case 3:
            del buffer[at:end]
        case 4:
            del buffer[at:]
        case 5:
            buffer[at:at] = buffer[at:end] * rng.choice((1, 2, 64))
        case 6:
            other = rng.choice(others) if others else b""
            cut = rng.randrange(len(other) + 1)
            buffer[at:] = other[cut:]
        case 7:
            buffer[at:end] = rng.randbytes(end - at)
        case _:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, len(buffer), 2 ** (8 * width) - 1, 2 ** (8 * width - 1)))
            order = rng.choice(("big", "little"))
            piece = (number % 2 ** (8 * width)).to_bytes(width, "big")
            buffer[at : at + width] = piece if order == "big" else piece[::-1]


def inputs(target: Target, *, seed: int, count: int) -> Iterator[bytes]:
    """Seeds, corpus, bombs, then `count` mutations; the same for the same `seed`."""
    known = [*target.seeds, *corpus_of(target)] or [b"", b"\x90", b"{}"]
    yield from known
    for size in (0, 1, 100, 4096, INPUT_BYTES_MAX):
        yield from bombs(size)
    rng = random.Random(f"{seed}/{target.name}")
    for _ in range(count):
        yield mutate(rng.choice(known), known, rng)


def corpus_of(target: Target) -> list[bytes]:
    """The kept inputs of a target."""
    if not target.corpus.is_dir():
        return []
    return [path.read_bytes() for path in sorted(target.corpus.iterdir()) if path.is_file()]


def try_input(target: Target, data: bytes, *, measure: bool) -> Finding | None:
    """Feed one input; a finding if it raised anything else, took too much memory or too long."""
    started = time.perf_counter()
    if measure:
        tracemalloc.start()
    try:
        target.call(data)
    except target.allowed:
        pass
    except Exception as error:  # noqa: BLE001 - any other exception is the finding
        where = _innermost(error)
        return Finding(target.name, data, f"raised {type(error).__name__}: {error} at {where}")
    finally:
        peak = tracemalloc.get_traced_memory()[1] if measure else 0
        if measure:
            tracemalloc.stop()
    spent_s = time.perf_counter() - started
    if peak > PEAK_PER_BYTE_MAX * len(data) + PEAK_BYTES_FREE:
        return Finding(target.name, data, f"took {peak} bytes of memory for {len(data)}")
    if spent_s > INPUT_S_MAX:
        return Finding(target.name, data, f"took {spent_s:.1f} s for {len(data)} bytes")
    return None


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def run(target: Target, *, seed: int, count: int, seconds: float | None = None) -> Finding | None:
    """Feed a target until something breaks it, `count` mutations are done or `seconds` passed."""
    until = None if seconds is None else time.perf_counter() + seconds
    # The first call imports and compiles: not the input's memory.
    try_input(target, b"", measure=False)
    for number, data in enumerate(inputs(target, seed=seed, count=count)):
        measure = target.measured and (number % MEMORY_EVERY == 0 or len(data) > 4096)
        finding = try_input(target, data, measure=measure)
        if finding is not None:
            return finding
        if until is not None and time.perf_counter() > until:
            return None
    return None


def main() -> int:
    """Fuzz by hand; 1 if anything was found."""
    from tests.helpers.fuzz_targets import all_targets

    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--target", default="", help="part of a target's name; all without")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = [target for target in all_targets() if options.target in target.name]
    findings = 0
    for target in chosen:
        finding = run(target, seed=options.seed, count=10**9, seconds=options.seconds / len(chosen))
        findings += finding is not None
        print(finding or f"{target.name}: nothing found", flush=True)
    if not chosen:
        print(f"no target's name contains {options.target!r}")
    return 1 if findings or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
