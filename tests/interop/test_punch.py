"""Hole punching (DCUtR) against js-libp2p in both roles, between network namespaces.

js-libp2p dials from ephemeral ports and upgrades only over public addresses that it announces: so
it sits behind a NAT that lets answers in alone, and our side behind none.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, cast

import pytest

from tests.helpers.daemons import wait_until
from tests.helpers.netns import Lab, need_lab
from tests.helpers.netns_js import JsPeer
from tests.helpers.netns_peers import Peer, relay_addrs
from tests.helpers.oracle import install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.oracle import Json

pytestmark = [
    pytest.mark.interop,
    pytest.mark.need_root,
    pytest.mark.slow,
    pytest.mark.timeout(180),
]

RELAY, OURS, THEIRS = 1, 11, 12
LIMIT_S: Final = 30.0
"""Two failed dials of 5 s on either side come first."""
FIREWALL: Final = """
table ip filter {
    set seen {
        type ipv4_addr
        flags timeout
    }
    chain output {
        type filter hook output priority 0
        update @seen { ip daddr timeout 120s }
    }
    chain input {
        type filter hook input priority 0
        iifname "wan" ct state established,related accept
        iifname "wan" ip saddr @seen accept
        iifname "wan" drop
    }
}
"""
"""Lets in whom we sent something, from whatever port of theirs."""


class Scene:
    """A relay of ours, a node of ours and one of theirs.

    Args:
        stack: ends them.
        folder: where js-libp2p is installed.
        firewall: whether our node lets in only whom it sent something.
    """

    def __init__(self, stack: ExitStack, folder: Path, *, firewall: bool) -> None:
        lab = stack.enter_context(Lab())
        place, ours = lab.public(RELAY, "4"), lab.public(OURS, "4")
        theirs = lab.home(THEIRS, "port-restricted", "4")
        if firewall:
            ours.host.run("nft", "-f", "-", script=FIREWALL)
        relays = relay_addrs(place, RELAY, "4")
        self.relay = Peer(place.host, RELAY, "public")
        stack.callback(self.relay.close)
        self.relay.ready()
        self.ours = Peer(ours.host, OURS, "private", relays)
        stack.callback(self.ours.close)
        self.theirs = JsPeer(
            theirs.host,
            folder,
            "/ip4/0.0.0.0/tcp/4001",
            circuit=list(relays),
            announce=[f"/ip4/{theirs.v4}/tcp/4001"],
            dcutr=True,
        )
        stack.callback(self.theirs.close)
        self.ours.ready()
        self.theirs.ready()

    def circuit_to_ours(self) -> str:
        """Where our node is reached over the relay, as soon as it is."""

        def found() -> list[str]:
            return [addr for addr in self.ours.addrs() if addr.endswith("/p2p-circuit")]

        wait_until("we have a place at the relay", lambda: bool(found()), LIMIT_S)
        return f"{found()[0]}/p2p/{self.ours.id}"

    def circuit_to_theirs(self) -> str:
        """Where theirs is reached over the relay."""
        return next(addr for addr in self.theirs.named_addrs if "/p2p-circuit" in addr)

    def counters(self) -> dict[str, int]:
        """What our node counted."""
        report = cast("dict[str, Json]", self.ours.act("report"))
        return cast("dict[str, int]", report["counters"])

    def check_direct(self, met: Json) -> None:
        """Both have a direct connection and nothing else, and it works."""
        _, direct_s = cast("tuple[str, float | None]", met)
        assert direct_s is not None
        assert self.ours.path_to(self.theirs) == "direct"
        wait_until(
            "they dropped the relayed connection",
            lambda: self.theirs.paths_to(self.ours) == {"direct"},
            LIMIT_S,
        )
        assert self.ours.act("ask", peer=self.theirs.id, data="hello", fresh=True) == "hello"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where js-libp2p is installed."""
    return install("js")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends what a test started."""
    need_lab()
    with ExitStack() as stack:
        yield stack


def test_they_dial_us_over_a_relay_and_we_lead_the_punch(stack: ExitStack, folder: Path) -> None:
    scene = Scene(stack, folder, firewall=False)
    scene.theirs.act("dial", addr=scene.circuit_to_ours())
    met = scene.ours.act("meet", peer=scene.theirs.id, addrs=[], limit_s=LIMIT_S)
    scene.check_direct(met)
    assert scene.counters()["punch_punched"] == 1


def test_we_dial_them_over_a_relay_and_they_lead_the_punch(stack: ExitStack, folder: Path) -> None:
    scene = Scene(stack, folder, firewall=True)
    circuit = scene.circuit_to_theirs().rpartition("/p2p/")[0]
    met = scene.ours.act("meet", peer=scene.theirs.id, addrs=[circuit], limit_s=LIMIT_S)
    scene.check_direct(met)
    assert scene.counters()["punch_punched"] == 1


def test_we_dial_them_over_a_relay_and_they_simply_dial_back(
    stack: ExitStack, folder: Path
) -> None:
    scene = Scene(stack, folder, firewall=False)
    circuit = scene.circuit_to_theirs().rpartition("/p2p/")[0]
    met = scene.ours.act("meet", peer=scene.theirs.id, addrs=[circuit], limit_s=LIMIT_S)
    scene.check_direct(met)
    assert "punch_rounds" not in scene.counters()
