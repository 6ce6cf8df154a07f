"""The pool's book against a plain model: who has lent what, who may write where, how much there is.

The model keeps a set of live lends and, for every segment, which living processes ever had it for
writing. The book may hand a segment out only where no other living process did.
"""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from federated.errors import UsageError
from federated.rounds.pool.book import (
    STEP_BYTES,
    TRANSITIONS,
    Book,
    Entry,
    Input,
    Place,
    PoolLimits,
    State,
)
from federated.rounds.pool.records import Reason

PLENTY = 1 << 50
LIMITS = PoolLimits(bytes_max=8 * STEP_BYTES, free_bytes_min=STEP_BYTES, segments_max=6)


class BookMachine(RuleBasedStateMachine):
    """Trainers that lend, fill, give back, part and die in any order; a daemon that folds."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Book(LIMITS)
        self.owners = 0
        self.alive: list[int] = []
        self.lent: dict[int, tuple[int, int, int]] = {}  # number: (owner, generation, size)
        self.filled: list[int] = []
        self.folding: list[int] = []
        self.writers: dict[int, set[int]] = {}
        self.sizes: dict[int, int] = {}
        self.retired: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.old: list[tuple[int, int, int]] = []
        self.sums: list[int] = []
        self.shown: list[int] = []
        self.readers: dict[int, set[tuple[int, int]]] = {}
        self.refused = 0

    def pick(self, data: st.DataObject, things: list[int]) -> int:
        return data.draw(st.sampled_from(things))

    @rule()
    def a_trainer_comes(self) -> None:
        self.alive.append(self.owners)
        self.owners += 1

    def note(self, place: Place) -> None:
        for number in place.dropped:
            assert not self.writers.pop(number, set()) & set(self.alive), "somebody has it mapped"
            assert number not in {*self.lent, *self.filled, *self.folding, *self.retired}
            assert not self.readers.pop(number, set())
            del self.sizes[number]
        assert place.fresh == (place.number not in self.sizes)
        self.sizes[place.number] = place.size
        assert place.generation == self.last.get(place.number, 0) + 1
        self.last[place.number] = place.generation

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), steps=st.integers(0, 4), free=st.integers(0, 10))
    def lend(self, data: st.DataObject, steps: int, free: int) -> None:
        owner = self.pick(data, self.alive)
        nbytes = steps * STEP_BYTES + 1
        available = free * STEP_BYTES
        place = self.book.lend(owner, nbytes, available)
        if isinstance(place, Reason):
            self.refused += 1
            assert place in (Reason.FULL, Reason.TOO_MANY)
            lends = sum(o == owner for o, _, _ in self.lent.values())
            assert (place is Reason.TOO_MANY) == (lends == LIMITS.lends_max)
            if place is Reason.FULL:
                self.check_really_full(owner, nbytes, available)
            return
        self.note(place)
        others = self.writers.setdefault(place.number, set()) & set(self.alive) - {owner}
        assert not others, "a living process has mapped it"
        assert place.size >= nbytes
        assert place.number not in {*self.lent, *self.filled, *self.folding, *self.retired}
        self.writers[place.number].add(owner)
        self.lent[place.number] = (owner, place.generation, place.size)

    def check_really_full(self, owner: int, nbytes: int, available: int) -> None:
        busy = {*self.lent, *self.filled, *self.folding, *self.retired, *self.sums, *self.shown}
        for number, size in self.sizes.items():
            mine = not self.writers.get(number, set()) & set(self.alive) - {owner}
            usable = number in self.writers and number not in busy and mine
            assert not (usable and size >= nbytes), "a free one would have fitted"
        room = min(LIMITS.bytes_max - sum(self.sizes.values()), available - LIMITS.free_bytes_min)
        size = -(-nbytes // STEP_BYTES) * STEP_BYTES
        assert room < size or len(self.sizes) >= LIMITS.segments_max

    @precondition(lambda self: self.lent)
    @rule(data=st.data(), over=st.booleans())
    def fill(self, data: st.DataObject, over: bool) -> None:
        number = self.pick(data, list(self.lent))
        owner, generation, size = self.lent.pop(number)
        self.old.append((owner, number, generation))
        offset = 64 if over else 0
        reason = self.book.fill(owner, number, generation, offset=offset, nbytes=size)
        assert reason is (Reason.SIZE if over else Reason.NONE)
        if not over:
            self.filled.append(number)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def a_wrong_number_or_owner_changes_nothing(self, data: st.DataObject) -> None:
        number = self.pick(data, list(self.lent))
        owner, generation, size = self.lent[number]
        for who, when in ((owner, generation - 1), (owner, generation + 1), (-1, generation)):
            found = self.book.fill(who, number, when, offset=0, nbytes=size)
            assert found is Reason.STALE
            assert self.book.give_back(who, number, when) is Reason.STALE

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def an_old_lend_changes_nothing(self, data: st.DataObject) -> None:
        owner, number, generation = data.draw(st.sampled_from(self.old))
        assert self.book.fill(owner, number, generation, offset=0, nbytes=1) is Reason.STALE
        assert self.book.give_back(owner, number, generation) is Reason.STALE

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        number = self.pick(data, list(self.lent))
        owner, generation, _ = self.lent.pop(number)
        assert self.book.give_back(owner, number, generation) is Reason.NONE
        self.old.append((owner, number, generation))

    @precondition(lambda self: self.filled)
    @rule()
    def take(self) -> None:
        number = self.filled.pop(0)
        self.book.take(number)
        self.folding.append(number)

    @precondition(lambda self: self.folding)
    @rule()
    def fold(self) -> None:
        self.book.folded(self.folding.pop(0))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_connection_ends(self, data: st.DataObject) -> None:
        owner = self.pick(data, self.alive)
        gone = [number for number, (who, _, _) in self.lent.items() if who == owner]
        others = [number for number in self.lent if number not in gone]
        assert not self.book.parted(owner, others), "they are not his"
        assert sorted(self.book.parted(owner, {*gone, *others})) == sorted(gone)
        assert self.book.holds(owner) or not gone
        for number in gone:
            del self.lent[number]
            self.retired[number] = owner

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_process_dies(self, data: st.DataObject) -> None:
        owner = self.pick(data, self.alive)
        self.alive.remove(owner)
        mine = [number for number, (who, _, _) in self.lent.items() if who == owner]
        mine += [number for number, who in self.retired.items() if who == owner]
        assert sorted(self.book.exited(owner)) == sorted(mine)
        for number in mine:
            self.lent.pop(number, None)
            self.retired.pop(number, None)
        for readers in self.readers.values():
            readers -= {(who, when) for who, when in readers if who == owner}

    @rule(steps=st.integers(0, 3))
    def claim(self, steps: int) -> None:
        place = self.book.claim(steps * STEP_BYTES + 1, PLENTY)
        if place is not None:
            self.note(place)
            assert place.number not in self.writers, "a trainer could write to our sum"
            assert not self.readers.get(place.number), "somebody reads it"
            self.sums.append(place.number)

    @precondition(lambda self: self.sums)
    @rule()
    def show(self) -> None:
        number = self.sums.pop(0)
        self.book.show(number)
        self.shown.append(number)
        self.readers[number] = set()

    @precondition(lambda self: self.shown and self.alive)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        number, owner = self.pick(data, self.shown), self.pick(data, self.alive)
        self.readers[number].add((owner, self.book.read(number, owner)))

    @precondition(lambda self: any(self.readers.values()))
    @rule(data=st.data())
    def stop_reading(self, data: st.DataObject) -> None:
        number = self.pick(data, [n for n, who in self.readers.items() if who])
        owner, generation = data.draw(st.sampled_from(sorted(self.readers[number])))
        assert self.book.give_back(owner, number, generation) is Reason.NONE
        self.readers[number].discard((owner, generation))
        assert self.book.give_back(owner, number, generation) is Reason.STALE

    @precondition(lambda self: self.shown)
    @rule()
    def withdraw(self) -> None:
        self.book.withdraw(self.shown.pop(0))

    @rule()
    def trim(self) -> None:
        for number in self.book.trim():
            assert not self.writers.pop(number, set()) & set(self.alive), "somebody has it mapped"
            assert not self.readers.pop(number, set())
            del self.sizes[number]

    @invariant()
    def the_books_agree(self) -> None:
        assert {e.number: e.size for e in self.book} == self.sizes
        assert self.book.bytes_used == sum(self.sizes.values()) <= LIMITS.bytes_max
        assert len(self.book) <= LIMITS.segments_max
        by_state = {
            State.LENT: list(self.lent),
            State.FILLED: self.filled,
            State.FOLDING: self.folding,
            State.RETIRED: list(self.retired),
            State.TOTAL: self.sums,
            State.SHOWN: self.shown,
        }
        for state, numbers in by_state.items():
            assert sorted(numbers) == [e.number for e in self.book if e.state is state]


BookMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=60)
TestBook = BookMachine.TestCase


def test_every_pair_of_state_and_input_is_a_transition_or_our_bug() -> None:
    pairs = list(product(State, Input))
    assert len(pairs) == 70
    for state, what in pairs:
        entry = Entry(0, STEP_BYTES, shown=False, state=state)
        if (state, what) in TRANSITIONS:
            entry.step(what)
            assert entry.state is TRANSITIONS[state, what]
        else:
            with pytest.raises(KeyError):
                entry.step(what)
            assert entry.state is state


def test_limits_follow_the_machine() -> None:
    assert PoolLimits.of_machine(4 << 30).bytes_max == 1 << 30
    assert PoolLimits.of_machine(64 << 30).bytes_max == 2 << 30
    assert PoolLimits().free_bytes_min == 512 << 20
    with pytest.raises(UsageError):
        PoolLimits(bytes_max=-1)


def test_idle_segments_make_room_for_another_size() -> None:
    book = Book(PoolLimits(bytes_max=4 * STEP_BYTES, free_bytes_min=0))
    small = [book.lend(1, 10, PLENTY) for _ in range(3)]
    assert all(isinstance(place, Place) and place.fresh for place in small)
    assert book.lend(1, 3 * STEP_BYTES, PLENTY) is Reason.FULL
    book.parted(1, range(3))
    assert book.lend(2, 3 * STEP_BYTES, PLENTY) is Reason.FULL, "its process may still write"
    assert book.exited(1) == [0, 1, 2]
    place = book.lend(2, 3 * STEP_BYTES, PLENTY)
    assert isinstance(place, Place)
    assert place.dropped == (0, 1)
    assert book.bytes_used == 4 * STEP_BYTES


def test_a_segment_is_lent_again_to_its_holder_warm() -> None:
    book = Book(PoolLimits())
    first = book.lend(1, 100, PLENTY)
    assert isinstance(first, Place)
    assert book.fill(1, first.number, first.generation, offset=0, nbytes=100) is Reason.NONE
    book.take(first.number)
    book.folded(first.number)
    again = book.lend(1, 100, PLENTY)
    assert again == Place(first.number, 2, STEP_BYTES, fresh=False)


def test_what_could_not_be_made_is_forgotten() -> None:
    book = Book(PoolLimits())
    place = book.lend(1, 100, PLENTY)
    assert isinstance(place, Place)
    book.lost(place.number)
    assert (len(book), book.bytes_used) == (0, 0)
    other = book.lend(1, 100, PLENTY)
    assert isinstance(other, Place)
    assert other.number != place.number, "numbers are not used twice"
