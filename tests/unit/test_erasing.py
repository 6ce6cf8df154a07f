"""Erasing a memory: who may, what goes, what stays, and that its bytes are in no file."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import apsw
import pytest
import trio

from memory.bodies import LinkBody, VerdictBody
from memory.erasure import proving
from memory.erasure.choosing import EraseWhat
from memory.erasure.erasing import Eraser, Outlets
from memory.errors import RefusedError
from memory.model import Claim
from memory.records.erase import BY_ID, OF_CHUNKS, OF_MEMORY, OF_RECORD
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path
    from typing import TypeVar

    from memory.erasure.report import EraseReport
    from memory.erasure.residue import Needle

    T = TypeVar("T")


class Inline:
    """Blocking work in the loop."""

    async def run(self, fn: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return fn()


class Told:
    """Stands for replication, the behaviour log and backups."""

    def __init__(self) -> None:
        self.groups: list[bytes] = []
        self.shown: list[bytes] = []
        self.shredded: list[bytes] = []

    async def tell(self, group: bytes) -> Sequence[bytes]:
        await trio.lowlevel.checkpoint()
        self.groups.append(group)
        return [b"m" * 32]

    async def forget_shown(self, ids: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        self.shown += ids

    def shred(self, ids: Sequence[bytes]) -> int:
        self.shredded += ids
        return len(ids)


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[tuple[World, Eraser, Told]]:
    """A memory with its eraser."""
    told = Told()
    async with open_world(folder) as world:
        eraser = Eraser(
            world.db,
            world.replica,
            world.clock,
            world.sealer.device,
            folder,
            Inline(),
            Outlets(told.tell, told.forget_shown, told.shred),
        )
        yield world, eraser, told


def bytes_of(folder: Path) -> bytes:
    """Every file below a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def cleaned(world: World) -> None:
    """Wait until nothing is left to clean up."""
    while True:
        if not await world.sql("SELECT 1 FROM erasing"):
            return
        await trio.sleep(0.05)


def statuses(report: EraseReport) -> list[str]:
    return [item.status for item in report.items]


async def test_what_could_not_be_searched_is_not_called_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(_folder: Path, _needles: Sequence[Needle]) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(proving, "search", failing)
    async with desk(tmp_path) as (world, eraser, _):
        ident = await world.say("the zirconium valve of pump 7 leaks")
        report = await eraser.erase(world.person, EraseWhat(ids=(ident,)))
        assert (report.state, report.residue_bytes) == ("partial", None)
        assert any("could not be searched" in note for note in report.notes)
        assert statuses(report) == ["erased"]


async def test_an_erased_memory_leaves_a_header_and_no_byte_of_text(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, told):
        ident = await world.say(
            "the zirconium valve of pump 7 leaks",
            title="pumpnote",
            tags=["quixotic"],
            claim=Claim(subject="valvesubject", attribute="leakattribute", value="leakvalue"),
            idempotency_key="keyofthevalve",
        )
        await world.say("something else altogether")
        report = await eraser.erase(world.person, EraseWhat(ids=(ident[:12],)))
        assert (report.state, report.memories, report.residue_bytes) == ("done", 1, 0)
        assert statuses(report) == ["erased"]
        assert report.may_hold == [(b"m" * 32).hex()]
        assert told.groups == [HOME]
        assert told.shown == told.shredded == [bytes.fromhex(ident)]
        assert (await world.find("zirconium")).hits == []
        assert len((await world.find("altogether")).hits) == 1
        await world.check_index()
        data = bytes_of(tmp_path)
        for word in (b"zirconium", b"pumpnote", b"quixotic", b"valvesubject", b"keyofthevalve"):
            assert word not in data
        assert await world.sql("SELECT state FROM record WHERE id = ?", bytes.fromhex(ident)) == [
            ("stub",)
        ]
        assert (tmp_path / "erased.ids").read_bytes() == bytes.fromhex(ident)
        assert await world.sql("SELECT 1 FROM erasing") == []
        again = await eraser.erase(world.person, EraseWhat(ids=(ident,)))
        assert statuses(again) == ["erased_before"]


