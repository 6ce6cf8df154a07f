"""Every outcome of admission, on one node without a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from p2p.identity import Identity
from p2p.replication.config import ReplicationConfig
from p2p.replication.groups import HOLD_SKEW
from p2p.replication.ops import (
    Grant,
    Kind,
    Limits,
    Policy,
    Role,
    encode_payload,
)
from p2p.replication.record import Record, RecordWire
from p2p.replication.wires import wire_bytes
from tests.helpers.hostile import Pen, forged, with_body
from tests.helpers.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.exchange_types import AdmitResult
    from p2p.replication.groups import Group
    from tests.helpers.mesh import Peer

PEER = b"p" * 32


@dataclass
class Bench:
    """A founder's node and the pen of a member it granted a role."""

    alice: Peer
    group_id: bytes
    bob: Identity

    @property
    def group(self) -> Group:
        """Alice's group."""
        found = self.alice.replication._core.groups.get(self.group_id)
        assert found is not None
        return found

    def pen(self, identity: Identity | None = None, incarnation: int = 77) -> Pen:
        """A pen of Bob's, with Alice's view and keys."""
        return Pen(
            self.alice, self.group_id, identity=identity or self.bob, incarnation=incarnation
        )

    async def admit(
        self, records: Sequence[Record | RecordWire], peer: bytes | None = PEER
    ) -> AdmitResult:
        """Hand records to Alice as from a peer, and follow up as the driver does."""
        core, group = self.alice.replication._core, self.group
        wires = [r.wire() if isinstance(r, Record) else r for r in records]
        async with core.keeper.turn(group):
            result, admitted = await core.admission.admit(group, wires, peer)
            await core.keeper.after(group, admitted)
        return result

    async def grant(self, member: bytes, role: Role) -> Record:
        """Alice gives a role."""
        async with self.group.lock:
            (record,) = await self.alice.replication._core.keeper.write(
                self.group, [(Kind.GRANT, Grant(member, role))]
            )
        return record

    def state(self, record: Record) -> str | None:
        """State of a record on disk, None when it is not there."""
        row = self.alice.disk.rows.get(record.id)
        return None if row is None else row.state

    def reasons(self) -> list[object]:
        """Why records were refused, in order."""
        return [event.data["reason"] for event in self.alice.named("record.refused")]


async def bench(role: Role = Role.WRITE, config: ReplicationConfig | None = None) -> Bench:
    """A loaded node, not running, with a group in which Bob has a role."""
    alice = Mesh(3, config).peer("alice")
    alice.build()
    await alice.replication.load()
    made = await alice.replication.create_group("team")
    bob = Identity.from_seed(b"b" * 32)
    found = Bench(alice, made.group, bob)
    await found.grant(bob.id, role)
    return found


async def test_a_good_record_is_stored_live_with_its_body_owner_and_relation() -> None:
    b = await bench()
    record = b.pen().write(body=b"hello")
    result = await b.admit([record])
    assert (result.stored, result.refused, result.missing) == (1, 0, ())
    row = b.alice.disk.rows[record.id]
    assert (row.state, row.plain, row.owner, row.relation) == (
        "live",
        b"hello",
        b.bob.id,
        "invited",
    )
    assert b.alice.sealer.hlc >= record.hlc


async def test_a_known_record_costs_no_signature_check() -> None:
    b = await bench()
    record = b.pen().write()
    await b.admit([record])
    checks: list[bytes] = []
    verify = b.alice.replication._core.admission._verify
    b.alice.replication._core.admission._verify = lambda key, *rest: (  # type: ignore[assignment]
        checks.append(key) or verify(key, *rest)
    )
    result = await b.admit([record, record])
    assert (result.stored, result.duplicate) == (0, 2)
    assert checks == []


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("signature", forged),
        ("body", lambda r: with_body(r, b"\x92\xc4\0\xc4\0")),
        ("encoding", lambda r: RecordWire(r.header[:-1], r.signature, None)),
        ("encoding", lambda r: RecordWire(b"\xdc\x00\x0e" + r.header[1:], r.signature, None)),
    ],
    ids=["signature", "body", "cut header", "long array"],
)
async def test_what_the_sender_should_have_checked_is_refused_and_told(
    reason: str, spoil: object
) -> None:
    b = await bench()
    record = b.pen().write()
    result = await b.admit([spoil(record)])  # type: ignore[operator]
    assert result.refused == 1
    assert b.reasons() == [reason]
    assert b.state(record) in {None, "sealed"}


