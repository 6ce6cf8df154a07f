"""Whatever a coordinator says, and whoever crashes: never both kinds of shares of a member.

The coordinator here is any sequence of true and false messages to five honest members of seven; two
more work for it and say whatever helps. After every step the colluders hold all that was revealed.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from federated.rounds.privacy import fixed, masks
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.messages import Agree, Reveal
from tests.helpers.masked_round import Party, opened, plain_sum, words_of

COUNT = 7
HONEST = range(2, COUNT)
places = st.sampled_from(list(HONEST))
sets = st.sets(st.integers(0, COUNT - 1), min_size=4)
"""Some below the threshold of five."""


class HostileCoordinator(RuleBasedStateMachine):
    """Honest members under any coordinator."""

    def __init__(self) -> None:
        super().__init__()
        self.party = Party(COUNT)
        self.words = words_of(self.party.updates(), COUNT)
        self.masked: dict[bytes, dict[bytes, np.ndarray]] = defaultdict(dict)
        self.bound: dict[tuple[bytes, bytes], bytes] = {}
        self.masksets: dict[bytes, bytes] = {}
        self.offered: set[bytes] = set()
        self.attempt()

    def attempt(self) -> None:
        self.roster = self.party.plan(view=len(self.offered))
        self.offered.add(self.roster.plan)
        self.coordinator = self.party.share(self.roster, self.party.ids)

    def tell(self, place: int, step: str, *what: object) -> None:
        """A message to an honest member, which may refuse it."""
        peer = self.party.ids[place]
        try:
            self.party.carry(peer, getattr(self.party.members[peer], step)(*what))
        except MaskError:
            return

    @rule(place=places)
    def hands_out(self, place: int) -> None:
        message = self.coordinator.hand_out()[place].message
        self.masksets[self.roster.plan] = message.members
        self.tell(place, "maskset", message)

    @rule(place=places, fresh=st.booleans())
    def masks(self, place: int, fresh: bool) -> None:
        peer = self.party.ids[place]
        if fresh:
            self.words[peer] = words_of(self.party.updates(), COUNT)[peer]
        try:
            self.masked[self.roster.plan][peer] = self.party.masked(peer, self.words[peer])
        except MaskError:
            return
        self.bound[self.roster.plan, peer] = fixed.digest_of(self.words[peer])

    @rule(place=places, chosen=sets)
    def closes(self, place: int, chosen: set[int]) -> None:
        self.tell(place, "close", self.roster.plan, [self.party.ids[at] for at in sorted(chosen)])

    @rule(place=places, who=st.sampled_from((0, 1)), chosen=sets)
    def colluder_agrees(self, place: int, who: int, chosen: set[int]) -> None:
        included = self.roster.set_of(self.party.ids[at] for at in chosen)
        maskset = self.masksets.get(self.roster.plan, included)
        self.tell(place, "agree", self.party.ids[who], Agree(self.roster.plan, maskset, included))

    @rule(place=places)
    def passes_agreements_on(self, place: int) -> None:
        for peer in [self.party.ids[at] for at in HONEST]:
            said = self.party.last(peer, Agree)
            if said is not None:
                self.tell(place, "agree", peer, said)

    @rule(chosen=sets)
    def plays_it_straight(self, chosen: set[int]) -> None:
        """All steps for one set: else a drawn schedule seldom gets to a reveal."""
        for place in HONEST:
            self.hands_out(place)
            self.masks(place, fresh=False)
            self.closes(place, chosen)
        for place in HONEST:
            self.passes_agreements_on(place)

    @rule(place=places)
    def crashes(self, place: int) -> None:
        self.party.crash(self.party.ids[place])

    @precondition(lambda self: len(self.offered) < 4)
    @rule()
    def begins_anew(self) -> None:
        self.attempt()

    @invariant()
    def nobody_is_bare(self) -> None:
        seeds, keys = set(), set()
        shares: dict[tuple[bytes, int, bool], set[int]] = defaultdict(set)
        for place in HONEST:
            for message in self.party.sent[self.party.ids[place]]:
                if isinstance(message, Reveal):
                    inside = int.from_bytes(message.included, "little")
                    for member in range(COUNT):
                        kind = bool(inside >> member & 1)
                        shares[message.plan, member, kind].add(place)
                        assert place not in shares[message.plan, member, not kind]
        for (plan, member, kind), known in shares.items():
            # The two colluders have shares of everything.
            if len(known | {0, 1}) >= self.roster.threshold:
                (seeds if kind else keys).add((plan, member))
        assert not seeds & keys

    @invariant()
    def what_is_revealed_is_one_sum_an_attempt(self) -> None:
        found: dict[bytes, set[bytes]] = defaultdict(set)
        for sent in self.party.sent.values():
            for message in sent:
                if isinstance(message, Reveal):
                    found[message.plan].add(message.included)
        assert all(len(included) == 1 for included in found.values())

    @invariant()
    def no_update_is_in_two_sums(self) -> None:
        for place in HONEST:
            peer = self.party.ids[place]
            plans = {
                message.plan
                for message in self.party.sent[peer]
                if isinstance(message, Agree)
                and int.from_bytes(message.included, "little") >> place & 1
            }
            updates = [self.bound[plan, peer] for plan in plans]
            assert len(set(updates)) == len(updates)


TestHostileCoordinator = HostileCoordinator.TestCase
TestHostileCoordinator.settings = settings(max_examples=30, stateful_step_count=25)


def test_control_the_machine_reaches_reveals_and_their_sum_is_right() -> None:
    machine = HostileCoordinator()
    chosen = list(range(COUNT))
    for place in range(COUNT):
        machine.hands_out(place)
        machine.masks(place, fresh=False)
        machine.closes(place, set(chosen))
    for place in range(COUNT):
        machine.passes_agreements_on(place)
    party, roster = machine.party, machine.roster
    revealed = {
        peer: message for peer in party.ids if (message := party.last(peer, Reveal)) is not None
    }
    assert len(revealed) == COUNT
    total = sum(machine.masked[roster.plan].values(), start=np.zeros(205, np.uint32))
    mask = opened(roster, machine.masksets[roster.plan], party.ids, revealed)
    masks.apply(total, mask)
    assert total.tolist() == plain_sum(machine.words, party.ids).tolist()
