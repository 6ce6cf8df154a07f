"""Whether the plan of a masked round may be followed: whose keys, and how many owners.

Source: docs/specs/masks.md s.5 and s.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.errors import PlanError
from federated.rounds.privacy.choice import choose
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.roster import Seat, make_roster
from federated.rounds.protocol.wire import Keys, MaskedPlan, hash_of, open_signed
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federated.rounds.privacy.roster import Roster
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.wire import Plan, Signed


def owners_fit(setting: Setting, roster: Sequence[bytes]) -> str:
    """Why masks would hide nobody in this roster, or nothing."""
    owners = [setting.owners.get(peer, peer) for peer in roster]
    try:
        choose("masked", owners, rule="sum", clip=None)
    except PlanError as error:
        return str(error)
    return ""


def masked_roster(
    plan: Plan, signed: Signed, roster: Sequence[bytes], setting: Setting
) -> Roster | None:
    """The members of a masked plan with their keys, as each of them signed them; None if plain.

    Raises:
        DecodeError: a key that its member did not sign for this view, or a roster that masks hide
            nothing in.
    """
    if not setting.masked and not isinstance(plan, MaskedPlan):
        return None
    if not setting.masked or not isinstance(plan, MaskedPlan) or len(plan.keys) != len(roster):
        raise DecodeError("a masked round's plan without everybody's keys")
    if len(plan.parts) != 1:
        raise DecodeError("a masked sum in parts")
    wrong = owners_fit(setting, roster)
    if wrong:
        raise DecodeError(wrong)
    keys = _keys(plan, roster, setting)
    seats = [
        Seat(peer, setting.owners.get(peer, peer), one.mask_key, one.share_key, one.seed_hash)
        for peer, one in ((peer, keys[peer]) for peer in roster)
    ]
    try:
        found = make_roster(hash_of(signed), seats, len(setting.circle))
    except MaskError as error:
        raise DecodeError(str(error)) from None
    if len(roster) < found.threshold:
        raise DecodeError("a masked plan with fewer members than have to agree to its sum")
    return found


def _keys(plan: MaskedPlan, roster: Sequence[bytes], setting: Setting) -> Mapping[bytes, Keys]:
    found: dict[bytes, Keys] = {}
    for peer, signed in zip(roster, plan.keys, strict=True):
        keys = open_signed(signed, setting.signer)
        if not isinstance(keys, Keys) or signed.signer != peer:
            raise DecodeError("a masked plan with somebody else's keys for a member")
        if (keys.federation, keys.round, keys.view) != (plan.federation, plan.round, plan.view):
            raise DecodeError("a masked plan with keys of another view")
        found[peer] = keys
    return found
