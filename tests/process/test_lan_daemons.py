"""Daemons of one local network find each other, whatever their tickets said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from p2p.replication.ticket import decode_ticket_untrusted, encode_ticket
from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAN = {"COVEY_P2P_LAN__DISCOVERY": "true", "COVEY_P2P_LAN__ANNOUNCE": "true"}
MOVES = {"COVEY_P2P__DRAW_PORT": "false"}
"""Another port at every start: what a machine in another network's address is like."""


def heard(home: Home) -> bool:
    status = home.json("rpc", "net.status")
    assert isinstance(status, dict)
    counters = status["counters"]
    assert isinstance(counters, dict)
    return "lan_found" in counters


def without_addresses(ticket: str) -> str:
    """The same ticket, as if the inviter knew none of its own addresses."""
    return encode_ticket(msgspec.structs.replace(decode_ticket_untrusted(ticket), addrs=()))


def test_a_ticket_without_an_address_is_enough_in_one_network(tmp_path: Path) -> None:
    laptop, desk = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    try:
        for home in (laptop, desk):
            home.up(**LAN)
        made = laptop.json("invite")
        assert isinstance(made, dict)
        wait_until("the desk heard of the laptop", lambda: heard(desk))
        joined = desk.json("join", without_addresses(str(made["ticket"])), "--yes")
        assert isinstance(joined, dict)
        assert joined["state"] == "member"
    finally:
        laptop.stop()
        desk.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    laptop, desk = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    laptop.up(**MOVES)
    desk.up(**MOVES)
    made = laptop.json("invite")
    assert isinstance(made, dict)
    desk.ok("join", str(made["ticket"]), "--yes")
    yield laptop, desk
    laptop.stop()
    desk.stop()


def connected(home: Home) -> bool:
    status = home.json("rpc", "net.status")
    assert isinstance(status, dict)
    return status["connected"] == 1


def restart(*homes: Home, **env: str) -> None:
    """Each comes back at another port."""
    for home in homes:
        home.ok("down")
    for home in homes:
        home.up(**MOVES, **env)


@pytest.mark.slow
def test_members_that_all_changed_their_address_meet_on_the_local_network(
    pair: tuple[Home, Home],
) -> None:
    laptop, desk = pair
    wait_until("both are connected", lambda: connected(laptop) and connected(desk))
    restart(laptop, desk)
    laptop.ok("remember", "written while nobody knew where the other is")
    assert not connected(laptop), "control: without the local network they do not meet"
    restart(laptop, desk, **LAN)
    wait_until("they found each other", lambda: connected(laptop) and connected(desk))
    wait_until("the note came over", lambda: bool(desk.texts("nobody knew where")))
