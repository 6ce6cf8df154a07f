"""What every `RecordStore` must do, whoever keeps the bytes.

A test module subclasses `StoreConformance` and provides a fixture `world` whose value is a
`StoreWorld`. Bodies are opaque here: a store that projects bodies of its own kind must take others
without complaint.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from tests.helpers.chains import Chain, PlainDraft, PlainSealer, digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from p2p.replication.record import Record
    from p2p.replication.store import CellRow, LocalRow, RecordStore

GROUP = digest("group")
OTHER_GROUP = digest("another group")
ME = digest("me")
ALICE = digest("alice")
BOB = digest("bob")


@dataclass
class StoreWorld:
    """A store under test."""

    store: RecordStore
    sealer: PlainSealer
    reopen: Callable[[], Awaitable[RecordStore]]
    """Close the store and open it again on the same disk."""


class _Receipt:
    def __init__(self, key: bytes) -> None:
        self.key = key
        self.ids: list[bytes] = []

    def encode(self, ids: Sequence[bytes]) -> bytes:
        self.ids = list(ids)
        return b"".join(ids)


def ids_of(packed: bytes) -> list[bytes]:
    """Ids of an index, in its order."""
    return [packed[at + 8 : at + 40] for at in range(0, len(packed), 40)]


TAG = digest("cell")[:16]


async def cell_of(store: RecordStore) -> set[tuple[bytes, bool]]:
    """(id, superseded) of what a cell's value is made of."""
    return {(row.stored.id, row.superseded) for row in await store.cell(GROUP, TAG)}


