"""The memory against a plain dictionary: any sequence of calls, crashes between them included."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.bodies import ForgetBody, LinkBody
from memory.errors import RefusedError
from memory.model import NoteIn
from memory.store import Filter
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

AGENTS = ("claude", "cursor", "")
SCOPES = ("main", "work", "team/x")
WORDS = ("apple", "pear", "plum", "fig")

agents = st.sampled_from(AGENTS)
places = st.integers(0, 30)
steps = st.one_of(
    st.tuples(
        st.just("say"), agents, st.sampled_from(SCOPES), st.sampled_from(WORDS), st.integers(0, 3)
    ),
    st.tuples(st.just("key"), agents, st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("replace"), agents, places, st.integers(0, 99)),
    st.tuples(st.just("forget"), agents, places),
    st.tuples(st.just("peer"), st.integers(0, 1), st.sampled_from(["invited", "other"])),
    st.tuples(st.just("peer_replaces"), st.integers(0, 1), places),
    st.tuples(st.just("peer_forgets"), st.integers(0, 1), places),
    st.tuples(st.just("void"), places),
    st.tuples(st.just("revive"), places),
    st.tuples(st.just("relate"), st.integers(0, 1), st.sampled_from(["invited", "other"])),
    st.tuples(st.just("restart")),
)


@dataclass
class Note:
    """What the model knows of a memory."""

    id: bytes
    text: str
    scope: str
    writer: str  # "own:<agent>" or "peer:<n>"
    hlc: int
    void: bool = False
    hidden: bool = False

    @property
    def owner(self) -> str:
        return "own" if self.writer.startswith("own:") else self.writer


@dataclass
class Model:
    """All of it, in the plainest form."""

    notes: list[Note] = field(default_factory=list)
    replaced: list[tuple[str, Note, Note]] = field(default_factory=list)  # (who, new, old)
    forgotten: list[tuple[str, Note]] = field(default_factory=list)
    keys: dict[tuple[str, str], Note] = field(default_factory=dict)
    relations: dict[int, str] = field(default_factory=dict)

    def status(self, note: Note) -> str:
        if note.hidden:
            return "hidden"
        if any(target is note and who == note.owner for who, target in self.forgotten):
            return "forgotten"
        for who, new, old in self.replaced:
            says = "own" if who.startswith("own:") else who
            if (
                old is note
                and new is not note
                and (says == note.owner or who == "own:")
                and (note.writer != "own:" or who == "own:")
                and new.hlc >= old.hlc
                and not new.void
                and self.status(new) not in ("forgotten", "hidden")
            ):
                return "superseded"
        return "active"

    def trust(self, note: Note) -> float:
        if note.writer == "own:":
            return 1.0
        if note.owner == "own":
            return 0.86
        return {"invited": 0.533, "other": 0.3}[self.relations[int(note.writer[5:])]]

    def shown(self) -> set[bytes]:
        return {
            note.id
            for note in self.notes
            if not note.void and self.status(note) in ("active", "superseded")
        }


class Run:
    """Carries steps out on both sides and compares."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = Model()
        self.world: World | None = None
        self.peers: list[Peer] = []

    async def go(self, sequence: list[tuple[Any, ...]]) -> None:
        sessions: list[list[tuple[Any, ...]]] = [[]]
        for step in sequence:
            if step[0] == "restart":
                sessions.append([])
            else:
                sessions[-1].append(step)
        for session in sessions:
            async with open_world(self.folder, inline=True) as world:
                world.clock.ms += 1000 * len(self.model.notes)
                self.world = world
                if not self.peers:
                    self.peers = [Peer(world.clock, 70), Peer(world.clock, 71)]
                for peer in self.peers:
                    peer.sealer.wall_ms = world.clock.wall_ms
                for step in session:
                    await getattr(self, f"do_{step[0]}")(*step[1:])
                await self.compare(world)

    def at(self, place: int) -> Note | None:
        return self.model.notes[place % len(self.model.notes)] if self.model.notes else None

    def caller(self, agent: str) -> Any:
        assert self.world is not None
        return self.world.agent(agent) if agent else self.world.person

    async def do_say(self, agent: str, scope: str, word: str, n: int) -> None:
        await self._say(agent, NoteIn(text=f"{word} {n}", scope=scope))

    async def _say(self, agent: str, note: NoteIn) -> Note:
        assert self.world is not None
        (done,) = await self.world.memory.remember(self.caller(agent), [note])
        record_id = bytes.fromhex(done.id)
        same = [
            known
            for known in self.model.notes
            if known.writer == f"own:{agent}"
            and (known.text, known.scope) == (note.text, note.scope)
            and self.model.status(known) == "active"
            and not known.void
        ]
        if done.status == "duplicate":
            assert [known.id for known in same] == [record_id] or note.idempotency_key
            return next(known for known in self.model.notes if known.id == record_id)
        assert same == []
        ((hlc,),) = await self.world.sql("SELECT hlc FROM record WHERE id = ?", record_id)
        made = Note(record_id, note.text, note.scope or "main", f"own:{agent}", hlc)
        self.model.notes.append(made)
        return made

    async def do_key(self, agent: str, key: int, n: int) -> None:
        text, name = f"keyed {n}", f"k{key}"
        known = self.model.keys.get((agent, name))
        note = NoteIn(text=text, scope="main", idempotency_key=name)
        if known is not None and known.text != text:
            with pytest.raises(RefusedError):
                await self._say(agent, note)
            return
        made = await self._say(agent, note)
        assert known is None or made is known
        self.model.keys[agent, name] = made

    async def do_replace(self, agent: str, place: int, n: int) -> None:
        old = self.at(place)
        if old is None:
            return
        note = NoteIn(text=f"newer {n}", scope="main", supersedes=[old.id.hex()])
        new = await self._say(agent, note)
        if new is not old:
            self.model.replaced.append((f"own:{agent}", new, old))

    async def do_forget(self, agent: str, place: int) -> None:
        assert self.world is not None
        note = self.at(place)
        if note is None:
            return
        (done,) = await self.world.memory.forget(self.caller(agent), [note.id.hex()])
        if agent and note.writer != f"own:{agent}":
            assert done.status == "not_yours"
            return
        assert done.status == "forgotten"
        if self.model.status(note) in ("forgotten", "hidden"):
            return
        if note.owner == "own":
            self.model.forgotten.append(("own", note))
        else:
            note.hidden = True

    async def do_peer(self, n: int, relation: str) -> None:
        assert self.world is not None
        relation = self.model.relations.setdefault(n, relation)
        text = f"peer {n} {len(self.model.notes)}"
        record = self.peers[n].write(HOME, note_body(text), relation)
        (verdict,) = await self.world.replica.admit(HOME, [record])
        assert verdict.outcome == "stored"
        self.model.notes.append(Note(record.id, text, "main", f"peer:{n}", record.hlc))

    async def do_peer_replaces(self, n: int, place: int) -> None:
        assert self.world is not None
        new, old = self._latest(n), self.at(place)
        if new is None or old is None or new is old:
            return
        body = LinkBody("bob", new.id, old.id, "supersedes", None)
        record = self.peers[n].write(HOME, body, self.model.relations[n])
        await self.world.replica.admit(HOME, [record])
        self.model.replaced.append((f"peer:{n}", new, old))

    async def do_peer_forgets(self, n: int, place: int) -> None:
        assert self.world is not None
        note = self.at(place)
        if note is None or n not in self.model.relations:
            return
        record = self.peers[n].write(
            HOME, ForgetBody("bob", [note.id], None), self.model.relations[n]
        )
        await self.world.replica.admit(HOME, [record])
        self.model.forgotten.append((f"peer:{n}", note))

    def _latest(self, n: int) -> Note | None:
        mine = [note for note in self.model.notes if note.writer == f"peer:{n}"]
        return mine[-1] if mine else None

    async def do_void(self, place: int) -> None:
        await self._settle(place, void=True)

    async def do_revive(self, place: int) -> None:
        await self._settle(place, void=False)

    async def _settle(self, place: int, *, void: bool) -> None:
        assert self.world is not None
        note = self.at(place)
        if note is None:
            return
        ids = [note.id]
        changed = await self.world.replica.settle(
            HOME, void=ids if void else (), revive=() if void else ids
        )
        assert changed == (note.void != void)
        note.void = void

    async def do_relate(self, n: int, relation: str) -> None:
        assert self.world is not None
        if n not in self.model.relations:
            return
        device = self.peers[n].sealer.device
        await self.world.replica.settle(HOME, owners=[(device, device, relation)])
        self.model.relations[n] = relation

    async def compare(self, world: World) -> None:
        rows = await world.sql(
            "SELECT r.id, m.status, m.eff_trust, m.tier, r.state FROM memory m"
            " JOIN record r ON r.n = m.id"
        )
        assert {row[0] for row in rows} == {note.id for note in self.model.notes}
        known = {note.id: note for note in self.model.notes}
        for record_id, status, trust, tier, state in rows:
            note = known[record_id]
            assert status == self.model.status(note), note
            assert round(trust, 3) == self.model.trust(note)
            assert (state == "void") == note.void
            visible = not note.void and status in ("active", "superseded")
            assert (tier != 2) == visible, note
        listed: set[bytes] = set()
        cursor = None
        while True:
            page = await world.memory.list(world.person, Filter(), cursor=cursor, limit=7)
            listed |= {bytes.fromhex(hit.id) for hit in page.hits}
            cursor = page.cursor
            if cursor is None:
                break
        assert listed == self.model.shown()
        for word in (*WORDS, "peer", "newer", "keyed"):
            hits = await world.find(word, world.person, limit=100)
            for hit in hits.hits:
                assert bytes.fromhex(hit.id) in self.model.shown()
                assert hit.trust >= 0.5
        await world.check_index()


@settings(max_examples=max(10, settings.default.max_examples // 8))
@given(st.lists(steps, min_size=30, max_size=60))
def test_the_memory_agrees_with_a_dictionary(sequence: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        trio.run(Run(Path(name)).go, sequence)