async def test_every_table_that_names_a_memory_is_cleared(tmp_path: Path) -> None:
    """A table added later and forgotten here would keep what had to go."""
    cleared = {table for table, _ in (*OF_MEMORY, *OF_RECORD, *BY_ID)} | {*OF_CHUNKS}
    cleared.add("cell")  # made anew without the record: memory.records.cells.renew
    # Rows of these stay: the header, what is about authors and holds no text, what must remember.
    kept = {"record", "memory", "author", "control", "supersede", "body", "body_key"}
    async with open_world(tmp_path) as world:
        tables = [
            str(row[0])
            for row in await world.sql(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'"
            )
        ]
        for table in tables:
            names = {str(row[2]) for row in await world.sql(f"PRAGMA foreign_key_list({table})")}
            if names & {"memory", "chunk", "record"}:
                assert table in cleared | kept, f"{table} is not cleared by an erasure"


async def test_an_agent_erases_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        mine = await world.say("claude wrote this", world.agent("claude"))
        other = await world.say("cursor wrote that", world.agent("cursor"))
        peer = Peer(world.clock, 9).write(HOME, note_body("bob wrote it"), "invited")
        await world.replica.admit(HOME, [peer])
        what = EraseWhat(ids=(mine, other, peer.id.hex(), "ab" * 32))
        report = await eraser.erase(world.agent("claude"), what)
        found = {item.id: item.status for item in report.items}
        assert found == {
            mine: "erased",
            other: "not_yours",
            peer.id.hex(): "not_yours",
            "ab" * 32: "not_found",
        }
        assert len((await world.find("wrote")).hits) == 2
        with pytest.raises(RefusedError):
            await eraser.erase(world.agent("claude"), EraseWhat(author="cursor"))
        # By subject it reaches its own texts only.
        report = await eraser.erase(world.agent("claude"), EraseWhat(subject="wrote that"))
        assert report.memories == 0


