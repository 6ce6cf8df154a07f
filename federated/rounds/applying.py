"""What a decided round makes of a federation: its next state, and where it stands after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec

from federated.rounds.numeric import tensors
from federated.rounds.protocol.deadline import History as Offsets
from federated.rounds.protocol.wire import Apply, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.rounds.federation_store import FederationStore, Standing
    from federated.rounds.numeric.dtypes import F32, Array
    from federated.rounds.protocol.orders import Decided
    from federated.rounds.protocol.wire import MemberStatus
    from federated.rounds.seat import RoundSeat


@dataclass(frozen=True)
class Next:
    """What is kept of an applied round."""

    standing: Standing
    state: Mapping[str, Array]
    parts: Mapping[bytes, bytes]


def applied(
    before: Standing, schema: tensors.Schema, store: FederationStore, seat: RoundSeat,
    decided: Decided,
) -> Next:  # fmt: skip
    """Add what was decided to the state before. Blocks: run it in a worker.

    Args:
        before: the last applied round.
        schema: of the state.
        store: has the state after `before`.
        seat: the decided round; it hears nothing more.
        decided: what was decided, in the seat.

    Raises:
        DecodeError, UsageError: what was merged cannot be applied.
        OSError: the state before cannot be read.
    """
    merged = seat.workshop.whole(decided.plan, decided.hashes)
    state = tensors.apply(schema, store.load_state(before.round), cast("F32", merged))
    assert isinstance(decided.proof, Apply)
    member = seat.machine.member
    standing = msgspec.structs.replace(
        before,
        round=before.round + 1,
        root=decided.root,
        state_sha=tensors.genesis_root(schema, state),
        circle=tuple(one.signer for one in decided.plan.joins),
        # It is a coordinator's word.
        clip=member.clip if member.clip >= 0 else before.clip,
        offsets=offsets_after(before.offsets, member.statuses, seat.deadline_s),
        proof=encode(decided.proof),
        parts=decided.hashes,
        codec=decided.plan.codec,
        counts=tuple(part.count for part in decided.plan.parts),
        banned=tuple(sorted(seat.machine.banned)),
    )
    return Next(
        standing, state, {digest: seat.workshop.merged[digest] for digest in decided.hashes}
    )


def offsets_after(
    before: tuple[float, ...], statuses: tuple[MemberStatus, ...], deadline_s: float
) -> tuple[float, ...]:
    """Arrival offsets with a round more; each member counts once, and who was late as late."""
    members = {one.peer: one for one in statuses}.values()
    if not members:
        return before
    late = sum(one.status == "late" for one in members)
    arrived = [one.arrival_s for one in members if one.status != "late" and one.arrival_s >= 0]
    history = Offsets(before).after(arrived, late=late, closed_s=deadline_s, n=len(members))
    return history.offsets
