"""The record format never changes: our codecs against bytes an independent encoder wrote."""

from __future__ import annotations

import ast
import hashlib
import re

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2p.errors import AuthError, DecodeError
from p2p.identity import Identity, verify
from p2p.replication import ops, record
from p2p.replication.authority import Authority
from p2p.replication.checkwords import check_words
from p2p.replication.epoch import key_commit, key_tag, tag_commit
from p2p.replication.invites import invite_identity
from p2p.replication.keys import hpke_open, hpke_seal
from p2p.replication.record import (
    BodyError,
    RecordWire,
    decode_envelope_untrusted,
    decode_header_untrusted,
    decode_wire_untrusted,
    encode_header,
    encode_wire,
    lane_of,
    record_id,
    verify_record,
)
from p2p.replication.sealing import aead_context, open_body, seal_body
from p2p.replication.ticket import decode_ticket_untrusted, encode_ticket
from tests.helpers import vectors
from tests.helpers.vectors import plain, unhex

V = vectors.load()
RECORDS = {v["name"]: v for v in V["records"]}
KEYS = V["keys"]
GROUP = bytes.fromhex(RECORDS["genesis"]["id"])
SECRET = bytes.fromhex(KEYS["secret"])


def cases(name: str, has: str = "name", equal: str | None = None):
    """One test a vector of a list; of those that have a field (of a value), if one is given."""
    chosen = [v for v in V[name] if has in v and equal in (None, v[has])]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=lambda v: v["name"])


def envelope_of(case) -> bytes:
    """The envelope's bytes; a large one is sealed again from the vector's plain text."""
    if "envelope" in case:
        return unhex(case["envelope"])
    head = decode_header_untrusted(unhex(case["header"]))
    context = aead_context(GROUP, head.author, head.incarnation, head.seq)
    epoch = bytes.fromhex(KEYS["epoch"])
    return seal_body(unhex(case["plain"]), SECRET, epoch, context, unhex(case["random"])).encode()


def test_the_file_is_what_the_independent_encoder_writes():
    assert (vectors.FOLDER / "record_v1.json").read_text("ascii") == vectors.maker().text()


def test_the_encoder_is_independent_of_covey():
    tree = ast.parse((vectors.FOLDER / "make.py").read_text())
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert roots == {"base64", "cryptography", "hashlib", "hmac", "json", "msgpack", "pathlib"}


def test_every_kind_has_a_vector():
    covered = {v["header_fields"]["kind"] for v in V["records"]}
    assert set(ops.Kind) <= covered


@cases("records")
def test_header_decodes_to_the_fields_and_encodes_to_the_bytes(case):
    data = unhex(case["header"])
    header = decode_header_untrusted(data)
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in _fields(header).items()}
    assert fields == plain(case["header_fields"])
    assert encode_header(header) == data
    assert record_id(data).hex() == case["id"]


def _fields(header):
    return {name: getattr(header, name) for name in header.__struct_fields__}


@cases("records")
def test_record_verifies_and_travels_unchanged(case):
    envelope = envelope_of(case)
    wire = RecordWire(unhex(case["header"]), unhex(case["signature"]), envelope)
    packed = encode_wire(wire)
    assert hashlib.sha256(packed).hexdigest() == case["wire_sha256"]
    assert decode_wire_untrusted(packed) == wire
    record = verify_record(wire, verify)
    assert record.id.hex() == case["id"]
    assert record.group == GROUP
    assert record.wire() == wire


@cases("records")
def test_author_signs_the_same_bytes(case):
    head = decode_header_untrusted(unhex(case["header"]))
    signers = {Identity.from_seed(bytes.fromhex(s)).id: s for s in KEYS["seeds"].values()}
    identity = Identity.from_seed(bytes.fromhex(signers[head.author]))
    assert identity.sign(b"covey/record/1\0", unhex(case["header"])).hex() == case["signature"]


@cases("records", has="payload")
def test_control_payload_decodes_typed_and_encodes_again(case):
    kind, data = case["header_fields"]["kind"], unhex(case["payload"])
    payload = ops.decode_payload_untrusted(kind, data)
    if case["name"].startswith("unknown"):
        assert payload is None
        return
    assert payload is not None
    assert ops.encode_payload(payload) == data
    assert msgpack.unpackb(data) == plain(case["payload_fields"])


@cases("records", has="plain")
def test_data_body_seals_to_the_bytes_and_opens(case):
    head = decode_header_untrusted(unhex(case["header"]))
    context = aead_context(GROUP, head.author, head.incarnation, head.seq)
    epoch = bytes.fromhex(KEYS["epoch"])
    sealed = seal_body(unhex(case["plain"]), SECRET, epoch, context, unhex(case["random"]))
    assert hashlib.sha256(b"covey/body/1\0" + sealed.encode()).digest() == head.body_commit
    envelope = decode_envelope_untrusted(envelope_of(case), head.kind)
    assert open_body(envelope, SECRET, context) == unhex(case["plain"])