async def test_an_agent_learns_nothing_of_a_scope_it_may_not_read(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        hidden = await world.say("elsewhere", scope="secret")
        confined = world.agent("claude", read=["main"], write=["main"])
        report = await eraser.erase(confined, EraseWhat(ids=(hidden,)))
        assert statuses(report) == ["not_found"]
        assert len((await world.find("elsewhere")).hits) == 1


async def test_a_peers_memory_is_erased_here_and_not_taken_back(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        record = Peer(world.clock, 9).write(HOME, note_body("molybdenum secret of bob"), "invited")
        await world.replica.admit(HOME, [record])
        report = await eraser.erase(world.person, EraseWhat(ids=(record.id.hex(),)))
        assert (statuses(report), report.told, report.here) == (["erased_here"], 0, 1)
        assert any("its author" in note for note in report.notes)
        (verdict,) = await world.replica.admit(HOME, [record])
        assert verdict.outcome == "duplicate"
        assert (await world.find("molybdenum")).hits == []
        assert record.envelope is not None
        assert record.envelope.ct not in bytes_of(tmp_path)


async def test_a_dry_run_lists_and_changes_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, told):
        ident = await world.say("please keep me for now", title="a title")
        report = await eraser.erase(world.person, EraseWhat(ids=(ident,)), dry_run=True)
        assert (report.state, report.memories, report.items[0].title) == ("dry_run", 1, "a title")
        assert len((await world.find("please keep")).hits) == 1
        assert (told.groups, told.shown, await world.sql("SELECT 1 FROM erased")) == ([], [], [])
        done = await eraser.erase(world.person, EraseWhat(ids=(ident,)))
        assert done.items[0].title == ""


async def test_by_author_and_by_subject(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        await world.say("one of cursor", world.agent("cursor"))
        await world.say("two of cursor", world.agent("cursor"))
        kept = await world.say("notes of Acme  Corporation ended", world.agent("claude"))
        claim = Claim(subject="ACME corporation", attribute="city", value="Oslo")
        about = await world.say("head office moved", world.agent("claude"), claim=claim)
        other = await world.say("acme corporations of old", world.agent("claude"))
        report = await eraser.erase(world.person, EraseWhat(author="cursor"))
        assert report.memories == 2
        listed = await eraser.erase(
            world.person, EraseWhat(subject="acme corporation"), dry_run=True
        )
        assert {item.id for item in listed.items} == {kept, about}
        await eraser.erase(world.person, EraseWhat(subject="acme corporation"))
        assert [hit.id for hit in (await world.find("acme corporation corporations")).hits] == [
            other
        ]


@pytest.mark.parametrize(
    "what",
    [
        EraseWhat(),
        EraseWhat(ids=("ab" * 32,), author="x"),
        EraseWhat(subject="ab"),
        EraseWhat(ids=("zz" * 32,)),
        EraseWhat(ids=("ab" * 32,) * 257),
    ],
    ids=["nothing", "two", "short subject", "no hex", "too many"],
)
async def test_a_call_that_means_nothing_is_refused(tmp_path: Path, what: EraseWhat) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        with pytest.raises(RefusedError):
            await eraser.erase(world.person, what)


async def test_what_this_device_concluded_goes_too_and_others_is_marked(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        source = await world.say("the tungsten source")
        mine = await world.say("concluded from tungsten", derived_from=[source])
        further = await world.say("concluded from the conclusion", derived_from=[mine])
        bob = Peer(world.clock, 9)
        theirs = bob.write(
            HOME, note_body("bob concluded", derived_from=[bytes.fromhex(source)]), "invited"
        )
        await world.replica.admit(HOME, [theirs])
        before = (await world.find("bob concluded")).hits[0].trust
        report = await eraser.erase(world.person, EraseWhat(ids=(source,)))
        assert (report.memories, report.derived, report.flagged) == (3, 2, 1)
        assert {item.id for item in report.items} == {source, mine, further}
        (row,) = await world.sql(
            "SELECT m.flags & 4, m.eff_trust FROM memory m JOIN record r ON r.n = m.id"
            " WHERE r.id = ?",
            theirs.id,
        )
        assert row[0] == 4
        found = await world.find("bob concluded", trust_min=0.0, quarantined=True)
        assert "parent_erased" in found.hits[0].flags
        assert float(str(row[1])) <= 0.3 < before


async def test_a_peers_erase_record_takes_own_copies_along_and_no_more(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, _, _told):
        text = "the compressor of bob leaks at the second valve"
        source = Peer(world.clock, 9).write(HOME, note_body(text), "invited")
        await world.replica.admit(HOME, [source])
        parent = [source.id.hex()]
        copy = await world.say(f"bob says {text}", derived_from=parent)
        thought = await world.say("order spare parts before the audit", derived_from=parent)
        further = await world.say("spare parts cost forty", derived_from=[copy])
        assert await world.replica.settle(HOME, erase=[(source.id, b"e" * 32, 7)]) == 2
        assert list(await world.replica.erased(HOME, world.sealer.device)) == [bytes.fromhex(copy)]
        left = await world.memory.get(world.person, [thought, further])
        assert [hit.id for hit in left.hits] == [thought, further]
        assert all("parent_erased" in hit.flags for hit in left.hits)


async def test_taking_back_what_was_just_used_is_evidence_against_a_foreign_author(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as (world, _, _told):
        bob = Peer(world.clock, 9)
        used, unused = (bob.write(HOME, note_body(f"note {n}"), "invited") for n in (1, 2))
        await world.replica.admit(HOME, [used, unused])
        await world.db.write(
            lambda c: c.execute(
                "UPDATE memory SET uses = 1, used_ms = ? WHERE id ="
                " (SELECT n FROM record WHERE id = ?)",
                (world.clock.ms, used.id),
            ).fetchall()
        )
        hlc = (world.clock.ms + 60_000) << 16
        erase = [(record.id, b"e" * 32, hlc) for record in (used, unused)]
        await world.replica.settle(HOME, erase=erase)
        assert await world.sql("SELECT kind FROM evidence") == [("quick_erase",)]


async def test_an_erased_successor_gives_back_what_it_replaced(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        old = await world.say("node 20")
        new = await world.say("node 22", supersedes=[old])
        await eraser.erase(world.person, EraseWhat(ids=(new,)))
        (hit,) = (await world.find("node")).hits
        assert (hit.id, hit.flags) == (old, [])


async def test_an_erased_link_or_verdict_takes_its_effect_along(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, _, _told):
        bob = Peer(world.clock, 9)
        old, new = (bob.write(HOME, note_body(f"version {n}"), "invited") for n in (1, 2))
        link = bob.write(HOME, LinkBody("bob", new.id, old.id, "supersedes", "why"), "invited")
        verdict = bob.write(
            HOME, VerdictBody("bob", old.id, "wrong", "outcome", None, "my reason"), "invited"
        )
        await world.replica.admit(HOME, [old, new, link, verdict])
        assert len(await world.sql("SELECT 1 FROM evidence WHERE rec IS NOT NULL")) == 1
        erase = [(link.id, b"e" * 32, 7), (verdict.id, b"e" * 32, 7)]
        assert await world.replica.settle(HOME, erase=erase) == 2
        assert await world.sql("SELECT 1 FROM link UNION ALL SELECT 1 FROM evidence") == []
        assert await world.sql("SELECT DISTINCT status FROM memory") == [("active",)]


# ---- open readers, crashes, restored images


async def test_an_open_reader_makes_it_partial_until_it_ends(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        ident = await world.say("the palladium key is in the drawer")
        other = apsw.Connection(str(tmp_path / "covey.db"))
        other.execute("BEGIN").fetchall()
        other.execute("SELECT count(*) FROM chunk").fetchall()
        report = await eraser.erase(world.person, EraseWhat(ids=(ident,)))
        assert report.state == "partial"
        assert any("another process" in note for note in report.notes)
        assert await world.sql("SELECT count(*) FROM erasing") == [(1,)]
        other.execute("COMMIT").fetchall()
        other.close()
        async with trio.open_nursery() as nursery:
            await nursery.start(eraser.run)
            with trio.fail_after(10):
                await cleaned(world)
            nursery.cancel_scope.cancel()
        assert b"palladium" not in bytes_of(tmp_path)


async def test_what_a_crash_left_is_cleaned_at_the_next_start(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, _, _told):
        ident = await world.say("the osmium ring")
        await world.replica.settle(HOME, erase=[(bytes.fromhex(ident), bytes(32), 0)])
    async with desk(tmp_path) as (world, eraser, told):
        async with trio.open_nursery() as nursery:
            await nursery.start(eraser.run)
            with trio.fail_after(10):
                await cleaned(world)
            nursery.cancel_scope.cancel()
        assert told.shredded == [bytes.fromhex(ident)]
    assert b"osmium" not in bytes_of(tmp_path)


async def test_a_cancelled_call_is_finished_by_the_task(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, told), trio.open_nursery() as nursery:
        await nursery.start(eraser.run)
        ident = await world.say("the iridium spring")
        with trio.CancelScope() as scope:

            async def progress(done: int, total: int | None, message: str) -> None:
                del done, total, message
                await trio.lowlevel.checkpoint()
                scope.cancel()

            await eraser.erase(world.person, EraseWhat(ids=(ident,)), progress=progress)
        assert scope.cancelled_caught
        with trio.fail_after(10):
            await cleaned(world)
        assert told.shredded == [bytes.fromhex(ident)]
        nursery.cancel_scope.cancel()


async def test_a_restored_image_is_erased_again_from_the_list_of_ids(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    async with desk(folder) as (world, _, _told):
        ident = await world.say("the rhodium plate")
        await world.say("to be kept")
        assert await world.db.settle_wal()
        image = (folder / "covey.db").read_bytes()
    async with desk(folder) as (world, eraser, _):
        await eraser.erase(world.person, EraseWhat(ids=(ident,)))
    (folder / "covey.db").write_bytes(image)
    async with desk(folder) as (world, eraser, _):
        assert ident in [hit.id for hit in (await world.find("rhodium")).hits]
        assert await world.replica.recover_erased() == 1
        assert (await world.find("rhodium")).hits == []
        assert await eraser.clean_up() == (True, 1)
        assert b"rhodium" not in bytes_of(folder)
        assert len((await world.find("kept")).hits) == 1


async def test_a_file_that_lacks_ids_catches_up_and_a_torn_end_is_cut(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        first = await world.say("first note")
        second = await world.say("second note")
        await eraser.erase(world.person, EraseWhat(ids=(first,)))
    path = tmp_path / "erased.ids"
    path.write_bytes(b"torn")
    async with desk(tmp_path) as (world, eraser, _):
        assert await world.replica.recover_erased() == 0
        assert path.read_bytes() == bytes.fromhex(first)
        await eraser.erase(world.person, EraseWhat(ids=(second,)))
        assert path.read_bytes() == bytes.fromhex(first) + bytes.fromhex(second)


async def test_an_id_that_cannot_be_written_down_leaves_the_erasure_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        ident = await world.say("the note")

        def refuse(*_: object) -> int:
            raise OSError(28, "no space")

        with monkeypatch.context() as patched:
            patched.setattr("memory.storage.erasedids.os.pwrite", refuse)
            report = await eraser.erase(world.person, EraseWhat(ids=(ident,)))
        assert report.state == "partial"
        await world.say("any later commit")
        assert (tmp_path / "erased.ids").read_bytes() == bytes.fromhex(ident)
        assert await eraser.clean_up() == (True, 1)


# ---- controls: the same search finds what is left when a guard is off


async def _erased_with(folder: Path, weaken: str) -> EraseReport:
    """Erase thirty texts in a database one of whose guards is off."""
    async with desk(folder) as (world, eraser, _):
        await world.db.write(lambda c: c.execute(weaken).fetchall())
        for n in range(200):
            await world.say(f"filler{n:04} padding{n:04} to spread the index over pages")
        ids = [
            await world.say(f"peculiar{n:03}quartz mineral{n:03}sample " + f"body{n:03}text " * 40)
            for n in range(30)
        ]
        return await eraser.erase(world.person, EraseWhat(ids=tuple(ids)))


async def test_with_both_guards_nothing_is_found(tmp_path: Path) -> None:
    report = await _erased_with(tmp_path, "SELECT 1")
    assert (report.residue_bytes, report.residue) == (0, [])
    assert report.scanned_files >= 3


@pytest.mark.parametrize(
    "weaken",
    ["PRAGMA secure_delete=OFF", "INSERT INTO main_fts(main_fts, rank) VALUES('secure-delete', 0)"],
    ids=["the pragma", "the index"],
)
async def test_control_without_a_guard_the_search_finds_residue(
    tmp_path: Path, weaken: str
) -> None:
    report = await _erased_with(tmp_path, weaken)
    assert report.state == "partial"
    assert report.residue_bytes


async def test_a_word_that_a_living_memory_uses_is_excluded_with_a_note(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        gone = await world.say("chrysanthemum")
        await world.say("the chrysanthemum of another note")
        report = await eraser.erase(world.person, EraseWhat(ids=(gone,)))
        assert report.residue_bytes == 0
        assert report.excluded
        assert all("living" in found.explained for found in report.excluded)


async def test_a_copy_in_a_log_is_found(tmp_path: Path) -> None:
    async with desk(tmp_path) as (world, eraser, _):
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "daemon.log").write_text("x" * 100 + "the tantalum-47 recipe" + "y")
        ident = await world.say("the tantalum-47 recipe")
        report = await eraser.erase(world.person, EraseWhat(ids=(ident,)))
        assert report.state == "partial"
        assert {found.file for found in report.residue} == {"logs/daemon.log"}
        assert min(found.offset for found in report.residue) == 100
