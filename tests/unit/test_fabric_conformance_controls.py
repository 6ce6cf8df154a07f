"""A fabric that breaks a rule of the seam fails that rule's test: the suite can say no."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from p2p.net.memory_fabric import MemFabric, MemStream
from p2p.net.memory_link import Pipe
from tests.helpers.fabrics import BROKEN, MEM
from tests.unit import test_fabric_conformance as suite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from p2p.identity import PeerId
    from p2p.net.seam import Addr, Handler, Stream


class OneStreamEndsAll(MemFabric):
    """Rule 1: resetting a stream ends the connection."""

    @override
    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:
        stream = await super().open(peer, protocol, direct_only=direct_only)
        assert isinstance(stream, MemStream)
        fabric = self

        class Fatal(MemStream):
            @override
            def reset(self) -> None:
                super().reset()
                fabric._hang_up(peer, "one stream was reset")

        stream.__class__ = Fatal
        return stream


class Unbounded(Pipe):
    """A pipe that never fills."""

    size = property(lambda self: 0, lambda self, value: None)  # noqa: ARG005


class BuffersEverything(MemFabric):
    """Rule 2: a sender never waits."""

    @override
    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:
        stream = await super().open(peer, protocol, direct_only=direct_only)
        assert isinstance(stream, MemStream)
        stream.pipes.outgoing.__class__ = Unbounded
        return stream


class HandlerEndsAll(MemFabric):
    """Rule 3: a handler's exception ends the connection."""

    @override
    def handle(self, protocol: str, fn: Handler, *, per_peer_max: int) -> None:
        async def fatal(stream: Stream) -> None:
            try:
                await fn(stream)
            except Exception:
                self._hang_up(stream.peer, "a handler failed")
                raise

        super().handle(protocol, fatal, per_peer_max=per_peer_max)


class BelievesAnybody(MemFabric):
    """Rule 4: whoever answers is taken for the one who was asked for."""

    @override
    def accepts(self, peer: PeerId) -> bool:
        return True

    @override
    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        await super().connect(peer, addrs)
        if peer not in self.sides:
            self.sides[peer] = next(iter(self.sides.values()))


class NeverGivesUp(MemFabric):
    """Rule 5: silence is endured for ever."""

    @override
    def links_changed(self) -> None:
        pass


class BothDialled(MemFabric):
    """Rule 6: each side believes that it made the connection."""

    @override
    def joined(self, remote: MemFabric, *, addr: Addr, inbound: bool) -> None:
        super().joined(remote, addr=addr, inbound=False)


class GlobalNumbers(MemFabric):
    """Rule 7: the module's generator decides."""

    @override
    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        random.random()
        await super().connect(peer, addrs)


class EndIsTheEnd(MemFabric):
    """Rule 8: end of file closes both directions."""

    @override
    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:
        stream = await super().open(peer, protocol, direct_only=direct_only)
        assert isinstance(stream, MemStream)

        class Closing(MemStream):
            @override
            async def send_eof(self) -> None:
                await super().send_eof()
                await self.aclose()

        stream.__class__ = Closing
        return stream


CONTROLS: list[tuple[type[MemFabric], Callable[[str], None]]] = [
    (OneStreamEndsAll, suite.test_1_cancelled_senders_and_readers_harm_no_bystander),
    (BuffersEverything, suite.test_2_a_sender_waits_for_a_reader_and_nothing_is_lost),
    (HandlerEndsAll, suite.test_3_a_raising_handler_resets_its_own_stream_only),
    (BelievesAnybody, suite.test_4_another_peer_at_the_address_is_refused_and_hears_nothing),
    (NeverGivesUp, suite.test_5_a_silent_idle_peer_is_reported),
    (NeverGivesUp, suite.test_5_a_silent_peer_with_something_outstanding_is_reported_sooner),
    (BothDialled, suite.test_6_simultaneous_dials_end_in_one_connection_chosen_alike),
    (GlobalNumbers, suite.test_7_no_thread_and_no_global_generator),
    (EndIsTheEnd, suite.test_8_end_of_file_one_way_leaves_the_other_usable),
]


@pytest.fixture(params=CONTROLS, ids=lambda control: control[1].__name__)
def control(request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    fabric, test = request.param
    BROKEN["broken"] = fabric
    numbers = random.getstate()
    yield test
    random.setstate(numbers)
    del BROKEN["broken"]


def test_a_broken_fabric_fails_the_test_of_its_rule(control: Callable[[str], None]) -> None:
    control(MEM)  # the sound one passes
    with pytest.raises(BaseExceptionGroup, match="nursery"):
        control("broken")
