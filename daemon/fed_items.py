"""From the parameters of `fed.top_k` to a question and this machine's part of it.

Loaded by who asks: a daemon that nobody asks needs no arrays.
"""

from __future__ import annotations

import functools
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from federated.rounds.service import Ask
from federated.rounds.statistics.items import Letters, Vocabulary
from federated.rounds.statistics.plain_items import PlainItems
from federated.rounds.statistics.private_items import PrivateItems, know, search_for
from federated.rounds.statistics.rows import Heard, Sum, Table, advance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.methods.fed_topk import TopKParams
    from federated.rounds.service import Among, Total
    from federated.rounds.statistics.answers import TopK
    from federated.rounds.statistics.items import Coding
    from federated.rounds.statistics.rows import Talk
    from p2p.env import Offload

CALL_DOMAIN: Final = b"covey/fed/topk/1\0"
EPSILON: Final = 4.0


class ItemsQuestion:
    """Which items are the most frequent, with this machine's part of it.

    Args:
        p: what the caller said.
        group: the group's id; None: our own machines.
        secret: of this machine's noise; in mode plain it is not looked at.

    Raises:
        UsageError: what is wrong; nothing has left yet.
    """

    def __init__(self, p: TopKParams, group: bytes | None, secret: bytes) -> None:
        self._part: PlainItems | PrivateItems
        if p.mode == "plain":
            vocabulary = None if p.vocabulary is None else Vocabulary(tuple(p.vocabulary))
            self._part = PlainItems(p.items, p.k, vocabulary)
            known = b"" if vocabulary is None else vocabulary.public
            self.ask = _ask(p, group, [known, p.k])
            return
        coding: Coding = Letters() if p.vocabulary is None else Vocabulary(tuple(p.vocabulary))
        search = search_for(coding, p.k, EPSILON if p.epsilon is None else p.epsilon)
        self._part = PrivateItems(coding, search, know(coding, p.items), secret, p.search)
        fields = [coding.public, search.k, search.epsilon, search.levels]
        self.ask = _ask(p, group, fields if p.search == "graded" else [*fields, p.search])

    def begin(self, names: Sequence[str], place: int) -> Talk[TopK]:
        """Talk with the members that met."""
        return self._part.talk(Table(names, place))


def _ask(p: TopKParams, group: bytes | None, fields: Sequence[object]) -> Ask:
    plain = p.mode == "plain"
    # Noise of its own needs nobody's leave: --allow-plain says nothing there.
    allow = plain and p.allow_plain
    body = msgspec.msgpack.encode([p.name, plain, allow, *fields])
    return Ask(
        group=group,
        kind="top_k",
        question=sha256(CALL_DOMAIN + body).digest(),
        name=p.name,
        expected=p.expected,
        wait_s=p.wait_s,
        timeout_s=p.timeout_s,
        privacy="plain",
        allow_plain=allow,
        private=not plain,
    )


async def converse(among: Among, talk: Talk[TopK], offload: Offload) -> tuple[TopK, list[Total]]:
    """Make a talk's sums, one after the other.

    Raises:
        RoundError: why there is no sum.
        UsageError: what came is no answer.
    """
    sums: list[Total] = []
    step = await offload.run(functools.partial(advance, talk, None))
    while isinstance(step, Sum):
        total = await among.total(step.vector, step.check)
        sums.append(total)
        heard = Heard(total.vector, _included(among, total))
        step = await offload.run(functools.partial(advance, talk, heard))
    return step.value, sums


def _included(among: Among, total: Total) -> frozenset[int] | None:
    if not total.report.members:
        return None
    included = {one.peer for one in total.report.members if one.status == "included"}
    return frozenset(place for place, peer in enumerate(among.peers) if peer.hex() in included)
