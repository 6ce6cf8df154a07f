"""What a round at this member becomes in its history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.rounds.history import MemberReport, PartReport, RoundReport
from federated.rounds.numeric.payload import encoded_bytes
from federated.rounds.privacy.roster import two_thirds
from federated.rounds.protocol.masked_member import MaskedMember

if TYPE_CHECKING:
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.unread import Unread
    from federated.rounds.seat import RoundSeat
    from p2p.env import Env


def report_of(
    env: Env, setting: Setting, seat: RoundSeat, began: float, *, kind: str, name: str,
    group: bytes, ident: str, limit_s: float = 0.0,
) -> RoundReport:  # fmt: skip
    """A round that ended here, as its history keeps it.

    Args:
        env: clocks.
        setting: the round's.
        seat: the round.
        began: when, on the monotonic clock.
        kind: `model`, or what was asked.
        name: of the model or question.
        group: whose machines; empty: our own.
        ident: what the round goes by.
        limit_s: how long it was given, for the reason.
    """
    seconds = env.now() - began
    decided = seat.outcome.decided
    member = seat.machine.member
    plan = decided.plan if decided else (member.made.plan if member.made else None)
    update = member.update
    return RoundReport(
        id=ident,
        group=group.hex(),
        kind=kind,
        name=name,
        number=setting.number,
        began_ms=env.wall_ms() - int(seconds * 1000),
        seconds=round(seconds, 3),
        outcome="applied" if decided else "failed",
        reason="" if decided else _why(seat, limit_s),
        root=decided.root.hex() if decided else "",
        view=decided.view if decided else max(0, member.view),
        rule=_rule(setting, seat),
        codec=setting.policy.codec,
        deadline_s=round(setting.deadline_s, 3),
        clip=member.clip,
        privacy="masked" if setting.masked else "plain",
        threshold=_threshold(setting, len(plan.joins)) if setting.masked and plan else 0,
        metrics=dict(update.metrics) if update is not None else {},
        members=_members(seat),
        parts=[
            PartReport(
                part=number, reducer=part.reducer.hex(), standby=part.standby.hex(),
                count=part.count, nbytes=encoded_bytes(setting.policy.codec, part.count),
            )
            for number, part in enumerate(plan.parts if plan else ())
        ],
        attempts=list(seat.outcome.ended),
    )  # fmt: skip


def _rule(setting: Setting, seat: RoundSeat) -> str:
    """The rule that was used: FLTrust needs the update of the member with root data."""
    statuses = {one.peer: one.status for one in seat.machine.member.statuses}
    root = setting.policy.root_data
    if setting.rule != "fltrust" or root is None or statuses.get(root) == "included":
        return setting.rule
    return "centred_clipping"


def _threshold(setting: Setting, roster: int) -> int:
    return two_thirds(max(roster, len(setting.circle)))


def unread_of(seat: RoundSeat) -> Unread | None:
    """Why a sum that its members decided cannot be read here; None if that is not what happened."""
    member = seat.machine.member
    return member.unmasking.unread if isinstance(member, MaskedMember) else None


def _members(seat: RoundSeat) -> list[MemberReport]:
    unread = unread_of(seat)
    known = unread.members if unread else {}
    return [
        MemberReport(
            peer=one.peer.hex(), status=one.status, reason=known.get(one.peer, one.reason),
            arrival_s=round(one.arrival_s, 4), norm=one.norm, weight=one.weight,
        )
        for one in seat.machine.member.statuses
    ]  # fmt: skip


def _why(seat: RoundSeat, limit_s: float) -> str:
    if seat.outcome.failure is not None:
        return str(seat.outcome.failure)
    unread = unread_of(seat)
    if unread is not None:
        return unread.reason
    if seat.outcome.ended:
        return f"the round came to nothing: {seat.outcome.ended[-1]}"
    return f"no result within {limit_s:.0f} s: too few of the members stayed reachable"
