"""A member of a masked sum: what it shares, masks, agrees to and reveals. Sans-IO.

Theory of operation
-------------------
Steps of an attempt, each in answer to the coordinator:

    begin    two fresh X25519 keys, for the join                       -> Publish
    plan     the roster is known: b and the mask key are shared with   -> Send(Shares)
             all of it, a box each
    maskset  who has shared, with their boxes to us                    -> Ready
    bind     the one update of this attempt, by hash; then `mask`
    close    the one included set; we agree to it                      -> Send(Agree)
    agree    T members agree to it                                     -> Send(Reveal)
    end      keys, seed and shares are erased

The coordinator may lie about everything but the joins, which their members signed. It wants to see
one member's words. Both secrets of a member together would bare it: b takes its own mask away, the
mask key those of its pairs. So, for the life of an attempt:

- one maskset, of at least T members and three owners, us among them: a short one would leave a
  victim's words under masks whose other halves the coordinator knows;
- one vector is masked: two under one mask are their difference in the clear;
- one included set is agreed to, and shares are revealed for that set only, once T members say the
  same. Two sets of T of n members meet in n/3, so with fewer colluders an honest one is in both,
  and it agrees once: nobody collects b-shares of a member here and key-shares of it there;
- the set is journalled before the agreement leaves. After a crash, in a later view and for another
  coordinator the answer is the same one or none.

Attempts do not meet: keys, seed and shares are fresh in each, and the salt of all keys is the
plan's hash. What could meet is the update: if the sum of one attempt holds it and that of another
does not, their difference may be it alone. So from our agreement to a set with us in it the update
is spent: no later attempt masks it. Others may have revealed where we did not, so it is not the
reveal that counts.

A set that cannot be finished (too few agree, too few reveal) is never replaced by a smaller one:
the attempt ends. Late words of a lost member stay under its b, which nobody reveals.

Every change comes as `Journal` before what it allows to leave. If it cannot be made durable the
attempt has ended. `restore` and `pending` continue after a crash: what may have been sent is said
again, to the same bytes.

Source: docs/specs/masks.md s.5; Bonawitz et al., ePrint 2017/281, with active adversaries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec
from typing_extensions import override

from federated.errors import UsageError
from federated.rounds.privacy import boxes, masks, shamir
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.messages import Agree, MaskSet, Reveal, Shares
from federated.rounds.privacy.roster import Roster

if TYPE_CHECKING:
    from collections.abc import Iterable

SPENT_MAX: Final = 256
"""Hashes of spent updates that are kept: an update is offered again for two rounds at most."""
STATE_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Journal:
    """Keep this in place of the last one, durable against power cuts, before the next leaves."""

    state: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Publish:
    """Put these keys into the join."""

    mask_key: bytes
    share_key: bytes
    seed_hash: bytes
    """SHA-256 of the seed b, so that nobody can give a false one back."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message."""

    to: Literal["coordinator", "reducers"]
    message: Shares | Agree | Reveal


@dataclass(frozen=True, slots=True)
class Ready:
    """Words can be bound and masked."""

    maskset: bytes
    unopened: tuple[bytes, ...]
    """Members whose box did not open: who sealed it, or who carried it, is at fault."""


Action: TypeAlias = Journal | Publish | Send | Ready


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """All that is secret in an attempt, as far as it has come."""

    mask_private: bytes
    share_private: bytes
    roster: Roster | None = None
    seed: bytes = b""
    boxes: tuple[bytes, ...] = ()
    held: tuple[tuple[bytes, bytes], ...] = ()
    """Shares of the seed and the mask key of each roster place; empty if not held."""
    maskset: bytes = b""
    update: bytes = b""
    words: bytes = b""
    included: bytes = b""
    """Agreed to."""
    revealed: bool = False

    @override
    def __repr__(self) -> str:
        return "Attempt(...)"  # a secret is not printed


