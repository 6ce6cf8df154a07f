"""Why a decided sum cannot be read: counted in voices, and nobody named whom liars alone accuse."""

from __future__ import annotations

import pytest

from federated.rounds.protocol.unread import NAMED_MAX, WHO_READS, named, why_unread
from tests.helpers.masked_round import Party

SHARE = b"\0" + b"s" * 65
NO_SHARE = b"\xff" * 66
COUNT = 9
LIARS = 3
"""Of nine six are needed, so three may lie."""


class Story:
    """Nine dealers; what each member gave back."""

    def __init__(self, givers: int = COUNT) -> None:
        self.roster = Party(COUNT).plan()
        self.dealers = [seat.peer for seat in self.roster.seats]
        self.given = {peer: [SHARE] * COUNT for peer in self.dealers[:givers]}
        self.spoilt: list[bytes] = []

    def closed(self, dealer: int, voices: int) -> None:
        """So many of the givers say that a box did not open."""
        for peer in list(self.given)[:voices]:
            self.given[peer][dealer] = b""

    def lied(self, dealer: int, givers: range) -> None:
        """These give back for one dealer's secret what no share is."""
        for at in givers:
            self.given[self.dealers[at]][dealer] = NO_SHARE

    def found(self, carrier: int = 8):
        return why_unread(self.roster, self.dealers, self.given, self.spoilt, self.dealers[carrier])


def name(story: Story, dealer: int) -> str:
    return story.dealers[dealer][:4].hex()


def lied(liars: int) -> Story:
    """The last so many lie about the first one's secret, of which five shares are left."""
    story = Story(COUNT if liars > LIARS else 6)
    story.lied(0, range(len(story.given) - liars, len(story.given)))
    return story


def closed(*dealers: int, voices: int, liars: int = 0, away: int = 0) -> Story:
    """Dealers whose boxes did not open, they say; the last that are there lie about another's."""
    story = Story(COUNT)
    for dealer in dealers:
        story.closed(dealer, voices)
    for peer in story.dealers[COUNT - liars - away : COUNT - liars]:
        del story.given[peer]
    story.lied(dealers[0], range(COUNT - liars, COUNT))
    return story


def spoilt(dealers: int, liars: int = 0) -> Story:
    """The first ones' secrets do not come out; the last lie about another's."""
    story = Story()
    story.spoilt = story.dealers[:dealers]
    story.lied(4, range(COUNT - liars, COUNT))
    return story


@pytest.mark.parametrize("voices", range(1, COUNT + 1))
def test_only_more_voices_than_may_lie_say_who_is_at_fault(voices: int) -> None:
    story = Story()
    story.closed(4, voices)
    # Of those that give, one share too few is left without the voices.
    for peer in story.dealers[5 + voices :]:
        del story.given[peer]
    found = story.found()
    count = len(story.given)
    assert (
        f"{voices} of {count} members could not open what {name(story, 4)} sealed" in found.reason
    )
    assert ("it was junk" in found.reason) is (voices > LIARS)
    assert ("without it" in found.reason) is (voices > LIARS)
    assert ("falsely" in found.reason) is (voices <= LIARS)
    assert found.members == {
        story.dealers[4]: f"what it sealed for {voices} of {count} members did not open, they say"
    }


def test_who_is_surely_at_fault_is_named_without_those_who_may_not_be() -> None:
    story = Story()
    story.closed(2, 5)
    story.closed(4, 7)
    for peer in story.dealers[:3]:
        story.given[peer][6] = b""
    del story.given[story.dealers[8]]
    found = story.found()
    assert f"what {name(story, 2)}, {name(story, 4)} sealed" in found.reason
    assert "5 of 8" in found.reason
    assert name(story, 6) not in found.reason
    assert set(found.members) == {story.dealers[at] for at in (2, 4, 6)}


@pytest.mark.parametrize("carrier", [4, 8])
def test_who_carried_a_box_is_named_if_it_is_another(carrier: int) -> None:
    story = Story()
    story.closed(4, 8)
    assert ("who carried it" in story.found(carrier).reason) is (carrier != 4)
    assert f"{name(story, carrier)}" in story.found(carrier).reason


@pytest.mark.parametrize("spoilt", range(1, COUNT + 1))
def test_secrets_that_do_not_come_out_are_the_givers_fault_if_they_are_many(spoilt: int) -> None:
    story = Story()
    story.spoilt = story.dealers[:spoilt]
    found = story.found()
    if spoilt > LIARS:  # one of them is honest
        assert "cannot be told whose" in found.reason
        assert not any(name(story, at) in found.reason for at in range(COUNT))
        assert not found.members
    else:
        assert all(name(story, at) in found.reason for at in range(spoilt))
        assert "or too many of 9 members gave wrong ones back" in found.reason
        assert set(found.members) == set(story.spoilt)


@pytest.mark.parametrize("givers", range(6))
def test_where_too_few_give_shares_nobody_is_named(givers: int) -> None:
    story = Story(givers)
    story.closed(4, givers)
    found = story.found()
    assert f"{givers} of the 6 members" in found.reason
    assert not found.members


