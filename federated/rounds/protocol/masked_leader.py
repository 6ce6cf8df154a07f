"""The coordinator of one view of a masked round: it carries boxes, and has words under masks added.

    joining > sharing > committing > scatter > merge > confirm > applied

It reads nothing that others do not: what is voted on is the sum under its masks, and members take
them off by themselves once it is decided. They judge all that it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from typing_extensions import override

from federated.rounds.privacy import messages
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.gather import Coordinator
from federated.rounds.privacy.roster import two_thirds
from federated.rounds.protocol.leader import Leader
from federated.rounds.protocol.mask_checks import owners_fit
from federated.rounds.protocol.unmasking import refused
from federated.rounds.protocol.wire import Keys, MaskedPlan, MaskMembers, MaskShares, sign
from p2p.errors import DecodeError
from p2p.replication.keys import check_exchange_public_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.privacy.roster import Roster
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.doubts import Doubts
    from federated.rounds.protocol.orders import Order
    from federated.rounds.protocol.wire import Plan, Signed, Status


class MaskedLeader(Leader):
    """The coordinator of one view of a masked round; arguments as of `Leader`."""

    _after_plan = "sharing"

    def __init__(
        self, setting: Setting, view: int, give: Callable[[Order], None], merges: bool = True,
        doubts: Doubts | None = None,
    ) -> None:  # fmt: skip
        super().__init__(setting, view, give, merges, doubts)
        self._keys: dict[bytes, tuple[Signed, Keys]] = {}
        self._keyless: dict[bytes, Signed] = {}
        """Joins whose keys have not come."""
        self._carrier: Coordinator | None = None
        self._maskset: tuple[bytes, ...] = ()
        self._hands: dict[bytes, Signed] = {}

    @property
    def _masks(self) -> Roster:
        assert self._made is not None
        assert self._made.masks is not None
        return self._made.masks

    # ---- keys, plan

    @override
    def join(self, now: float, signed: Signed) -> None:
        if signed.signer in self._keys:
            super().join(now, signed)
        elif signed.signer in self._everybody:
            self._keyless.setdefault(signed.signer, signed)

    def keys(self, now: float, signed: Signed, keys: Keys) -> None:
        """A member's keys for this view.

        Raises:
            DecodeError: ones that would let others read what is hidden under them.
        """
        peer = signed.signer
        if self.phase != "joining" or peer not in self._everybody or peer in self._keys:
            return
        taken = {key for _, one in self._keys.values() for key in (one.mask_key, one.share_key)}
        fresh = {keys.mask_key, keys.share_key}
        if len(fresh) < 2 or fresh & taken:
            raise DecodeError("a key that comes twice")
        for key in sorted(fresh):
            check_exchange_public_untrusted(key)
        self._keys[peer] = (signed, keys)
        if peer in self._keyless:
            super().join(now, self._keyless.pop(peer))

    @override
    def _plan(self, now: float, roster: list[bytes]) -> None:
        wrong = self._unfit_roster(roster)
        if not wrong:
            super()._plan(now, roster)
            self._carrier = Coordinator(self._masks)
        elif now >= self._overdue_at:
            self._abort(f"privacy: {wrong}"[:200])

    def _unfit_roster(self, roster: list[bytes]) -> str:
        needed = two_thirds(len(self._setting.circle))
        if len(roster) < needed:
            return f"{len(roster)} members answered, {needed} have to agree to a sum"
        return owners_fit(self._setting, roster)

    @override
    def _plan_of(self, roster: list[bytes]) -> Plan:
        keys = tuple(self._keys[peer][0] for peer in roster)
        return MaskedPlan(**msgspec.structs.asdict(super()._plan_of(roster)), keys=keys)

    # ---- shares, maskset

    def shares(self, now: float, sender: bytes, message: MaskShares) -> None:
        """A member's boxes for all others.

        Raises:
            DecodeError: not one for each, or other ones than before.
        """
        if self._made is None or message.plan != self._made.hash or self.phase != "sharing":
            return
        assert self._carrier is not None
        with refused():
            self._carrier.shares(sender, messages.decode_shares_untrusted(message.body))
        if self._carrier.all_shared:
            self._name(now)

    def _name(self, now: float) -> None:
        """Who has shared takes part."""
        assert self._carrier is not None
        try:
            hands = self._carrier.hand_out()
        except MaskError as error:
            self._abort(f"privacy: {error}"[:200])
            return
        self._maskset = tuple(hand.to for hand in hands)
        self._planned_at = now
        self._enter("committing", now)
        for hand in hands:
            message = MaskMembers(*self._head, messages.encode(hand.message))
            self._hands[hand.to] = sign(self._setting.signer, self._setting.me, message)
            self._to_signed((hand.to,), self._hands[hand.to])

    # ---- commits

    @property
    @override
    def _senders(self) -> tuple[bytes, ...]:
        return self._maskset

    @property
    @override
    def _needed(self) -> int:
        return max(super()._needed, self._masks.threshold)

    @override
    def commit(self, now: float, signed: Signed) -> None:
        if signed.signer in self._maskset:
            super().commit(now, signed)

    # ---- time

    @override
    def next_time(self) -> float:
        due = super().next_time()
        if self.phase != "sharing":
            return due
        return max(min(due, self._overdue_at), self._seen + 0.001)

    @override
    def on_time(self, now: float) -> None:
        super().on_time(now)
        if not self.over and self.phase == "sharing" and now >= self._overdue_at:
            self._name(now)

    @override
    def _ask_again(self, now: float) -> None:
        super()._ask_again(now)
        if self._made is None or self.over:
            return
        if self.phase == "sharing":
            assert self._carrier is not None
            missing = set(self._made.roster) - set(self._carrier.sharers)
            self._to_signed(missing, self._made.signed)
        elif self.phase == "committing":
            for peer in sorted(self._hands.keys() - self._holdings.updates.keys()):
                self._to_signed((peer,), self._hands[peer])

    # ---- what is told

    @override
    def _fate(
        self,
        peer: bytes,
        roster: tuple[bytes, ...],
        included: set[bytes],
        rejected: dict[bytes, str],
    ) -> tuple[Status, str]:
        status, reason = super()._fate(peer, roster, included, rejected)
        if status == "late" and self._maskset and peer not in self._maskset:
            return "lost", "shared no secrets in time"
        return status, reason
