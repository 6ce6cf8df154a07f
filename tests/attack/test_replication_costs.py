"""Members that have us verify what is good for nothing, or read what nobody can take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from p2p.replication.config import ReplicationConfig
from p2p.replication.messages import WantBodies
from p2p.replication.push import Outbox
from p2p.replication.record import RecordWire
from p2p.replication.wires import FETCH_IDS
from tests.attack.test_replication_attacks import Town, hostile_texts, play, town
from tests.helpers.chains import PlainDraft
from tests.helpers.hostile import Pen, push_records, send_push
from tests.helpers.mesh import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.store import Stored
    from tests.helpers.mesh import Peer

pytestmark = pytest.mark.attack

CONFIG = replace(ReplicationConfig.test(), records_burst=200, records_per_min=60)


async def fork(t: Town, pen: Pen) -> Pen:
    """Mallory forks a log of its, and it is proven; the pen goes on in it."""
    pen.write()
    twin = pen.twin()
    both = [pen.write(body=b"hostile left"), twin.write(body=b"hostile right")]
    await push_records(t.mallory, t.alice, t.group, both)
    await wait_until(lambda: bool(t.bob.named("fork.detected")))
    return pen


def count_verified(peer: Peer) -> list[bytes]:
    """Who signed what a node verifies from now on, one entry a signature."""
    admission = peer.replication._core.admission
    verify, seen = admission._verify, []

    def counting(key: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        seen.append(key)
        return verify(key, domain, body, signature)

    admission._verify = counting
    return seen


def test_what_lies_above_a_fork_is_not_verified_and_counted_all_the_same() -> None:
    async def attack() -> None:
        async with town(config=CONFIG) as t:
            pen = await fork(t, Pen(t.mallory, t.group))
            verified = count_verified(t.alice)
            flood = [pen.write(body=f"hostile {n}".encode()) for n in range(600)]
            await push_records(t.mallory, t.alice, t.group, flood)
            quota = t.alice.replication._core.quota
            await wait_until(lambda: not quota.may_ask(t.mallory.id, t.alice.env.now()))
            assert verified.count(t.mallory.id) == 0
            assert hostile_texts(t.alice, t.group) == []
            await t.still_works()

    play(attack)


def test_verified_and_of_no_use_counts_as_much_as_stored() -> None:
    """Other histories of places that are taken: evidence at best, and no cheaper to look at."""

    async def attack() -> None:
        async with town(config=CONFIG) as t:
            pens = [Pen(t.mallory, t.group, incarnation=4_000_000_000 + n) for n in range(400)]
            twins = [pen.twin() for pen in pens]
            first = [pen.write(body=b"hostile left") for pen in pens]
            held = t.alice.replication._core.groups.get(t.group)
            assert held is not None
            core = t.alice.replication._core
            async with core.keeper.turn(held):
                for at in range(0, 400, 100):
                    wires = [record.wire() for record in first[at : at + 100]]
                    await core.admission.admit(held, wires, None)
            verified = count_verified(t.alice)
            flood = [twin.write(body=b"hostile right") for twin in twins]
            await push_records(t.mallory, t.alice, t.group, flood)
            await wait_until(lambda: not core.quota.may_ask(t.mallory.id, t.alice.env.now()))
            assert verified.count(t.mallory.id) < 300
            await t.still_works()

    play(attack)


def test_one_question_by_id_reads_a_little_at_a_time_and_no_more_than_can_wait() -> None:
    async def attack() -> None:
        async with town() as t:
            drafts = [PlainDraft(32, bytes(60_000)) for _ in range(200)]
            ids = tuple(await t.alice.store.append(t.group, drafts))
            await wait_until(lambda: len(t.mallory.disk.rows) >= 200)
            fetch, reads = t.alice.store.fetch, []
            outbox = t.alice.replication._driver._peers[t.mallory.id].outbox
            waiting = 0

            async def counting(asked: Sequence[bytes], *, bodies: bool) -> Sequence[Stored]:
                nonlocal waiting
                reads.append(len(asked))
                waiting = max(waiting, outbox._bytes)
                return await fetch(asked, bodies=bodies)

            t.alice.store.fetch = counting  # type: ignore[method-assign, assignment]
            questions = [WantBodies(t.group, ids)] * 20
            await send_push(t.mallory, t.alice, questions)
            assert max(reads) <= FETCH_IDS
            assert 0 < waiting <= CONFIG.push_queue_bytes_max
            assert sum(reads) < 20 * len(ids) / 2
            await t.still_works()

    play(attack)


def test_an_outbox_says_when_nothing_more_fits() -> None:
    box = Outbox(replace(CONFIG, push_queue_records_max=4, push_queue_bytes_max=1_000))
    small, large = (RecordWire(b"h", b"s", bytes(size)) for size in (10, 600))
    assert box.has_room
    box.put(b"g", small)
    assert box.has_room
    box.put(b"g", small)
    assert not box.has_room
    box.take()
    assert box.has_room
    box.put(b"g", large)
    assert not box.has_room
