"""Codecs of records: one value, one encoding; foreign bytes raise DecodeError and nothing else."""

from __future__ import annotations

import contextlib
import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.identity import Identity
from p2p.replication import ops
from p2p.replication.hlc import Clock, ms_of, pack
from p2p.replication.keys import exchange_public, generate_exchange, hpke_open, hpke_seal
from p2p.replication.ops import Kind, Role
from p2p.replication.record import (
    Envelope,
    Header,
    RecordWire,
    decode_envelope_untrusted,
    decode_header_untrusted,
    decode_wire_untrusted,
    encode_header,
    encode_wire,
    record_id,
)
from p2p.replication.ticket import Ticket, decode_ticket_untrusted, encode_ticket
from tests.helpers import vectors

CODEC_EXAMPLES = 300

b16, b32, b64 = (st.binary(min_size=n, max_size=n) for n in (16, 32, 64))
u8, u16, u32, u63 = (st.integers(0, 2**n - 1) for n in (8, 16, 32, 63))
positive32, positive63 = st.integers(1, 2**32 - 1), st.integers(1, 2**63 - 1)
public = st.integers(0, 2**20).map(lambda n: Identity(n.to_bytes(32, "big")).id)
exchange = st.integers(0, 2**20).map(lambda n: exchange_public(n.to_bytes(32, "big")))
role = st.sampled_from(list(Role))


def ascending(first, *rest, max_size=8):
    """Tuples of rows, ascending by their first field."""
    rows = st.tuples(first, *rest) if rest else first
    unique = (lambda row: row[0]) if rest else None
    return st.lists(rows, max_size=max_size, unique_by=unique, unique=not rest).map(
        lambda found: tuple(sorted(found))
    )


@st.composite
def headers(draw) -> Header:
    genesis = draw(st.booleans())
    kind = 1 if genesis else draw(st.integers(2, 127))
    seq = 1 if genesis else draw(positive63)
    auth = () if genesis else draw(ascending(b32)) or (draw(b32),)
    return Header(
        1,
        kind,
        None if genesis else draw(b32),
        draw(b32),
        draw(positive32),
        seq,
        None if seq == 1 else draw(b32),
        draw(positive63),
        auth,
        draw(st.none() | b16),
        draw(ascending(b32)),
        draw(b32),
        draw(st.integers(0, 65_792)),
        0,
    )


limits = st.builds(ops.Limits, u32, u63, u32)
keeps = st.lists(
    st.tuples(u32, st.integers(0, 1), u63), max_size=5, unique_by=lambda row: row[:2]
).map(lambda rows: tuple(sorted(rows)))
sealed112, sealed80 = (st.binary(min_size=n, max_size=n) for n in (112, 80))
PAYLOADS = {
    Kind.GENESIS: st.builds(
        ops.Genesis, exchange, st.none() | public, st.integers(0, 1), b32, st.none() | limits, b16
    ),
    Kind.GRANT: st.builds(ops.Grant, public, role),
    Kind.LIMIT: st.builds(ops.Limit, public, keeps, u32, u8),
    Kind.INVITE: st.builds(
        ops.Invite, public, role, st.integers(1, 65_535), u32, st.integers(0, 1)
    ),
    Kind.INVITE_CLOSE: st.builds(ops.InviteClose, b32),
    Kind.JOIN: st.builds(ops.Join, b32, exchange, b64),
    Kind.ADMIT: st.builds(ops.Admit, b32),
    Kind.POLICY: st.builds(ops.Policy, limits),
    Kind.EPOCH: st.builds(ops.Epoch, b32, ascending(public, sealed112)),
    Kind.KEY_SHARE: st.builds(ops.KeyShare, public, ascending(b32, sealed112)),
    Kind.ERASE: st.builds(ops.Erase, ascending(b32, max_size=20), u8),
    Kind.ERASE_ACK: st.builds(
        ops.EraseAck,
        st.lists(st.tuples(b32, u32, st.integers(0, 1)), max_size=9, unique_by=lambda r: r[0]).map(
            lambda rows: tuple(sorted(rows))
        ),
    ),
    Kind.FORK_PROOF: st.builds(
        ops.ForkProof, st.binary(max_size=1_024), b64, st.binary(max_size=1_024), b64
    ),
    Kind.OWNER: st.builds(ops.Owner, public, b64),
    Kind.OWNER_KEY: st.builds(
        ops.OwnerKey, public, ascending(public, sealed80), ascending(public, b64)
    ),
}
payloads = st.sampled_from(list(PAYLOADS)).flatmap(
    lambda kind: st.tuples(st.just(kind), PAYLOADS[kind])
)
tickets = st.builds(
    Ticket,
    st.just(1),
    b32,
    role,
    public,
    b32,
    u32,
    st.integers(1, 65_535),
    st.lists(st.binary(min_size=1, max_size=64), max_size=6).map(tuple),
    st.text(max_size=32).filter(str.isprintable),
)


def test_every_kind_this_version_knows_is_drawn():
    assert set(PAYLOADS) == set(Kind) - {Kind.ENTRY, Kind.STATE}