async def test_a_record_of_another_group_is_refused() -> None:
    b = await bench()
    other = await b.alice.replication.create_group("other")
    record = Pen(b.alice, other.group, identity=b.bob).write()
    assert (await b.admit([record])).refused == 1
    assert b.reasons() == ["group"]


async def test_an_author_nothing_cited_names_is_refused() -> None:
    b = await bench()
    stranger = Identity.from_seed(b"s" * 32)
    assert (await b.admit([b.pen(stranger).write()])).refused == 1
    # Bob himself, citing only what was before his grant, is a stranger too.
    assert (await b.admit([b.pen().write(auth=(b.group_id,))])).refused == 1
    assert b.reasons() == ["stranger", "stranger"]


async def test_a_record_dated_before_what_it_cites_is_refused() -> None:
    b = await bench()
    record = b.pen().write(hlc=5)
    assert (await b.admit([record])).refused == 1
    assert b.reasons() == ["authority"]


async def test_what_a_batch_once_found_good_covers_no_other_date_and_no_other_author() -> None:
    b = await bench()
    good = b.pen().write()
    stranger = Identity.from_seed(b"s" * 32)
    early = b.pen(incarnation=good.incarnation + 1).write(hlc=5)
    result = await b.admit([good, early, b.pen(stranger).write(), b.pen(incarnation=9).write()])
    assert (result.stored, result.refused) == (2, 2)
    assert b.reasons() == ["authority", "stranger"]


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", encode_payload(Grant(b"x" * 32, Role.READ)) + b"\0"]
)
async def test_a_control_payload_that_does_not_decode_is_refused(body: bytes) -> None:
    b = await bench(Role.ADMIN)
    assert (await b.admit([b.pen().write(Kind.GRANT, body)])).refused == 1
    assert b.reasons() == ["payload"]


async def test_three_refusals_close_the_peer_and_no_others() -> None:
    b = await bench()
    results = [await b.admit([forged(b.pen(incarnation=n).write())]) for n in (1, 2, 3)]
    assert [bool(result.close) for result in results] == [False, False, True]
    quota = b.alice.replication._core.quota
    assert quota.banned(PEER, b.alice.env.now())
    assert not quota.banned(b"q" * 32, b.alice.env.now())


async def test_a_record_citing_the_unknown_waits_and_is_stored_when_that_comes() -> None:
    b = await bench()
    carol = Identity.from_seed(b"c" * 32)
    admin = Identity.from_seed(b"a" * 32)
    await b.grant(admin.id, Role.ADMIN)
    granted = b.pen(admin).write(Kind.GRANT, encode_payload(Grant(carol.id, Role.WRITE)))
    record = b.pen(carol).write(auth=(granted.id,), hlc=granted.hlc + 1)
    result = await b.admit([record])
    assert (result.stored, result.held, result.missing) == (0, 1, (granted.id,))
    assert b.state(record) is None
    result = await b.admit([granted])
    assert result.stored == 2
    assert b.state(record) == "live"
    assert b.reasons() == []


async def test_out_of_order_batches_are_sorted_out_by_themselves() -> None:
    b = await bench(Role.ADMIN)
    pen = b.pen()
    records = []
    for n in range(6):
        member = Identity.from_seed(bytes([n]) * 32)
        payload = encode_payload(Grant(member.id, Role.WRITE))
        auth = (records[-1].id,) if records else None
        records.append(pen.write(Kind.GRANT, payload, auth=auth))
    result = await b.admit(records[::-1])
    assert result.stored == 6
    assert len(b.alice.replication.members(b.group_id)) == 8


