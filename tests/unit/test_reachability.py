"""Reachability's pure parts: states, nonces, contacts, budgets."""

from __future__ import annotations

import ipaddress
import itertools
import math
from dataclasses import replace
from typing import Final

import pytest

from p2p.errors import UsageError
from p2p.identity import PeerId
from p2p.nat.autonat_budget import MinuteBudget
from p2p.nat.autonat_nonces import HOSTS_PER_NONCE_MAX, WAITING_MAX, Delivery, Nonces, Proof
from p2p.nat.dialback_wire import may_dial
from p2p.nat.reachability import TRANSITIONS, Reach, Reachability, Seen
from p2p.nat.reachability_config import ReachabilityConfig
from p2p.net.contacts import HOSTS_MAX, Contacts
from p2p.wire.multiaddr import is_public

CONFIG: Final = ReachabilityConfig()
HERE: Final = "/ip4/45.77.1.1/tcp/15001"
ELSEWHERE: Final = "/ip4/45.77.1.2/tcp/15001"
WINDOW_S: Final = 300.0


def at(state: Reach, now: float = 0.0) -> Reachability:
    """A machine with one address in a state."""
    machine = Reachability(CONFIG)
    machine.set_candidates({HERE: "interface"}, now)
    match state:
        case Reach.UNKNOWN:
            pass
        case Reach.LIKELY | Reach.PUBLIC:
            machine.reached(HERE, "45.77.2.1", now, strong=state is Reach.PUBLIC)
        case Reach.PRIVATE:
            for _ in range(CONFIG.failures_max):
                machine.failed(HERE)
    assert machine.state is machine.state_of(HERE) is state
    return machine


def give(machine: Reachability, what: Seen) -> None:
    match what:
        case Seen.RECV_PROOF | Seen.RECV_NONCE:
            machine.reached(HERE, "45.77.3.1", 1.0, strong=what is Seen.RECV_PROOF)
        case Seen.RECV_FAILED_OFTEN:
            for _ in range(CONFIG.failures_max):
                machine.failed(HERE)
        case Seen.RECV_ALL_FAILED:
            machine.round_over(HERE, 1.0, reached=0, failed=1)
        case Seen.TIMER_NETWORK:
            machine.network_changed(1.0)


EXPECTED: Final = {
    Seen.RECV_PROOF: dict.fromkeys(Reach, Reach.PUBLIC),
    Seen.RECV_NONCE: {**dict.fromkeys(Reach, Reach.LIKELY), Reach.PUBLIC: Reach.PUBLIC},
    Seen.RECV_FAILED_OFTEN: dict.fromkeys(Reach, Reach.PRIVATE),
    Seen.RECV_ALL_FAILED: {**dict.fromkeys(Reach, Reach.PRIVATE), Reach.PUBLIC: Reach.PUBLIC},
    Seen.TIMER_NETWORK: dict.fromkeys(Reach, Reach.UNKNOWN),
}


@pytest.mark.parametrize(("state", "what"), list(itertools.product(Reach, Seen)))
def test_every_state_with_every_input(state: Reach, what: Seen) -> None:
    machine = at(state)
    give(machine, what)
    assert machine.state_of(HERE) is EXPECTED[what][state]


def test_the_table_is_whole() -> None:
    assert len(TRANSITIONS) == len(Reach) * len(Seen) == 20


def test_two_failures_and_a_nonce_are_not_three_failures_in_a_row() -> None:
    machine = at(Reach.LIKELY)
    for _ in range(2):
        machine.failed(HERE)
    machine.reached(HERE, "45.77.2.1", 1.0, strong=False)
    machine.failed(HERE)
    assert machine.state is Reach.LIKELY


def test_the_node_is_as_reachable_as_its_best_address() -> None:
    machine = Reachability(CONFIG)
    assert machine.state is Reach.UNKNOWN
    machine.set_candidates({HERE: "interface", ELSEWHERE: "observed"}, 0.0)
    machine.round_over(HERE, 0.0, reached=0, failed=1)
    assert machine.state is Reach.UNKNOWN, "the other one was not tried"
    machine.round_over(ELSEWHERE, 0.0, reached=0, failed=1)
    assert machine.state is Reach.PRIVATE
    machine.reached(HERE, "45.77.2.1", 0.0, strong=False)
    assert machine.state is Reach.LIKELY
    machine.reached(ELSEWHERE, "45.77.2.1", 0.0, strong=True)
    assert machine.state is Reach.PUBLIC


def test_without_an_address_a_symmetric_nat_is_private() -> None:
    machine = Reachability(CONFIG)
    machine.symmetric = True
    assert machine.state is Reach.PRIVATE
    machine.set_candidates({HERE: "mapped"}, 0.0)
    assert machine.state is Reach.UNKNOWN, "a mapped port may work"


@pytest.mark.parametrize("state", list(Reach))
def test_each_state_has_its_reason(state: Reach) -> None:
    machine = at(state)
    words = {
        Reach.UNKNOWN: "nobody has tried",
        Reach.LIKELY: "45.77.2.1 reached us at /ip4/45.77.1.1/tcp/15001, but we had talked to it",
        Reach.PUBLIC: "45.77.2.1 reached us unasked at /ip4/45.77.1.1/tcp/15001",
        Reach.PRIVATE: "no server could reach us at /ip4/45.77.1.1/tcp/15001",
    }
    assert words[state] in machine.why()
    assert Reachability(CONFIG).why() == "no public address of ours is known"


