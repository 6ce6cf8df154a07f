"""Where members of a federation are, and who wants in: the question, its answer, what is believed.

One member's word moves nobody: where a federation is, a quorum of the circle says that stands
there. Source: docs/specs/rounds.md s.7.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from federated.rounds.protocol.policy import MEMBERS_MAX, is_quorum
from federated.rounds.protocol.wire import Hash, Peer
from p2p.rpc_types import Method

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

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
    answers: Mapping[bytes, Where], me: bytes, policy: Policy, owner: Callable[[bytes], bytes],
    *, known: Collection[bytes] = (), needed: int = 0,
) -> tuple[Where, tuple[bytes, ...]] | None:  # fmt: skip
    """Where the federation is and who said so; None: nobody is believed now.

    An answer is believed if a quorum of *its own circle* gives it, of the devices and of the
    owners, ourselves apart, and with us `min_peers` are in that. Of several the one that most
    owners say, then most devices, then the furthest, is taken: one person's many machines are one
    voice. Who is not of the circle that it names counts nothing. The members' C may differ, as it
    is a coordinator's word that not everybody heard: the smallest is taken.

    A liar names a circle of its own machines, whose quorum it has. So who knows members already
    believes only what enough of them say, too.

    Args:
        answers: by who gave them, ourselves not among them.
        me: this device.
        policy: ours; where the others have another one, the caller says so.
        owner: whose a device is.
        known: members of the circle that we know.
        needed: how many of `known` must say the same.
    """
    groups: dict[tuple[object, ...], list[bytes]] = defaultdict(list)
    for peer, where in answers.items():
        if peer in where.circle and peer != me:
            groups[_but_clip(where)].append(peer)
    best: tuple[Where, tuple[bytes, ...]] | None = None
    for peers in groups.values():
        where = answers[peers[0]]
        if len(set(peers) & set(known)) < needed:
            continue
        if not _carried(where, peers, len(answers), me, policy, owner):
            continue
        clip = min(answers[peer].clip for peer in peers)
        found = msgspec.structs.replace(where, clip=clip), tuple(sorted(peers))
        if best is None or _rank(found, owner) > _rank(best, owner):
            best = found
    return best


def _rank(
    found: tuple[Where, tuple[bytes, ...]], owner: Callable[[bytes], bytes]
) -> tuple[int, int, int]:
    where, voices = found
    return len(set(map(owner, voices))), len(voices), where.round


def _but_clip(where: Where) -> tuple[object, ...]:
    return tuple(getattr(where, name) for name in where.__struct_fields__ if name != "clip")


def _carried(
    where: Where, voices: Sequence[bytes], answered: int, me: bytes, policy: Policy,
    owner: Callable[[bytes], bytes],
) -> bool:  # fmt: skip
    circle = where.circle
    inside = me in circle
    votes = len(voices)
    owners = {peer: owner(peer) for peer in circle}
    everybody = votes == len(circle) - inside
    if not everybody and not is_quorum(voices, circle, owners, policy.quorum):
        return False
    if votes + inside < policy.min_peers:
        return False
    # A circle of two of whom we are one is the other's word alone: nobody else can know. A liar can
    # name such a circle, too, so it is taken only while nobody else says otherwise; in a federation
    # of two who trains with a liar is at its mercy in any case.
    return votes > 1 or answered == 1