async def test_waiting_records_are_limited_and_let_go_after_an_hour(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    config = replace(ReplicationConfig.test(), pending_records_max=3)
    b = await bench(config=config)
    pens = [b.pen(incarnation=n) for n in range(1, 6)]
    for n, pen in enumerate(pens):
        await b.admit([pen.write(auth=(bytes([n]) * 32,))])
    assert len(b.group.waiting) == 3
    await trio.sleep(config.pending_s + 1)
    await b.admit([b.pen(incarnation=9).write()])
    assert len(b.group.waiting) == 0


async def test_strangers_share_a_few_waiting_places_and_push_no_member_out() -> None:
    config = replace(ReplicationConfig.test(), pending_stranger_records_max=5)
    b = await bench(config=config)
    first = b.pen(incarnation=1).write(auth=(b"m" * 32,))
    await b.admit([first], peer=b.bob.id)
    for n in range(2, 40):
        # A key of its own each time: a new identity costs a stranger nothing.
        await b.admit([b.pen(incarnation=n).write(auth=(bytes([n]) * 32,))], peer=bytes([n]) * 32)
    assert len(b.group.waiting) == 6
    assert first.id in b.group.waiting


async def test_a_member_that_floods_what_waits_pushes_out_its_own() -> None:
    config = replace(ReplicationConfig.test(), pending_records_max=10)
    b = await bench(config=config)
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, Role.WRITE)
    first = b.pen(carol, incarnation=1).write(auth=(b"m" * 32,))
    await b.admit([first], peer=carol.id)
    for n in range(2, 40):
        await b.admit([b.pen(incarnation=n).write(auth=(bytes([n]) * 32,))], peer=b.bob.id)
    assert len(b.group.waiting) == 10
    assert first.id in b.group.waiting


async def test_what_waits_is_bounded_in_bytes() -> None:
    config = replace(ReplicationConfig.test(), pending_bytes_max=100_000)
    b = await bench(config=config)
    for n in range(1, 12):
        record = b.pen(incarnation=n).write(body=b"x" * 30_000, auth=(bytes([n]) * 32,))
        await b.admit([record], peer=b.bob.id)
    size = sum(wire_bytes(waiting.wire) for waiting in b.group.waiting.values())
    assert 60_000 < size <= 100_000


async def test_a_stranger_pays_for_records_before_our_first_sync_too() -> None:
    b = await bench()
    b.group.synced_once = False
    spent: list[bytes] = []
    quota = b.alice.replication._core.admission._quota
    spend = quota.spend
    quota.spend = lambda peer, n, now: spent.append(peer) or spend(peer, n, now)  # type: ignore[method-assign]
    await b.admit([b.pen(incarnation=1).write(auth=(b"s" * 32,))], peer=b"s" * 32)
    await b.admit([b.pen(incarnation=2).write(auth=(b"m" * 32,))], peer=b.bob.id)
    assert spent == [b"s" * 32]


async def test_quarantine_keeps_its_limit_within_one_batch() -> None:
    config = replace(ReplicationConfig.test(), quarantine_records_max=10)
    b = await bench(config=config)
    ahead_ms = b.alice.env.wall_ms() + 3_600_000
    for batch in range(4):
        records = [
            b.pen(incarnation=100 * batch + n + 1).write(hlc=(ahead_ms - batch * 50_000 - n) << 16)
            for n in range(8)
        ]
        await b.admit(records)
    assert len(await b.alice.store.local("hold", b.group_id)) <= 10


async def test_a_reader_is_void_and_stays_out_of_the_set() -> None:
    b = await bench(Role.READ)
    record = b.pen().write()
    assert (await b.admit([record])).stored == 1
    assert b.state(record) == "void"
    assert len(await b.alice.store.index(b.group_id, 1)) == 0


async def test_more_records_in_a_log_than_the_policy_allows_are_void() -> None:
    b = await bench()
    async with b.group.lock:
        await b.alice.replication._core.keeper.write(
            b.group, [(Kind.POLICY, Policy(Limits(data_records=2)))]
        )
    pen = b.pen()
    records = [pen.write() for _ in range(4)]
    await b.admit(records)
    assert [b.state(r) for r in records] == ["live", "live", "void", "void"]


async def test_kinds_of_a_later_version_are_stored_and_passed_on() -> None:
    b = await bench()
    control, data = b.pen().write(29, b"\x90"), b.pen().write(99, b"later")
    assert (await b.admit([control, data])).stored == 2
    assert (b.state(control), b.state(data)) == ("live", "live")


