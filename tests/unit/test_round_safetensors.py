"""Tensor files: what we write others read, and no crooked header gets past the view."""

from __future__ import annotations

import json
import mmap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.errors import UsageError
from federated.rounds.numeric import safetensors
from federated.rounds.numeric.safetensors import dump, read_header_untrusted, view
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from pathlib import Path

    from federated.rounds.numeric.dtypes import Array


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def joined(tensors: dict[str, Array]) -> bytes:
    head, chunks = dump(tensors)
    return head + b"".join(chunks)


# Written by the format's own library, 0.8.0: save({"b": arange(3, f4), "a": [[1.5]] (f2)}).
BY_THE_LIBRARY = bytes.fromhex(
    "7000000000000000"
    "7b2262223a7b226474797065223a22463332222c227368617065223a5b335d2c22646174615f6f6666736574"
    "73223a5b302c31325d7d2c2261223a7b226474797065223a22463136222c227368617065223a5b312c315d2c"
    "22646174615f6f666673657473223a5b31322c31345d7d7d"
    "000000000000803f00000040003e"
)


def test_a_dumped_state_is_viewed_as_it_was() -> None:
    tensors: dict[str, Array] = {
        "whole": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([1.5, -2], np.float16),
        "brain": np.array([0x3F80], np.uint16),
        "number": np.array(7, np.float32),
        "nothing": np.empty((0, 3), np.float32),
        "gewöhnlich": np.zeros((1, 1), np.float16),
    }
    data = joined(tensors)
    header = read_header_untrusted(data)
    assert [t.name for t in header.tensors] == list(tensors), "in the mapping's order"
    assert [t.dtype for t in header.tensors] == ["f32", "f16", "bf16", "f32", "f32", "f16"]
    for name, array in view(data, header).items():
        assert array.dtype == tensors[name].dtype
        assert array.shape == tensors[name].shape
        assert array.tobytes() == tensors[name].tobytes()


def test_a_file_is_compact_and_its_data_begin_aligned() -> None:
    data = joined({"w": np.ones(2, np.float32)})
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    text = data[8 : 8 + length].rstrip(b" ")
    assert text == b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert data[8 + length :] == np.ones(2, "<f4").tobytes()


def test_a_view_copies_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(joined({"w": np.arange(1000, dtype=np.float32)}))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    data = memoryview(mapped)
    array = view(data, read_header_untrusted(data))["w"]
    assert array[3] == 3
    mapped[-4:] = np.array([5], "<f4").tobytes()
    assert array[-1] == 5, "the array is the map itself"


def test_a_strided_tensor_is_written_in_order() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    data = joined({"t": base.T, "every": base[:, ::2]})
    found = view(data, read_header_untrusted(data))
    assert np.array_equal(found["t"], base.T)
    assert np.array_equal(found["every"], base[:, ::2])


def test_metadata_and_spaces_are_read_over() -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry()}).encode() + b"   "
    found = read_header_untrusted(file_of(header, bytes(4)))
    assert [t.name for t in found.tensors] == ["w"]


def test_a_file_of_the_formats_own_library_is_read() -> None:
    found = view(BY_THE_LIBRARY, read_header_untrusted(BY_THE_LIBRARY))
    assert found["b"].tolist() == [0, 1, 2]
    assert found["a"].tolist() == [[1.5]]
    assert joined({"b": found["b"], "a": found["a"]}) == BY_THE_LIBRARY, "and we write the same"


