"""After the decision on a masked sum: agree to its set, reveal for it, read it. One set a round.

What the members voted on is the sum as it is under the masks, with the sets of members that it
names. Only then does anybody reveal anything, each of them once in a round, and for the set that it
has seen decided. Any two sets of T that agree have a third of the circle in common, so at most one
set of a round is ever opened, whatever coordinators and fewer than a third of the members say; and
nobody has to be there any more but T of those who shared.

Each tells all others until they say that they can read the sum, and how: the secrets are as their
members signed them, so whoever has them helps all, and either all can read it or nobody.

Source: docs/specs/masks.md s.5; docs/decisions/0017-decide-then-unmask.md.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from federated.rounds.privacy import messages, secagg
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.gather import Opening
from federated.rounds.protocol.checks import TICK_S
from federated.rounds.protocol.orders import OpenSum, ReadSets, Tell
from federated.rounds.protocol.orders import Send as SendOrder
from federated.rounds.protocol.unread import HEAD, NO_SHARES, Unread, gave_no_share, why_unread
from federated.rounds.protocol.wire import (
    MaskAgree,
    MaskRead,
    MaskReveal,
    packet_of,
    sign,
    unsigned,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from federated.rounds.privacy.roster import Roster
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.orders import Decided, Order, SetsRead, SumOpened
    from federated.rounds.protocol.wire import Packet

    Said: TypeAlias = MaskAgree | MaskReveal | MaskRead
    Attempt: TypeAlias = tuple[secagg.Member, bytes]

TICKS_MAX: Final = 40
"""How often the others are told; the caller's patience is shorter."""
WRONG_SHARES: Final = "shares that it gave back are wrong, or were dealt to it so"


@contextmanager
def refused() -> Iterator[None]:
    """What masks forbid is a message that breaks the rules."""
    try:
        yield
    except MaskError as error:
        raise DecodeError(str(error)) from error


