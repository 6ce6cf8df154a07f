"""Where members of a federation are, and who wants in: the question, its answer, what is believed.

One member's word moves nobody: where a federation is, a quorum of the circle says that stands
there. Source: docs/specs/rounds.md s.7.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from federated.rounds.protocol.policy import MEMBERS_MAX, quorum_of
from federated.rounds.protocol.wire import Hash, Peer
from p2p.rpc_types import Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.rounds.protocol.policy import Policy

ROUND_MAX: Final = 2**62
NBYTES_MAX: Final = 2**33


class Knock(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Where is this federation, and may I take part from the next round on?"""

    federation: Hash


class Where(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A member's last applied round, and the state that it left."""

    round: Annotated[int, msgspec.Meta(ge=0, le=ROUND_MAX)]
    root: Hash
    state_sha: Hash
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=NBYTES_MAX)]
    """Of the state's file."""
    circle: Annotated[tuple[Peer, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_MAX)]
    clip: Annotated[float, msgspec.Meta(ge=0)]
    policy: Hash
    schema: Hash

    def __post_init__(self) -> None:
        if len(set(self.circle)) != len(self.circle):
            raise ValueError("a circle that names a member twice")
        if not math.isfinite(self.clip):
            raise ValueError("a clip that is not finite")


class Answer(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Where the federation is here; None: we are no member of it, or it is not for you."""

    where: Where | None


KNOCK: Final = Method("fed.knock", request=Knock, reply=Answer, idempotent=True)
NOWHERE: Final = Answer(None)


def believed(
    answers: Mapping[bytes, Where], me: bytes, policy: Policy
) -> tuple[Where, tuple[bytes, ...]] | None:
    """Where the federation is and who said so; None: nobody is believed now.

    An answer is believed if a quorum of *its own circle* gives it, ourselves apart, and with us
    `min_peers` are in that. Of several the one that most say, then the furthest, is taken. Who is
    not of the circle that it names counts nothing. The members' C may differ, as it is a
    coordinator's word that not everybody heard: the smallest is taken.

    Args:
        answers: by who gave them, ourselves not among them.
        me: this device.
        policy: ours; where the others have another one, the caller says so.
    """
    groups: dict[tuple[object, ...], list[bytes]] = defaultdict(list)
    for peer, where in answers.items():
        if peer in where.circle and peer != me:
            groups[_but_clip(where)].append(peer)
    best: tuple[Where, tuple[bytes, ...]] | None = None
    for peers in groups.values():
        where = answers[peers[0]]
        if not _carried(where, len(peers), len(answers), me, policy):
            continue
        if best is None or (len(peers), where.round) > (len(best[1]), best[0].round):
            clip = min(answers[peer].clip for peer in peers)
            best = msgspec.structs.replace(where, clip=clip), tuple(sorted(peers))
    return best


def _but_clip(where: Where) -> tuple[object, ...]:
    return tuple(getattr(where, name) for name in where.__struct_fields__ if name != "clip")


def _carried(where: Where, votes: int, answered: int, me: bytes, policy: Policy) -> bool:
    circle = where.circle
    inside = me in circle
    others = len(circle) - inside
    if votes < min(quorum_of(len(circle), policy.quorum), others):
        return False
    if votes + inside < policy.min_peers:
        return False
    # A circle of two of whom we are one is the other's word alone: nobody else can know. A liar can
    # name such a circle, too, so it is taken only while nobody else says otherwise; in a federation
    # of two who trains with a liar is at its mercy in any case.
    return votes > 1 or answered == 1
