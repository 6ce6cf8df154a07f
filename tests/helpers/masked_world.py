"""Masked rounds of sums in the simulated world: real keys, real shares, real words.

What `rounds_kit` makes of hashes is made of numbers here, by the workshop that daemons use.
"""

from __future__ import annotations

import random
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from federated.rounds.masked_workshop import MaskedWorkshop
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.orders import (
    Cover,
    Encode,
    FetchPart,
    FetchResult,
    Merge,
    OpenSum,
    PartArrived,
    PartFailed,
    ReadSets,
    ResultFailed,
    ServePart,
)
from federated.rounds.protocol.policy import Policy
from tests.helpers.rounds_kit import World, make_setting, peers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.orders import Order
    from tests.helpers.rounds_kit import Faults, Node

MASKED = Policy(rule="sum", codec="mfix64", first_deadline_s=20.0, transfer_s=15.0)
ELEMENTS = 7


def masked_settings(
    count: int, *, owners: dict[bytes, bytes] | None = None, policy: Policy = MASKED
) -> list[Setting]:
    """Settings of a masked round, each member its own owner if not said otherwise."""
    names = peers(count)
    return [
        make_setting(peer, names, policy=policy, elements=ELEMENTS, owners=owners) for peer in names
    ]


def numbers(peer: bytes) -> NDArray[np.float64]:
    """What a member brings: whole numbers, some of them large."""
    draws = np.random.default_rng(list(sha256(peer).digest()))
    return draws.integers(-(2**40), 2**40, ELEMENTS).astype(np.float64)


def sum_of(who: Sequence[bytes]) -> list[float]:
    """What the sum over these has to be."""
    return [float(one) for one in np.sum([numbers(peer) for peer in who], axis=0)]


class MaskedWorld(World):
    """Members of one masked round; arguments as of `World`."""

    def __init__(
        self, seed: int, settings: Sequence[Setting], faults: Faults | None = None,
        submits: set[bytes] | None = None,
    ) -> None:  # fmt: skip
        self.shops: dict[bytes, MaskedWorkshop] = {}
        super().__init__(seed, settings, faults, submits)

    @override
    def make_machine(self, setting: Setting, **kept: object) -> Machine:
        """A machine with secrets of its own, and a workshop with its numbers."""
        shop = self.shops[setting.me] = MaskedWorkshop(len(setting.circle))
        shop.vector = numbers(setting.me)
        source = random.Random(f"{self.rng.random()}{setting.me.hex()}").randbytes
        return Machine(setting, random_bytes=source, **kept)  # type: ignore[arg-type]

    def total(self, peer: bytes) -> list[float]:
        """The sum that a member has decided."""
        decided = self.nodes[peer].decided
        assert decided is not None
        return [float(one) for one in self.shops[peer].whole(decided.plan, decided.hashes)]

    def _bring(self, node: Node, digest: bytes) -> None:
        """The bytes of a merged part, of which the world itself knows the hash alone."""
        assert digest in node.kept
        for shop in self.shops.values():
            if digest in shop.merged:
                self.shops[node.setting.me].keep_merged(digest, shop.merged[digest])
                return

    @override
    def _order(self, node: Node, order: Order) -> None:
        shop = self.shops[node.setting.me]
        match order:
            case Encode():
                shop.see(order.plan_hash, order.plan)
                self._later(node, shop.encode(order))
            case Cover():
                self._later(node, shop.cover(order))
            case ReadSets():
                self._bring(node, order.sha256)
                self._later(node, shop.sets(order))
            case OpenSum():
                self._later(node, shop.open(order))
            case Merge():
                self.merged[order.plan_hash, order.part, order.counter] = order.order
                done = shop.merge(order)
                node.kept.add(done.sha256)
                self._later(node, done)
            case ServePart():
                made = node.machine.member.made
                if made is not None and made.hash == order.plan_hash:
                    shop.see(made.hash, made.plan)
                super()._order(node, order)
            case _:
                super()._order(node, order)

    @override
    def _fetch_part(self, node: Node, order: FetchPart) -> None:
        me, sender = node.setting.me, self.nodes[order.sender]
        data = self.shops[order.sender].own_part(order.plan_hash, order.part)
        ok = (
            sender.alive
            and data is not None
            and self._passes(order.sender, me)
            and sender.serving.get((order.plan_hash, order.part)) == me
            and self.rng.random() >= self.faults.fetch_loss
        )
        if not ok or data is None:
            self.count("part not had")
            self._later(node, PartFailed(order.plan_hash, order.part, order.sender))
            return
        assert sha256(data).digest() == order.sha256
        unfit = self.shops[me].accept(order.plan_hash, order.part, order.sender, data)
        self._later(node, PartArrived(order.plan_hash, order.part, order.sender, unfit))

    @override
    def _fetch_result(self, node: Node, order: FetchResult) -> None:
        shop = self.shops[node.setting.me]
        for one in self.shops.values():
            data = one.merged.get(order.sha256)
            unfit = data and shop.unfit_merged(order.plan_hash, MASKED.codec, order.piece, data)
            if unfit:
                self._later(node, ResultFailed(order.part, order.sha256, str(unfit)))
                return
        super()._fetch_result(node, order)