async def test_a_body_without_its_key_is_sealed_and_one_that_does_not_open_too() -> None:
    b = await bench()
    pen = b.pen()
    copied = pen.write(body=b"text")
    moved = b.pen(incarnation=78).write(body=b"other")
    assert copied.envelope is not None
    # The same ciphertext under another place: the commitment holds, the cipher does not open.
    from p2p.replication.sealing import ControlDraft, Place, sign_record

    log = (b.group_id, b.bob.id, 79, 1)
    stolen = sign_record(
        b.bob,
        b.group_id,
        ControlDraft(32, b""),
        Place(log, 1, None, 0),
        moved.hlc + 1,
        pen.heads(),
        copied.envelope,
    )
    unknown = replace(copied.envelope, epoch=b"unknown epoch 16")
    keyless = sign_record(
        b.bob,
        b.group_id,
        ControlDraft(32, b""),
        Place((b.group_id, b.bob.id, 80, 1), 1, None, 0),
        moved.hlc + 2,
        pen.heads(),
        unknown,
    )
    assert (await b.admit([stolen, keyless])).stored == 2
    assert (b.state(stolen), b.state(keyless)) == ("sealed", "sealed")
    assert [e.data["id"] for e in b.alice.named("record.unopened")] == [stolen.id]
    assert [e.data["id"] for e in b.alice.named("key.missing")] == [keyless.id]
    assert len(await b.alice.store.index(b.group_id, 1)) == 2


# --- clock ------------------------------------------------------------------------------------