def test_checks_wait_longer_and_longer_unless_public() -> None:
    machine = Reachability(CONFIG)
    machine.set_candidates({HERE: "interface"}, 0.0)
    now, waits = 0.0, []
    for _ in range(6):
        assert machine.due(now) == HERE
        machine.round_over(HERE, now, reached=0, failed=0)
        assert machine.due(now) is None
        waits.append(machine.next_timer() - now)
        now = machine.next_timer()
    assert waits == [300, 600, 1200, 2400, 3600, 3600]
    machine.reached(HERE, "45.77.2.1", now, strong=True)
    assert machine.next_timer() == now + 900
    machine.round_over(HERE, now + 900, reached=0, failed=1)
    assert machine.next_timer() == now + 960, "a public address that failed is checked soon"
    machine.round_over(HERE, now + 960, reached=1, failed=0)
    assert machine.next_timer() == now + 960 + 900


def test_time_stands_still_without_a_server() -> None:
    machine = at(Reach.PRIVATE)
    machine.no_server(HERE)
    assert machine.next_timer() == math.inf
    machine.new_server(50.0)
    assert machine.due(50.0) == HERE


def test_a_new_server_is_asked_at_once_or_after_a_pause() -> None:
    unknown = at(Reach.UNKNOWN)
    unknown.round_over(HERE, 0.0, reached=0, failed=0)
    unknown.new_server(10.0)
    assert unknown.due(10.0) == HERE

    likely = at(Reach.LIKELY)
    likely.round_over(HERE, 0.0, reached=1, failed=0)
    likely.new_server(10.0)
    assert likely.due(10.0) is None
    assert likely.next_timer() == 60.0

    private = at(Reach.PRIVATE)
    private.round_over(HERE, 0.0, reached=0, failed=3)
    private.new_server(10.0)
    assert private.next_timer() == 300.0


def test_a_known_address_keeps_what_is_known_and_a_lost_one_is_forgotten() -> None:
    machine = at(Reach.PUBLIC)
    machine.set_candidates({ELSEWHERE: "mapped", HERE: "observed"}, 1.0)
    assert (machine.state_of(HERE), machine.state_of(ELSEWHERE)) == (Reach.PUBLIC, Reach.UNKNOWN)
    assert [row.source for row in machine.report()] == ["mapped", "observed"]
    machine.set_candidates({}, 2.0)
    assert machine.state is Reach.UNKNOWN
    for call in (
        lambda: machine.reached(HERE, "45.77.2.1", 3.0, strong=True),
        lambda: machine.failed(HERE),
        lambda: machine.round_over(HERE, 3.0, reached=1, failed=0),
        lambda: machine.no_server(HERE),
    ):
        call()
    assert machine.report() == ()


def test_more_addresses_than_are_checked_are_left_out() -> None:
    machine = Reachability(CONFIG)
    addrs = [f"/ip4/45.77.1.{n}/tcp/15001" for n in range(9)]
    machine.set_candidates(dict.fromkeys(addrs, "interface"), 0.0)
    assert [row.addr for row in machine.report()] == addrs[: CONFIG.candidates_max]


def test_what_makes_no_sense_is_refused() -> None:
    for bad in ({"nonce_s": 0.0}, {"servers_max": 0}, {"retry_min_s": -1.0}):
        with pytest.raises(UsageError):
            replace(CONFIG, **bad)


# --- nonces ---------------------------------------------------------------------------------------

GOOD: Final = Delivery(
    nonce=7, remote="/ip4/45.77.2.1/tcp/50000", since_s=1.0, inbound=True, unasked=True
)


def waiting() -> Nonces:
    nonces = Nonces(15.0)
    nonces.issue(7, HERE, 1.0)
    return nonces


def test_a_nonce_proves_the_address_that_it_was_made_for() -> None:
    assert waiting().take(GOOD, 2.0) == Proof(HERE, "45.77.2.1", strong=True)
    assert waiting().take(replace(GOOD, unasked=False), 2.0) == Proof(
        HERE, "45.77.2.1", strong=False
    )


@pytest.mark.parametrize(
    ("delivery", "now"),
    [
        (replace(GOOD, nonce=8), 2.0),
        (GOOD, 16.0),
        (replace(GOOD, since_s=0.9), 2.0),
        (replace(GOOD, inbound=False), 2.0),
        (replace(GOOD, remote="/dns4/example.org/tcp/50000"), 2.0),
        (replace(GOOD, remote=f"{GOOD.remote}/p2p-circuit"), 2.0),
    ],
    ids=["forged", "late", "old connection", "our own dial", "no address", "relayed"],
)
def test_a_nonce_that_proves_nothing(delivery: Delivery, now: float) -> None:
    assert waiting().take(delivery, now) is None


