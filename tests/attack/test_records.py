"""A hostile member or relay forges, copies and backdates records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p.errors import AuthError, DecodeError
from p2p.identity import Identity, verify
from p2p.replication import ops
from p2p.replication.ops import Kind, Role
from p2p.replication.record import BodyError, RecordWire, encode_wire, record_id, verify_record
from p2p.replication.sealing import ControlDraft, Place
from tests.helpers.sealed_group import Member, SealedGroup, received, resigned

pytestmark = pytest.mark.attack

# The order of Ed25519's group: S and S + L are the same signature to a careless verifier.
L = 2**252 + 27742317777372353535851937790883648493


def test_a_record_under_anothers_name_needs_anothers_key():
    group = SealedGroup()
    writer = group.member()
    record = group.founder.data(b"said by the founder")
    forged = resigned(record, writer.identity)
    with pytest.raises(AuthError, match="did not sign"):
        verify_record(forged, verify)


def test_a_signature_is_good_for_one_domain_and_one_header():
    group = SealedGroup()
    a, b = group.founder.data(b"a"), group.founder.data(b"b")
    swapped = replace(a, signature=b.signature).wire()
    with pytest.raises(AuthError):
        verify_record(swapped, verify)
    owner = group.founder.identity.sign(ops.DOMAIN_OWNER, a.header)
    with pytest.raises(AuthError):
        verify_record(replace(a, signature=owner).wire(), verify)


def test_another_spelling_of_a_signature_is_no_second_record():
    group = SealedGroup()
    record = group.founder.data()
    s = int.from_bytes(record.signature[32:], "little") + L
    respelled = replace(record, signature=record.signature[:32] + s.to_bytes(32, "little"))
    with pytest.raises(AuthError):
        verify_record(respelled.wire(), verify)
    # And were it accepted somewhere: the id leaves the signature out.
    assert record_id(respelled.header) == record.id


def test_a_ciphertext_copied_under_another_author_does_not_open():
    group = SealedGroup()
    thief = group.member()
    record = group.founder.data(b"the founder's words")
    # The thief wraps the founder's envelope into a header of its own: signature, commitment and
    # authority are all in order.
    stolen = resigned(
        record, thief.identity, author=thief.id, seq=1, prev=None, hlc=record.hlc + 1, incarnation=1
    )
    copy = verify_record(stolen, verify)
    assert group.authority.standing().live(copy.head, copy.id)
    with pytest.raises(BodyError, match="does not open"):
        group.founder.sealer.open_body(copy)


@pytest.mark.parametrize("field", ["seq", "incarnation", "group"])
def test_a_ciphertext_moved_in_its_authors_log_does_not_open(field):
    group = SealedGroup()
    group.founder.data(b"first")
    record = group.founder.data(b"second")
    changes = {"seq": {"seq": 3}, "incarnation": {"incarnation": 9}, "group": {"group": bytes(32)}}
    moved = verify_record(resigned(record, group.founder.identity, **changes[field]), verify)
    if field == "group":
        with pytest.raises(AuthError, match="another group"):
            group.authority.check(moved.head, moved.id)
        return
    with pytest.raises(BodyError, match="does not open"):
        group.founder.sealer.open_body(moved)


def test_a_changed_body_is_noticed_without_any_key():
    group = SealedGroup()
    record = group.founder.data(b"body")
    envelope = record.envelope.encode()
    for position in (2, 20, 60, len(envelope) - 1):
        bad = bytearray(envelope)
        bad[position] ^= 1
        with pytest.raises(BodyError, match="commits"):
            verify_record(RecordWire(record.header, record.signature, bytes(bad)), verify)
    assert received(record, body=False).envelope is None


def test_a_longer_spelling_of_a_header_is_no_second_record():
    group = SealedGroup()
    record = group.founder.data()
    long = b"\xdc\x00\x0e" + record.header[1:]
    signature = group.founder.identity.sign(b"covey/record/1\0", long)
    with pytest.raises(DecodeError, match="smallest"):
        verify_record(RecordWire(long, signature, None), verify)
    assert len(encode_wire(record.wire())) < 1_024


def test_a_removed_admins_backdated_invitation_lets_nobody_in():
    group = SealedGroup()
    admin = group.member(Role.ADMIN)
    before = group.authority.heads()
    hlc = group.founder.sealer.hlc
    group.founder.control(Kind.LIMIT, ops.Limit(admin.id, (), 2, 0))
    accomplice = Member(group.env, group.authority)
    for incarnation in (1, 2, 50):
        grant = ops.Grant(accomplice.id, Role.ADMIN)
        draft = ControlDraft(Kind.GRANT, ops.encode_payload(grant))
        place = Place((group.group, admin.id, incarnation, 0), 1, None, 0)
        late = admin.sealer.seal(draft, place)
        backdated = resigned(late, admin.identity, auth=before, hlc=hlc + 1)
        record = verify_record(backdated, verify)
        group.authority.add(record.id, record.head, grant)
    standing = group.authority.standing()
    assert standing.members() == {group.founder.id: Role.ADMIN}
    assert len(standing.void_ops()) == 3


def test_an_op_that_cites_its_own_future_is_refused():
    group = SealedGroup()
    admin = group.member(Role.ADMIN)
    grant = ops.Grant(admin.id, Role.WRITE)
    record = admin.sealer.seal(ControlDraft(Kind.GRANT, ops.encode_payload(grant)), admin.place(0))
    early = verify_record(resigned(record, admin.identity, hlc=1), verify)
    with pytest.raises(AuthError, match="dated"):
        group.authority.add(early.id, early.head, grant)


def fork_proof(a, b) -> ops.ForkProof:
    return ops.ForkProof(a.header, a.signature, b.header, b.signature)


def test_two_records_at_one_place_void_the_log_from_there_up():
    group = SealedGroup()
    writer = group.member()
    first = writer.data(b"1")
    place = writer.place(1)
    branches = [writer.sealer.seal(ControlDraft(32, text), place) for text in (b"2a", b"2b")]
    payload = fork_proof(*branches)
    group.founder.sealer.observe(branches[1].hlc)
    group.founder.control(Kind.FORK_PROOF, payload)
    assert group.authority.fork_seq(writer.id, 1, 1) == 2
    standing = group.authority.standing()
    assert standing.live(first.head, first.id)
    assert not any(standing.live(r.head, r.id) for r in branches)


def test_a_broken_link_between_neighbours_proves_a_fork_too():
    group = SealedGroup()
    writer = group.member()
    a, b = writer.data(b"1"), writer.data(b"2")
    other = verify_record(resigned(b, writer.identity, prev=bytes(32)), verify)
    earlier = verify_record(resigned(b, writer.identity, hlc=a.hlc), verify)
    for second in (other, earlier):
        fork = ops.verify_fork_proof(fork_proof(a, second), group.group, verify)
        assert (fork.author, fork.lane, fork.seq) == (writer.id, 1, 1)


def test_an_honest_log_cannot_be_proven_forked():
    group = SealedGroup()
    writer = group.member()
    a, b, c = (writer.data(t) for t in (b"1", b"2", b"3"))
    theirs = group.founder.data(b"1")
    control = group.founder.control(Kind.GRANT, ops.Grant(writer.id, Role.READ))
    forged = resigned(a, group.founder.identity, hlc=a.hlc + 1)
    pairs = [
        (a, a),
        (a, b),
        (b, a),
        (a, c),
        (a, theirs),
        (theirs, control),
        (a, replace(a, header=forged.header, signature=forged.signature)),
    ]
    for first, second in pairs:
        with pytest.raises(AuthError, match="fork proof"):
            ops.verify_fork_proof(fork_proof(first, second), group.group, verify)
    with pytest.raises(AuthError, match="another group"):
        ops.verify_fork_proof(fork_proof(a, a), bytes(32), verify)
    assert group.authority.fork_seq(writer.id, 1, 1) is None


def test_a_small_order_member_cannot_be_let_in():
    # Everybody could sign as such a member: one constant signature fits every message.
    key = b"\x01" + bytes(31)
    data = ops.encode_payload(ops.Grant(key, Role.ADMIN))
    with pytest.raises(DecodeError, match="small order"):
        ops.decode_payload_untrusted(Kind.GRANT, data)
    assert not verify(key, b"any", b"thing", b"\x01" + bytes(63))


def test_a_stranger_signs_well_and_counts_for_nothing():
    group = SealedGroup()
    stranger = Member(group.env, group.authority)
    stranger.sealer.observe(group.founder.sealer.hlc)
    stranger.sealer.set_epoch(group.group, group.epoch, group.secret)
    record = received(stranger.data(b"let me in"))
    assert not group.authority.named(record.author, record.auth)
    assert not group.authority.standing().live(record.head, record.id)
    assert isinstance(stranger.identity, Identity)
