"""Our own addresses: sources, order, and the order in which a peer's are dialled."""

from __future__ import annotations

from p2p.limits import ADDRS_MAX
from p2p.net.dialing import dial_order
from p2p.net.own_addrs import OwnAddrs
from p2p.wire.multiaddr import is_private, is_relayed

PEER = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"
RELAYED = f"/ip4/45.77.1.9/tcp/4001/p2p/{PEER}/p2p-circuit"
HERE = "/ip4/192.168.1.7/tcp/15001"
MAPPED = "/ip4/45.77.1.2/tcp/15001"


def test_the_sources_are_joined_in_a_fixed_order_without_repetition() -> None:
    own = OwnAddrs()
    assert own.set("relay", [RELAYED])
    assert own.set("mapped", [MAPPED])
    assert own.set("interface", [HERE])
    assert not own.set("observed", [MAPPED]), "nothing new to advertise"
    assert own.all() == [HERE, MAPPED, RELAYED]
    assert own.of("observed") == (MAPPED,)


def test_a_source_takes_back_what_it_said() -> None:
    own = OwnAddrs()
    own.set("mapped", [MAPPED])
    assert own.set("mapped", [])
    assert own.all() == []


def test_no_more_are_advertised_than_a_peer_reads() -> None:
    own = OwnAddrs()
    own.set("interface", [f"/ip4/45.77.1.2/tcp/{port}" for port in range(1, ADDRS_MAX + 9)])
    assert len(own.all()) == ADDRS_MAX


def test_relays_are_dialled_last() -> None:
    named = "/dns4/example.org/tcp/1"
    assert dial_order([RELAYED, named, MAPPED, HERE]) == [HERE, MAPPED, named, RELAYED]


def test_a_circuit_over_a_private_relay_is_not_private() -> None:
    assert is_relayed(RELAYED)
    assert is_private(HERE)
    assert not is_private(RELAYED.replace("45.77.1.9", "192.168.1.9"))
