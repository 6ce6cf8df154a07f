"""Hostile members and strangers against honest replicas.

Every attack runs against whole nodes over MemNet; what is asserted is what the honest ones hold,
tell and go on doing afterwards.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.identity import Identity, PeerId
from p2p.replication import session
from p2p.replication.events import GroupError
from p2p.replication.heads import group_tag, session_salt, short_id
from p2p.replication.messages import (
    Ask,
    Done,
    Error,
    FrameReader,
    Groups,
    HeadEntry,
    Heads,
    Hello,
    Records,
    State,
    Want,
    encode_frame,
)
from p2p.replication.ops import Grant, Kind, Role, encode_payload
from p2p.replication.record import record_id
from tests.helpers.det import run_seeded
from tests.helpers.hostile import Liar, Pen, forged, push_records, refused, with_body
from tests.helpers.mesh import Mesh, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from p2p.replication.config import ReplicationConfig
    from tests.helpers.mesh import Peer

pytestmark = pytest.mark.attack


@dataclass
class Town:
    """Two honest members and one who is not."""

    mesh: Mesh
    group: bytes
    alice: Peer
    bob: Peer
    mallory: Peer

    async def still_works(self) -> None:
        """An honest write still reaches the other honest member."""
        text = f"still here at {trio.current_time()}"
        await self.alice.write(self.group, text)
        await wait_until(lambda: text in self.bob.texts(self.group))


@asynccontextmanager
async def town(
    role: Role | None = Role.WRITE, config: ReplicationConfig | None = None
) -> AsyncIterator[Town]:
    """A group of Alice and Bob; Mallory is in it with `role`, or a connected stranger (None)."""
    mesh = Mesh(7, config)
    alice, bob, mallory = (mesh.peer(name) for name in ("alice", "bob", "mallory"))
    async with AsyncExitStack() as stack:
        for peer in (alice, bob, mallory):
            await stack.enter_async_context(peer.running())
        group = (await alice.replication.create_group("team")).group
        for peer, its_role in ((bob, Role.ADMIN), (mallory, role)):
            if its_role is not None:
                invite = await alice.replication.create_invite(group, role=its_role)
                await peer.replication.join(invite.ticket)
        if role is None:
            await mallory.node.fabric.connect(PeerId(alice.id), [alice.addr])
            await mallory.node.fabric.connect(PeerId(bob.id), [bob.addr])
        members = [alice, bob, mallory] if role is not None else [alice, bob]
        await wait_until(lambda: len({peer.roots(group) for peer in members}) == 1)
        await wait_until(
            lambda: all(len(peer.node.fabric.peers()) >= len(members) - 1 for peer in members)
        )
        yield Town(mesh, group, alice, bob, mallory)
        for peer in (alice, bob):
            assert peer.node.fabric.counters()["handler_errors"] == 0, "a handler failed"


def play(attack: Callable[[], Awaitable[None]]) -> None:
    """Run an attack under virtual time."""
    run_seeded(attack, seed=1)


def hostile_texts(peer: Peer, group: bytes) -> list[str]:
    """Texts of an honest peer that only an attack can have put there."""
    return [text for text in peer.texts(group) if "hostile" in text]


def test_a_forged_signature_is_refused_and_told() -> None:
    async def attack() -> None:
        async with town() as t:
            record = Pen(t.mallory, t.group).write()
            await push_records(t.mallory, t.alice, t.group, [forged(record)])
            await refused(t.alice, "signature")
            (event,) = t.alice.named("record.refused")
            assert event.data["peer"] == t.mallory.id
            assert event.data["author"] == t.mallory.id
            assert event.data["id"] == record.id
            assert hostile_texts(t.alice, t.group) == []
            await t.still_works()

    play(attack)


def test_a_strangers_record_is_refused_whoever_brings_it() -> None:
    async def attack() -> None:
        async with town() as t:
            stranger = Identity.generate(t.mallory.env.rng)
            record = Pen(t.mallory, t.group, identity=stranger).write()
            await push_records(t.mallory, t.alice, t.group, [record])
            await refused(t.alice, "stranger")
            assert hostile_texts(t.alice, t.group) == []
            await t.still_works()

    play(attack)


def test_a_stranger_can_push_nothing_but_control_records() -> None:
    async def attack() -> None:
        async with town(None) as t:
            stranger = Identity.generate(t.mallory.env.rng)
            pen = Pen(t.alice, t.group, identity=stranger)
            await push_records(t.mallory, t.bob, t.group, [pen.write()])
            await trio.sleep(5)
            assert t.bob.named("record.refused") == []  # not even looked at
            grant = encode_payload(Grant(stranger.id, Role.ADMIN))
            await push_records(t.mallory, t.bob, t.group, [pen.write(Kind.GRANT, grant)])
            await refused(t.bob, "stranger")
            assert stranger.id not in {m.member for m in t.bob.replication.members(t.group)}

    play(attack)


def test_what_a_reader_writes_never_counts() -> None:
    async def attack() -> None:
        async with town(Role.READ) as t:
            record = Pen(t.mallory, t.group).write()
            await push_records(t.mallory, t.alice, t.group, [record])
            await wait_until(lambda: record.id in t.alice.disk.rows)
            assert t.alice.disk.rows[record.id].state == "void"
            assert hostile_texts(t.alice, t.group) == []
            await t.still_works()
            assert t.alice.roots(t.group)[1] == t.bob.roots(t.group)[1]

    play(attack)


def test_a_backdated_grant_makes_nobody_a_member() -> None:
    async def attack() -> None:
        async with town() as t:
            pen = Pen(t.mallory, t.group)
            accomplice = Identity.generate(t.mallory.env.rng)
            grant = encode_payload(Grant(accomplice.id, Role.ADMIN))
            # It cites only the genesis, as if written before anything else was known.
            early = pen.write(Kind.GRANT, grant, auth=(t.group,), hlc=(1 << 16) * 1_700_000_000_001)
            await push_records(t.mallory, t.alice, t.group, [early])
            await trio.sleep(5)
            mine = pen.write(Kind.GRANT, grant)
            await push_records(t.mallory, t.alice, t.group, [mine])
            await trio.sleep(5)
            for peer in (t.alice, t.bob):
                members = {m.member for m in peer.replication.members(t.group)}
                assert accomplice.id not in members
            await t.still_works()

    play(attack)


def test_a_used_ticket_lets_nobody_in_and_alarms_its_owner() -> None:
    async def attack() -> None:
        async with town(None) as t:
            invite = await t.alice.replication.create_invite(t.group)
            carol = t.mesh.peer("carol")
            async with carol.running():
                await carol.replication.join(invite.ticket)
                with pytest.raises(GroupError) as caught:
                    await t.mallory.replication.join(invite.ticket)
            assert caught.value.reason == "ticket_used"
            assert t.alice.named("group.ticket_reused")
            assert t.mallory.id not in {m.member for m in t.alice.replication.members(t.group)}
            assert t.mallory.replication.groups() == []

    play(attack)


def test_a_replayed_join_of_somebody_else_is_refused() -> None:
    async def attack() -> None:
        async with town(None) as t:
            invite = await t.alice.replication.create_invite(t.group, uses=2)
            carol = t.mesh.peer("carol")
            async with carol.running():
                joined = await carol.replication.join(invite.ticket)
                assert joined.state == "pending"
                (waiting,) = t.alice.replication.pending()
                (row,) = await t.alice.store.fetch([waiting.join_id], bodies=True)
                key = t.alice.replication._core.groups.get(t.group)
                assert key is not None
                view = key.standing.invites()[invite.invite_id]
                stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), "/covey/join/1")
                await stream.send_all(encode_frame(Ask(t.group, view.invite.invite_key)))
                await stream.send_all(encode_frame(Records(t.group, (session.wire_of(row),))))
                answers = await read_all(stream)
            assert isinstance(answers[-1], Error)
            assert t.mallory.id not in {m.member for m in t.alice.replication.members(t.group)}

    play(attack)


def test_an_expired_ticket_is_refused_by_the_members_own_clock() -> None:
    async def attack() -> None:
        async with town(None) as t:
            invite = await t.alice.replication.create_invite(t.group, expires_s=60)
            t.mallory.env.offset_ms = -3_600_000  # its own clock says that there is time
            await trio.sleep(61)
            with pytest.raises(GroupError) as caught:
                await t.mallory.replication.join(invite.ticket)
            assert caught.value.reason in {"ticket_expired", "invite_closed"}
            assert len(t.alice.replication.members(t.group)) == 2

    play(attack)


def test_after_five_refusals_the_join_door_is_silent() -> None:
    async def attack() -> None:
        async with town(None) as t:
            answers = []
            for _ in range(7):
                stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), "/covey/join/1")
                try:
                    await stream.send_all(encode_frame(Ask(t.group, bytes(31) + b"\1")))
                    answers.append(await read_all(stream))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    answers.append([])
            assert [len(a) for a in answers] == [1, 1, 1, 1, 1, 0, 0]

    play(attack)


def test_two_histories_become_evidence_on_every_honest_node() -> None:
    async def attack() -> None:
        async with town() as t:
            pen = Pen(t.mallory, t.group)
            common = [pen.write(body=f"common {n}".encode()) for n in range(3)]
            twin = pen.twin()
            left = [pen.write(body=f"hostile left {n}".encode()) for n in range(70)]
            right = [twin.write(body=f"hostile right {n}".encode()) for n in range(70)]
            # One branch to each, while the honest ones cannot talk to each other.
            t.mesh.net.partition(t.alice.ip, t.bob.ip)
            await push_records(t.mallory, t.alice, t.group, [*common, *left])
            await push_records(t.mallory, t.bob, t.group, [*common, *right])
            await wait_until(lambda: len(hostile_texts(t.alice, t.group)) == 70)
            await wait_until(lambda: len(hostile_texts(t.bob, t.group)) == 70)
            t.mesh.net.heal()
            for peer in (t.alice, t.bob):
                await wait_until(lambda peer=peer: bool(peer.named("fork.detected")))
                events = peer.named("fork.detected")
                assert {e.data["author"] for e in events} == {t.mallory.id}
                assert min(int(e.data["seq"] or 0) for e in events) == 4
            await wait_until(lambda: t.alice.roots(t.group) == t.bob.roots(t.group))
            for peer in (t.alice, t.bob):
                assert hostile_texts(peer, t.group) == []
                assert sum("common" in text for text in peer.texts(t.group)) == 3
            await t.still_works()

    play(attack)


def test_a_fork_shown_in_one_push_is_proven_at_once() -> None:
    async def attack() -> None:
        async with town() as t:
            pen = Pen(t.mallory, t.group)
            pen.write()
            twin = pen.twin()
            left, right = pen.write(body=b"hostile left"), twin.write(body=b"hostile right")
            await push_records(t.mallory, t.alice, t.group, [left, right])
            await wait_until(lambda: bool(t.bob.named("fork.detected")))
            assert hostile_texts(t.alice, t.group) == []
            await t.still_works()

    play(attack)


def test_a_record_from_the_future_waits_and_moves_no_clock() -> None:
    async def attack() -> None:
        async with town() as t:
            ahead_ms = t.alice.env.wall_ms() + 3_600_000
            record = Pen(t.mallory, t.group).write(hlc=ahead_ms << 16)
            before = t.alice.sealer.hlc
            await push_records(t.mallory, t.alice, t.group, [record])
            await wait_until(lambda: bool(t.alice.named("clock.skew")))
            assert t.alice.sealer.hlc == before
            assert record.id not in t.alice.disk.rows
            assert t.alice.named("record.refused") == []
            await t.still_works()
            assert t.alice.sealer.hlc >> 16 <= t.alice.env.wall_ms() + 600_000
            # When its time has come (less ten minutes) it counts like any other.
            await trio.sleep(3_100)
            await wait_until(lambda: record.id in t.alice.disk.rows)
            assert t.alice.disk.rows[record.id].state == "live"
            await wait_until(lambda: t.alice.roots(t.group) == t.bob.roots(t.group))

    play(attack)


def test_a_body_that_is_not_the_committed_one_is_refused_the_header_kept() -> None:
    async def attack() -> None:
        async with town() as t:
            record = Pen(t.mallory, t.group).write()
            await push_records(
                t.mallory, t.alice, t.group, [with_body(record, b"\x92\xc4\0\xc4\0")]
            )
            await refused(t.alice, "body")
            await wait_until(lambda: record.id in t.alice.disk.rows)
            assert t.alice.disk.rows[record.id].envelope is None
            await push_records(t.mallory, t.alice, t.group, [record])
            await wait_until(lambda: t.alice.disk.rows[record.id].envelope is not None)

    play(attack)


def test_three_refused_records_end_the_connection_for_a_while() -> None:
    async def attack() -> None:
        async with town() as t:
            records = [forged(Pen(t.mallory, t.group).write()) for _ in range(3)]
            await push_records(t.mallory, t.alice, t.group, records)
            await refused(t.alice, "signature", 3)
            late = Pen(t.mallory, t.group, incarnation=5).write()
            await push_records(t.mallory, t.alice, t.group, [late])
            await trio.sleep(1)
            assert t.alice.replication._core.quota.banned(t.mallory.id, t.alice.env.now())
            await t.still_works()

    play(attack)


def test_a_flood_is_throttled_and_bystanders_are_served() -> None:
    async def attack() -> None:
        from dataclasses import replace

        from p2p.replication.config import ReplicationConfig

        config = replace(ReplicationConfig.test(), records_burst=200, records_per_min=60)
        async with town(config=config) as t:
            pen = Pen(t.mallory, t.group)
            flood = [pen.write(body=f"hostile {n}".encode()) for n in range(600)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(push_records, t.mallory, t.alice, t.group, flood)
                await t.still_works()
            quota = t.alice.replication._core.quota
            await wait_until(lambda: not quota.may_ask(t.mallory.id, t.alice.env.now()))
            await t.still_works()

    play(attack)


def test_a_log_that_begins_at_the_end_of_the_numbers_costs_rounds_and_no_more() -> None:
    async def attack() -> None:
        async with town() as t:
            pen = Pen(t.mallory, t.group)
            far = pen.write(seq=2**62, prev=b"p" * 32)
            await push_records(t.mallory, t.alice, t.group, [far])
            await push_records(t.mallory, t.bob, t.group, [pen.write(seq=2**61, prev=b"p" * 32)])
            await wait_until(lambda: far.id in t.alice.disk.rows)
            (result,) = await t.alice.replication.sync_now(t.group, t.bob.id)
            assert result.rounds <= 32
            await wait_until(lambda: t.alice.roots(t.group) == t.bob.roots(t.group))
            await t.still_works()

    play(attack)


def test_garbage_ends_its_own_stream_only() -> None:
    async def attack() -> None:
        async with town() as t:
            for protocol in ("/covey/sync/1", "/covey/push/1", "/covey/join/1"):
                for data in (b"\xff" * 64, b"\0\0\0\5hello", b"\0\1\0\0" + b"\x91" * 65_536):
                    stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), protocol)
                    try:
                        await stream.send_all(data)
                        await read_all(stream)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass
            await t.still_works()

    play(attack)


# --- lies inside a session --------------------------------------------------------------------


async def read_all(stream: trio.abc.Stream) -> list[object]:
    """Messages up to the end of the stream."""
    reader, found = FrameReader(), []
    with trio.move_on_after(40):
        while data := await stream.receive_some(65_536):
            reader.feed(bytes(data))
            while (message := reader.next_message_untrusted()) is not None:
                found.append(message[0])
    return found


def test_a_stranger_learns_of_no_group() -> None:
    async def attack() -> None:
        async with town(None) as t:
            stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), "/covey/sync/1")
            liar = Liar(stream)
            await liar.send(Hello(1, 1, (), b"n" * 16))
            await liar.receive(Hello)
            groups = await liar.receive(Groups)
            assert isinstance(groups, Groups)
            assert groups.tags == ()
            salt = session_salt(b"n" * 16, bytes(16))
            assert group_tag(salt, t.group) not in groups.tags

    play(attack)


def test_an_echoed_root_proves_nothing() -> None:
    async def attack() -> None:
        async with town() as t:
            stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), "/covey/sync/1")
            liar = Liar(stream)
            tag, state = await liar.greet()
            await liar.send(State(tag, state.control_root, state.data_root))
            # Were it taken for equality, the session would be over; instead it compares heads.
            heads = await liar.receive(Heads)
            assert isinstance(heads, Heads)
            await stream.aclose()

            def told() -> bool:
                events = t.alice.named("sync.finished")
                return any(e.data["peer"] == t.mallory.id and not e.data["equal"] for e in events)

            await wait_until(told)

    play(attack)


def test_ids_that_are_listed_and_not_delivered_are_counted_and_told() -> None:
    async def attack() -> None:
        async with town() as t:
            for _ in range(3):
                stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), "/covey/sync/1")
                await lie_about_heads(Liar(stream))
                await stream.aclose()
            await wait_until(lambda: bool(t.alice.named("sync.withheld")))
            assert t.alice.replication._core.quota.asked_last(t.mallory.id, t.alice.env.now())
            await t.still_works()

    play(attack)


def test_nobody_makes_a_device_believe_that_its_logs_are_longer_than_it_knows() -> None:
    """It would begin a new log at each such word. Only a record that it signed proves it."""

    async def attack() -> None:
        async with town() as t:
            await t.alice.write(t.group, "in the log in force")
            held = t.alice.replication._core.groups.get(t.group)
            assert held is not None
            before = list(held.incarnations)
            for incarnation in (before[1], before[1] + 1):
                stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), "/covey/sync/1")
                await lie_about_heads(Liar(stream), t.alice.id, incarnation)
                await stream.aclose()
            await wait_until(lambda: bool(t.alice.named("sync.finished")))
            assert held.incarnations == before
            assert not t.alice.named("own_log.restored")
            await t.still_works()

    play(attack)


async def lie_about_heads(
    liar: Liar, author: bytes = record_id(b"nobody"), incarnation: int = 9
) -> None:
    """Claim a log of 50 records and deliver none of it."""
    tag, state = await liar.greet()
    del state
    await liar.send(State(tag, bytes(32), bytes(32)))
    control = await liar.receive(Heads)
    assert isinstance(control, Heads)
    await liar.send(Heads(tag, 0, control.entries))
    await liar.receive(Records)
    await liar.send(Records(tag, ()))
    await liar.receive(State)
    await liar.send(State(tag, bytes(32), bytes(32)))
    await liar.receive(Heads)
    short = short_id(liar.salt, author)
    await liar.send(Heads(tag, 1, (HeadEntry(short, incarnation, 50, 50, b"h" * 8),)))
    want = await liar.receive(Want)
    assert isinstance(want, Want)
    assert want.ranges[0].last == 50
    await liar.send(Records(tag, ()))
    await liar.send(Want(tag, ()))
    await liar.receive(Done)
    from p2p.replication.messages import Counts

    await liar.send(Done(tag, bytes(32), Counts(0, 0)))
    await liar.receive(Done)
    await liar.send(Done(tag, bytes(32), Counts(0, 0)))
    assert await read_all(liar.stream) == []


def test_records_nobody_asked_for_end_the_session() -> None:
    async def attack() -> None:
        async with town() as t:
            stream = await t.mallory.node.fabric.open(PeerId(t.alice.id), "/covey/sync/1")
            liar = Liar(stream)
            tag, _ = await liar.greet()
            record = Pen(t.mallory, t.group).write()
            await liar.send(Records(tag, (record.wire(),)))
            error = await liar.receive(Error)
            assert isinstance(error, Error)
            assert record.id not in t.alice.disk.rows
            await t.still_works()

    play(attack)
