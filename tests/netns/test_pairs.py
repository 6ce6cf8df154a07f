"""Real nodes behind real NATs: every pair is connected, and direct wherever that is possible.

Two public nodes relay and tell what they see; nobody is told anything but their addresses. All
pairs meet at the same time, in one laboratory; the tests look at what became of each. The same
pairs run under a virtual clock in `tests/sim/test_nat_pairs.py`.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.helpers.netns import KINDS, need_lab
from tests.helpers.netns_peers import World, check_met, meet_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.netns_peers import Met

pytestmark = [pytest.mark.need_root, pytest.mark.slow]

NATS: Final = ("open", *KINDS)
RELAYED: Final = ({"port-restricted", "symmetric"}, {"symmetric"})
"""Pairs that no punch can join: the port that lets in is not the port that comes."""


@pytest.fixture(scope="module")
def nats() -> Iterator[dict[tuple[str, str], Met]]:
    need_lab()
    with ExitStack() as stack:
        yield meet_all(World(stack, "4"), NATS)


@pytest.mark.parametrize(("a", "b"), list(itertools.product(NATS, NATS)))
def test_every_pair_of_nats(nats: dict[tuple[str, str], Met], a: str, b: str) -> None:
    check_met(nats[a, b], direct={a, b} not in RELAYED)
