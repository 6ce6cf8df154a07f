"""IPv6, where nobody translates: open hosts and such behind a stateful firewall, all direct."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.helpers.netns import need_lab
from tests.helpers.netns_peers import World, check_met, meet_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.netns_peers import Met

pytestmark = [pytest.mark.need_root, pytest.mark.slow]

FIREWALLS: Final = ("open", "firewall")


@pytest.fixture(scope="module")
def firewalls() -> Iterator[dict[tuple[str, str], Met]]:
    need_lab()
    with ExitStack() as stack:
        yield meet_all(World(stack, "6"), FIREWALLS)


@pytest.mark.parametrize(("a", "b"), list(itertools.product(FIREWALLS, FIREWALLS)))
def test_every_pair_of_firewalls(firewalls: dict[tuple[str, str], Met], a: str, b: str) -> None:
    check_met(firewalls[a, b], direct=True)