def test_a_replayed_nonce_brings_no_second_voice() -> None:
    nonces = waiting()
    assert nonces.take(GOOD, 2.0)
    assert nonces.take(replace(GOOD, remote="/ip4/45.77.2.1/tcp/50001"), 3.0) is None
    assert nonces.take(replace(GOOD, remote="/ip4/45.77.3.1/tcp/50001"), 3.0), "a helper's"


def test_a_nonce_is_delivered_by_few() -> None:
    nonces = waiting()
    taken = [
        nonces.take(replace(GOOD, remote=f"/ip4/45.77.{n}.1/tcp/50000"), 2.0) for n in range(9)
    ]
    assert sum(proof is not None for proof in taken) == HOSTS_PER_NONCE_MAX


def test_few_nonces_are_waited_for_and_none_over_a_change_of_network() -> None:
    nonces = Nonces(15.0)
    for nonce in range(WAITING_MAX + 1):
        nonces.issue(nonce, HERE, 1.0)
    assert nonces.take(replace(GOOD, nonce=0), 2.0) is None
    assert nonces.take(replace(GOOD, nonce=1), 2.0)
    nonces.clear()
    assert nonces.take(replace(GOOD, nonce=2), 2.0) is None


# --- contacts -------------------------------------------------------------------------------------


def ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text)


def test_a_host_is_a_contact_until_five_minutes_after_the_last_packet() -> None:
    contacts = Contacts(WINDOW_S)
    assert contacts.unknown(ip("45.77.2.1"), 0.0)
    contacts.note(ip("45.77.2.1"), 0.0)
    assert not contacts.unknown(ip("45.77.2.1"), 299.9)
    assert contacts.unknown(ip("45.77.2.1"), 300.0)
    contacts.begin(ip("45.77.2.1"))
    contacts.begin(ip("45.77.2.1"))
    contacts.end(ip("45.77.2.1"), 400.0)
    assert not contacts.unknown(ip("45.77.2.1"), 9000.0), "one connection lives"
    contacts.end(ip("45.77.2.1"), 9000.0)
    assert not contacts.unknown(ip("45.77.2.1"), 9299.0)
    assert contacts.unknown(ip("45.77.2.1"), 9300.0)


def test_hosts_are_told_apart_as_a_nat_would() -> None:
    contacts = Contacts(WINDOW_S)
    contacts.note(ip("45.77.2.1"), 0.0)
    contacts.note(ip("2001:470:a::1"), 0.0)
    assert not contacts.unknown(ip("::ffff:45.77.2.1"), 1.0)
    assert contacts.unknown(ip("45.77.2.2"), 1.0)
    assert not contacts.unknown(ip("2001:470:a::2"), 1.0), "one network, one host"
    assert contacts.unknown(ip("2001:470:a:1::1"), 1.0)
    assert not contacts.unknown(None, 1.0)
    contacts.note(None, 1.0)
    contacts.begin(None)
    contacts.end(None, 1.0)


def test_a_full_memory_of_contacts_lets_nobody_pass_for_unknown() -> None:
    contacts = Contacts(WINDOW_S)
    contacts.note(ip("45.77.2.1"), 0.0)
    for number in range(HOSTS_MAX):
        contacts.note(ipaddress.IPv4Address(0x2E000000 + number), 100.0)
    for text in ("45.77.2.1", "45.77.3.1"):
        assert not contacts.unknown(ip(text), 299.0), "the first one was forgotten early"
        assert contacts.unknown(ip(text), 300.0)
    contacts.note(ip("45.77.4.1"), 1000.0)
    assert contacts.unknown(ip("45.77.3.1"), 1000.0), "what ended by itself blinds nobody"


# --- budgets and aims -----------------------------------------------------------------------------


def test_a_budget_holds_for_each_and_for_all_within_a_minute() -> None:
    budget = MinuteBudget(per_peer_max=2, all_max=3)
    one, two = PeerId(bytes(32)), PeerId(bytes([1] * 32))
    assert [budget.spend(one, now) for now in (0.0, 1.0, 2.0)] == [True, True, False]
    assert [budget.spend(two, now) for now in (3.0, 4.0)] == [True, False]
    assert budget.spend(one, 60.0)
    assert not budget.spend(two, 60.5)


@pytest.mark.parametrize(
    ("addr", "good"),
    [
        (HERE, True),
        ("/ip6/2001:470:a::1/tcp/15001", True),
        ("/ip4/45.77.1.1/tcp/1023", False),
        ("/ip4/10.0.0.1/tcp/15001", False),
        ("/ip4/127.0.0.1/tcp/15001", False),
        ("/ip4/224.0.0.1/tcp/15001", False),
        ("/ip4/0.0.0.0/tcp/15001", False),
        ("/ip6/::ffff:10.0.0.1/tcp/15001", False),
        ("/ip4/45.77.1.1/udp/15001", False),
        ("/ip4/45.77.1.1/udp/15001/quic-v1", False),
        ("/dns4/example.org/tcp/15001", False),
        (f"{HERE}/p2p-circuit", False),
        ("nonsense", False),
    ],
)
def test_what_is_dialled_on_somebodys_word(addr: str, good: bool) -> None:
    assert may_dial(addr, is_public) is good
