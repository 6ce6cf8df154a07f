"""Nodes inside namespaces, driven line by line from a test: see `tests/netns/peer.py`."""

from __future__ import annotations

import functools
import itertools
import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from p2p.identity import Identity, peer_text
from tests.helpers.daemons import wait_until
from tests.helpers.netns import ROOT, Lab

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from tests.helpers.netns import Home, Kind, Public, Space
    from tests.helpers.oracle import Json

RELAYS: Final = (1, 2)
"""Numbers of the public nodes."""
UPGRADE_S: Final = 10.0
"""A relayed connection is direct by then."""
SCRIPT: Final = ROOT / "tests" / "netns" / "peer.py"
FOUND_S: Final = 90.0
"""The same for finding out how one is reached: ten seconds on a quiet machine."""
ANSWER_S: Final = 90.0
"""Ends a hang, decides nothing."""


class PeerError(Exception):
    """The node said that something went wrong."""


class Peer:
    """A running node.

    Args:
        space: where it runs.
        seed: decides its key.
        reachability: as `[p2p] reachability`.
        relays: multiaddrs of public nodes that it stays connected to.
    """

    def __init__(
        self, space: Space, seed: int, reachability: str = "auto", relays: list[str] | None = None
    ) -> None:
        self.space = space
        self._process = space.popen(
            sys.executable,
            "-P",
            str(SCRIPT),
            str(seed),
            reachability,
            *(relays or []),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._numbers = itertools.count()
        self._buffer = b""
        self._answers: dict[int, dict[str, Json]] = {}
        self.id = ""

    def ready(self) -> None:
        """Wait until it listens."""
        self.id = str(self._line(ANSWER_S)["ready"])

    def begin(self, act: str, **arguments: Json) -> int:
        """Ask for something; `result` of the number waits for it."""
        number = next(self._numbers)
        line = json.dumps({"n": number, "act": act, **arguments}).encode() + b"\n"
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return number

    def result(self, number: int, limit_s: float = ANSWER_S) -> Json:
        """What came of it.

        Raises:
            PeerError: it failed there, in the node's words.
        """
        until = time.monotonic() + limit_s
        while number not in self._answers:
            answer = self._line(until - time.monotonic())
            self._answers[int(cast("int", answer["n"]))] = answer
        answer = self._answers.pop(number)
        if "error" in answer:
            raise PeerError(str(answer["error"]))
        return answer["ok"]

    def act(self, act: str, **arguments: Json) -> Json:
        """Ask for something and wait for it."""
        return self.result(self.begin(act, **arguments))

    def addrs(self) -> list[str]:
        """Its addresses, as a stranger is told them: what is valid within the home only is not."""
        own = [str(addr) for addr in cast("list[Json]", self.act("addrs"))]
        return [addr for addr in own if addr.startswith(("/ip4/45.", "/ip6/2001:"))]

    def state(self) -> str:
        """Whether it believes that others can dial it."""
        return str(cast("dict[str, Json]", self.act("report"))["state"])

    def path_to(self, other: Peer) -> str | None:
        """How it reaches another node now."""
        path = cast("dict[str, Json]", self.act("paths")).get(other.id)
        return None if path is None else str(path)

    def kill(self) -> None:
        """End it at once, without a word to its peers."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _line(self, limit_s: float) -> dict[str, Json]:
        until = time.monotonic() + limit_s
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                assert selector.select(max(0.0, until - time.monotonic())), "no answer in time"
                more = os.read(stdout.fileno(), 65_536)
                assert more, f"the node in {self.space.name} ended"
                self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return cast("dict[str, Json]", json.loads(line))


class World:
    """A laboratory with two public nodes that relay, and the nodes that come to it.

    Args:
        stack: ends them.
        families: "4" or "6": what exists of IP.
    """

    def __init__(self, stack: ExitStack, families: str) -> None:
        self._stack = stack
        self._families = families
        self.lab = stack.enter_context(Lab())
        self.relays: list[str] = []
        self.public: list[Peer] = []
        for number in RELAYS:
            public = self.lab.public(number, families)
            self.public.append(self.peer(public, number))
            self.relays += relay_addrs(public, number, families)

    def node(self, number: int, kind: str) -> Peer:
        """A node behind a NAT or firewall of its own, or in the open."""
        if kind == "open":
            return self.peer(self.lab.public(number, self._families), number)
        nat = cast("Kind", "port-restricted" if kind == "firewall" else kind)
        return self.peer(self.lab.home(number, nat, self._families), number)

    def peer(self, place: Public | Home, number: int) -> Peer:
        """A node at a place."""
        peer = Peer(place.host, number, relays=list(self.relays))
        self._stack.callback(peer.close)
        return peer


def relay_addrs(public: Public, number: int, families: str) -> list[str]:
    """Where a node with that number will be found."""
    name = peer_text(Identity.from_seed(number.to_bytes(4, "big") * 8).id)
    addrs = [f"/ip4/{public.v4}/tcp/4001"] if "4" in families else []
    addrs += [f"/ip6/{public.v6}/tcp/4001"] if "6" in families else []
    return [f"{addr}/p2p/{name}" for addr in addrs]


def wait_found(world: World, peers: Sequence[Peer]) -> None:
    """Until all run, and each can be found by strangers."""
    for peer in [*world.public, *peers]:
        peer.ready()
    for peer in peers:
        wait_until(
            f"{peer.space.name} can be found", functools.partial(can_be_found, peer), FOUND_S
        )


def can_be_found(peer: Peer) -> bool:
    """Whether others have an address to come to: its own, or one at each relay."""
    if peer.space.name.startswith("public") or peer.state() == "public":
        return True
    return sum(addr.endswith("/p2p-circuit") for addr in peer.addrs()) == len(RELAYS)


@dataclass(frozen=True)
class Met:
    """How two nodes met."""

    first: str
    """The path by which they were connected at once."""
    direct_s: float | None
    """Seconds from then until the path was direct; None if it was not in `UPGRADE_S`."""
    seeker: Peer
    found: Peer


def meet_all(world: World, kinds: tuple[str, ...]) -> dict[tuple[str, str], Met]:
    """Let a node of each kind connect to another node of each kind, all at once."""
    seekers = {kind: world.node(10 + n, kind) for n, kind in enumerate(kinds)}
    found = {kind: world.node(50 + n, kind) for n, kind in enumerate(kinds)}
    wait_found(world, [*seekers.values(), *found.values()])
    pairs = list(itertools.product(kinds, kinds))
    addrs = {kind: found[kind].addrs() for kind in kinds}
    asked = [
        seekers[a].begin("meet", peer=found[b].id, addrs=list(addrs[b]), limit_s=UPGRADE_S)
        for a, b in pairs
    ]
    met = {}
    for (a, b), number in zip(pairs, asked, strict=True):
        first, direct_s = cast("tuple[str, float | None]", seekers[a].result(number))
        met[a, b] = Met(first, direct_s, seekers[a], found[b])
    return met


def check_met(met: Met, *, direct: bool) -> None:
    """The pair is connected as it should be, and what was opened before still works."""
    expected = "direct" if direct else "relay"
    assert (met.direct_s is not None) == direct, met
    assert met.first == expected or (met.first, expected) == ("relay", "direct")
    assert met.seeker.path_to(met.found) == met.found.path_to(met.seeker) == expected
    for fresh in (False, True):
        answer = met.seeker.act("ask", peer=met.found.id, data="hello", fresh=fresh)
        assert answer == "hello"
    assert met.found.act("ask", peer=met.seeker.id, data="and back", fresh=True) == "and back"
