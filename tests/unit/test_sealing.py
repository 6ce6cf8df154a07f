"""Sealing inside the writer's transaction, founding a group, epochs and owners."""

from __future__ import annotations

import pytest

from p2p.errors import AuthError, UsageError
from p2p.identity import verify
from p2p.replication import epoch, ops
from p2p.replication.epoch import make_epoch, make_key_share, new_secret, open_share
from p2p.replication.keys import SealError, exchange_public
from p2p.replication.ops import Kind, Role
from p2p.replication.record import verify_record
from p2p.replication.sealing import ControlDraft, KeyMissing, Place
from tests.helpers.sealed_group import SealedGroup, received


def test_the_first_epoch_opens_for_its_founder():
    group = SealedGroup()
    (first,) = group.authority.standing().epochs()
    ((member, sealed),) = first.payload.shares
    assert (first.id, member) == (group.epoch_record.id, group.founder.id)
    tag = group.authority.standing().genesis.tag_commit
    secret = open_share(first, group.group, group.founder.exchange, sealed, tag)
    assert secret == group.secret


def test_sealed_data_verifies_opens_and_counts():
    group = SealedGroup()
    writer = group.member()
    record = writer.data(b"what was said")
    other = received(record)
    assert other.plain is None
    assert group.founder.sealer.open_body(other) == b"what was said"
    assert group.authority.standing().live(other.head, other.id)
    assert record.plain == b"what was said"
    assert (record.relation, record.owner) == ("own", writer.id)


def test_without_the_epochs_key_a_body_stays_closed():
    group = SealedGroup()
    newcomer = group.member(keyed=False)
    assert newcomer.sealer.open_body(received(group.founder.data())) is None
    with pytest.raises(KeyMissing, match="keep this device connected"):
        newcomer.data()
    assert newcomer.control(Kind.LIMIT, ops.Limit(newcomer.id, (), 2, 0)).kind == Kind.LIMIT


def test_a_dropped_record_leaves_no_trace_but_the_clock():
    group = SealedGroup()
    place = group.founder.place(1)
    dropped = group.founder.sealer.seal(ControlDraft(32, b"rolled back"), place)
    kept = group.founder.sealer.seal(ControlDraft(32, b"kept"), place)
    assert (kept.seq, kept.prev) == (dropped.seq, dropped.prev)
    assert kept.hlc > dropped.hlc
    lost = ControlDraft(Kind.GRANT, ops.encode_payload(ops.Grant(bytes([9] * 32), Role.READ)))
    group.founder.sealer.seal(lost, group.founder.place(0))
    after = group.founder.sealer.seal(lost, group.founder.place(0))
    assert after.auth == group.authority.heads()  # the dropped op is cited by nobody


def test_a_record_is_later_than_its_predecessor_and_than_all_it_cites():
    group = SealedGroup()
    group.env.wall = 0  # the wall clock fell back by decades
    first, second = group.founder.data(), group.founder.data()
    assert second.hlc > first.hlc > group.authority.hlc_max
    place = group.founder.place(1)
    far = Place(place.log, place.seq, place.prev, second.hlc + 1_000)
    assert group.founder.sealer.seal(ControlDraft(32, b""), far).hlc > second.hlc + 1_000


def test_a_batch_cites_its_own_ops():
    group = SealedGroup()
    writer = group.member()
    secret = new_secret(group.env.rng, epoch.tag_key(group.secret))
    readers = {group.founder.id: group.founder.exchange_public}
    drafts = [
        ControlDraft(Kind.LIMIT, ops.encode_payload(ops.Limit(writer.id, (), 2, 0))),
        ControlDraft(
            Kind.EPOCH,
            ops.encode_payload(make_epoch(group.group, secret, readers, group.env.rng)),
        ),
    ]
    seq, prev, hlc = group.founder.ends[0]
    removal, rotation = group.founder.sealer.seal_batch(group.group, drafts, seq + 1, prev, hlc)
    assert rotation.auth == (removal.id,)
    assert (removal.prev, rotation.prev) == (prev, removal.id)
    for record in (removal, rotation):
        payload = ops.decode_payload_untrusted(record.kind, received(record).payload)
        group.authority.add(record.id, record.head, payload)
    standing = group.authority.standing()
    assert standing.role(writer.id) is None
    # The new epoch is written under: its author knew of the removal.
    assert [e.id for e in standing.epochs()] == [rotation.id, group.epoch_record.id]


def test_a_key_share_hands_a_newcomer_the_epochs():
    group = SealedGroup()
    newcomer = group.member(keyed=False)
    first = group.authority.standing().epochs()[0]
    share = make_key_share(
        group.group,
        newcomer.id,
        newcomer.exchange_public,
        {first.id: group.secret},
        group.env.rng,
    )
    group.founder.control(Kind.KEY_SHARE, share)
    ((ident, sealed),) = share.shares
    assert ident == first.id
    tag = group.authority.standing().genesis.tag_commit
    secret = open_share(first, group.group, newcomer.exchange, sealed, tag)
    newcomer.sealer.set_epoch(group.group, epoch.epoch_id(ident), secret)
    assert newcomer.sealer.open_body(received(group.founder.data(b"x"))) == b"x"


