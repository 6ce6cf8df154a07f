"""What a federation's next round begins with: who takes part, row 0 of the rules, a kept vote."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, cast

from federated.rounds.numeric.payload import encoded_bytes, join_parts
from federated.rounds.protocol.checks import Setting
from federated.rounds.protocol.deadline import History as Offsets
from federated.rounds.protocol.policy import MEMBERS_MAX
from federated.rounds.protocol.wire import decode_untrusted
from p2p.errors import DecodeError
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from federated.rounds.federation_store import Standing
    from federated.rounds.numeric.dtypes import F32
    from federated.rounds.protocol.orders import Vote
    from federated.seams import Mesh


def setting_after(
    mesh: Mesh, ident: bytes, standing: Standing, elements: int, wanting: Iterable[bytes],
    admits: Callable[[bytes], bool],
) -> Setting:  # fmt: skip
    """The setting of the round after `standing`.

    Args:
        mesh: who is who.
        ident: the federation's id.
        standing: the last applied round.
        elements: numbers of an update.
        wanting: who asked to be in.
        admits: whether a peer may take part: asked of everybody who is not of the circle already.
    """
    policy, circle, group = standing.policy, standing.circle, standing.group or None
    asked = [peer for peer in sorted(set(wanting) - set(circle)) if admits(peer)]
    newcomers = tuple(asked[: MEMBERS_MAX - len(circle)])
    everybody = {bytes(peer) for peer in (mesh.id, *mesh.members(group))}
    deadline = Offsets(standing.offsets).deadline_s(len(circle), policy.first_deadline_s)
    return Setting(
        me=bytes(mesh.id),
        signer=mesh,
        federation=ident,
        number=standing.round + 1,
        circle=circle,
        newcomers=newcomers,
        owners={peer: mesh.owner(PeerId(peer), group) for peer in (*circle, *newcomers)},
        base_root=standing.root,
        policy=policy,
        schema=sha256(standing.schema).digest(),
        elements=elements,
        rule=standing.rule,
        clip=standing.clip or policy.clip or 0.0,
        deadline_s=deadline,
        payload_bytes=encoded_bytes(policy.codec, elements),
        candidates=frozenset(filter(admits, everybody - set(circle))),
        banned=frozenset(standing.banned),
    )


def reference_of(standing: Standing, kept: Mapping[bytes, bytes]) -> F32 | None:
    """The last applied update, row 0 of the rules; None if its parts are not all here.

    Args:
        standing: the last applied round.
        kept: merged parts by hash.
    """
    if not standing.parts or not set(standing.parts) <= kept.keys():
        return None
    counted = zip(standing.parts, standing.counts, strict=True)
    pieces = [(kept[digest], count) for digest, count in counted]
    return cast("F32", join_parts(standing.codec, pieces))


def is_about(vote: Vote, root: bytes) -> bool:
    """Whether a kept vote is about a round that begins with this root.

    After a leave and another join the same number may be another round, which it must not bind.
    """
    try:
        plan = decode_untrusted(vote.plan.body)
    except DecodeError:
        return False
    return getattr(plan, "base_root", None) == root