class Unmasking:
    """One member's way from the decision to the sum.

    Args:
        setting: the round's.
        give: takes orders.
    """

    def __init__(self, setting: Setting, give: Callable[[Order], None]) -> None:
        self._setting = setting
        self._give = give
        self._decision: Decided | None = None
        self._roster: Roster | None = None
        self._secrets: secagg.Member | None = None
        self._maskset = b""
        self._opening: Opening | None = None
        self._early: dict[tuple[type[Said], bytes], Said] = {}
        self._dealers: tuple[bytes, ...] = ()
        """Who shared secrets, in the order of the roster."""
        self._revealed: dict[bytes, tuple[bytes, ...]] = {}
        """What each gave: a share of each dealer's secret, empty if it says that it has none."""
        self._spoilt: tuple[bytes, ...] = ()
        self._told: dict[bytes, str] = {}
        """What was said of who spoils the sum."""
        self._barred = ""
        """Why the sum is not to be opened."""
        self._enough = False
        self._tried = 0
        self._reading: set[bytes] = set()
        """Who can read the sum and wants to hear no more."""
        self._ticks = 0
        self._read_by: tuple[bytes, ...] = ()
        self._failed = False
        self._offers: dict[bytes, tuple[bytes, ...]] = {}
        self._teller = b""
        self._next = float("inf")
        self.read = False
        self.included: tuple[bytes, ...] = ()
        self.lost: tuple[bytes, ...] = ()
        """Members whose masks had to be taken off with others' shares."""
        self.helpers: tuple[bytes, ...] = ()
        """Whose shares were used, or who told us what they gave."""

    # ---- steps

    def decided(self, order: Decided, roster: Roster, ours: Attempt | None) -> None:
        """The round is decided.

        Args:
            order: given on once the sum can be read.
            roster: of its plan.
            ours: our secrets in that attempt and its maskset; None if we had none, or forgot them.
        """
        self._decision, self._roster = order, roster
        self._secrets, self._maskset = ours or (None, b"")
        self._give(ReadSets(order.plan_hash, order.hashes[0]))

    def sets(self, event: SetsRead) -> None:
        """Whose words are in the sum: agree to it, if it bares nobody."""
        if self._decision is None or event.plan_hash != self._decision.plan_hash or self._opening:
            return
        assert self._roster is not None
        try:
            places, inside = self._places(event)
        except MaskError as error:
            self._barred = str(error)
            self._give(Tell("masks.failed", str(error)))
            return
        if event.maskset != self._maskset:
            self._secrets = None  # ours were shared among others
        self._opening = Opening(self._roster, event.maskset, event.included)
        seats = self._roster.seats
        self._dealers = tuple(seats[place].peer for place in places)
        self.lost = tuple(seats[place].peer for place in places if place not in inside)
        self.included = tuple(seats[place].peer for place in inside)
        self._next = 0.0
        self._agree()
        early, self._early = self._early, {}
        for (_, sender), message in sorted(early.items(), key=lambda one: one[0][0].__name__):
            with suppress(DecodeError):
                self.hear(sender, message)

    def _places(self, event: SetsRead) -> tuple[list[int], list[int]]:
        """Of those who shared, and of those whose words are in it."""
        assert self._roster is not None
        self._roster.check_enough(event.included, "bad_set")
        places, inside = (self._roster.places(one) for one in (event.maskset, event.included))
        if not set(inside) <= set(places):
            raise MaskError("bad_set", "a member that is not in the maskset")
        return places, inside

    def _agree(self) -> None:
        assert self._decision is not None
        if self._secrets is None:
            return
        try:
            self._carry(self._secrets.close(self._decision.plan_hash, self.included))
        except MaskError as error:
            self._give(Tell("masks.failed", f"no share of ours for this sum: {error}"))
            self._secrets = None

    def hear(self, sender: bytes, message: Said) -> None:
        """Another member's word about this.

        Raises:
            DecodeError: it breaks the rules.
        """
        if self._opening is None:
            self._early[type(message), sender] = message
            return
        assert self._decision is not None
        if message.plan != self._decision.plan_hash:
            return
        if isinstance(message, MaskRead):
            self._others_read(sender, message)
            return
        if self.read:
            self._say(sender, unsigned(MaskRead(*self._head, self._read_by)))
        with refused():
            if isinstance(message, MaskAgree):
                self._others_agree(sender, messages.decode_agree_untrusted(message.body))
            else:
                self._others_reveal(sender, messages.decode_reveal_untrusted(message.body))

    def _others_read(self, sender: bytes, message: MaskRead) -> None:
        """Who can read the sum says how: for us, if the shares that came are not enough."""
        self._reading.add(sender)
        self._offers[sender] = message.secrets
        if self._failed:
            self._take_offer()

    def _take_offer(self) -> None:
        assert self._decision is not None
        assert self._opening is not None
        offers, self._offers = self._offers, {}
        for sender, secrets in offers.items():
            if not self.read and self._opening.told(secrets):
                self._teller = sender
                self._give(OpenSum(self._decision.plan_hash, self._opening.snapshot()))
                return

    def _others_agree(self, sender: bytes, agree: messages.Agree) -> None:
        if self._secrets is not None:
            self._carry(self._secrets.agree(sender, agree))

    def _others_reveal(self, sender: bytes, reveal: messages.Reveal) -> None:
        assert self._opening is not None
        self._enough = self._opening.reveal(sender, reveal) or self._enough
        again = sender in self._revealed
        self._revealed[sender] = reveal.shares
        self._maybe_read()
        if self.read or again or self._enough:
            return  # who has read it by others' word still hears the last reveals
        if len(self._revealed) == len(self._dealers):
            # Nobody is left that could give more.
            self._tell_unread()

    def _maybe_read(self) -> None:
        if self.read or not self._enough or len(self._revealed) <= self._tried:
            return
        assert self._decision is not None
        assert self._opening is not None
        self._tried = len(self._revealed)
        self._give(OpenSum(self._decision.plan_hash, self._opening.snapshot()))

    def opened(self, event: SumOpened) -> bool:
        """The shares gave the secrets, or did not; whether the sum can be read now."""
        decision = self._decision
        if decision is None or event.plan_hash != decision.plan_hash or self.read:
            return False
        if event.failure:
            # With another member's shares wrong ones are found and corrected. Until they come, it
            # fails with each that does not do: that is told once.
            if not self._failed:
                self._give(Tell("masks.failed", event.failure))
            self._failed = True
            if event.spoilt:
                self._spoilt = event.spoilt
                self._tell_unread()
            self._take_offer()
            return False
        for peer in event.liars:
            # Who dealt wrong ones may have lied, so that another is blamed. Nobody deals no share.
            sure = gave_no_share(self._revealed[peer])
            self._give(Tell("member.wrong_shares", NO_SHARES if sure else WRONG_SHARES, peer))
        self.read = True
        self._read_by = event.secrets
        shared = tuple(sorted(self._revealed.keys() - set(event.liars)))
        self.helpers = (self._teller,) if self._teller else shared
        self._give(decision)
        for peer in self._others:
            self._say(peer, unsigned(MaskRead(*self._head, self._read_by)))
        return True

    @property
    def unexamined(self) -> Opening | None:
        """Shares that did not do while others were missing; `examined` hears what is `spoilt`."""
        if self.read or not self._failed or self._spoilt or self._opening is None:
            return None
        return self._opening.snapshot()

    def examined(self, spoilt: tuple[bytes, ...]) -> None:
        """Whose secrets did not come out, for `unread`."""
        self._spoilt = self._spoilt or spoilt

    @property
    def unread(self) -> Unread | None:
        """Why the decided sum cannot be read here; None if it can, or nothing is decided.

        Whose secrets do not come out is known if everybody has revealed; else `unexamined` first.
        """
        if self._decision is None or self.read:
            return None
        if self._opening is None:
            return Unread(f"{HEAD}: {self._barred or 'there was not time enough'}")
        assert self._roster is not None
        carrier = self._setting.coordinator(self._decision.plan.view)
        return why_unread(self._roster, self._dealers, self._revealed, self._spoilt, carrier)

    def news(self) -> list[Tell]:
        """What is known of who spoils the sum; what was in an answer before is left out."""
        found = self.unread.members if self.unread else {}
        fresh = {peer: known for peer, known in found.items() if self._told.get(peer) != known}
        self._told.update(fresh)
        return [Tell("member.spoils_sum", known, peer) for peer, known in fresh.items()]

    def _tell_unread(self) -> None:
        for told in self.news():
            self._give(told)

    # ---- time

    def next_time(self) -> float:
        """When `on_time` wants to be called."""
        return self._next

    def on_time(self, now: float) -> None:
        """Tell those again who cannot read the sum yet."""
        if now < self._next:
            return
        self._next = now + TICK_S
        waiting = [peer for peer in self._others if peer not in self._reading]
        if self._secrets is not None:
            self._carry(self._secrets.pending(), waiting)
        if self._ticks and not self.read:
            self._take_offer()
        self._ticks += 1
        if self._ticks >= TICKS_MAX or (self.read and not waiting):
            self._next = float("inf")

    # ---- small

    @property
    def _others(self) -> list[bytes]:
        assert self._roster is not None
        peers = {*self._setting.circle, *(seat.peer for seat in self._roster.seats)}
        return sorted(peers - {self._setting.me})

    @property
    def _head(self) -> tuple[bytes, int, int, bytes]:
        assert self._decision is not None
        plan = self._decision.plan
        return (plan.federation, plan.round, plan.view, self._decision.plan_hash)

    def _carry(self, actions: Iterable[secagg.Action], to: list[bytes] | None = None) -> None:
        others = self._others if to is None else to
        for action in actions:
            if isinstance(action, secagg.Send):
                packet = self._packet(action.message)
                for peer in others:
                    self._say(peer, packet)

    def _packet(self, message: messages.Shares | messages.Agree | messages.Reveal) -> Packet:
        setting, body = self._setting, messages.encode(message)
        if isinstance(message, messages.Reveal):
            if setting.me not in self._revealed:
                self._others_reveal(setting.me, message)
            return unsigned(MaskReveal(*self._head, body))
        return packet_of(sign(setting.signer, setting.me, MaskAgree(*self._head, body)))

    def _say(self, peer: bytes, packet: Packet) -> None:
        self._give(SendOrder(peer, packet))
