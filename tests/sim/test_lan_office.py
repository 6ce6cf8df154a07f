"""An office starts work at nine: many machines on one link, all at once, over lossy multicast."""

from __future__ import annotations

import heapq
import ipaddress
import random
from dataclasses import dataclass, field

import pytest

from p2p.identity import PeerId
from p2p.nat.lan import (
    ANSWER_GAP_S,
    MDNS_PORT,
    NEW_PEERS_PER_MIN,
    LanLink,
    Neighbours,
    service_of,
)
from p2p.nat.mdns import decode_dns_untrusted

SERVICE = service_of("office")
DELAY_S = 0.002


def machine_id(number: int) -> PeerId:
    return PeerId(bytes([1 + number // 250, 1 + number % 250]) + bytes(range(30)))


@dataclass
class Machine:
    """A machine, whom it found when, and what it sent."""

    number: int
    neighbours: Neighbours
    link: LanLink
    found: dict[PeerId, float] = field(default_factory=dict)
    answers: list[float] = field(default_factory=list)


class Office:
    """A link with machines on it, in virtual time."""

    def __init__(self, count: int, *, members: bool, loss: float, seed: int) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.machines: list[Machine] = []
        self._heap: list[tuple[float, int, int, bytes | None]] = []
        self._count = 0
        for number in range(count):
            ip = f"10.0.{number // 250}.{number % 250 + 1}"
            started_s = self.rng.uniform(0, 5)
            neighbours = Neighbours(machine_id(number), lambda _: members)
            link = LanLink(
                SERVICE,
                [ipaddress.ip_interface(f"{ip}/16")],
                [f"/ip4/{ip}/tcp/15001"],
                neighbours,
                random.Random(seed * 1000 + number),
                started_s,
            )
            self.machines.append(Machine(number, neighbours, link))
            self._push(started_s, number, None)

    def _push(self, at_s: float, number: int, data: bytes | None) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_s, self._count, number, data))

    def run(self, until_s: float) -> None:
        """Let time pass. An event without bytes is a timer."""
        while self._heap and self._heap[0][0] <= until_s:
            now, _, packed, data = heapq.heappop(self._heap)
            sender, number = divmod(packed, 1_000_000)
            machine = self.machines[number]
            if data is None:
                machine.link.on_timer(now)
            else:
                source = self.machines[sender - 1].link._networks[0].ip
                for one in machine.link.receive(data, source, MDNS_PORT, now):
                    machine.found.setdefault(one.peer, now)
            self._sent_by(machine, now)

    def _sent_by(self, machine: Machine, now: float) -> None:
        for data in machine.link.to_send():
            if decode_dns_untrusted(data).is_response:
                machine.answers.append(now)
            for other in self.machines:
                if other is machine or self.rng.random() >= self.loss:
                    packed = (machine.number + 1) * 1_000_000 + other.number
                    self._push(now + DELAY_S, packed, data)
        timer = machine.link.next_timer()
        if timer is not None:
            self._push(max(timer, now), machine.number, None)


@pytest.mark.parametrize("seed", range(3))
def test_members_of_an_office_find_each_other_within_seconds(seed: int) -> None:
    office = Office(25, members=True, loss=0.1, seed=seed)
    office.run(20.0)
    for machine in office.machines:
        assert len(machine.found) == 24, machine.number
        assert max(machine.found.values()) <= 20.0
        gaps = zip(machine.answers, machine.answers[1:], strict=False)
        assert all(later - earlier > ANSWER_GAP_S - 1e-6 for earlier, later in gaps)
    quiet = [sum(at_s > 15 for at_s in machine.answers) for machine in office.machines]
    assert max(quiet) <= 5, "it becomes quiet"


def test_strangers_are_taken_in_slowly() -> None:
    office = Office(30, members=False, loss=0.0, seed=1)
    office.run(30.0)
    for machine in office.machines:
        assert NEW_PEERS_PER_MIN <= len(machine.found) <= 1.5 * NEW_PEERS_PER_MIN + 1