class StoreConformance:
    """The suite; subclass it and give it a `world` fixture."""

    @pytest.fixture
    def store(self, world: StoreWorld) -> RecordStore:
        """The store under test."""
        return world.store

    async def test_an_empty_store_has_nothing_and_says_so(self, store: RecordStore) -> None:
        assert list(await store.logs(GROUP)) == []
        assert list(await store.control(GROUP)) == []
        assert dict(await store.counts(GROUP)) == {}
        assert len(await store.index(GROUP, 1)) == 0
        assert dict(await store.known([digest("x")])) == {}
        assert list(await store.fetch([digest("x")], bodies=True)) == []
        assert await store.at((GROUP, ALICE, 1, 1), 1) is None
        assert list(await store.tail((GROUP, ALICE, 1, 1), 1, 9, 1000)) == []

    async def test_append_seals_in_order_at_the_end_of_the_own_log(self, world: StoreWorld) -> None:
        first = await world.store.append(GROUP, [PlainDraft(32, b"a"), PlainDraft(32, b"b")])
        second = await world.store.append(GROUP, [PlainDraft(32, b"c")])
        assert len(first) == 2
        log = world.sealer.log(GROUP, 1)
        rows = [await world.store.at(log, seq) for seq in (1, 2, 3)]
        assert [row.id for row in rows if row is not None] == [*first, *second]
        (state,) = await world.store.logs(GROUP)
        assert (state.key, state.contiguous, state.max_seq) == (log, 3, 3)
        assert state.head_id == second[0]
        assert state.head_hlc > 0

    async def test_append_is_all_or_nothing(self, world: StoreWorld) -> None:
        world.sealer.fail_at = 1
        with pytest.raises(RuntimeError):
            await world.store.append(
                GROUP,
                [PlainDraft(32, b"a"), PlainDraft(32, b"b")],
                local=[("grp", (GROUP, "name", 0, "member"))],
            )
        world.sealer.fail_at = None
        assert list(await world.store.logs(GROUP)) == []
        assert list(await world.store.local("grp")) == []
        (only,) = await world.store.append(GROUP, [PlainDraft(32, b"c")])
        row = await world.store.at(world.sealer.log(GROUP, 1), 1)
        assert row is not None
        assert row.id == only

    async def test_each_lane_has_a_chain_of_its_own(self, world: StoreWorld) -> None:
        await world.store.append(GROUP, [PlainDraft(13, b"control"), PlainDraft(32, b"data")])
        states = {state.key[3]: state for state in await world.store.logs(GROUP)}
        assert {lane: state.max_seq for lane, state in states.items()} == {0: 1, 1: 1}

    async def test_admit_stores_once_and_knows_its_duplicates(self, store: RecordStore) -> None:
        records = Chain(GROUP, ALICE).many(3)
        verdicts = await store.admit(GROUP, records)
        assert [v.outcome for v in verdicts] == ["stored"] * 3
        assert [v.id for v in verdicts] == [r.id for r in records]
        again = await store.admit(GROUP, records[1:])
        assert [v.outcome for v in again] == ["duplicate"] * 2
        assert dict(await store.known([r.id for r in records])) == {r.id: "live" for r in records}

    async def test_a_gap_holds_the_head_back_until_it_closes(self, store: RecordStore) -> None:
        records = Chain(GROUP, ALICE).many(5)
        await store.admit(GROUP, [records[0], records[3], records[4]])
        (state,) = await store.logs(GROUP)
        assert (state.contiguous, state.max_seq, state.head_id) == (1, 5, records[0].id)
        await store.admit(GROUP, [records[2], records[1]])
        (state,) = await store.logs(GROUP)
        assert (state.contiguous, state.max_seq, state.head_id) == (5, 5, records[4].id)
        assert state.head_hlc == records[4].hlc

    async def test_counts_are_of_records_and_not_of_places(self, store: RecordStore) -> None:
        records = Chain(GROUP, ALICE).many(5)
        await store.admit(GROUP, [records[0], records[4]])
        await store.admit(GROUP, Chain(GROUP, BOB).many(3))
        await store.admit(OTHER_GROUP, Chain(OTHER_GROUP, BOB).many(1))
        assert dict(await store.counts(GROUP)) == {ALICE: 2, BOB: 3}

    async def test_a_log_without_its_first_record_has_no_head(self, store: RecordStore) -> None:
        records = Chain(GROUP, ALICE).many(2)
        await store.admit(GROUP, [records[1]])
        (state,) = await store.logs(GROUP)
        assert (state.contiguous, state.max_seq) == (0, 2)
        assert (state.head_id, state.head_hlc) == (bytes(32), 0)

    async def test_a_second_record_at_a_place_is_a_fork_and_not_stored(
        self, store: RecordStore
    ) -> None:
        chain = Chain(GROUP, ALICE)
        chain.many(2)
        twin = chain.fork()
        kept, rival = chain.next(b"one"), twin.next(b"two")
        await store.admit(GROUP, chain.records)
        (verdict,) = await store.admit(GROUP, [rival])
        assert (verdict.outcome, verdict.other) == ("fork", kept.id)
        assert rival.id not in await store.known([rival.id])
        assert list(await store.fetch([rival.id], bodies=True)) == []

    async def test_a_header_waits_for_its_body(self, store: RecordStore) -> None:
        record = Chain(GROUP, ALICE).next()
        (verdict,) = await store.admit(GROUP, [replace(record, envelope=None, plain=None)])
        assert verdict.outcome == "stored"
        (row,) = await store.fetch([record.id], bodies=True)
        assert row.envelope is None
        (verdict,) = await store.admit(GROUP, [record])
        assert verdict.outcome == "body"
        (row,) = await store.fetch([record.id], bodies=True)
        assert row.envelope is not None
        assert row.envelope.ct == (record.envelope and record.envelope.ct)

    async def test_what_comes_out_is_what_went_in(self, store: RecordStore) -> None:
        record = Chain(GROUP, ALICE).next(b"text")
        await store.admit(GROUP, [record])
        (row,) = await store.fetch([record.id], bodies=True)
        assert (row.id, row.header, row.signature) == (record.id, record.header, record.signature)
        assert row.envelope is not None
        assert record.envelope is not None
        assert (row.envelope.salt, row.envelope.epoch, row.envelope.wrap, row.envelope.ct) == (
            record.envelope.salt,
            record.envelope.epoch,
            record.envelope.wrap,
            record.envelope.ct,
        )

    async def test_control_comes_back_in_order_of_arrival(self, store: RecordStore) -> None:
        alice, bob = Chain(GROUP, ALICE, lane=0), Chain(GROUP, BOB, lane=0)
        order = [alice.next(b"1"), bob.next(b"2"), alice.next(b"3")]
        for record in order:
            await store.admit(GROUP, [record])
        await store.admit(GROUP, [Chain(GROUP, ALICE).next()])
        rows = await store.control(GROUP)
        assert [row.id for row in rows] == [r.id for r in order]
        assert [row.envelope.ct for row in rows if row.envelope] == [b"1", b"2", b"3"]
        later = await store.control(GROUP, after=rows[0].n)
        assert [row.id for row in later] == [r.id for r in order[1:]]
        assert list(await store.control(GROUP, after=rows[-1].n)) == []

    async def test_tail_gives_a_range_cut_by_bytes_but_never_empty(
        self, store: RecordStore
    ) -> None:
        chain = Chain(GROUP, ALICE)
        records = chain.many(6)
        await store.admit(GROUP, records)
        rows = await store.tail(chain.log, 2, 4, 1_000_000)
        assert [row.id for row in rows] == [r.id for r in records[1:4]]
        assert [row.id for row in await store.tail(chain.log, 3, 6, 1)] == [records[2].id]
        assert list(await store.tail(chain.log, 7, 9, 1000)) == []
        some = await store.tail(chain.log, 1, 6, 900)
        assert 1 <= len(some) < 6

    async def test_tail_skips_what_is_not_here(self, store: RecordStore) -> None:
        chain = Chain(GROUP, ALICE)
        records = chain.many(4)
        await store.admit(GROUP, [records[0], records[3]])
        rows = await store.tail(chain.log, 1, 4, 1_000_000)
        assert [row.id for row in rows] == [records[0].id, records[3].id]

    async def test_fetch_keeps_the_asked_order_and_leaves_out_strangers(
        self, store: RecordStore
    ) -> None:
        records = Chain(GROUP, ALICE).many(3)
        await store.admit(GROUP, records)
        asked = [records[2].id, digest("stranger"), records[0].id]
        rows = await store.fetch(asked, bodies=True)
        assert [row.id for row in rows] == [records[2].id, records[0].id]

    async def test_index_is_sorted_by_clock_and_id_and_is_a_snapshot(
        self, store: RecordStore
    ) -> None:
        records = Chain(GROUP, ALICE).many(3) + Chain(GROUP, BOB).many(3)
        await store.admit(GROUP, records[::-1])
        index = await store.index(GROUP, 1)
        expected = sorted(records, key=lambda r: (r.hlc, r.id))
        assert len(index) == 6
        assert index.packed == b"".join(r.hlc.to_bytes(8, "big") + r.id for r in expected)
        await store.admit(GROUP, [Chain(GROUP, digest("carol")).next()])
        assert len(index) == 6
        assert len(await store.index(GROUP, 1)) == 7
        assert len(await store.index(GROUP, 0)) == 0

    async def test_void_data_leaves_the_index_void_control_stays(self, store: RecordStore) -> None:
        data, control = Chain(GROUP, ALICE), Chain(GROUP, ALICE, lane=0)
        records = data.many(2)
        ops = [control.next(b"op")]
        await store.admit(GROUP, [*records, *ops])
        assert await store.settle(GROUP, void=[records[1].id, ops[0].id]) == 2
        assert ids_of((await store.index(GROUP, 1)).packed) == [records[0].id]
        assert ids_of((await store.index(GROUP, 0)).packed) == [ops[0].id]
        assert (await store.known([records[1].id]))[records[1].id] == "void"
        assert await store.settle(GROUP, void=[records[1].id]) == 0
        assert await store.settle(GROUP, revive=[records[1].id, ops[0].id]) == 2
        assert len(await store.index(GROUP, 1)) == 2

    async def test_a_record_admitted_void_counts_only_when_revived(
        self, store: RecordStore
    ) -> None:
        record = Chain(GROUP, ALICE).next(state="void")
        await store.admit(GROUP, [record])
        assert len(await store.index(GROUP, 1)) == 0
        await store.settle(GROUP, revive=[record.id])
        assert (await store.known([record.id]))[record.id] == "live"
        assert len(await store.index(GROUP, 1)) == 1

    async def test_a_fork_voids_its_log_from_there_for_ever(self, store: RecordStore) -> None:
        chain = Chain(GROUP, ALICE)
        records = chain.many(5)
        await store.admit(GROUP, records)
        await store.settle(GROUP, fork=[(chain.log, 3, records[2].id, digest("rival"))])
        assert ids_of((await store.index(GROUP, 1)).packed) == [r.id for r in records[:2]]
        (state,) = await store.logs(GROUP)
        assert state.fork_seq == 3
        await store.settle(GROUP, revive=[records[3].id])
        assert ids_of((await store.index(GROUP, 1)).packed) == [r.id for r in records[:2]]
        # A later proof further up changes nothing, one further down does.
        await store.settle(GROUP, fork=[(chain.log, 4, records[3].id, digest("rival"))])
        assert next(iter(await store.logs(GROUP))).fork_seq == 3
        await store.settle(GROUP, fork=[(chain.log, 2, records[1].id, digest("rival"))])
        assert ids_of((await store.index(GROUP, 1)).packed) == [records[0].id]

    async def test_a_fork_of_the_control_lane_leaves_its_index_too(
        self, store: RecordStore
    ) -> None:
        chain = Chain(GROUP, ALICE, lane=0)
        records = chain.many(3)
        await store.admit(GROUP, records)
        await store.settle(GROUP, fork=[(chain.log, 2, records[1].id, digest("rival"))])
        assert ids_of((await store.index(GROUP, 0)).packed) == [records[0].id]
        assert len(await store.control(GROUP)) == 3

    async def test_sealed_records_count_and_open_when_the_key_comes(
        self, store: RecordStore
    ) -> None:
        chain = Chain(GROUP, ALICE)
        epoch = bytes(range(16))
        waiting = [chain.next(f"{n}".encode(), epoch=epoch, state="sealed") for n in range(3)]
        await store.admit(GROUP, [replace(record, plain=None) for record in waiting])
        assert len(await store.index(GROUP, 1)) == 3
        assert (await store.known([waiting[0].id]))[waiting[0].id] == "sealed"
        assert [row.id for row in await store.sealed(GROUP, epoch, 2)] == [
            r.id for r in waiting[:2]
        ]
        assert list(await store.sealed(GROUP, bytes(16), 9)) == []
        await store.unsealed(GROUP, [(waiting[0].id, b"0"), (waiting[1].id, b"1")])
        assert [row.id for row in await store.sealed(GROUP, epoch, 9)] == [waiting[2].id]
        assert (await store.known([waiting[0].id]))[waiting[0].id] == "live"

    async def test_an_erased_record_keeps_its_header_and_nothing_else(
        self, world: StoreWorld
    ) -> None:
        chain = Chain(GROUP, ALICE)
        records = chain.many(3)
        store = world.store
        await store.admit(GROUP, records)
        before = (await store.index(GROUP, 1)).packed
        gone = records[1]
        assert await store.settle(GROUP, erase=[(gone.id, digest("erase"), 7)]) == 1
        assert await store.settle(GROUP, erase=[(gone.id, digest("erase"), 7)]) == 0
        assert (await store.index(GROUP, 1)).packed == before
        for reopened in (False, True):
            store = await world.reopen() if reopened else store
            (row,) = await store.fetch([gone.id], bodies=True)
            assert (row.header, row.envelope, row.state) == (gone.header, None, "stub")
            assert dict(await store.known([gone.id])) == {gone.id: "stub"}
            assert list(await store.erased(GROUP, ALICE)) == [gone.id]
            assert list(await store.erased(GROUP, BOB)) == []
            (state,) = await store.logs(GROUP)
            assert (state.contiguous, state.max_seq) == (3, 3)

    async def test_the_body_of_an_erased_record_is_not_taken_again(
        self, store: RecordStore
    ) -> None:
        record = Chain(GROUP, ALICE).next(b"gone")
        await store.admit(GROUP, [record])
        await store.settle(GROUP, erase=[(record.id, digest("erase"), 7)])
        (verdict,) = await store.admit(GROUP, [record])
        assert verdict.outcome == "duplicate"
        (row,) = await store.fetch([record.id], bodies=True)
        assert row.envelope is None

    async def test_what_was_erased_before_it_came_is_stored_as_a_stub(
        self, store: RecordStore
    ) -> None:
        chain = Chain(GROUP, ALICE)
        record, next_one = chain.many(2)
        assert await store.settle(GROUP, erase=[(record.id, digest("erase"), 7)]) == 1
        assert dict(await store.known([record.id])) == {record.id: "erased"}
        verdicts = await store.admit(GROUP, [record, next_one])
        assert [v.outcome for v in verdicts] == ["erased", "stored"]
        (row,) = await store.fetch([record.id], bodies=True)
        assert (row.envelope, row.state) == (None, "stub")
        assert ids_of((await store.index(GROUP, 1)).packed) == [record.id, next_one.id]

    async def test_an_erased_record_may_lose_and_regain_its_standing(
        self, store: RecordStore
    ) -> None:
        record = Chain(GROUP, ALICE).next(b"gone")
        await store.admit(GROUP, [record])
        await store.settle(GROUP, erase=[(record.id, digest("erase"), 7)])
        assert await store.settle(GROUP, void=[record.id]) == 1
        assert len(await store.index(GROUP, 1)) == 0
        assert [v.outcome for v in await store.admit(GROUP, [record])] == ["duplicate"]
        assert await store.settle(GROUP, revive=[record.id]) == 1
        assert (await store.known([record.id]))[record.id] == "stub"
        late = Chain(GROUP, BOB).next(b"late", state="void")
        await store.settle(GROUP, erase=[(late.id, digest("erase"), 7)])
        await store.admit(GROUP, [late])
        assert (await store.known([late.id]))[late.id] == "void"
        assert [v.outcome for v in await store.admit(GROUP, [late])] == ["duplicate"]

    async def test_what_is_hidden_until_it_is_erased_stays_in_the_set(
        self, world: StoreWorld
    ) -> None:
        chain = Chain(GROUP, ALICE)
        records = chain.many(3)
        store = world.store
        await store.admit(GROUP, records)
        before = (await store.index(GROUP, 1)).packed
        hidden, lost = records[1], records[2]
        marks: list[LocalRow] = [
            ("hold", (one.id, GROUP, "hidden", 0, b"")) for one in (hidden, lost)
        ]
        await store.admit(GROUP, [], marks)
        assert await store.settle(GROUP, void=[hidden.id, lost.id]) == 2
        for reopened in (False, True):
            store = await world.reopen() if reopened else store
            assert (await store.index(GROUP, 1)).packed == before
            (row,) = await store.fetch([hidden.id], bodies=True)
            assert (row.state, row.envelope is None) == ("void", False)
        # Shown again, and void for another reason: out of the set.
        await store.settle(GROUP, revive=[lost.id])
        await store.admit(GROUP, [], [("hold-", (lost.id,))])
        assert (await store.known([lost.id]))[lost.id] == "live"
        await store.settle(GROUP, void=[lost.id])
        assert ids_of((await store.index(GROUP, 1)).packed) == [records[0].id, hidden.id]
        assert await store.settle(GROUP, erase=[(hidden.id, digest("erase"), 7)]) == 1
        assert dict(await store.known([hidden.id])) == {hidden.id: "stub"}
        assert list(await store.local("hold", GROUP)) == []
        assert ids_of((await store.index(GROUP, 1)).packed) == [records[0].id, hidden.id]

    async def test_control_records_are_not_erased(self, store: RecordStore) -> None:
        record = Chain(GROUP, ALICE, lane=0).next(b"grant")
        await store.admit(GROUP, [record])
        assert await store.settle(GROUP, erase=[(record.id, digest("erase"), 7)]) == 0
        (row,) = await store.control(GROUP)
        assert row.envelope is not None

    async def test_a_sealed_record_is_erased_unread(self, store: RecordStore) -> None:
        epoch = bytes(range(16))
        record = Chain(GROUP, ALICE).next(b"x", epoch=epoch, state="sealed")
        await store.admit(GROUP, [replace(record, plain=None)])
        await store.settle(GROUP, erase=[(record.id, digest("erase"), 7)])
        assert list(await store.sealed(GROUP, epoch, 9)) == []
        await store.unsealed(GROUP, [(record.id, b"x")])
        assert (await store.known([record.id]))[record.id] == "stub"

    async def test_groups_do_not_see_each_other(self, store: RecordStore) -> None:
        here, there = Chain(GROUP, ALICE), Chain(OTHER_GROUP, ALICE)
        await store.admit(GROUP, here.many(2))
        await store.admit(OTHER_GROUP, there.many(3))
        assert len(await store.index(GROUP, 1)) == 2
        assert [state.key[0] for state in await store.logs(OTHER_GROUP)] == [OTHER_GROUP]

    async def test_local_rows_are_written_replaced_and_deleted(self, store: RecordStore) -> None:
        epoch = ("epoch", (GROUP, bytes(16), bytes(64)))
        await store.admit(
            GROUP,
            [],
            local=[
                ("grp", (GROUP, "first", 0, "member")),
                ("grp", (OTHER_GROUP, "second", 1, "member")),
                epoch,
            ],
        )
        await store.admit(GROUP, [], local=[("grp", (GROUP, "renamed", 0, "member"))])
        rows = {row[1][0]: row[1] for row in await store.local("grp")}
        assert rows[GROUP] == (GROUP, "renamed", 0, "member")
        assert len(rows) == 2
        assert list(await store.local("epoch", GROUP)) == [epoch]
        assert list(await store.local("epoch", OTHER_GROUP)) == []
        await store.admit(GROUP, [], local=[("epoch-", (GROUP, bytes(16)))])
        assert list(await store.local("epoch", GROUP)) == []

    async def test_every_local_table_takes_its_columns(self, store: RecordStore) -> None:
        record = Chain(GROUP, ALICE).next()
        rows: list[LocalRow] = [
            ("grp", (GROUP, "name", 1, "pending")),
            ("secret", (GROUP, "x25519", b"p" * 32, b"s" * 32)),
            ("epoch", (GROUP, bytes(16), bytes(64))),
            ("hold", (record.id, GROUP, "skew", 1_700_000_000_000, b"wire")),
            ("peer", (GROUP, ALICE, 1_700_000_000_000, bytes(32))),
            ("device", (ALICE, "laptop", 0, 0)),
        ]
        await store.admit(GROUP, [], local=rows)
        for table, columns in rows:
            assert [row[1] for row in await store.local(table)] == [columns]
        assert dict(await store.known([record.id])) == {record.id: "held"}
        await store.admit(GROUP, [record], local=[("hold-", (record.id,))])
        assert dict(await store.known([record.id])) == {record.id: "live"}

    async def test_commits_are_told_in_order_and_only_when_something_was_stored(
        self, world: StoreWorld
    ) -> None:
        told: list[tuple[bytes, list[bytes]]] = []
        world.store.on_commit(lambda group, ids: told.append((group, list(ids))))
        (own,) = await world.store.append(GROUP, [PlainDraft(32, b"own")])
        records = Chain(GROUP, ALICE).many(2)
        await world.store.admit(GROUP, records)
        await world.store.admit(GROUP, records)
        await world.store.admit(GROUP, [], local=[("grp", (GROUP, "name", 0, "member"))])
        assert told == [(GROUP, [own]), (GROUP, [r.id for r in records])]

    async def test_a_receipt_is_encoded_with_the_ids_it_stands_for(self, world: StoreWorld) -> None:
        receipt = _Receipt(b"key")
        ids = await world.store.append(GROUP, [PlainDraft(32, b"a")], receipt)
        assert receipt.ids == list(ids)

    async def test_all_of_it_survives_a_restart(self, world: StoreWorld) -> None:
        chain = Chain(GROUP, ALICE)
        records = chain.many(4)
        await world.store.admit(
            GROUP, [records[0], records[1], records[3]], local=[("device", (ALICE, "x", 1, 0))]
        )
        (own,) = await world.store.append(GROUP, [PlainDraft(32, b"own")])
        await world.store.settle(GROUP, void=[records[1].id])
        before = (await world.store.index(GROUP, 1)).packed
        store = await world.reopen()
        assert (await store.index(GROUP, 1)).packed == before
        assert (await store.known([records[1].id]))[records[1].id] == "void"
        assert [row[1] for row in await store.local("device")] == [(ALICE, "x", 1, 0)]
        states = {state.key: state for state in await store.logs(GROUP)}
        assert (states[chain.log].contiguous, states[chain.log].max_seq) == (2, 4)
        (next_own,) = await store.append(GROUP, [PlainDraft(32, b"more")])
        rows = await store.tail(world.sealer.log(GROUP, 1), 1, 9, 1_000_000)
        assert [row.id for row in rows] == [own, next_own]

    # --- state cells --------------------------------------------------------------------------

    async def test_a_cell_has_what_nobody_supersedes_and_the_newest_of_each_log(
        self, store: RecordStore
    ) -> None:
        alice, bob = Chain(GROUP, ALICE), Chain(GROUP, BOB)
        first = alice.next(b"1", kind=33, key_tag=TAG)
        second = alice.next(b"2", kind=33, key_tag=TAG, supersedes=(first.id,))
        third = bob.next(b"3", kind=33, key_tag=TAG, supersedes=(second.id,))
        await store.admit(GROUP, [first, second, third])
        assert await cell_of(store) == {(second.id, True), (third.id, False)}
        whole = await store.cell(GROUP, TAG, whole=True)
        assert [row.stored.id for row in whole] == [first.id, second.id, third.id]
        assert [tag for tag, _ in await store.cell_tags(GROUP)] == [TAG]

    async def test_of_known_records_of_a_cell_the_id_is_enough(self, store: RecordStore) -> None:
        alice = Chain(GROUP, ALICE)
        first = alice.next(b"1", kind=33, key_tag=TAG)
        second = alice.next(b"2", kind=33, key_tag=TAG, supersedes=(first.id,))
        await store.admit(GROUP, [first, second])
        for whole in (False, True):
            every = await store.cell(GROUP, TAG, whole=whole)
            some = await store.cell(GROUP, TAG, whole=whole, known={first.id})
            assert [(r.stored.id, r.superseded) for r in some] == [
                (r.stored.id, r.superseded) for r in every
            ]
            unknown = [r.stored for r in some if r.stored.id != first.id]
            assert all(one.header and one.envelope is not None for one in unknown)

    async def test_state_records_that_turn_are_told(self, store: RecordStore) -> None:
        alice = Chain(GROUP, ALICE)
        shown = alice.next(b"1", kind=33, key_tag=TAG)
        closed = alice.next(b"2", kind=33, key_tag=TAG, state="sealed")
        entry = alice.next(b"3")
        await store.admit(GROUP, [shown, replace(closed, plain=None), entry])
        told: list[tuple[bytes, tuple[bytes, ...]]] = []
        store.on_turn(lambda group, ids: told.append((group, tuple(ids))))
        await store.settle(GROUP, void=[shown.id, entry.id])
        await store.settle(GROUP, void=[shown.id])  # void already
        await store.settle(GROUP, revive=[shown.id, entry.id])
        await store.unsealed(GROUP, [(closed.id, b"2")])
        await store.settle(GROUP, erase=[(shown.id, bytes(32), 0)])
        await store.settle(GROUP, erase=[(entry.id, bytes(32), 0)])
        named = {shown.id: "shown", closed.id: "closed", entry.id: "entry"}
        assert [named[i] for _, ids in told for i in ids] == ["shown", "shown", "closed", "shown"]
        assert {group for group, _ in told} == {GROUP}

    async def test_a_target_that_comes_later_is_superseded_on_arrival(
        self, store: RecordStore
    ) -> None:
        alice, bob = Chain(GROUP, ALICE), Chain(GROUP, BOB)
        first, last = alice.next(b"1", kind=33, key_tag=TAG), alice.next(kind=33, key_tag=TAG)
        killer = bob.next(kind=33, key_tag=TAG, supersedes=(first.id,))
        await store.admit(GROUP, [last, killer])
        await store.admit(GROUP, [first])
        assert await cell_of(store) == {(last.id, False), (killer.id, False)}

    async def test_a_record_of_another_cell_supersedes_nothing_here(
        self, store: RecordStore
    ) -> None:
        alice, bob = Chain(GROUP, ALICE), Chain(GROUP, BOB)
        first, last = alice.next(kind=33, key_tag=TAG), alice.next(kind=33, key_tag=TAG)
        foreign = bob.next(kind=33, key_tag=digest("b")[:16], supersedes=(first.id, last.id))
        entry = bob.next(kind=32, supersedes=(first.id, last.id))
        await store.admit(GROUP, [first, last, foreign, entry])
        assert await cell_of(store) == {(first.id, False), (last.id, False)}
        assert list(await store.state_among([entry.id, last.id])) == [last.id]

    async def test_a_record_of_another_kind_under_a_cells_tag_is_none_of_it(
        self, store: RecordStore
    ) -> None:
        alice, bob = Chain(GROUP, ALICE), Chain(GROUP, BOB)
        first, last = alice.next(kind=33, key_tag=TAG), alice.next(kind=33, key_tag=TAG)
        other = bob.next(kind=40, key_tag=TAG, supersedes=(first.id, last.id))
        await store.admit(GROUP, [other])
        await store.admit(GROUP, [first, last])
        assert await cell_of(store) == {(first.id, False), (last.id, False)}
        await store.settle(GROUP, void=[last.id])
        await store.settle(GROUP, revive=[last.id])
        assert await cell_of(store) == {(first.id, False), (last.id, False)}

    async def test_a_void_or_erased_record_gives_back_what_it_superseded(
        self, store: RecordStore
    ) -> None:
        alice, bob = Chain(GROUP, ALICE), Chain(GROUP, BOB)
        first = alice.next(b"1", kind=33, key_tag=TAG)
        newer = alice.next(b"2", kind=33, key_tag=TAG)
        killer = bob.next(kind=33, key_tag=TAG, supersedes=(first.id,))
        await store.admit(GROUP, [first, newer, killer])
        assert await cell_of(store) == {(newer.id, False), (killer.id, False)}
        await store.settle(GROUP, void=[killer.id])
        assert await cell_of(store) == {(first.id, False), (newer.id, False)}
        await store.settle(GROUP, revive=[killer.id])
        assert await cell_of(store) == {(newer.id, False), (killer.id, False)}
        await store.settle(GROUP, erase=[(newer.id, digest("e"), 5)])
        assert await cell_of(store) == {(first.id, True), (killer.id, False)}

    async def test_a_sealed_record_joins_its_cell_when_its_key_comes(
        self, store: RecordStore
    ) -> None:
        alice = Chain(GROUP, ALICE)
        first = alice.next(b"1", kind=33, key_tag=TAG)
        sealed = replace(
            alice.next(b"2", kind=33, key_tag=TAG, supersedes=(first.id,), state="sealed"),
            plain=None,
        )
        await store.admit(GROUP, [first, sealed])
        assert await cell_of(store) == {(first.id, False)}
        await store.unsealed(GROUP, [(sealed.id, b"2")])
        assert await cell_of(store) == {(sealed.id, False)}

    async def test_compose_writes_what_its_maker_makes_of_the_cell(self, world: StoreWorld) -> None:
        store = world.store

        def successor(rows: Sequence[CellRow]) -> list[PlainDraft]:
            seen = tuple(row.stored.id for row in rows)
            return [PlainDraft(33, str(len(seen)).encode(), TAG, seen)]

        receipt = _Receipt(b"r")
        (first,) = await store.compose(GROUP, TAG, successor)
        (second,) = await store.compose(GROUP, TAG, successor, receipt)
        assert receipt.ids == [second]
        assert await cell_of(store) == {(second, False)}
        assert [row.stored.id for row in await store.cell(GROUP, TAG, whole=True)] == [
            first, second,
        ]  # fmt: skip

    async def test_what_the_maker_raises_is_passed_on_and_nothing_is_stored(
        self, store: RecordStore
    ) -> None:
        def refuse(rows: Sequence[CellRow]) -> list[PlainDraft]:
            raise LookupError(len(rows))

        with pytest.raises(LookupError):
            await store.compose(GROUP, TAG, refuse)
        assert await cell_of(store) == set()

    @pytest.mark.parametrize("seed", range(24))
    async def test_a_cell_is_what_its_records_make_of_it_whatever_comes_and_goes(
        self, store: RecordStore, seed: int
    ) -> None:
        """Against the definition: not superseded by a live record, or the newest of its log."""
        rng = random.Random(seed)
        pens = [Chain(GROUP, author) for author in (ALICE, BOB, digest("carol"))]
        made: list[Record] = []
        for _ in range(40):
            targets = tuple({r.id for r in rng.sample(made, min(len(made), rng.randrange(3)))})
            pen = rng.choice(pens)
            made.append(pen.next(rng.randbytes(4), kind=33, key_tag=TAG, supersedes=targets))
        waiting = list(made)
        rng.shuffle(waiting)
        here: dict[bytes, Record] = {}
        void: set[bytes] = set()
        gone: set[bytes] = set()
        while waiting:
            act = rng.randrange(5)
            if act <= 1 or not here:
                batch = [waiting.pop() for _ in range(min(len(waiting), 1 + rng.randrange(4)))]
                await store.admit(GROUP, batch)
                here |= {record.id: record for record in batch}
            else:
                some = rng.sample(sorted(here), min(len(here), rng.randrange(1, 6)))
                if act == 2:
                    await store.settle(GROUP, void=some)
                    void.update(some)
                elif act == 3 and void:
                    back = rng.sample(sorted(void), rng.randrange(1, 1 + len(void)))
                    out = [one for one in some if one not in back]
                    await store.settle(GROUP, revive=back, void=out)
                    void = void.difference(back).union(out)
                elif act == 4 and rng.random() < 0.2:
                    await store.settle(GROUP, erase=[(some[0], digest("e"), 5)])
                    gone.add(some[0])
            live = {i: r for i, r in here.items() if i not in void | gone}
            superseded = {target for record in live.values() for target in record.supersedes}
            newest: dict[bytes, int] = {}
            for record in live.values():
                newest[record.author] = max(newest.get(record.author, 0), record.seq)
            assert await cell_of(store) == {
                (i, i in superseded)
                for i, record in live.items()
                if i not in superseded or record.seq == newest[record.author]
            }
