"""Properties of the memory's pure parts: text, bodies, trust, fusion, status."""

from __future__ import annotations

import unicodedata

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory.bodies import (
    Body,
    EndorseBody,
    ForgetBody,
    LinkBody,
    NoteBody,
    ProfileBody,
    VerdictBody,
    decode_body_untrusted,
    encode_body,
)
from memory.errors import DecodeError, RefusedError
from memory.recall.reading import decode_cursor_untrusted, encode_cursor
from memory.storage.marks import decode_marks_untrusted, encode_marks
from memory.text.cleaning import CHUNK_CHARS_MAX, clean, clean_line, split
from memory.text.fts import expression
from memory.text.parse import Words
from memory.tiers import LOW, MAIN, NONE
from memory.trust.rules import effective, tier_of

ids = st.binary(min_size=32, max_size=32)
words = st.text(max_size=40)
millis = st.integers(-62_135_596_800_000, 253_402_300_799_999)
texts = st.text(max_size=3000) | st.lists(
    st.sampled_from(
        ["word ", "\n", "\n\n", "- item\n", "1. item\n", "End. ", "x" * 600, "\t", "é"]
    ),
    max_size=200,
).map("".join)

notes = st.builds(
    NoteBody,
    agent=words,
    scope=st.from_regex(r"\A[a-z0-9._-]{1,64}\Z"),
    kind=st.sampled_from(["note", "decision", "claim"]),
    role=st.sampled_from(["owner", "agent", "tool", "web"]),
    speaker=st.none() | words,
    text=st.text(max_size=500),
    title=st.none() | words,
    thread=st.none() | words,
    pos=st.integers(0, 2**53),
    at_ms=millis,
    valid_from=st.none() | millis,
    valid_to=st.none() | millis,
    tags=st.lists(st.text(min_size=1, max_size=20), max_size=5),
    claim=st.none() | st.tuples(words, words, words),
    source=st.none() | st.tuples(st.none() | words, st.none() | words, st.none() | ids),
    derived_from=st.lists(ids, max_size=16),
    ttl_s=st.none() | st.integers(0, 2**31),
    idem=st.none() | st.text(min_size=1, max_size=40),
)
bodies = st.one_of(
    notes,
    st.builds(
        LinkBody,
        agent=words,
        src=ids,
        dst=ids,
        type=st.sampled_from(["supersedes", "contradicts", "confirms", "same_as"]),
        note=st.none() | words,
    ),
    st.builds(
        VerdictBody,
        agent=words,
        target=ids,
        outcome=st.sampled_from(["useful", "wrong", "stale", "harmful"]),
        basis=st.sampled_from(["owner", "outcome", "evidence"]),
        evidence=st.none() | ids,
        note=st.none() | words,
    ),
    st.builds(
        EndorseBody,
        agent=words,
        subject=ids,
        level=st.integers(0, 100),
        until_ms=st.none() | millis,
    ),
    st.builds(
        ForgetBody,
        agent=words,
        targets=st.lists(ids, min_size=1, max_size=20),
        reason=st.none() | words,
    ),
    st.builds(ProfileBody, agent=words, name=st.text(min_size=1, max_size=64)),
)


@given(bodies)
def test_a_body_decodes_to_itself_and_has_one_encoding(body: Body) -> None:
    data = encode_body(body)
    assert decode_body_untrusted(data) == body
    assert encode_body(decode_body_untrusted(data)) == data


@given(st.binary(max_size=400))
@example(b"\x91" * 100_000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xa5\xff\xfe\xfd\xfc\xfb")
@pytest.mark.attack
def test_foreign_bytes_raise_decode_error_only(data: bytes) -> None:
    try:
        body = decode_body_untrusted(data)
    except DecodeError:
        return
    assert encode_body(body) == data


@given(bodies, st.data())
@pytest.mark.attack
def test_a_changed_byte_is_refused_or_still_canonical(body: Body, data: st.DataObject) -> None:
    encoded = bytearray(encode_body(body))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    try:
        found = decode_body_untrusted(bytes(encoded))
    except DecodeError:
        return
    assert encode_body(found) == bytes(encoded)


@given(texts)
def test_chunks_are_the_text_and_none_is_too_long(text: str) -> None:
    chunks = split(text)
    assert "".join(chunks) == text
    assert all(len(chunk) <= CHUNK_CHARS_MAX for chunk in chunks)
    assert len(chunks) == 1 or all(chunks)


@given(st.text(max_size=500))
@example("\r\r\n\n\r")
@example("\ud800 lone")
def test_cleaning_is_idempotent_and_leaves_no_control(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    bad = [c for c in once if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert bad == []
    assert "\n" not in clean_line(text)
    assert clean_line(clean_line(text)) == clean_line(text)


@given(st.text(max_size=400), st.lists(st.integers(1, 999), max_size=5))
def test_no_text_can_leave_its_quotes_in_the_expression(text: str, scopes: list[int]) -> None:
    asked = Words(text)
    made = expression(asked, asked.terms, scopes)
    inside = made.split('"')[1::2]
    assert all(
        part.replace(" ", "").isalnum() or "_" in part or not part.isascii() for part in inside
    )
    outside = "".join(made.split('"')[0::2])
    assert set(outside) <= set("scope_tok{}:() ANDOR titlex")


units = st.floats(0, 1)


@given(units, st.sampled_from(["owner", "agent", "tool", "web"]), st.lists(st.none() | units))
def test_trust_never_exceeds_any_of_its_limits(
    trust: float, role: str, parents: list[float | None]
) -> None:
    found, reason = effective(trust, role, parents)
    assert found <= trust
    assert all(found <= (0.3 if p is None else p) for p in parents)
    assert reason in {"author", "role", "parent"}
    assert 0 <= found <= 1
    higher, _ = effective(min(1.0, trust + 0.1), role, parents)
    assert higher >= found


@given(units, units, st.sampled_from([MAIN, LOW, NONE]))
def test_more_trust_never_means_a_lower_tier(one: float, other: float, now: int) -> None:
    low, high = sorted((one, other))
    assert tier_of(high, now) <= tier_of(low, now)


logs = st.tuples(ids, ids, st.integers(0, 2**32 - 1), st.integers(0, 1))


@given(st.dictionaries(logs, st.integers(0, 2**63 - 1), max_size=10))
def test_marks_round_trip(marks: dict[tuple[bytes, bytes, int, int], int]) -> None:
    assert decode_marks_untrusted(encode_marks(marks)) == marks


@given(st.binary(max_size=200))
@pytest.mark.attack
def test_a_foreign_mark_file_is_nothing(data: bytes) -> None:
    assert decode_marks_untrusted(data) is None


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_cursors_round_trip(hlc: int, memory: int) -> None:
    assert decode_cursor_untrusted(encode_cursor(hlc, memory)) == (hlc, memory)


@given(st.text(max_size=100))
@pytest.mark.attack
def test_a_foreign_cursor_is_refused_or_two_places(text: str) -> None:
    try:
        hlc, memory = decode_cursor_untrusted(text)
    except RefusedError:
        return
    assert hlc >= 0
    assert memory >= 0


def test_every_field_of_a_body_is_bounded() -> None:
    """A field without a limit in the schema would let one record be as large as it likes."""
    for kind in (NoteBody, LinkBody, VerdictBody, EndorseBody, ForgetBody, ProfileBody):
        for field in msgspec.structs.fields(kind):
            if field.name == "text":
                continue  # bounded by the body's own limit
            schema = repr(field.type)
            assert any(
                word in schema for word in ("Meta", "Literal", "ForwardRef", "max_length")
            ), (kind, field.name)
