"""Why a decided sum cannot be read, for who asked for it: what happened, and whom it names.

To each member's secret there are shares that it sealed itself, that the coordinator carried and
that their receivers give back, so three may be at fault, and nobody can see into a box that is not
its own. Of N members N - T may work together. So N - T voices that a box did not open may all be
false; one more, and it is true of one at least: its dealer sealed junk, or the coordinator changed
it on the way. Boxes that open may hold wrong shares. Then the secret does not come out, or another
than its member signed, and whether dealer or givers lied cannot be told; but if this is so of more
than N - T members, one of them dealt well, and it was the givers.

Numbers that no share has are taken out of no box, so who gives one back lies, whatever it was
dealt. It is one of the N - T, and what it says of other boxes counts for nothing.

Source: docs/specs/masks.md s.5 and s.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from federated.rounds.privacy.shamir import is_share

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from federated.rounds.privacy.roster import Roster

NAMED_MAX: Final = 12
"""Members named in a line for people."""
HEAD: Final = "the sum is decided but cannot be read here"
WHO_READS: Final = "who spoils a sum may be able to read it"
"""It knows its own secret, which is all that the others lack."""
NO_SHARES: Final = "numbers that it gave back are no shares"
"""What is said of who surely lied."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Why a decided sum cannot be read."""

    reason: str
    members: Mapping[bytes, str] = field(default_factory=dict)
    """What is known of those whose secrets are missing, and of those who surely lied."""


def named(peers: Sequence[bytes]) -> str:
    """Some members by the first digits of their ids."""
    names = [peer[:4].hex() for peer in peers]
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class _Story:
    """What is left when those who surely lied are not heard, and what to do about it."""

    fact: str
    members: Mapping[bytes, str] = field(default_factory=dict)
    without: Sequence[bytes] = ()
    """Who is surely to be left out."""
    perhaps: Sequence[bytes] = ()
    """Who is to be left out if it comes again."""
    patience: bool = False
    """Whether more members may help."""
    spoilt: bool = True
    """Whether somebody spoilt it, who may have read it."""


def why_unread(
    roster: Roster, dealers: Sequence[bytes], given: Mapping[bytes, Sequence[bytes]],
    spoilt: Collection[bytes], carrier: bytes,
) -> Unread:  # fmt: skip
    """Why what came does not open a sum.

    Args:
        roster: of its plan.
        dealers: who shared secrets, in the order of the roster.
        given: what members gave back, by giver: of each dealer's secret a share, nothing if the
            box of it did not open, or a number that is no share.
        spoilt: dealers whose secrets do not come out of enough shares.
        carrier: the coordinator, who carried the boxes.
    """
    liars = [giver for giver, shares in given.items() if gave_no_share(shares)]
    story = _without_lies(roster, dealers, given, liars, spoilt, carrier)
    facts = story.fact
    if liars:
        facts += (
            f"; {named(liars)} gave back numbers that are no shares, which no honest member does"
        )
    members = dict(story.members)
    for liar in liars:
        members[liar] = "; ".join(filter(None, [members.get(liar), NO_SHARES]))
    return Unread(facts + _advice(story, liars), members)


def gave_no_share(shares: Sequence[bytes]) -> bool:
    """Whether a member gave back a number that is no share: a lie, whatever it was dealt."""
    return any(share and not is_share(share) for share in shares)


def _advice(story: _Story, liars: Sequence[bytes]) -> str:
    """The end of a reason: how to ask again, and why not as before."""
    without = list(dict.fromkeys([*story.without, *liars]))
    perhaps = [peer for peer in story.perhaps if peer not in without]
    # Beside names of which less is sure, "it" could be any of them.
    doubt = bool(story.perhaps or story.patience)
    ways = []
    if without:
        ways.append(f"without {named(without) if doubt else _them(without)}")
    if perhaps:
        ways.append(f"without {named(perhaps) if without else _them(perhaps)} if this comes again")
    reads = f": {WHO_READS}" if story.spoilt or liars else ""
    if story.patience:
        return f". Ask again {', '.join([*ways, 'when more members are there'])}{reads}"
    if not ways:
        return f"; {WHO_READS}" if reads else ""
    return f". Ask again{'' if without else ','} {' and '.join(ways)}{reads}"


def _them(peers: Sequence[bytes]) -> str:
    return "it" if len(peers) == 1 else "them"


def _without_lies(
    roster: Roster, dealers: Sequence[bytes], given: Mapping[bytes, Sequence[bytes]],
    liars: Collection[bytes], spoilt: Collection[bytes], carrier: bytes,
) -> _Story:  # fmt: skip
    """`why_unread` by those who did not surely lie."""
    needed = roster.threshold
    heard = [shares for giver, shares in given.items() if giver not in liars]
    voices = {
        dealer: sum(not shares[at] for shares in heard)
        for at, dealer in enumerate(dealers)
        if sum(map(is_share, (shares[at] for shares in given.values()))) < needed
    }
    closed = {dealer: many for dealer, many in voices.items() if many}
    if len(given) < needed or (voices and not closed):
        return _Story(
            f"{HEAD}: {len(heard)} of the {needed} members that it takes gave shares back",
            spoilt=False,
        )
    most = _liars_max(roster)
    if closed:
        return _unopened(closed, len(heard), max(0, most - len(liars)), carrier)
    if spoilt:
        return _spoilt([one for one in dealers if one in spoilt], len(given), most)
    return _Story(f"{HEAD}: there was not time enough", spoilt=False)


def _liars_max(roster: Roster) -> int:
    """How many may work together: N - T."""
    return max(len(roster.seats), roster.circle) - roster.threshold


def _unopened(short: Mapping[bytes, int], count: int, liars: int, carrier: bytes) -> _Story:
    facts = {
        dealer: f"what it sealed for {many} of {count} members did not open, they say"
        for dealer, many in short.items()
    }
    sure = [dealer for dealer, many in short.items() if many > liars]
    who = sure or list(short)
    many = min(short[dealer] for dealer in who)
    said = f"{HEAD}: {many} of {count} members could not open what {named(who)} sealed for them"
    if not sure:
        return _Story(f"{said}, or say so falsely", facts, patience=True, spoilt=False)
    # A coordinator that seals junk has changed nothing on the way.
    carried = "" if who == [carrier] else f", or was changed by {named([carrier])}, who carried it"
    return _Story(f"{said}: it was junk{carried}", facts, without=sure)


def _spoilt(spoilt: Sequence[bytes], count: int, liars: int) -> _Story:
    if len(spoilt) > liars:
        return _Story(
            f"{HEAD}: too many of the shares that {count} members gave back are wrong, and it"
            " cannot be told whose"
        )
    secret, dealt = ("the secret", "it") if len(spoilt) == 1 else ("each secret", "they")
    return _Story(
        f"{HEAD}: the shares of {secret} of {named(spoilt)} do not fit together: {dealt} dealt"
        f" wrong ones, or too many of {count} members gave wrong ones back",
        dict.fromkeys(spoilt, "the shares of its secret do not fit together"),
        perhaps=spoilt,
    )
