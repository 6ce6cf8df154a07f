"""A member of a masked round: fresh keys in every view, words under masks, one set revealed.

What may be said is decided by `privacy.secagg`, which knows of no rounds; each view has one of its
own here, and of them the decided one alone is ever opened (`unmasking`). Its journal is not kept: a
sum dies with its process, and who comes back has no secrets in that round any more.

Source: docs/specs/masks.md s.5; docs/decisions/0017-decide-then-unmask.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from typing_extensions import override

from federated.rounds.privacy import messages, secagg
from federated.rounds.privacy.errors import MaskError
from federated.rounds.protocol.member import Member
from federated.rounds.protocol.orders import Cover, Decided, Encode, Tell
from federated.rounds.protocol.unmasking import Unmasking, refused
from federated.rounds.protocol.unread import named
from federated.rounds.protocol.wire import Keys, MaskShares, MemberStatus, hash_of, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from federated.rounds.privacy.shamir import RandomBytes
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.member import Link
    from federated.rounds.protocol.orders import Encoded, Order, SumOpened, Vote
    from federated.rounds.protocol.wire import (
        MaskAgree,
        MaskMembers,
        MaskRead,
        MaskReveal,
        Propose,
        Signed,
    )

ATTEMPTS_MAX: Final = 16
"""Of whose secrets are kept: a vote for an earlier one may be finished in a later view."""


class MaskedMember(Member):
    """One member in one masked round.

    Args:
        setting: the round's.
        link: how we are reached.
        give: takes orders.
        promised: view promised before a restart; -1: none. Who restarts shares no keys any more.
        vote: the last vote before a restart.
        random_bytes: source of keys, seeds and polynomials that nobody can foresee.
    """

    def __init__(
        self, setting: Setting, link: Link, give: Callable[[Order], None], *, promised: int = -1,
        vote: Vote | None = None, random_bytes: RandomBytes,
    ) -> None:  # fmt: skip
        super().__init__(setting, link, self._hold, promised=promised, vote=vote)
        self._out = give
        self._random = random_bytes
        self._forgot = promised >= 0
        self._masks = secagg.Member(setting.me, random_bytes)
        self._keys: Signed | None = None
        self._maskset = b""
        self._attempts: dict[bytes, tuple[secagg.Member, bytes]] = {}
        """Our secrets and the maskset, by plan."""
        self.unmasking = Unmasking(setting, give)

    def _hold(self, order: Order) -> None:
        """The decision is given on when the sum can be read."""
        if not isinstance(order, Decided):
            self._out(order)
            return
        made, _ = self._decided
        assert made.masks is not None
        ours = self._attempts.get(order.plan_hash)
        # The secrets of all other attempts go: they are opened never.
        self._attempts = {}
        self._masks = secagg.Member(self._setting.me, self._random)
        self.unmasking.decided(order, made.masks, ours)

    # ---- keys, shares

    @override
    def enter(self, view: int) -> None:
        if view > self.view:
            self._masks = secagg.Member(self._setting.me, self._random)
            self._keys = None
            self._maskset = b""
        super().enter(view)

    @override
    def propose(self, sender: bytes, message: Propose) -> None:
        super().propose(sender, message)
        if (
            self._proposed_view == message.view == self.view
            and self._chosen is not None
            and self._chosen.root is None
            and self._setting.me in message.invited
            and not self._forgot
        ):
            self._send_signed(self._setting.coordinator(self.view), self._keys_of_view())

    def _keys_of_view(self) -> Signed:
        """Fresh in every view, and the same for as long as it lasts."""
        if self._keys is None:
            fresh = self._masks.begin()[-1]
            assert isinstance(fresh, secagg.Publish)
            setting = self._setting
            keys = Keys(
                setting.federation, setting.number, self.view, bytes(32), fresh.mask_key,
                fresh.share_key, fresh.seed_hash,
            )  # fmt: skip
            self._keys = sign(setting.signer, setting.me, keys)
        return self._keys

    @override
    def plan(self, sender: bytes, signed: Signed) -> None:
        before = self.made
        super().plan(sender, signed)
        made = self.made
        if made is None or made.hash != hash_of(signed):
            return
        assert made.masks is not None
        with refused():
            self._share(self._masks.plan(made.masks) if before is None else self._masks.pending())

    def _share(self, actions: Iterable[secagg.Action]) -> None:
        assert self.made is not None
        for action in actions:
            if isinstance(action, secagg.Send) and isinstance(action.message, messages.Shares):
                shares = MaskShares(*self._head(), messages.encode(action.message))
                signed = sign(self._setting.signer, self._setting.me, shares)
                self._send_signed(self.made.signed.signer, signed)

    # ---- words

    def members(self, sender: bytes, message: MaskMembers) -> None:
        """The coordinator says who has shared, and hands us our shares: now we can mask.

        Raises:
            DecodeError: it is no set that hides us.
        """
        if not self._of_plan(sender, message):
            return
        assert self.made is not None
        with refused():
            found = self._masks.maskset(messages.decode_maskset_untrusted(message.body))[-1]
        assert isinstance(found, secagg.Ready)
        if not self._maskset:
            for peer in found.unopened:
                carried = (
                    "" if peer == sender else f", or {named([sender])} changed them on the way"
                )
                told = f"its shares do not open: it sealed junk{carried}"
                self._give(Tell("member.unfit_box", told, peer))
        self._maskset = found.maskset
        kept = list(self._attempts.items())[-ATTEMPTS_MAX + 1 :]
        self._attempts = {**dict(kept), self.made.hash: (self._masks, self._maskset)}
        self._prepare()
        self._say_commit()

    @override
    def _prepare(self) -> None:
        if self.made is None or self.update is None or self._preparing or not self._maskset:
            return
        self._preparing = True
        self._give(Encode(self.made.hash, self.made.plan))

    def encoded(self, event: Encoded) -> None:
        """Our words are made: hide them."""
        if self.made is None or event.plan_hash != self.made.hash:
            return
        try:
            self._masks.bind(event.update, event.words)
        except MaskError as error:
            self._give(Tell("member.left_out", str(error)))
            return
        mask = self._masks.mask()
        self._give(Cover(event.plan_hash, self._maskset, event.words, mask))

    # ---- after the decision

    def unmask(self, sender: bytes, message: MaskAgree | MaskReveal | MaskRead) -> None:
        """A member's word about the decided sum.

        Raises:
            DecodeError: it breaks the rules.
        """
        if sender in self._setting.circle or self._setting.may_join(sender):
            self.unmasking.hear(sender, message)

    def opened(self, event: SumOpened) -> None:
        """The shares gave the secrets, or did not."""
        if self.unmasking.opened(event):
            # Who finished an earlier view's vote has not heard how its members fared.
            known = self.statuses or tuple(self._fate(peer) for peer in self._decided[0].roster)
            self.statuses = tuple(self._recovered(one) for one in known)

    def _fate(self, peer: bytes) -> MemberStatus:
        if peer in self.unmasking.included:
            return MemberStatus(peer, "included", "", -1.0, 0.0, 1.0)
        return MemberStatus(peer, "lost", "its words are not in the sum", -1.0, 0.0, 1.0)

    def _recovered(self, status: MemberStatus) -> MemberStatus:
        if status.peer not in self.unmasking.lost or status.status == "included":
            return status
        helpers = named(self.unmasking.helpers)
        reason = f"{status.reason[:50]}; its masks were taken off with the help of {helpers}"
        return msgspec.structs.replace(status, reason=reason[:200])