def test_the_vectors_are_a_group_that_stands():
    authority = Authority(GROUP)
    for case in V["records"]:
        head = decode_header_untrusted(unhex(case["header"]))
        if lane_of(head.kind) == 0:
            payload = ops.decode_payload_untrusted(head.kind, unhex(case["payload"]))
            assert authority.missing(head) == ()
            authority.add(bytes.fromhex(case["id"]), head, payload)
    standing = authority.standing()
    alice, bob = (Identity.from_seed(bytes.fromhex(KEYS["seeds"][n])).id for n in ("alice", "bob"))
    owner = Identity.from_seed(bytes.fromhex(KEYS["seeds"]["owner"])).id
    assert standing.void_ops() == frozenset()
    assert standing.upgrade_needed
    assert standing.members() == {alice: ops.Role.ADMIN}  # Bob joined, rose, and was removed
    assert standing.owner(alice) == owner
    assert authority.fork_seq(bob, 1_700_000_000, 0) == 1


@pytest.mark.attack
@cases("bad_headers")
def test_bad_header_is_refused(case):
    with pytest.raises(DecodeError, match=case["error"]):
        decode_header_untrusted(unhex(case["header"]))


@pytest.mark.attack
@cases("bad_payloads")
def test_bad_payload_is_refused(case):
    with pytest.raises(DecodeError, match=case["error"]):
        ops.decode_payload_untrusted(case["kind"], unhex(case["payload"]))


@pytest.mark.attack
@cases("bad_wires")
def test_bad_wire_is_refused(case):
    with pytest.raises(DecodeError, match=case["error"]):
        decode_wire_untrusted(unhex(case["wire"]))


@pytest.mark.attack
@cases("bad_records")
def test_bad_record_is_refused(case):
    wire = decode_wire_untrusted(unhex(case["wire"]))
    error = {"AuthError": AuthError, "BodyError": BodyError}[case["class"]]
    with pytest.raises(error, match=case["error"]):
        verify_record(wire, verify)


@cases("bad_records", has="class", equal="BodyError")
def test_a_bad_body_leaves_a_good_header(case):
    wire = decode_wire_untrusted(unhex(case["wire"]))
    record = verify_record(RecordWire(wire.header, wire.signature, None), verify)
    assert record.envelope is None


def test_commitments_to_keys():
    assert key_commit(SECRET).hex() == KEYS["key_commit"]
    assert tag_commit(SECRET).hex() == KEYS["tag_commit"]
    for case in V["key_tags"]:
        assert key_tag(SECRET, case["type"], unhex(case["path"])).hex() == case["tag"]


class FixedBytes:
    """A generator that gives one thing, for seals made from a known ephemeral key."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def randbytes(self, n: int) -> bytes:
        assert n == len(self.data)
        return self.data


@cases("seals")
def test_seal_is_the_independent_one(case):
    private, plain_bytes = unhex(case["private"]), unhex(case["plain"])
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    rng = FixedBytes(unhex(case["ephemeral"]))
    sealed = hpke_seal(public, unhex(case["info"]), plain_bytes, rng)
    assert sealed.hex() == case["sealed"]
    assert hpke_open(private, unhex(case["info"]), sealed) == plain_bytes


@cases("tickets")
def test_ticket_reads_and_writes(case):
    ticket = decode_ticket_untrusted(case["text"])
    fields = [getattr(ticket, name) for name in ticket.__struct_fields__]
    fields[-2] = list(fields[-2])
    assert fields == plain(case["fields"])
    assert encode_ticket(ticket) == case["text"]


@pytest.mark.attack
@cases("bad_tickets")
def test_bad_ticket_is_refused(case):
    with pytest.raises(DecodeError, match=case["error"]):
        decode_ticket_untrusted(case["text"])


def test_check_words_are_the_independent_ones():
    case = V["check_words"]
    a, b, public = (bytes.fromhex(case[k]) for k in ("a", "b", "invite_public"))
    assert check_words(a, b, public) == check_words(b, a, public) == case["words"]
    assert invite_identity(bytes.fromhex(KEYS["invite_seed"]), GROUP).id == public


def test_the_specification_states_the_limits_of_the_code():
    text = (vectors.FOLDER.parent.parent / "docs" / "specs" / "record.md").read_text()
    stated = dict(
        re.findall(r"^\| ([a-z' ]+) \| (\d+)", text.split("## 4. Limits")[1], re.MULTILINE)
    )
    assert stated == {
        "header bytes": str(record.HEADER_BYTES_MAX),
        "body bytes": str(record.BODY_BYTES_MAX),
        "envelope bytes": str(record.ENVELOPE_BYTES_MAX),
        "ids in auth": str(record.AUTH_MAX),
        "ids in supersedes": str(record.SUPERSEDES_MAX),
        "members of an epoch": str(ops.MEMBERS_MAX),
        "logs in a limit's keep": str(ops.KEEP_MAX),
        "ids in an erase": str(ops.ERASE_MAX),
    }


def test_the_specification_lists_the_kinds_of_the_code():
    text = (vectors.FOLDER.parent.parent / "docs" / "specs" / "record.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([a-z_]+) \|", text.split("## 6. Kinds")[1], re.MULTILINE)
    assert {(int(n), name) for n, name in rows} == {(k.value, k.name.lower()) for k in ops.Kind}