class State(msgspec.Struct, array_like=True, frozen=True):
    """What a member must not forget."""

    version: int = STATE_VERSION
    attempt: Attempt | None = None
    spent: tuple[bytes, ...] = ()
    """Hashes of updates that a revealed sum may hold, oldest first."""


_STATE: Final = msgspec.msgpack.Decoder(State)


class Member:
    """This device in the masked sums of one federation.

    Signatures are verified before a message comes here, and senders are who they are said to be.

    Args:
        me: this device's id.
        random_bytes: source of keys, seeds and polynomials.
        state: of an earlier life.
    """

    def __init__(
        self, me: bytes, random_bytes: shamir.RandomBytes, *, state: State | None = None
    ) -> None:
        self._me = me
        self._random = random_bytes
        self._state = state or State()
        self._agreed: dict[int, Agree] = {}

    @classmethod
    def restore(cls, me: bytes, random_bytes: shamir.RandomBytes, data: bytes) -> Member:
        """A member as its journal has it; `pending` says what to send again.

        Raises:
            UsageError: these bytes are not its journal's.
        """
        try:
            state = _STATE.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"the journal of a masked attempt: {error}") from None
        if state.version != STATE_VERSION:
            raise UsageError(f"the journal of a masked attempt has version {state.version}")
        return cls(me, random_bytes, state=state)

    # ---- the steps

    def begin(self) -> list[Action]:
        """Begin an attempt; an earlier one is erased."""
        self._agreed = {}
        mask_private, share_private, seed = (self._random(masks.KEY_BYTES) for _ in range(3))
        attempt = Attempt(mask_private, share_private, seed=seed)
        return [self._keep(attempt), *self.pending()]

    def plan(self, roster: Roster) -> list[Action]:
        """The plan is there: share this attempt's secrets among its roster.

        Raises:
            MaskError: our keys are not in it, or this attempt has another plan already.
        """
        attempt = self._attempt()
        if attempt.roster is not None:
            if attempt.roster != roster:
                raise MaskError("other_plan", "this attempt's keys are in another plan")
            return self.pending()
        seat = roster.seats[roster.place(self._me)]
        ours = _published(attempt)
        if (seat.mask_key, seat.share_key) != (ours.mask_key, ours.share_key) or (
            seat.seed_hash not in (b"", ours.seed_hash)
        ):
            raise MaskError("bad_roster", "our keys are not the ones of this attempt")
        return [self._keep(self._shared(attempt, roster)), *self.pending()]

    def maskset(self, message: MaskSet) -> list[Action]:
        """Who has shared: open their boxes.

        Raises:
            MaskError: of another plan, a second one, too short, without us, or fewer than T boxes
                open.
        """
        attempt, roster = self._planned(message.plan)
        places = roster.places(message.members)
        own = roster.place(self._me)
        if attempt.maskset:
            if attempt.maskset != message.members:
                raise MaskError("out_of_turn", "a second maskset in one attempt")
            return [self._ready()]
        roster.check_enough(message.members, "bad_maskset")
        if own not in places:
            raise MaskError("bad_maskset", "it leaves us out")
        if len(message.boxes) != len(places):
            raise MaskError("bad_maskset", "not one box a member")
        held = list(attempt.held)
        for place, box in zip(places, message.boxes, strict=True):
            if place != own:
                held[place] = self._opened(attempt, roster, place, box)
        if sum(bool(held[place][0]) for place in places) < roster.threshold:
            raise MaskError("bad_maskset", "too few of its members have shared with us")
        changed = msgspec.structs.replace(attempt, maskset=message.members, held=tuple(held))
        return [self._keep(changed), self._ready()]

    def bind(self, update: bytes, words: bytes) -> list[Action]:
        """Choose what this attempt masks.

        Args:
            update: hash of the update, before it is weighted and made words.
            words: hash of the words.

        Raises:
            MaskError: the update is spent, or something else was chosen before.
        """
        attempt = self._attempt()
        if not attempt.maskset:
            raise MaskError("out_of_turn", "nothing is masked before the maskset")
        if attempt.words:
            if (attempt.update, attempt.words) != (update, words):
                raise MaskError("out_of_turn", "this attempt masks other words")
            return []
        if update in self._state.spent:
            raise MaskError("spent", "a sum that holds this update may be known")
        if not len(update) == len(words) == 32:
            raise UsageError("updates and words go by 32 bytes")
        return [self._keep(msgspec.structs.replace(attempt, update=update, words=words))]

    def mask(self) -> masks.Mask:
        """What to add to the words that were bound, and to no others.

        Raises:
            MaskError: nothing is bound.
        """
        attempt = self._attempt()
        roster = attempt.roster
        if not attempt.words or roster is None:
            raise MaskError("out_of_turn", "bind the words first")
        others = {
            seat.peer: seat.mask_key
            for seat in (roster.seats[place] for place in roster.places(attempt.maskset))
            if seat.peer != self._me
        }
        return masks.member_mask(
            self._me, attempt.mask_private, attempt.seed, others, plan=roster.plan
        )

    def close(self, plan: bytes, included: Iterable[bytes]) -> list[Action]:
        """The coordinator closed the set: agree to it, and reveal if enough others have.

        Raises:
            MaskError: of another plan, not within the maskset, fewer than T members or three
                owners, with us though we masked nothing, or another than the one agreed to.
        """
        attempt, roster = self._planned(plan)
        wanted = roster.set_of(included)
        if attempt.included:
            if attempt.included != wanted:
                raise MaskError("revealed", "we agreed to another set in this attempt")
            return self.pending()
        self._check_set(attempt, roster, wanted)
        agreed = self._keep(
            msgspec.structs.replace(attempt, included=wanted),
            spend=attempt.update if self._is_in(roster, wanted) else b"",
        )
        return [
            agreed,
            Send("coordinator", Agree(plan, attempt.maskset, wanted)),
            *self._revealed(),
        ]

    def agree(self, sender: bytes, message: Agree) -> list[Action]:
        """A member agrees to a set; at T of them that say what we said, reveal.

        Raises:
            MaskError: of another plan, from nobody of the maskset, or its second, other word.
        """
        attempt, roster = self._planned(message.plan)
        place = roster.place(sender)
        if not attempt.maskset or place not in roster.places(attempt.maskset):
            raise MaskError("bad_set", "an agreement of somebody who holds no shares")
        if self._agreed.setdefault(place, message) != message:
            raise MaskError("equivocation", "a member agreed to two sets")
        return self._revealed()

    def end(self) -> list[Action]:
        """The attempt is over, well or not: erase what is secret in it."""
        self._agreed = {}
        return [self._keep(None)]

    def pending(self) -> list[Action]:
        """All that this attempt has said and others may not have heard, to the same bytes."""
        attempt = self._state.attempt
        if attempt is None:
            return []
        if attempt.roster is None:
            return [_published(attempt)]
        plan = attempt.roster.plan
        said: list[Action] = []
        if not attempt.maskset:
            said.append(Send("coordinator", Shares(plan, attempt.boxes)))
        elif not attempt.included:
            said.append(self._ready())
        if attempt.included:
            agree = Agree(plan, attempt.maskset, attempt.included)
            said.append(Send("coordinator", agree))
        if attempt.revealed:
            said.append(Send("reducers", _reveal(attempt, attempt.roster)))
        return said

    # ---- what they are made of

    def _keep(self, attempt: Attempt | None, *, spend: bytes = b"") -> Journal:
        """Change the state, and say how to make the change durable."""
        spent = self._state.spent
        if spend and spend not in spent:
            spent = (*spent, spend)[-SPENT_MAX:]
        self._state = State(attempt=attempt, spent=spent)
        return Journal(msgspec.msgpack.encode(self._state))

    def _attempt(self) -> Attempt:
        if self._state.attempt is None:
            raise MaskError("out_of_turn", "there is no attempt")
        return self._state.attempt

    def _planned(self, plan: bytes) -> tuple[Attempt, Roster]:
        attempt = self._attempt()
        if attempt.roster is None or attempt.roster.plan != plan:
            raise MaskError("other_plan", "this attempt has another plan, or none yet")
        return attempt, attempt.roster

    def _shared(self, attempt: Attempt, roster: Roster) -> Attempt:
        """Share the seed and the mask key."""
        seed, count = attempt.seed, len(roster.seats)
        of_seed = shamir.split(seed, roster.threshold, count, self._random)
        of_key = shamir.split(attempt.mask_private, roster.threshold, count, self._random)
        own = roster.place(self._me)
        sealed = tuple(
            b""
            if place == own
            else boxes.seal(
                of_seed[place], of_key[place],
                private=attempt.share_private, public=seat.share_key,
                sender=self._me, receiver=seat.peer, plan=roster.plan,
            )
            for place, seat in enumerate(roster.seats)
        )  # fmt: skip
        held = tuple(
            (of_seed[own], of_key[own]) if place == own else (b"", b"") for place in range(count)
        )
        return msgspec.structs.replace(attempt, roster=roster, boxes=sealed, held=held)

    def _opened(
        self, attempt: Attempt, roster: Roster, place: int, box: bytes
    ) -> tuple[bytes, bytes]:
        seat = roster.seats[place]
        found = boxes.open_box(
            box, private=attempt.share_private, public=seat.share_key,
            sender=seat.peer, receiver=self._me, plan=roster.plan,
        )  # fmt: skip
        # Numbers that no share has are junk as well: given back, they would seem to be our lie.
        return found if found and all(map(shamir.is_share, found)) else (b"", b"")

    def _ready(self) -> Ready:
        attempt = self._attempt()
        assert attempt.roster is not None
        unopened = tuple(
            attempt.roster.seats[place].peer
            for place in attempt.roster.places(attempt.maskset)
            if not attempt.held[place][0]
        )
        return Ready(attempt.maskset, unopened)

    def _is_in(self, roster: Roster, members: bytes) -> bool:
        return roster.place(self._me) in roster.places(members)

    def _check_set(self, attempt: Attempt, roster: Roster, included: bytes) -> None:
        outer, inner = (int.from_bytes(bits, "little") for bits in (attempt.maskset, included))
        if not attempt.maskset or inner & ~outer:
            raise MaskError("bad_set", "a member that is not in the maskset")
        roster.check_enough(included, "bad_set")
        if self._is_in(roster, included) and not attempt.words:
            raise MaskError("bad_set", "it includes words of ours that we did not send")

    def _revealed(self) -> list[Action]:
        """Reveal, once, if we and others, T in all, agree."""
        attempt, roster = self._attempt(), self._attempt().roster
        if roster is None or not attempt.included or attempt.revealed:
            return []
        said = Agree(roster.plan, attempt.maskset, attempt.included)
        same = {place for place, agree in self._agreed.items() if agree == said}
        if len(same | {roster.place(self._me)}) < roster.threshold:
            return []
        changed = msgspec.structs.replace(attempt, revealed=True)
        return [self._keep(changed), Send("reducers", _reveal(changed, roster))]


def _published(attempt: Attempt) -> Publish:
    return Publish(
        masks.public_of(attempt.mask_private),
        masks.public_of(attempt.share_private),
        sha256(attempt.seed).digest(),
    )


def _reveal(attempt: Attempt, roster: Roster) -> Reveal:
    """One share a member: of the seed of who is included, of the mask key of who is lost."""
    included = set(roster.places(attempt.included))
    shares = tuple(
        attempt.held[place][0 if place in included else 1]
        for place in roster.places(attempt.maskset)
    )
    return Reveal(roster.plan, attempt.maskset, attempt.included, shares)
