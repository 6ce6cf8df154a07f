"""The NAT models against RFC 4787: what each kind maps, what it lets in, and for how long."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from p2p.net.memnat import (
    CONTACTS_MAX,
    FIREWALL,
    FLOWS_KEPT_MAX,
    FULL_CONE,
    OPEN,
    PORT_RESTRICTED,
    RESTRICTED,
    SYMMETRIC,
    Dependence,
    Endpoint,
    Nat,
    NatConfig,
    Protocol,
)

OUTSIDE = "203.0.113.7"
INSIDE = Endpoint("192.168.1.2", 4001)
SERVER = Endpoint("198.51.100.1", 80)
SERVER_OTHER_PORT = Endpoint("198.51.100.1", 81)
STRANGER = Endpoint("198.51.100.2", 80)
EI, AD, APD = Dependence.ENDPOINT_INDEPENDENT, Dependence.ADDRESS, Dependence.ADDRESS_AND_PORT
KINDS = list(itertools.product(Dependence, Dependence, [True, False]))


def new_nat(config: NatConfig, *, seed: int = 1) -> Nat:
    ip = OUTSIDE if config.translates else None
    return Nat(config, ip, random.Random(seed))


def out(nat: Nat, target: Endpoint, now: float = 0.0, source: Endpoint = INSIDE) -> Endpoint:
    seen = nat.outbound("udp", source, target, now)
    assert seen is not None
    return seen


@pytest.mark.parametrize(("mapping", "filtering", "preserving"), KINDS)
def test_the_table_of_mapping_and_filtering(
    mapping: Dependence, filtering: Dependence, preserving: bool
) -> None:
    nat = new_nat(NatConfig(mapping=mapping, filtering=filtering, port_preserving=preserving))
    first = out(nat, SERVER)
    assert first.ip == OUTSIDE
    assert (first.port == INSIDE.port) == preserving

    # Filtering, RFC 4787 s.5: only the server was contacted.
    admitted = {
        remote: nat.inbound("udp", remote, first, 0.0) == INSIDE
        for remote in (SERVER, SERVER_OTHER_PORT, STRANGER)
    }
    assert admitted == {
        SERVER: True,
        SERVER_OTHER_PORT: filtering is not APD,
        STRANGER: filtering is EI,
    }

    # Mapping, RFC 4787 s.4.1, on a NAT that nobody has sent to.
    nat = new_nat(nat.config)
    first = out(nat, SERVER)
    assert out(nat, SERVER) == first
    assert (out(nat, SERVER_OTHER_PORT) == first) == (mapping is not APD)
    assert (out(nat, STRANGER) == first) == (mapping is EI)


@pytest.mark.parametrize(("mapping", "filtering", "preserving"), KINDS)
def test_an_answer_leaves_from_the_port_that_was_asked(
    mapping: Dependence, filtering: Dependence, preserving: bool
) -> None:
    nat = new_nat(NatConfig(mapping=mapping, filtering=filtering, port_preserving=preserving))
    first = out(nat, SERVER)
    for remote in (SERVER, SERVER_OTHER_PORT, STRANGER):
        if nat.inbound("udp", remote, first, 0.0) is not None:
            assert out(nat, remote) == first


@pytest.mark.parametrize(
    ("preset", "mapping", "filtering"),
    [
        (FULL_CONE, EI, EI),
        (RESTRICTED, EI, AD),
        (PORT_RESTRICTED, EI, APD),
        (SYMMETRIC, APD, APD),
    ],
)
def test_the_names_of_folklore_are_points_of_the_table(
    preset: NatConfig, mapping: Dependence, filtering: Dependence
) -> None:
    assert (preset.mapping, preset.filtering, preset.translates) == (mapping, filtering, True)


def test_two_hosts_never_share_an_external_port() -> None:
    nat = new_nat(PORT_RESTRICTED)
    other = Endpoint("192.168.1.3", INSIDE.port)
    ours, theirs = out(nat, SERVER), out(nat, SERVER, source=other)
    assert ours.port == INSIDE.port
    assert theirs.port != INSIDE.port
    assert nat.inbound("udp", SERVER, ours, 0.0) == INSIDE
    assert nat.inbound("udp", SERVER, theirs, 0.0) == other


def test_drawn_ports_come_from_the_seed() -> None:
    def ports(seed: int) -> list[int]:
        nat = new_nat(SYMMETRIC, seed=seed)
        return [out(nat, Endpoint(SERVER.ip, port)).port for port in range(1, 20)]

    assert ports(1) == ports(1)
    assert ports(1) != ports(2)
    assert len(set(ports(1))) == 19
    assert min(ports(1)) >= 1_024


def test_tcp_and_udp_have_tables_of_their_own() -> None:
    nat = new_nat(FULL_CONE)
    seen = out(nat, SERVER)
    assert nat.inbound("tcp", SERVER, seen, 0.0) is None
    assert nat.outbound("tcp", Endpoint("192.168.1.3", INSIDE.port), SERVER, 0.0) == seen


def test_a_mapping_ends_after_silence_and_either_direction_keeps_it() -> None:
    nat = new_nat(replace(FULL_CONE, udp_idle_s=10.0))
    seen = out(nat, SERVER, 0.0)
    assert nat.inbound("udp", SERVER, seen, 9.0) == INSIDE
    assert nat.inbound("udp", SERVER, seen, 18.0) == INSIDE
    out(nat, SERVER, 27.0)
    assert nat.inbound("udp", SERVER, seen, 36.9) == INSIDE
    assert nat.inbound("udp", SERVER, seen, 46.9) is None


def test_a_permission_ends_by_itself_while_its_mapping_lives() -> None:
    nat = new_nat(replace(PORT_RESTRICTED, udp_idle_s=10.0))
    seen = out(nat, SERVER, 0.0)
    out(nat, STRANGER, 8.0)
    assert nat.inbound("udp", SERVER, seen, 11.0) is None
    assert nat.inbound("udp", STRANGER, seen, 11.0) == INSIDE


def test_an_opened_connection_lives_shorter_than_an_established_one() -> None:
    nat = new_nat(PORT_RESTRICTED)
    seen = nat.outbound("tcp", INSIDE, SERVER, 0.0)
    assert seen is not None
    assert nat.inbound("tcp", SERVER, seen, 241.0) is None
    nat.outbound("tcp", INSIDE, SERVER, 300.0, established=True)
    assert nat.inbound("tcp", SERVER, seen, 7_700.0) == INSIDE


def test_an_ended_port_is_given_to_others() -> None:
    nat = new_nat(replace(PORT_RESTRICTED, udp_idle_s=10.0))
    other = Endpoint("192.168.1.3", INSIDE.port)
    out(nat, SERVER, 0.0)
    seen = out(nat, SERVER, 20.0, source=other)
    assert seen.port == INSIDE.port
    assert out(nat, SERVER, 20.0).port != INSIDE.port
    assert nat.inbound("udp", SERVER, seen, 20.0) == other


def test_a_firewall_keeps_addresses_and_lets_answers_in() -> None:
    nat = new_nat(FIREWALL)
    desk = Endpoint("2001:470:1::5", 4001)
    server, stranger = Endpoint("2001:470:2::1", 80), Endpoint("2001:470:3::1", 80)
    assert nat.inbound("tcp", server, desk, 0.0) is None
    assert nat.outbound("tcp", desk, server, 0.0) == desk
    assert nat.inbound("tcp", server, desk, 0.0) == desk
    assert nat.inbound("tcp", stranger, desk, 0.0) is None
    assert nat.holder("tcp", desk) == desk


def test_nothing_in_the_way_lets_everybody_in() -> None:
    nat = new_nat(OPEN)
    assert nat.inbound("tcp", STRANGER, INSIDE, 0.0) == INSIDE
    assert nat.outbound("tcp", INSIDE, STRANGER, 0.0) == INSIDE


@pytest.mark.parametrize("config", [FULL_CONE, PORT_RESTRICTED, SYMMETRIC])
def test_a_forwarded_port_is_for_everybody_and_for_ever(config: NatConfig) -> None:
    nat = new_nat(config)
    nat.forward(7_000, INSIDE)
    at = Endpoint(OUTSIDE, 7_000)
    assert nat.inbound("tcp", STRANGER, at, 1e9) == INSIDE
    assert nat.outbound("tcp", INSIDE, STRANGER, 1e9) == at, "the answer leaves from there"
    nat.forward(7_000, INSIDE)
    with pytest.raises(ValueError, match="forwarded to"):
        nat.forward(7_000, Endpoint("192.168.1.3", 1))
    nat.forget()
    assert nat.inbound("tcp", STRANGER, at, 0.0) == INSIDE
    nat.unforward(7_000)
    nat.unforward(7_000)
    assert nat.inbound("tcp", STRANGER, at, 0.0) is None
    assert nat.holder("tcp", at) is None


def test_a_restarted_nat_knows_nobody() -> None:
    nat = new_nat(FULL_CONE)
    seen = out(nat, SERVER)
    nat.forget()
    assert nat.inbound("udp", SERVER, seen, 0.0) is None


def test_a_renumbered_nat_keeps_forwarded_ports_only() -> None:
    nat = new_nat(FULL_CONE)
    out(nat, SERVER)
    nat.forward(7_000, INSIDE, "udp")
    nat.renumber("203.0.113.99")
    assert nat.inbound("udp", SERVER, Endpoint(OUTSIDE, INSIDE.port), 0.0) is None
    assert nat.inbound("udp", SERVER, Endpoint("203.0.113.99", 7_000), 0.0) == INSIDE
    assert nat.outbound("tcp", INSIDE, SERVER, 0.0) == Endpoint("203.0.113.99", INSIDE.port)


def test_a_full_table_drops() -> None:
    nat = new_nat(SYMMETRIC)
    protocol: Protocol = "udp"
    for port in range(1_024, 65_536):
        nat.forward(port, Endpoint("192.168.1.9", port), protocol)
    assert nat.outbound(protocol, INSIDE, SERVER, 0.0) is None


def test_what_is_remembered_is_bounded() -> None:
    nat = new_nat(PORT_RESTRICTED)
    seen = out(nat, Endpoint("198.51.100.1", 1))
    for number in range(CONTACTS_MAX):
        out(nat, Endpoint("198.51.100.2", number))
    assert nat.inbound("udp", Endpoint("198.51.100.1", 1), seen, 0.0) is None
    assert nat.inbound("udp", Endpoint("198.51.100.2", CONTACTS_MAX - 1), seen, 0.0) == INSIDE
    for number in range(FLOWS_KEPT_MAX + 1):
        now = number * 1_000.0
        nat.outbound("udp", Endpoint("192.168.1.2", 1 + number % 60_000), SERVER, now)
    assert len(nat._flows) < FLOWS_KEPT_MAX
    assert len(nat._sessions) < FLOWS_KEPT_MAX


@pytest.mark.parametrize(
    ("config", "ip"), [(FULL_CONE, None), (FIREWALL, OUTSIDE)], ids=["nat", "firewall"]
)
def test_a_nat_has_an_address_and_a_firewall_none(config: NatConfig, ip: str | None) -> None:
    with pytest.raises(ValueError, match="external address"):
        Nat(config, ip, random.Random(1))


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        NatConfig(udp_idle_s=0.0)
    firewall = new_nat(FIREWALL)
    with pytest.raises(ValueError, match="forwards no ports"):
        firewall.forward(1, INSIDE)
    with pytest.raises(ValueError, match="no address"):
        firewall.renumber(OUTSIDE)
