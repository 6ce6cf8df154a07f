"""A fault of our own, met by a stranger during the handshake, costs that connection alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.env import SystemEnv
from p2p.errors import Unreachable
from p2p.net.tcp import TcpTransport
from p2p.net.wire_fabric import WireFabric
from tests.helpers.wire_kit import TEST, echo, exchange, identity, make, running, wait_for

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.net.seam import Addr, Stream

pytestmark = pytest.mark.attack

Accept = Callable[[trio.abc.Stream, str], Awaitable[None]]


class FaultyStream(trio.abc.Stream):
    """A connection on which our own code fails with what no decoder may raise."""

    closed = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take it."""
        del data
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """At once."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Fail."""
        del max_bytes
        await trio.lowlevel.checkpoint()
        raise AssertionError("a fault of ours")

    async def aclose(self) -> None:
        """Count it."""
        type(self).closed += 1
        await trio.lowlevel.checkpoint()


class FaultyTransport(TcpTransport):
    """TCP, but addresses at port 1 lead to a faulty stream, out and in."""

    async def dial(  # type: ignore[override]
        self, addr: Addr, *, peer: PeerId | None = None, reuse_port: bool = False
    ) -> trio.abc.Stream:
        """A faulty stream for port 1."""
        if addr.endswith("/tcp/1"):
            await trio.lowlevel.checkpoint()
            return FaultyStream()
        return await super().dial(addr, peer=peer, reuse_port=reuse_port)


async def test_a_fault_in_a_handshake_does_not_stop_the_node() -> None:
    bystander, victim = make(1), WireFabric(identity(2), TEST, SystemEnv(), [FaultyTransport(TEST)])
    victim.handle("/test/echo/1", echo, per_peer_max=10)
    FaultyStream.closed = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(victim.run)
        async with running(bystander):
            (addr,) = victim.listen_addrs()
            await bystander.connect(victim.id, [addr])
            # Somebody dials us, and we dial somebody.
            await victim._manager.accept(FaultyStream(), "/ip4/198.51.100.7/tcp/1")
            with pytest.raises(Unreachable, match="fault of ours"):
                await victim.connect(identity(9).id, ["/ip4/198.51.100.7/tcp/1"])
            await wait_for(lambda: victim.counters().get("bug", 0) == 2)
            await exchange(bystander, victim.id)
            assert FaultyStream.closed == 2
        nursery.cancel_scope.cancel()


async def ask(stream: Stream) -> None:
    """Send something, end, read to the end."""
    await stream.send_all(b"a frame that it refuses")
    await stream.send_eof()
    while await stream.receive_some():
        pass


async def test_a_reset_right_behind_the_agreement_ends_one_stream_only() -> None:
    """Their agreement and their reset come in one read: the stream is gone before we are told."""
    caller, rude = make(1), make(2)

    async def reject(stream: Stream) -> None:
        await stream.receive_some()
        await trio.lowlevel.checkpoint()
        stream.reset()

    rude.handle("/test/reject/1", reject, per_peer_max=10)
    async with running(caller, rude):
        (addr,) = rude.listen_addrs()
        await caller.connect(rude.id, [addr])
        bystander = await caller.open(rude.id, "/test/echo/1")
        for _ in range(100):
            stream = await caller.open(rude.id, "/test/reject/1")
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await ask(stream)
            await stream.aclose()
        await bystander.send_all(b"still here")
        assert await bystander.receive_some() == b"still here"
        await bystander.aclose()