@pytest.mark.attack
def test_a_share_with_another_secret_than_committed_is_refused():
    group = SealedGroup()
    newcomer = group.member(keyed=False)
    first = group.authority.standing().epochs()[0]
    tag = group.authority.standing().genesis.tag_commit
    false = new_secret(group.env.rng, epoch.tag_key(group.secret))
    sealed = epoch.seal_secret(group.group, false, newcomer.exchange_public, group.env.rng)
    with pytest.raises(AuthError, match="commits"):
        open_share(first, group.group, newcomer.exchange, sealed, tag)
    honest = epoch.seal_secret(group.group, group.secret, newcomer.exchange_public, group.env.rng)
    with pytest.raises(AuthError, match="tag key"):
        open_share(first, group.group, newcomer.exchange, honest, bytes(32))
    with pytest.raises(SealError):
        open_share(first, bytes(32), newcomer.exchange, honest, tag)


def test_an_owner_seed_opens_for_the_admin_it_was_sealed_to():
    group = SealedGroup(home=True)
    (record,) = group.authority.standing().owner_keys()
    ((admin, sealed),) = record.payload.seeds
    assert admin == group.founder.id
    seed = epoch.open_owner_seed(group.group, group.founder.exchange, sealed)
    assert seed == group.owner_seed
    with pytest.raises(SealError):
        epoch.open_owner_seed(bytes(32), group.founder.exchange, sealed)


def test_a_device_belongs_to_the_owner_it_published_last():
    group = SealedGroup(home=True)
    device = group.member()
    assert group.authority.standing().owner(group.founder.id) == group.owner.id
    assert group.authority.standing().owner(device.id) == device.id
    group.vouch([device.id])
    device.sealer.observe(group.founder.sealer.hlc)
    group.publish_owner(device)
    assert group.authority.standing().owner(device.id) == group.owner.id
    group.owner_seed = bytes([7] * 32)
    group.founder.sealer.observe(device.sealer.hlc)
    group.vouch([device.id])
    device.sealer.observe(group.founder.sealer.hlc)
    group.publish_owner(device)
    assert group.authority.standing().owner(device.id) == group.owner.id


@pytest.mark.attack
def test_a_voucher_for_another_device_makes_no_owner():
    group = SealedGroup(home=True)
    device = group.member()
    stolen = ops.Owner(*_voucher(group))
    with pytest.raises(AuthError, match="did not sign this device"):
        device.control(Kind.OWNER, stolen)
    assert group.authority.standing().owner(device.id) == device.id


@pytest.mark.attack
def test_an_owner_key_record_with_a_false_voucher_is_refused():
    group = SealedGroup(home=True)
    device = group.member()
    key, signature = _voucher(group)
    with pytest.raises(AuthError, match="did not sign this device"):
        group.founder.control(Kind.OWNER_KEY, ops.OwnerKey(key, (), ((device.id, signature),)))
    assert len(group.authority.standing().owner_keys()) == 1


def _voucher(group: SealedGroup) -> tuple[bytes, bytes]:
    record = group.authority.standing().owner_keys()[0]
    return record.payload.owner_key, record.payload.vouchers[0][1]


def test_misuse_is_named():
    group = SealedGroup()
    sealer = group.founder.sealer
    with pytest.raises(KeyError, match="not loaded"):
        sealer.log(bytes(32), 0)
    with pytest.raises(UsageError, match="limit"):
        sealer.seal(ControlDraft(32, bytes(65_537)), group.founder.place(1))
    with pytest.raises(UsageError, match="lane"):
        sealer.seal(ControlDraft(32, b""), group.founder.place(0))
    with pytest.raises(UsageError, match="data record"):
        sealer.open_body(group.genesis)
    sealer.drop_group(group.group)
    with pytest.raises(KeyError):
        sealer.current_epoch(group.group)


def test_the_largest_body_fits_and_verifies():
    group = SealedGroup()
    record = group.founder.data(b"\0" * 65_536)
    assert verify_record(record.wire(), verify).id == record.id
    assert group.founder.sealer.open_body(received(record)) == b"\0" * 65_536


def test_loading_again_changes_the_incarnation_and_keeps_the_keys():
    group = SealedGroup()
    sealer = group.founder.sealer
    sealer.load_group(group.group, group.authority, incarnation=9, data_incarnation=10)
    assert sealer.log(group.group, 0)[2] == 9
    assert sealer.log(group.group, 1)[2] == 10
    assert sealer.current_epoch(group.group) == group.epoch
    assert sealer.epochs(group.group) == {group.epoch: group.secret}


def test_exchange_keys_come_from_genesis_and_joins():
    group = SealedGroup()
    standing = group.authority.standing()
    assert standing.exchange_key(group.founder.id) == exchange_public(group.founder.exchange)
    assert standing.exchange_key(bytes(32)) is None
