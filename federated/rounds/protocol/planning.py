"""How a coordinator cuts an update: who merges which part, and how long the transfers may take.

Members judge a plan by its form alone (checks.py), so a coordinator cuts as it sees fit: this is
how an honest one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from federated.rounds.protocol import topology
from federated.rounds.protocol.deadline import phase_limit_s
from federated.rounds.protocol.policy import quorum_of
from federated.rounds.protocol.wire import PartOf

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.wire import Join

STAR_FROM_VIEW: Final = 2
"""Two attempts came to nothing, perhaps by who merged: from here on the coordinator does it."""


def cut(
    setting: Setting, view: int, roster: Sequence[bytes], joins: Mapping[bytes, Join], *,
    merges: bool, unreliable: Collection[bytes],
) -> tuple[PartOf, ...]:  # fmt: skip
    """The parts of a plan.

    Args:
        setting: the round's.
        view: the plan's.
        roster: who takes part.
        joins: what each said of its line.
        merges: whether we, the coordinator, can merge.
        unreliable: members that get no part if there is anybody else.
    """
    # Who holds no reference row merges nothing: newcomers have not seen the last update.
    able = [peer for peer in roster if peer in setting.circle]
    able = [peer for peer in able if peer not in unreliable] or able
    found = topology.parts(
        setting.elements, _links(able, joins),
        0 if view >= STAR_FROM_VIEW else setting.payload_bytes,
        group=setting.federation, round_number=setting.number,
        coordinator=setting.me if merges and setting.me in able else None,
    )  # fmt: skip
    return tuple(PartOf(part.start, part.n, part.reducer, part.standby) for part in found)


def limit_s(setting: Setting, parts: Sequence[PartOf], joins: Mapping[bytes, Join]) -> float:
    """How long a phase of transfers of a plan may take.

    By what the faster members claim, as many as must come in: a slow line, or a claim of one,
    stretches no round.
    """
    nbytes = setting.payload_bytes
    planned = [topology.Part(one.start, one.count, one.reducer, one.standby) for one in parts]
    each = topology.phases_each(planned, _links(list(joins), joins), nbytes, nbytes)
    longer = sorted(max(one.scatter_s, one.gather_s) for one in each)
    needed = quorum_of(len(joins), setting.policy.quorum)
    return phase_limit_s(longer[needed - 1], setting.policy.transfer_s)


def _links(peers: Sequence[bytes], joins: Mapping[bytes, Join]) -> list[topology.PeerLink]:
    return [
        topology.PeerLink(peer, join.dialable, join.up, join.down)
        for peer in peers
        for join in [joins[peer]]
    ]