def test_numbers_that_no_share_has_are_no_voices_and_their_givers_are_named() -> None:
    """Nine needed six; two gave no shares and one is away, one box did not open."""
    story = Story(8)
    story.lied(4, range(2))
    story.given[story.dealers[2]][4] = b""
    found = story.found()
    assert f"1 of 6 members could not open what {name(story, 4)} sealed" in found.reason
    assert "or say so falsely" in found.reason, "the third that may lie"
    liars = f"{name(story, 0)}, {name(story, 1)}"
    assert f"; {liars} gave back numbers that are no shares" in found.reason
    assert set(found.members) == {story.dealers[at] for at in (0, 1, 4)}


def test_without_a_voice_no_dealer_is_accused() -> None:
    story = Story()
    story.lied(4, range(4))
    found = story.found()
    assert "5 of the 6 members that it takes gave shares back" in found.reason
    assert name(story, 4) not in found.reason
    assert set(found.members) == set(story.dealers[:4])


def test_who_surely_lies_is_one_of_those_that_may_and_its_other_words_count_for_nothing() -> None:
    story = Story()
    for peer in story.dealers[:3]:
        story.given[peer][4] = b""
    story.lied(7, range(3))
    assert "time" in story.found().reason, "six shares of each are there"
    story.given[story.dealers[3]][4] = b""
    found = story.found()
    assert f"1 of 6 members could not open what {name(story, 4)} sealed" in found.reason
    assert "it was junk" in found.reason, "three lie, so this one does not"
    assert set(found.members) == {story.dealers[at] for at in (0, 1, 2, 4)}


@pytest.mark.parametrize("spoilt", [1, COUNT])
def test_who_surely_lies_is_named_whatever_else_is_wrong(spoilt: int) -> None:
    story = Story()
    story.spoilt = story.dealers[:spoilt]
    story.lied(4, range(8, 9))
    found = story.found()
    assert f"{name(story, 8)} gave back numbers that are no shares" in found.reason
    assert story.dealers[8] in found.members
    few = Story(3)
    few.lied(4, range(2, 3))
    assert "2 of the 6 members" in few.found().reason
    assert set(few.found().members) == {few.dealers[2]}


def test_a_dealer_whose_boxes_did_not_open_and_that_lies_too_is_told_of_both() -> None:
    story = Story()
    story.lied(2, range(4, 5))
    for peer in story.dealers[5:]:
        story.given[peer][4] = b""
    found = story.found()
    assert found.members == {
        story.dealers[4]: "what it sealed for 4 of 8 members did not open, they say;"
        " numbers that it gave back are no shares"
    }
    assert found.reason.lower().count("ask again") == 1
    assert found.reason.endswith(f"Ask again without it: {WHO_READS}")


ASKING = {
    "nobody": (Story(3), ""),
    "a liar": (lied(1), f". Ask again without it: {WHO_READS}"),
    "liars": (lied(4), f". Ask again without them: {WHO_READS}"),
    "a dealer": (closed(4, voices=4), f". Ask again without it: {WHO_READS}"),
    "dealers": (closed(4, 5, voices=4), f". Ask again without them: {WHO_READS}"),
    "a dealer and a liar": (
        closed(4, voices=4, liars=1),
        f". Ask again without them: {WHO_READS}",
    ),
    "perhaps a dealer": (
        closed(4, voices=1, away=3),
        "or say so falsely. Ask again when more members are there",
    ),
    "a liar, and perhaps a dealer": (
        closed(4, voices=1, liars=1, away=2),
        f". Ask again without {name(Story(), 8)}, when more members are there: {WHO_READS}",
    ),
    "perhaps a spoiler": (
        spoilt(1),
        f". Ask again, without it if this comes again: {WHO_READS}",
    ),
    "perhaps spoilers": (
        spoilt(2),
        f". Ask again, without them if this comes again: {WHO_READS}",
    ),
    "a liar, and perhaps a spoiler": (
        spoilt(1, liars=1),
        (
            f". Ask again without {name(Story(), 8)} and without {name(Story(), 0)}"
            f" if this comes again: {WHO_READS}"
        ),
    ),
    "givers": (spoilt(4), f"cannot be told whose; {WHO_READS}"),
    "givers and a liar": (spoilt(4, liars=1), f". Ask again without it: {WHO_READS}"),
    "no time": (Story(), "there was not time enough"),
}  # fmt: skip


@pytest.mark.parametrize(("story", "end"), ASKING.values(), ids=ASKING.keys())
def test_a_reason_ends_with_one_way_to_ask_again(story: Story, end: str) -> None:
    reason = story.found(carrier=7).reason
    assert reason.endswith(end), reason
    assert reason.lower().count("ask again") == end.lower().count("ask again")
    assert reason.count(WHO_READS) == end.count(WHO_READS)


def test_shares_that_are_enough_and_not_read_yet_are_nobodys_fault() -> None:
    found = Story().found()
    assert "time" in found.reason
    assert not found.members


def test_a_line_names_so_many_and_counts_the_rest() -> None:
    peers = [bytes([at]) * 32 for at in range(NAMED_MAX + 2)]
    assert named(peers[:2]) == "00000000, 01010101"
    assert named(peers).endswith("0b0b0b0b and 2 more")
