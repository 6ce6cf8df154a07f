"""A third of nine members is lost in any phase: the sum is exact, or the attempt ends as it may.

Three reduce a part each, three stand by. What is compared is fixed point, so nothing is "close":
the masked sum is the plain one in every bit.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.rounds.privacy import fixed, masks
from federated.rounds.privacy.errors import MaskError
from tests.helpers.masked_round import CLIP, PARTS, Party, opened, plain_sum, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.uint32]

COUNT = 9
LOST = COUNT // 3
PHASES = ("nobody", "join", "shares", "maskset", "scatter", "close", "agree")
"""Where the lost go silent."""
AFTER_CLOSE = ("late reducers", "reducers", "both")
"""The lost are those who reduce, after CLOSE. `late reducers`: their own words are not included.
`reducers`: they are, and lie with the standbys, too. `both`: they died with them."""


class Round:
    """One masked round; `phase` is where the lost go silent."""

    def __init__(self, phase: str, seed: int) -> None:
        self.phase = phase
        self.party = Party(COUNT, seed)
        rng = random.Random(seed)
        self.lost = rng.sample(self.party.ids, LOST)
        self.kept = [peer for peer in self.party.ids if peer not in self.lost]
        # Those who are lost are the ones that reduce, where reducers are lost.
        self.reducers = self.lost if phase in AFTER_CLOSE else self.kept[:LOST]
        self.standbys = self.kept[-LOST:]
        self.updates = self.party.updates()
        self.words: dict[bytes, Words] = {}
        self.stores: dict[bytes, dict[tuple[int, bytes], Words]] = {
            peer: {} for peer in self.party.ids
        }

    def after(self, phase: str) -> list[bytes]:
        """Who is there when `phase` begins."""
        where = "close" if self.phase in AFTER_CLOSE else self.phase
        gone = where != "nobody" and PHASES.index(where) <= PHASES.index(phase)
        return list(self.kept if gone else self.party.ids)

    def run(self) -> tuple[Words, list[bytes]]:
        """The sum and who is in it.

        Raises:
            MaskError: the attempt ended.
        """
        party = self.party
        roster = party.plan(self.after("join"))
        coordinator = party.share(roster, self.after("shares"))
        maskset = party.hand_out(coordinator, self.after("shares"))
        sharers = [roster.seats[place].peer for place in roster.places(maskset)]
        self.words = words_of(self.updates, len(roster.seats))
        included = self.scatter(sharers)
        coordinator.close(included)
        agreed = party.close(roster, included, [p for p in self.after("close") if p in sharers])
        enough = [coordinator.agree(peer, message) for peer, message in agreed.items()]
        assert enough[-1]
        revealed = party.spread(agreed, [p for p in self.after("agree") if p in sharers])
        mask = opened(roster, maskset, included, revealed)
        return np.concatenate([self.reduced(part, included, mask) for part in range(3)]), included

    def scatter(self, sharers: Sequence[bytes]) -> list[bytes]:
        """Everybody sends its parts; the included are those of whom every part has arrived."""
        late = self.lost if self.phase == "late reducers" else []
        living = [p for p in self.after("maskset") if p in sharers and p not in late]
        for peer in living:
            covered = self.party.masked(peer, self.words[peer])
            for part, (begin, end) in enumerate(PARTS):
                if self.phase == "scatter" and peer in self.lost and part:
                    break  # it dies when one part has left
                self.deliver(part, peer, covered[begin:end])
        return [
            peer
            for peer in living
            if all((part, peer) in self.stores[self.reducers[part]] for part in range(3))
        ]

    def deliver(self, part: int, sender: bytes, piece: Words) -> None:
        """To the reducer. Who reduces also tells the standbys: nobody else could send its words."""
        self.stores[self.reducers[part]][part, sender] = piece
        if sender in self.reducers and self.phase != "both":
            self.stores[self.standbys[part]][part, sender] = piece

    def reduced(self, part: int, included: Sequence[bytes], mask: masks.Mask) -> Words:
        """A part of the sum, by whoever is there."""
        begin, end = PARTS[part]
        by = self.reducers[part]
        if self.phase in AFTER_CLOSE:
            by = self.standbys[part]
            for peer in (peer for peer in included if peer in self.kept):  # they send again
                covered = self.party.masked(peer, self.words[peer])
                self.stores[by][part, peer] = covered[begin:end]
        if any((part, peer) not in self.stores[by] for peer in included):
            raise MaskError("unfinished", "words of an included member are gone")
        total = np.zeros(end - begin, np.uint32)
        for peer in included:
            total += self.stores[by][part, peer]
        masks.apply(total, mask, start=begin)
        return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("phase", [*PHASES, "late reducers", "reducers"])
def test_a_third_is_lost_in_any_phase_and_the_sum_is_exact(phase: str, seed: int) -> None:
    played = Round(phase, seed)
    total, included = played.run()
    assert total.tolist() == plain_sum(played.words, included).tolist()
    # Whoever had sent everything by CLOSE is in, whatever became of it later.
    early = phase in ("join", "shares", "maskset", "scatter", "late reducers")
    assert set(included) == set(played.kept if early else played.party.ids)
    tail = fixed.read_tail(total, len(included))
    scale = fixed.scale_for(CLIP, COUNT if phase != "join" else COUNT - LOST)
    mean = fixed.decode(total[:-2], scale, divisor=tail.weight)
    fixed.check_norm(mean, scale, tail, clip=CLIP, included=len(included))
    clipped = [
        played.updates[peer] * min(1.0, CLIP / fixed.norm_of(played.updates[peer]))
        for peer in included
    ]
    assert np.abs(mean - np.mean(clipped, axis=0)).max() < 2e-7
    assert 0 < tail.within < len(included)


@pytest.mark.parametrize("seed", range(4))
def test_reducers_and_their_own_words_are_lost_and_the_attempt_ends(seed: int) -> None:
    played = Round("both", seed)
    with pytest.raises(MaskError, match="unfinished"):
        played.run()


@pytest.mark.parametrize("seed", range(4))
def test_after_an_attempt_that_ended_fresh_updates_make_a_round(seed: int) -> None:
    played = Round("both", seed)
    with pytest.raises(MaskError, match="unfinished"):
        played.run()
    party = played.party
    roster = party.plan(played.kept, view=1)
    coordinator = party.share(roster, played.kept)
    maskset = party.hand_out(coordinator, played.kept)
    with pytest.raises(MaskError, match="spent"):
        party.masked(played.kept[0], played.words[played.kept[0]])
    words = words_of(party.updates(), len(played.kept))
    total = np.zeros_like(words[played.kept[0]])
    for peer in played.kept:
        total += party.masked(peer, words[peer])
    agreed = party.close(roster, played.kept, played.kept)
    revealed = party.spread(agreed, played.kept)
    masks.apply(total, opened(roster, maskset, played.kept, revealed))
    assert total.tolist() == plain_sum(words, played.kept).tolist()


def test_one_more_than_a_third_ends_the_attempt() -> None:
    party = Party(COUNT)
    roster = party.plan()
    living = party.ids[: COUNT - LOST - 1]
    with pytest.raises(MaskError, match="below_threshold"):
        party.share(roster, living).hand_out()
