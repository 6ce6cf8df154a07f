"""Any sources, any losses: the schedule ends, keeps its windows, and the codecs are exact."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field, replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.blobs import collect
from p2p.blobs.config import BlobConfig
from p2p.blobs.manifest import (
    BLOB_BYTES_MAX,
    CHUNK_BYTES_MIN,
    CHUNKS_MAX,
    HASH_BYTES,
    BlobId,
    Manifest,
    chunk_bytes_for,
    chunk_count,
    decode_bitmap_untrusted,
    decode_manifest_untrusted,
    encode_bitmap,
    lowest_from,
)
from p2p.blobs.pins import PUBLIC, Entry, Group, Pins, decode_pins
from p2p.blobs.schedule import END_GAME_CHUNKS, Request, Schedule
from p2p.errors import DecodeError
from p2p.identity import PeerId
from tests.helpers.sometimes import Sometimes

CONFIG: Final = replace(BlobConfig(), stall_s=300.0)
GOOD: Final = "good"
EVENTS: Final = ("good", "wrong", "refuses", "busy", "leaves", "doubled", "late")
KINDS: Final = (GOOD, "good", "wrong", "silent", "refuses", "busy", "leaves")


@dataclass
class Peer:
    """One source and how it behaves."""

    id: PeerId
    kind: str
    has: int
    delay_s: float
    rng: random.Random

    def answer(self) -> str:
        """What becomes of a request: bad peers do it half of the time."""
        return self.kind if self.kind != GOOD and self.rng.random() < 0.5 else GOOD


@dataclass
class World:
    """A fetch without bytes: requests are answered in drawn order, after drawn times."""

    chunks: int
    peers: list[Peer]
    rng: random.Random
    config: BlobConfig
    now: float = 0.0
    waiting: list[tuple[float, int, Request, str]] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    seen: Sometimes = field(default_factory=lambda: Sometimes(*EVENTS))

    def __post_init__(self) -> None:
        manifest = Manifest(self.chunks * CHUNK_BYTES_MIN, bytes(self.chunks * HASH_BYTES))
        self.schedule = Schedule(manifest, 0, self.config, 0.0)
        self.by_id = {peer.id: peer for peer in self.peers}

    def run(self) -> bool:
        """Until it is done or stalled; whether it is done."""
        schedule = self.schedule
        while not schedule.done:
            schedule.on_timer(self.now)
            if schedule.stalled(self.now):
                return False
            for peer in self.peers:
                schedule.source_up(
                    peer.id,
                    has=peer.has,
                    start=self.rng.randrange(self.chunks),
                    round_trip_s=0.05,
                    relay=False,
                )
            before = {peer.id: schedule.in_flight(peer.id) for peer in self.peers}
            requests = schedule.to_send(self.now)
            for peer in self.peers:
                under_way = schedule.in_flight(peer.id)
                assert under_way <= max(before[peer.id], schedule.window(peer.id))
            for request in requests:
                assert self.by_id[request.peer].has >> request.index & 1, "asked for what it lacks"
                assert not schedule.have >> request.index & 1, "asked for what is here"
                kind = self.by_id[request.peer].answer()
                after_s = 1e9 if kind == "silent" else self.by_id[request.peer].delay_s
                at = self.now + after_s * self.rng.uniform(0.5, 2)
                heapq.heappush(self.waiting, (at, request.number, request, kind))
            self.cancelled.update(request.number for request in schedule.to_cancel())
            self.check()
            self.step()
        return True

    def check(self) -> None:
        """What must hold at all times."""
        schedule = self.schedule
        owners: dict[int, int] = {}
        for source in schedule._sources.values():
            # A window may shrink below what is under way; nothing is added then.
            assert len(source.flights) <= self.config.window_max
            for flight in source.flights.values():
                owners[flight.request.index] = owners.get(flight.request.index, 0) + 1
        assert len(schedule.sources) <= self.config.sources_max
        assert sum(owners.values()) + len(schedule._checking) <= schedule.in_flight_max
        if 2 in owners.values():
            self.seen("doubled")
        if any(s.patience > 1 for s in schedule._sources.values()):
            self.seen("late")
        missing = self.chunks - schedule.have.bit_count()
        assert max(owners.values(), default=0) <= (2 if missing <= END_GAME_CHUNKS else 1)

    def step(self) -> None:
        """The next thing that happens."""
        while self.waiting and self.waiting[0][1] in self.cancelled:
            heapq.heappop(self.waiting)
        timer = self.schedule.next_timer()
        assert timer is not None
        if not self.waiting or timer < self.waiting[0][0]:
            self.now = max(self.now, timer)
            return
        at, _, request, kind = heapq.heappop(self.waiting)
        self.now = max(self.now, at)
        before = self.schedule.in_flight(request.peer)
        self.seen(kind)
        match kind:
            case "wrong":
                if self.schedule.arrived(request, self.now):
                    self.schedule.wrong(request)
            case "refuses":
                self.schedule.refused(request)
            case "busy":
                self.schedule.busy(request, 0.2, self.now)
            case "leaves":
                self.schedule.source_down(request.peer)
            case _:
                if self.schedule.arrived(request, self.now):
                    self.schedule.stored(request.index, self.now)
        assert self.schedule.in_flight(request.peer) <= before


def some_world(seed: int, chunks: int, kinds: list[str], window: int) -> World:
    """The first peer has everything and is good; the others are as drawn."""
    rng = random.Random(seed)
    config = replace(CONFIG, window_max=window, in_flight_bytes_max=CHUNK_BYTES_MIN * 24)
    whole = (1 << chunks) - 1
    peers = [
        Peer(
            PeerId(bytes([number]) * 32),
            kind,
            whole if rng.random() < 0.5 else rng.getrandbits(chunks),
            rng.choice([0.01, 0.1, 1.0, 3.0]),
            random.Random(rng.random()),
        )
        for number, kind in enumerate(kinds, 1)
    ]
    peers[0].kind, peers[0].has = GOOD, whole
    return World(chunks, peers, rng, config)


@given(
    seed=st.integers(0, 2**32),
    chunks=st.integers(1, 120),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=10),
    window=st.integers(2, 16),
)
def test_a_fetch_ends_whole_if_a_good_source_has_all_and_keeps_its_windows(
    seed: int, chunks: int, kinds: list[str], window: int
) -> None:
    world = some_world(seed, chunks, kinds, window)
    assert world.run(), "it stalled although a good source has everything"
    assert world.schedule.have == (1 << chunks) - 1
    assert world.schedule.next_timer() is None


def test_a_batch_of_fetches_sees_every_kind_of_trouble() -> None:
    seen = Sometimes(*EVENTS)
    for seed in range(60):
        dice = random.Random(seed)
        world = some_world(seed, 60, dice.choices(KINDS, k=6), dice.randint(2, 16))
        world.seen = seen
        assert world.run()
    seen.check()


@given(seed=st.integers(0, 2**32), chunks=st.integers(1, 60))
def test_parts_that_together_are_the_blob_suffice(seed: int, chunks: int) -> None:
    rng = random.Random(seed)
    shares = [0, 0, 0]
    for index in range(chunks):
        shares[rng.randrange(3)] |= 1 << index
    peers = [
        Peer(PeerId(bytes([number]) * 32), GOOD, share, 0.1, rng)
        for number, share in enumerate(shares, 1)
    ]
    assert World(chunks, peers, rng, CONFIG).run()


def test_control_without_a_source_of_a_chunk_it_stalls_at_the_time_said() -> None:
    rng = random.Random(1)
    world = World(4, [Peer(PeerId(bytes(32)), GOOD, 0b0111, 0.1, rng)], rng, CONFIG)
    assert not world.run()
    assert world.schedule.have == 0b0111
    assert world.now == pytest.approx(CONFIG.stall_s, abs=5)


# --- codecs ---------------------------------------------------------------------------------------


@given(size=st.integers(0, BLOB_BYTES_MAX))
def test_chunks_cover_a_blob_of_any_size_and_are_few_enough(size: int) -> None:
    chunk_bytes, chunks = chunk_bytes_for(size), chunk_count(size)
    assert chunks <= CHUNKS_MAX
    assert (chunks - 1) * chunk_bytes < size <= chunks * chunk_bytes or size == chunks == 0
    # No smaller chunk would do.
    assert chunk_bytes == CHUNK_BYTES_MIN or chunk_bytes // 2 * CHUNKS_MAX < size


@given(size=st.integers(0, 40 * CHUNK_BYTES_MIN), filler=st.binary(min_size=1, max_size=8))
def test_a_manifest_reads_back_and_has_one_spelling(size: int, filler: bytes) -> None:
    hashes = (filler * HASH_BYTES)[:HASH_BYTES] * chunk_count(size)
    manifest = Manifest(size, hashes)
    data = manifest.encode()
    again = decode_manifest_untrusted(data)
    assert (again.size, again.hashes, again.id) == (size, hashes, manifest.id)
    spans = [again.span(index) for index in range(again.chunks)]
    assert sum(span.size for span in spans) == size
    assert all(span.offset == i * again.chunk_bytes for i, span in enumerate(spans))
    assert again.bytes_of(again.whole) == size
    for other in (data + b"\x00", data[:-1], b"\x95" + data[1:]):
        with pytest.raises(DecodeError):
            decode_manifest_untrusted(other)


@given(chunks=st.integers(0, 300), data=st.data())
def test_a_bitmap_reads_back_and_names_no_chunk_too_many(chunks: int, data: st.DataObject) -> None:
    have = data.draw(st.integers(0, (1 << chunks) - 1))
    encoded = encode_bitmap(have, chunks)
    assert decode_bitmap_untrusted(encoded, chunks) == have
    with pytest.raises(DecodeError):
        decode_bitmap_untrusted(encoded + b"\x00", chunks)
    if chunks % 8:
        with pytest.raises(DecodeError):
            decode_bitmap_untrusted(encode_bitmap(1 << chunks, chunks + 1), chunks)


@given(bits=st.integers(0, 2**80), start=st.integers(0, 90))
def test_the_lowest_bit_from_a_place_is_found_around_the_end(bits: int, start: int) -> None:
    ones = [i for i in range(81) if bits >> i & 1]
    above = [i for i in ones if i >= start]
    assert lowest_from(bits, start) == (above or ones or [None])[0]


# --- pins and room --------------------------------------------------------------------------------

GROUPS: Final = st.one_of(st.none(), st.just(PUBLIC), st.binary(min_size=32, max_size=32))
TAGS: Final = st.text("abc-", min_size=1, max_size=3)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["pin", "unpin", "read"]), TAGS, GROUPS), max_size=20)
)
def test_pins_are_a_set_by_tag_and_survive_the_file(
    steps: list[tuple[str, str, Group]],
) -> None:
    pins = Pins()
    held: set[tuple[str, Group]] = set()
    readers: set[Group] = set()
    for verb, tag, group in steps:
        if verb == "pin":
            pins = pins.with_pin(group, tag)
            held.add((tag, group))
        elif verb == "unpin":
            pins = pins.without_pin(tag)
            held = {pin for pin in held if pin[0] != tag}
        else:
            pins = pins.with_reader(group)
            readers.add(group)
        assert set(pins.pins) == held
        assert set(pins.groups) == readers | {group for _, group in held}
    assert decode_pins(pins.encode()) == pins


@given(
    sizes=st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.booleans()), max_size=30),
    bytes_max=st.integers(1, 1000),
    coming=st.integers(0, 500),
)
def test_collecting_takes_the_longest_unused_until_there_is_room(
    sizes: list[tuple[int, bool, bool]], bytes_max: int, coming: int
) -> None:
    entries = [
        Entry(
            id=BlobId(number.to_bytes(32, "big")),
            size=size,
            whole=True,
            bytes_used=size,
            used_ms=number,
            pins=Pins().with_pin(None, "x") if pinned else Pins(),
            fetching=fetching,
        )
        for number, (size, pinned, fetching) in enumerate(sizes)
    ]
    chosen = collect.choose(entries, bytes_max=bytes_max, to_ratio=0.9, coming_bytes=coming)
    free = {entry.id: entry for entry in entries if not entry.pinned and not entry.fetching}
    assert set(chosen) <= set(free)
    assert chosen == sorted(chosen), "the longest unused first"
    loose = sum(entry.bytes_used for entry in entries if not entry.pinned) + coming
    left = loose - sum(free[blob].bytes_used for blob in chosen)
    if loose <= bytes_max:
        assert not chosen
    else:
        assert left <= bytes_max * 0.9 or len(chosen) == len(free)
        if chosen:  # the last one was needed
            assert left + free[chosen[-1]].bytes_used > bytes_max * 0.9