@settings(max_examples=CODEC_EXAMPLES)
@given(headers())
def test_header_there_and_back(header):
    data = encode_header(header)
    assert len(data) <= 732
    assert decode_header_untrusted(data) == header


@settings(max_examples=CODEC_EXAMPLES)
@given(payloads)
def test_payload_there_and_back(drawn):
    kind, payload = drawn
    data = ops.encode_payload(payload)
    assert ops.decode_payload_untrusted(kind, data) == payload


@given(b16, st.none() | st.tuples(b16, st.binary(min_size=60, max_size=60)), st.binary(min_size=16))
def test_envelope_there_and_back(salt, wrapped, ct):
    epoch, wrap = wrapped or (None, None)
    envelope = Envelope(salt, epoch, wrap, ct)
    kind = Kind.GRANT if wrapped is None else Kind.ENTRY
    assert decode_envelope_untrusted(envelope.encode(), kind) == envelope


@given(st.binary(max_size=1_024), b64, st.none() | st.binary(max_size=2_000))
def test_wire_there_and_back(header, signature, envelope):
    wire = RecordWire(header, signature, envelope)
    assert decode_wire_untrusted(encode_wire(wire)) == wire


@settings(max_examples=CODEC_EXAMPLES)
@given(tickets, st.integers(0, 2**32))
def test_ticket_there_and_back_in_any_case_with_spaces(ticket, seed):
    rng = random.Random(seed)
    text = encode_ticket(ticket)
    assert decode_ticket_untrusted(text) == ticket
    mangled = "".join(
        (c.lower() if rng.random() < 0.5 else c) + (" \n" if rng.random() < 0.05 else "")
        for c in text
    )
    assert decode_ticket_untrusted(mangled) == ticket


@given(tickets, st.integers(0, 400), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_one_wrong_character_of_a_ticket_is_noticed(ticket, position, character):
    text = encode_ticket(ticket)
    position = 6 + position % (len(text) - 6)
    if text[position] == character:
        return
    wrong = text[:position] + character + text[position + 1 :]
    with contextlib.suppress(DecodeError):
        raise AssertionError(f"read as {decode_ticket_untrusted(wrong)}")


def _decoders():
    yield decode_header_untrusted
    yield decode_wire_untrusted
    for kind in (Kind.GRANT, Kind.ENTRY):
        yield lambda data, kind=kind: decode_envelope_untrusted(data, kind)
    for kind in PAYLOADS:
        yield lambda data, kind=kind: ops.decode_payload_untrusted(kind, data)


DECODERS = list(_decoders())


@settings(max_examples=CODEC_EXAMPLES)
@given(st.binary(max_size=300), st.sampled_from(DECODERS))
@example(b"\x91" * 1_000, DECODERS[0])
@example(b"\xdd\xff\xff\xff\xff", DECODERS[0])
@example(b"\xd9\x02\xff\xfe", DECODERS[0])
def test_any_bytes_decode_or_raise_decode_error(data, decode):
    with contextlib.suppress(DecodeError):
        decode(data)


@settings(max_examples=CODEC_EXAMPLES)
@given(st.data())
def test_damaged_vectors_decode_to_something_canonical_or_raise_decode_error(data):
    case = data.draw(st.sampled_from([v for v in vectors.load()["records"] if "payload" in v]))
    kind = case["header_fields"]["kind"]
    raw = bytearray(bytes.fromhex(case["payload"]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(DecodeError):
        payload = ops.decode_payload_untrusted(kind, raw)
        assert payload is None or ops.encode_payload(payload) == raw


@settings(max_examples=CODEC_EXAMPLES)
@given(st.text(max_size=400))
@example("COVEY1")
@example("COVEY1ß")
@example("covey1\u0130")
def test_any_text_is_a_ticket_or_raises_decode_error(text):
    with contextlib.suppress(DecodeError):
        decode_ticket_untrusted(text)


@given(headers(), headers())
def test_different_headers_have_different_ids(a, b):
    assert (record_id(encode_header(a)) == record_id(encode_header(b))) == (a == b)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2**41)), max_size=40))
def test_a_clock_only_moves_forward_and_stays_near_what_it_saw(steps):
    clock, seen, last = Clock(), 0, 0
    ticks = 0
    for observed, ms in steps:
        seen = max(seen, ms)
        if observed:
            clock.observe(pack(ms))
            assert clock.last >= pack(ms)
        else:
            here = clock.tick(ms)
            ticks += 1
            assert here > last
            last = here
        assert clock.last >= last
        assert ms_of(clock.last) <= seen + 1 + (ticks >> 16)
        last = max(last, clock.last)


@given(st.binary(max_size=200), st.integers(0, 2**32), st.binary(max_size=40))
def test_what_is_sealed_opens(plain, seed, info):
    rng = random.Random(seed)
    private = generate_exchange(rng)
    assert hpke_open(private, info, hpke_seal(exchange_public(private), info, plain, rng)) == plain
