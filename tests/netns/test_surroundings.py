"""Real networks of namespaces: neighbours meet, a router forwards, an address changes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, cast

import pytest

from tests.helpers.daemons import wait_until
from tests.helpers.need import need
from tests.helpers.netns import ROOT, Lab, Space, need_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.need_root

SCRIPT: Final = ROOT / "tests" / "netns" / "neighbour.py"
LIMIT_S: Final = 60.0
"""Ends a hang, decides nothing."""


class Neighbour:
    """A node in a namespace, and what it told."""

    def __init__(self, space: Space, seed: int) -> None:
        self._process = space.popen(
            sys.executable, "-P", str(SCRIPT), str(seed), "15001",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._buffer = b""
        self.id = str(self.wait("ready")["peer"])

    def pin(self, other: Neighbour) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"pin {other.id}\n".encode())
        self._process.stdin.flush()

    def wait(self, event: str, **fields: object) -> dict[str, object]:
        """The next event of that name with these fields; what comes before it is passed over."""
        until = time.monotonic() + LIMIT_S
        while True:
            line = self._line(until)
            if line["event"] == event and fields.items() <= line.items():
                return line

    def _line(self, until: float) -> dict[str, object]:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                assert selector.select(max(0.0, until - time.monotonic())), "it never happened"
                more = os.read(stdout.fileno(), 65_536)
                assert more, "the node ended"
                self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return cast("dict[str, object]", json.loads(line))

    def caught_up(self) -> None:
        """Pass over what it told until now."""
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while selector.select(0):
                more = os.read(stdout.fileno(), 65_536)
                assert more, "the node ended"
                self._buffer += more
        self._buffer = self._buffer.rpartition(b"\n")[2]

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            while os.read(self._process.stdout.fileno(), 65_536):
                pass
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    need_lab()
    with Lab() as lab:
        yield lab


def plug(lab: Lab, number: int, *addresses: str) -> Space:
    """A host on the bridge, which is its local network."""
    host = lab.space(f"host {number}")
    host.ip(
        f"link add eth0 type veth peer name port{number} netns {lab._bridge.pid}",
        "link set eth0 up",
        *(f"addr add {one} dev eth0{' nodad' * (':' in one)}" for one in addresses),
    )
    lab._bridge.ip(f"link set port{number} master br0 up")
    return host


@contextlib.contextmanager
def neighbours(*spaces: Space) -> Iterator[list[Neighbour]]:
    """A node in each."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(contextlib.closing(Neighbour(space, 10 + number)))
            for number, space in enumerate(spaces)
        ]


@pytest.mark.parametrize("network", ["192.168.77.{}/24", "fd77::{}/64"])
def test_two_machines_of_one_network_meet_without_an_address(lab: Lab, network: str) -> None:
    spaces = [plug(lab, number, network.format(number)) for number in (1, 2)]
    with neighbours(*spaces) as (first, second):
        first.pin(second)
        up = first.wait("up", peer=second.id)
        assert up["path"] == "lan"
        second.wait("answer", peer=first.id)


def test_a_machine_whose_address_changed_is_reached_again_within_seconds(lab: Lab) -> None:
    spaces = [plug(lab, number, f"192.168.77.{number}/24") for number in (1, 2)]
    with neighbours(*spaces) as (first, second):
        first.pin(second)
        second.pin(first)
        first.wait("answer", peer=second.id)
        spaces[0].ip("addr del 192.168.77.1/24 dev eth0", "addr add 192.168.77.9/24 dev eth0")
        changed_s = time.monotonic()
        first.caught_up()
        first.wait("network", woke=False)
        # What was asked at the old address is answered never; what comes after is traffic.
        first.wait("answer", peer=second.id)
        took_s = time.monotonic() - changed_s
        second.wait("answer", peer=first.id)
        print(f"traffic {took_s:.1f} s after the change")
        assert took_s < 15, "without the watch it takes 40 s of silence"


MINIUPNPD: Final = """\
ext_ifname=wan
listening_ip=lan
enable_natpmp={natpmp}
enable_upnp={upnp}
min_lifetime=120
max_lifetime=86400
secure_mode=yes
uuid=78a1a8e2-0000-4000-8000-000000000001
upnp_table_name=filter
upnp_nat_table_name=nat
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 10.0.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
CHAINS: Final = """\
flush ruleset
table inet filter {
    chain miniupnpd { }
    chain forward {
        type filter hook forward priority 0
        policy drop
        ct state established,related accept
        iifname "lan" accept
        jump miniupnpd
    }
}
table inet nat {
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain before { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
    chain after {
        type nat hook postrouting priority 100
        oifname "wan" masquerade
        jump postrouting_miniupnpd
    }
}
"""


@contextlib.contextmanager
def miniupnpd(router: Space, folder: Path, **protocols: str) -> Iterator[None]:
    """A real router's mapping service."""
    settings = folder / "miniupnpd.conf"
    settings.write_text(MINIUPNPD.format(**protocols))
    router.run("nft", "-f", "-", script=CHAINS)
    pid = folder / "pid"
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    service = router.popen(
        "miniupnpd", "-d", "-f", str(settings), "-P", str(pid), env={**os.environ, **path}
    )
    try:
        wait_until("the router serves", pid.exists)
        yield
    finally:
        service.kill()
        service.wait()
        for pipe in (service.stdin, service.stdout):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize(
    ("kind", "protocols"),
    [("nat-pmp", {"natpmp": "yes", "upnp": "no"}), ("upnp", {"natpmp": "no", "upnp": "yes"})],
)
def test_a_real_router_forwards_and_outsiders_reach_us(
    lab: Lab, tmp_path: Path, kind: str, protocols: dict[str, str]
) -> None:
    need("miniupnpd")
    home, outside = lab.home(1, "port-restricted"), lab.public(2)
    with miniupnpd(home.router, tmp_path, **protocols):
        with neighbours(home.host) as (node,):
            mapped = f"/ip4/{home.v4}/tcp/15001"
            while mapped not in cast("list[str]", node.wait("addrs")["addrs"]):
                pass
            with outside.host.entered():
                caller = socket.create_connection((home.v4, 15001), timeout=LIMIT_S)
            with caller:
                caller.sendall(b"\x13/multistream/1.0.0\n")
                assert caller.recv(20) == b"\x13/multistream/1.0.0\n"
            assert "15001" in home.router.run("nft", "list", "ruleset")
            assert node._process.stdin is not None
            node._process.stdin.close()
            (row,) = cast("list[str]", node.wait("mapping")["rows"])
            assert f"kind='{kind}'" in row
        assert "15001" not in home.router.run("nft", "list", "ruleset"), "and gives it back"
