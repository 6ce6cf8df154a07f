"""Shared memory of the pool: sealed, without a name, gone with its last user."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from federated.rounds.pool import segments
from federated.rounds.pool.segments import Segment
from tests.helpers.need import need

SIZE = 2 << 20
KINDS: tuple[segments.SegmentKind, ...] = ("memfd", "shm")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> segments.SegmentKind:
    if request.param == "memfd":
        need("linux")
    return request.param


def shared_names() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()} if sys.platform == "linux" else set()


@pytest.mark.usefixtures("no_leaks")
def test_who_maps_the_descriptor_sees_the_same_bytes() -> None:
    segment = Segment(SIZE)
    with mmap.mmap(segment.fd, SIZE) as other:
        other[5:8] = b"abc"
        assert segment.bytes[5:8].tobytes() == b"abc"
    assert segment.f32(4, offset=64).shape == (4,)
    segment.close()
    segment.close()


def test_a_segment_has_no_name_that_could_stay(kind: segments.SegmentKind) -> None:
    before = shared_names()
    segment = Segment(SIZE, kind=kind)
    assert shared_names() == before
    assert len(segment.bytes) == SIZE
    assert not segment.bytes.any()
    with mmap.mmap(segment.fd, SIZE) as other:
        segment.bytes[0] = 7
        assert other[0] == 7
    segment.close()


def test_nobody_changes_the_size_of_a_segment() -> None:
    need("linux")
    segment = Segment(SIZE)
    for size in (0, SIZE - 4096, SIZE + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size)
    segment.close()


@pytest.mark.attack
def test_a_result_can_only_be_read_by_others() -> None:
    need("linux")
    segment = Segment(SIZE, shown=True)
    segment.bytes[:4] = 9
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fd, SIZE)
    with pytest.raises(PermissionError):
        os.pwrite(segment.fd, b"x", 0)
    anew = os.open(f"/proc/self/fd/{segment.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(anew, SIZE)
    os.close(anew)
    with mmap.mmap(segment.fd, SIZE, prot=mmap.PROT_READ) as reader:
        segment.bytes[0] = 3  # ours, mapped before the seal, still writes
        assert reader[:4] == b"\x03\x09\x09\x09"
    segment.close()


def test_a_view_outlives_the_segment() -> None:
    segment = Segment(SIZE)
    view = segment.f32(10)
    view[:] = 2
    segment.close()
    assert np.array_equal(view, np.full(10, 2, np.float32))


def test_the_machine_says_how_much_memory_it_has() -> None:
    assert 0 < segments.available_bytes() <= segments.memory_bytes()