async def test_the_future_is_held_retried_when_due_and_never_observed(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    b = await bench()
    before = b.alice.sealer.hlc
    ahead = b.alice.env.wall_ms() + 700_000
    record = b.pen().write(hlc=ahead << 16)
    result = await b.admit([record])
    assert (result.stored, result.held) == (0, 1)
    assert b.alice.sealer.hlc == before
    assert (await b.alice.store.known([record.id])) == {record.id: "held"}
    # Brought again it is a duplicate, not a second row.
    assert (await b.admit([record])).duplicate == 1
    core, group = b.alice.replication._core, b.group
    assert (await core.admission.retry_held(group))[1] == []
    await trio.sleep(101)
    _, admitted = await core.admission.retry_held(group)
    assert [r.id for r in admitted] == [record.id]
    assert b.state(record) == "live"
    assert await b.alice.store.local("hold", b.group_id) == []


async def test_exactly_ten_minutes_ahead_is_still_taken(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    b = await bench()
    wall = b.alice.env.wall_ms()
    taken = b.pen(incarnation=1).write(hlc=(wall + 600_000) << 16)
    held = b.pen(incarnation=2).write(hlc=(wall + 600_001) << 16)
    result = await b.admit([taken, held])
    assert (result.stored, result.held) == (1, 1)


async def test_a_flood_of_future_dates_reads_the_quarantine_once() -> None:
    b = await bench()
    pen = b.pen()
    store, read = b.alice.replication._core.store, []
    local = store.local

    async def counted(table: str, group: bytes | None = None) -> object:
        read.append(table)
        return await local(table, group)

    store.local = counted  # type: ignore[method-assign, assignment]
    ahead = (b.alice.env.wall_ms() + 3_600_000) << 16
    records = [pen.write(body=b"x", hlc=ahead + n) for n in range(40)]
    for record in records:
        await b.admit([record])
    assert read.count("hold") == 1
    assert len(await local("hold", b.group_id)) == 40


async def test_quarantine_is_limited_an_author_and_a_group() -> None:
    config = replace(ReplicationConfig.test(), quarantine_author_max=3, quarantine_records_max=5)
    b = await bench(config=config)
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, Role.WRITE)
    wall = b.alice.env.wall_ms()

    async def send(identity: Identity, minutes: int) -> bytes:
        pen = b.pen(identity, incarnation=minutes)
        record = pen.write(hlc=(wall + minutes * 60_000) << 16)
        await b.admit([record])
        return record.id

    of_bob = [await send(b.bob, minutes) for minutes in (20, 30, 40, 50)]
    of_carol = [await send(carol, minutes) for minutes in (25, 35, 45)]
    rows = await b.alice.store.local("hold", b.group_id)
    kept = {row[1][0] for row in rows if row[1][2] == HOLD_SKEW}
    # Bob's fourth is over his limit. Carol's third is the farthest but fits no more.
    assert kept == {*of_bob[:3], *of_carol[:2]}
    nearer = await send(carol, 15)
    rows = await b.alice.store.local("hold", b.group_id)
    kept = {row[1][0] for row in rows}
    assert kept == {of_bob[0], of_bob[1], nearer, *of_carol[:2]}


# --- chains -----------------------------------------------------------------------------------


async def test_above_a_gap_records_are_taken_and_the_chain_checked_when_it_closes() -> None:
    b = await bench()
    pen = b.pen()
    records = [pen.write(body=f"{n}".encode()) for n in range(5)]
    assert (await b.admit([records[0], records[3], records[4]])).stored == 3
    assert (await b.admit(records[1:3])).stored == 2
    (state,) = [s for s in await b.alice.store.logs(b.group_id) if s.key[1] == b.bob.id]
    assert (state.contiguous, state.head_id) == (5, records[4].id)


async def test_two_records_at_one_place_are_evidence_of_the_first_difference() -> None:
    b = await bench()
    pen = b.pen()
    pen.write()
    twin = pen.twin()
    left, right = pen.write(body=b"left"), twin.write(body=b"right")
    await b.admit([left])
    result = await b.admit([right])
    (suspect,) = result.suspects
    assert (suspect.seq, suspect.first) == (2, True)
    assert result.refused == 0
    assert b.state(right) is None
    async with b.group.lock:
        assert await b.alice.replication._core.keeper.prove(b.group) == 1
    (event,) = b.alice.named("fork.detected")
    assert event.data["seq"] == 2
    assert b.state(left) == "void"


async def test_two_records_at_one_place_in_one_batch_are_evidence_too() -> None:
    b = await bench()
    pen = b.pen()
    twin = pen.twin()
    result = await b.admit([pen.write(body=b"left"), twin.write(body=b"right")])
    assert [s.first for s in result.suspects] == [True]


async def test_a_break_between_neighbours_says_where_to_look() -> None:
    b = await bench()
    pen = b.pen()
    ours = [pen.write(body=f"{n}".encode()) for n in range(3)]
    twin = b.pen()
    theirs = [twin.write(body=f"other {n}".encode()) for n in range(4)]
    await b.admit(ours)
    result = await b.admit([theirs[3]])
    (suspect,) = result.suspects
    assert (suspect.seq, suspect.first) == (4, False)
    assert b.state(theirs[3]) is None
    result = await b.admit([theirs[2], theirs[1]])
    assert [(s.seq, s.first) for s in result.suspects] == [(3, False), (2, False)]
    evidence = b.group.evidence[b.group_id, b.bob.id, 77, 1]
    assert evidence.seq == 2
    result = await b.admit([theirs[0]])
    assert [(s.seq, s.first) for s in result.suspects] == [(1, True)]


async def test_a_record_that_does_not_fit_what_stands_above_it_is_evidence() -> None:
    b = await bench()
    pen, twin = b.pen(), b.pen()
    ours = [pen.write(body=f"{n}".encode()) for n in range(3)]
    theirs = [twin.write(body=f"other {n}".encode()) for n in range(3)]
    await b.admit([ours[2]])
    result = await b.admit([theirs[1]])
    (suspect,) = result.suspects
    assert not suspect.first
    assert b.state(theirs[1]) is None


async def test_going_back_in_time_along_a_chain_is_evidence_by_itself() -> None:
    b = await bench()
    pen = b.pen()
    first = pen.write()
    second = pen.write(hlc=first.hlc)
    result = await b.admit([first, second])
    assert [(s.seq, s.first) for s in result.suspects] == [(2, True)]
    async with b.group.lock:
        assert await b.alice.replication._core.keeper.prove(b.group) == 1
    assert b.alice.named("fork.detected")[0].data["seq"] == 1


async def test_what_lies_above_a_proven_fork_is_not_stored_any_more() -> None:
    b = await bench()
    pen = b.pen()
    twin = pen.twin()
    left, right = pen.write(body=b"left"), twin.write(body=b"right")
    await b.admit([left, right])
    async with b.group.lock:
        await b.alice.replication._core.keeper.prove(b.group)
    later = pen.write(body=b"later")
    result = await b.admit([later])
    assert (result.stored, result.duplicate, result.refused) == (0, 1, 0)
    assert b.state(later) is None


async def test_a_void_operation_of_a_forked_log_is_kept_when_another_cites_it() -> None:
    b = await bench(Role.ADMIN)
    carol, dave = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2))
    await b.grant(carol.id, Role.ADMIN)
    pen = b.pen()
    twin = pen.twin()
    left = pen.write(Kind.GRANT, encode_payload(Grant(dave.id, Role.WRITE)))
    right = twin.write(Kind.GRANT, encode_payload(Grant(dave.id, Role.READ)))
    await b.admit([left, right])
    async with b.group.lock:
        await b.alice.replication._core.keeper.prove(b.group)
    # Carol had seen the other branch: without it, what she wrote could never be judged.
    cites = b.pen(carol).write(
        auth=tuple(sorted({*b.pen().heads(), right.id})), hlc=right.hlc + (1 << 32)
    )
    result = await b.admit([cites])
    assert result.missing == (right.id,)
    result = await b.admit([right])
    assert b.state(cites) == "live"
    assert b.state(right) is None
    from p2p.replication.groups import fetch_of

    (row,) = await fetch_of(b.alice.store, b.group_id, [right.id])
    assert row.header == right.header
    # And a restart knows it again.
    b.alice.build()
    await b.alice.replication.load()
    assert right.id in b.group.authority