GOOD = {"a": entry(offsets=(0, 4)), "b": entry(offsets=(4, 8))}
TWICE = b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},' * 2
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HOSTILE = {
    "empty": b"",
    "no header": (5).to_bytes(8, "little"),
    "a header of 2^63": b"\xff" * 8 + b"{}",
    "a header over the limit": file_of(b"{" + b" " * (1 << 20) + b"}"),
    "the length ends inside of the text": (1).to_bytes(8, "little") + b"{}",
    "no object": file_of(b"[]"),
    "no JSON": file_of(b'{"a":}'),
    "spaces first": file_of(b" {}"),
    "not UTF-8": file_of(b'{"\xff":1}'),
    "deep": file_of(DEEP),
    "endless number": file_of(b'{"a":' + b"9" * 10_000 + b"}"),
    "after the object": file_of(b"{} {}"),
    "a name twice": file_of(TWICE[:-1] + b"}", bytes(4)),
    "a field twice": file_of(
        b'{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}', bytes(4)
    ),
    "a field too many": file_of({"a": {**entry(), "x": 1}}, bytes(4)),
    "a field missing": file_of({"a": {"dtype": "F32", "shape": []}}),
    "an entry that is no object": file_of({"a": [1, 2, 3]}),
    "a list for an object": file_of({"a": [["dtype", "F32"], ["shape", []], [1, 2]]}, bytes(4)),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}}),
    "metadata that is a list": file_of({"__metadata__": []}),
    "metadata twice": file_of(b'{"__metadata__":{},"__metadata__":{}}'),
    "a dtype of the format that rounds lack": file_of({"a": entry("I8", [4])}, bytes(4)),
    "a dtype that is a list": file_of({"a": entry(["F32"])}, bytes(4)),
    "a shape below zero": file_of({"a": entry(shape=[-1, -1])}, bytes(4)),
    "a shape of fractions": file_of({"a": entry(shape=[1.0])}, bytes(4)),
    "a shape of truths": file_of({"a": entry(shape=[True])}, bytes(4)),
    "a shape of text": file_of({"a": entry(shape="11")}, bytes(4)),
    "a shape whose product overflows 64 bits": file_of(
        {"a": entry(shape=[1 << 32, 1 << 32], offsets=[0, 0])}
    ),
    "a shape whose product overflows to the right size": file_of(
        {"a": entry(shape=[1 << 31, 1 << 31, 4, 1], offsets=[0, 4])}, bytes(4)
    ),
    "too many dimensions": file_of({"a": entry(shape=[1] * 17)}, bytes(4)),
    "an endless dimension": file_of({"a": entry(shape=[0, 1 << 64], offsets=[0, 0])}),
    "one offset": file_of({"a": entry(offsets=[4])}, bytes(4)),
    "offsets reversed": file_of({"a": entry(offsets=[4, 0])}, bytes(4)),
    "offsets below zero": file_of({"a": entry(offsets=[-4, 0])}, bytes(4)),
    "offsets beyond the file": file_of({"a": entry(offsets=[0, 4])}, bytes(3)),
    "a shape smaller than its span": file_of({"a": entry(offsets=[0, 8])}, bytes(8)),
    "a gap at the start": file_of({"a": entry(offsets=[4, 8])}, bytes(8)),
    "a gap between": file_of({**GOOD, "b": entry(offsets=(8, 12))}, bytes(12)),
    "bytes behind the last": file_of(GOOD, bytes(9)),
    "an overlap": file_of({**GOOD, "b": entry(offsets=(2, 6))}, bytes(6)),
    "two tensors in one place": file_of({**GOOD, "b": entry(offsets=(0, 4))}, bytes(4)),
    "an empty tensor in the middle of another": file_of(
        {"a": entry(shape=[2], offsets=(0, 8)), "b": entry(shape=[0], offsets=(4, 4))}, bytes(8)
    ),
    "a name of no text": file_of(
        b'{"\\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', bytes(4)
    ),
    "a name of 257 bytes": file_of({"n" * 257: entry()}, bytes(4)),
    "a name of 129 letters in 258 bytes": file_of({"ä" * 129: entry()}, bytes(4)),
    "an empty name": file_of({"": entry()}, bytes(4)),
    "1,025 tensors": file_of({f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(1025)}),
}  # fmt: skip


@pytest.mark.attack
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(what: str) -> None:
    with pytest.raises(DecodeError, match=r"^tensor file: "):
        read_header_untrusted(HOSTILE[what])


def test_control_the_files_made_crooked_are_good_to_begin_with() -> None:
    read_header_untrusted(file_of(GOOD, bytes(8)))
    read_header_untrusted(file_of({"a": entry(shape=[1] * 16)}, bytes(4)))
    read_header_untrusted(file_of({"n" * 256: entry()}, bytes(4)))
    many = {f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(1024)}
    assert len(read_header_untrusted(file_of(many)).tensors) == 1024


@pytest.mark.attack
def test_a_refusal_quotes_nothing_of_the_file() -> None:
    with pytest.raises(DecodeError) as caught:
        read_header_untrusted(file_of({"\x1b[31mred": entry("\x1b]0;title")}, bytes(4)))
    assert "\x1b" not in str(caught.value)
    assert "red" not in str(caught.value)


@pytest.mark.attack
def test_a_huge_span_needs_a_huge_file() -> None:
    claimed = entry(shape=[1 << 30], offsets=[0, 1 << 32])
    with pytest.raises(DecodeError):
        read_header_untrusted(file_of({"a": claimed}, bytes(100)))


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.lists(st.integers(0, 4), max_size=4),
            st.sampled_from([np.float32, np.float16, np.uint16]),
        ),
        max_size=6,
    )
)
def test_whatever_is_dumped_is_read_again(
    made: dict[str, tuple[list[int], type[np.generic]]],
) -> None:
    tensors: dict[str, Array] = {
        name: np.arange(int(np.prod(shape)), dtype=kind).reshape(shape)
        for name, (shape, kind) in made.items()
    }
    data = joined(tensors)
    found = view(data, read_header_untrusted(data))
    assert list(found) == list(tensors)
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_what_the_format_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'w' \(float64\)"):
        dump({"w": np.ones(2)})
    with pytest.raises(UsageError, match="at most 1024"):
        dump({str(i): np.ones(1, np.float32) for i in range(safetensors.TENSORS_MAX + 1)})
    with pytest.raises(UsageError, match="__metadata__"):
        dump({"__metadata__": np.ones(1, np.float32)})