# --- limits and failures ----------------------------------------------------------------------


async def test_a_full_group_waits_but_its_admins_operations_do_not() -> None:
    config = replace(ReplicationConfig.test(), group_headers_max=3, group_ops_max=1)
    b = await bench(Role.ADMIN, config)
    result = await b.admit([b.pen().write()])
    assert (result.stored, result.held, result.refused) == (0, 1, 0)
    assert b.alice.named("quota.reached")
    payload = encode_payload(Grant(Identity.from_seed(b"c" * 32).id, Role.READ))
    assert (await b.admit([b.pen().write(Kind.GRANT, payload)])).stored == 1


async def test_an_author_has_one_share_whatever_logs_it_begins() -> None:
    b = await bench(config=replace(ReplicationConfig.test(), author_headers_max=4))
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, Role.WRITE)
    for incarnation in range(70, 74):
        assert (await b.admit([b.pen(incarnation=incarnation).write()])).stored == 1
    result = await b.admit([b.pen(incarnation=74).write()])
    assert (result.stored, result.held, result.refused) == (0, 1, 0)
    assert b.alice.named("quota.reached")[-1].data["author"] == b.bob.id
    assert (await b.admit([b.pen(carol).write()])).stored == 1
    # Nor does a restart give it another one.
    b.alice.build()
    await b.alice.replication.load()
    assert (await b.admit([b.pen(incarnation=75).write()])).held == 1


async def test_the_last_part_of_a_groups_room_is_for_those_who_wrote_little() -> None:
    config = replace(ReplicationConfig.test(), group_headers_max=40, group_headroom_ratio=0.25)
    b = await bench(config=config)
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, Role.WRITE)
    pen = b.pen()
    stored = [(await b.admit([pen.write()])).stored for _ in range(40)]
    assert sum(stored) < 31
    assert (await b.admit([b.pen(carol).write()])).stored == 1


async def test_a_log_that_begins_far_out_takes_no_more_room_than_it_fills() -> None:
    b = await bench()
    far = b.pen().write(seq=2**40, prev=b"x" * 32)
    assert (await b.admit([far])).stored == 1
    b.alice.build()
    await b.alice.replication.load()
    assert b.group.headers < 10
    assert (await b.admit([b.pen(incarnation=78).write()])).stored == 1


async def test_signatures_are_checked_sixteen_at_a_time() -> None:
    b = await bench()
    steps = 0

    async def checkpoint() -> None:
        nonlocal steps
        steps += 1
        await trio.lowlevel.checkpoint()

    b.alice.replication._core.admission._checkpoint = checkpoint
    pen = b.pen()
    await b.admit([pen.write() for _ in range(50)])
    assert steps == 3


async def test_after_a_failed_transaction_the_authority_is_what_is_on_disk() -> None:
    b = await bench(Role.ADMIN)
    carol = Identity.from_seed(b"c" * 32)
    granted = b.pen().write(Kind.GRANT, encode_payload(Grant(carol.id, Role.WRITE)))
    store = b.alice.replication._core.admission._store
    admit = store.admit

    async def full(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    store.admit = full  # type: ignore[method-assign,assignment]
    with pytest.raises(OSError, match="disk full"):
        await b.admit([granted])
    store.admit = admit  # type: ignore[method-assign]
    assert b.group.stale
    await b.admit([])
    assert granted.id not in b.group.authority
    assert len(b.alice.replication.members(b.group_id)) == 2
    assert (await b.admit([granted])).stored == 1
    assert len(b.alice.replication.members(b.group_id)) == 3
    # The sealer follows the authority in force: what we write now cites the grant.
    ident = await b.alice.write(b.group_id, "mine")
    from p2p.replication.record import decode_header_untrusted

    header = decode_header_untrusted(b.alice.disk.rows[ident].header)
    assert header.auth == b.group.authority.heads()
