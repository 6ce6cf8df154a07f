"""Peer RPC whose streams die, whose peers go away or misbehave: what is repeated, what is told."""

# ruff: noqa: ARG001 - the shape of a handler is fixed, whatever it needs of it

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import (
    Busy,
    DecodeError,
    ProtocolError,
    RemoteError,
    TimedOut,
    Unreachable,
)
from p2p.net.memory_fabric import MemFabric
from p2p.net.seam import PeerUp
from p2p.rpc import Code, Method
from p2p.rpc_frames import (
    ResultFrame,
    encode_call,
    encode_credit,
    encode_error,
    encode_item,
    encode_result,
)
from tests.helpers.fabrics import MEM, Kit, NodeMember, RawPeer, play
from tests.helpers.peer_rpc import (
    CHAT,
    ONCE,
    SUM,
    TWICE,
    WAIT,
    Waiter,
    add_up,
    both_kinds,
    calls_served,
    idle_streams,
    same,
    with_script,
)

# --- Retry ----------------------------------------------------------------------------------------


async def _die_after_call(peer: RawPeer, number: int) -> None:
    await peer.receive_call()
    peer.stream.reset()
    await trio.sleep_forever()


def test_a_call_that_may_have_run_is_not_repeated() -> None:
    async def scenario(kit: Kit) -> None:
        first, second, streams = await with_script(kit, _die_after_call)
        with pytest.raises(Unreachable, match="died before the reply"):
            await first.rpc.call(second.id, ONCE, 1)
        assert streams == [0]

    play(MEM, scenario)


def test_an_idempotent_call_is_repeated_once() -> None:
    async def scenario(kit: Kit) -> None:
        first, second, streams = await with_script(kit, _die_after_call)
        with pytest.raises(Unreachable):
            await first.rpc.call(second.id, TWICE, 1)
        assert streams == [0, 1]
        assert first.rpc.counters()["rpc_retries"] == 1

    play(MEM, scenario)


def test_a_call_refused_before_it_ran_by_a_closing_peer_is_repeated_once() -> None:
    async def script(peer: RawPeer, number: int) -> None:
        while True:
            await peer.receive_call()
            if number == 0:
                await peer.send(encode_error(Code.UNAVAILABLE, "closing", dispatched=False))
            else:
                await peer.send(encode_result(7))

    async def scenario(kit: Kit) -> None:
        first, second, streams = await with_script(kit, script)
        assert await first.rpc.call(second.id, ONCE, 1) == 7
        assert streams == [0, 1]

    play(MEM, scenario)


@pytest.mark.parametrize(
    ("code", "dispatched"), [(Code.UNAVAILABLE, True), (Code.BUSY, False), (Code.INTERNAL, True)]
)
def test_other_refusals_are_not_repeated(code: Code, dispatched: bool) -> None:
    async def script(peer: RawPeer, number: int) -> None:
        while True:
            await peer.receive_call()
            await peer.send(encode_error(code, "no", dispatched=dispatched))

    async def scenario(kit: Kit) -> None:
        first, second, streams = await with_script(kit, script)
        with pytest.raises((Unreachable, Busy, RemoteError)):
            await first.rpc.call(second.id, TWICE, 1)
        assert streams == [0]
        assert first.rpc.counters()["rpc_retries"] == 0

    play(MEM, scenario)


@both_kinds
def test_an_idle_stream_that_died_is_replaced_unnoticed_and_nothing_runs_twice(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second, streams = await with_script(kit, _answer_once_then_reset)
        for number in range(5):
            assert await first.rpc.call(second.id, ONCE, number) == number
            await trio.sleep(0.5)
        assert streams == [0, 1, 2, 3, 4]

    play(kind, scenario)


async def _answer_once_then_reset(peer: RawPeer, number: int) -> None:
    await peer.receive_call()
    await peer.send(encode_result(number))
    await trio.sleep(0.2)
    peer.stream.reset()
    await trio.sleep_forever()


@both_kinds
def test_a_peer_that_returns_is_called_again_without_an_error(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(ONCE, same)
        assert await first.rpc.call(second.id, ONCE, 1) == 1
        await second.fabric.disconnect(first.id)
        await trio.sleep(1)
        assert await first.rpc.call(second.id, ONCE, 2) == 2

    play(kind, scenario)


def test_a_peer_that_cannot_be_reached_is_unreachable_at_once() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.fabric.pause()
        with pytest.raises(Unreachable):
            await first.rpc.call(second.id, ONCE, 1)
        with pytest.raises(Unreachable):
            async with first.rpc.stream(second.id, CHAT, ""):
                raise AssertionError("entered")

    play(MEM, scenario)


# --- Ends -----------------------------------------------------------------------------------------


@both_kinds
def test_when_the_caller_goes_away_its_handlers_are_cancelled(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        waiter = Waiter()
        second.rpc.serve(WAIT, waiter)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(_suppress, first, second, 1000.0)
            await waiter.entered.wait()
            await trio.sleep(1)
            first.scope.cancel()
        with trio.fail_after(30):
            await trio.sleep(5)
        assert waiter.ended == {"cancelled": 5}
        assert calls_served(second) == 0
        assert not second.rpc._server.loads

    play(kind, scenario)


async def _suppress(first: NodeMember, second: NodeMember, request: float) -> None:
    with pytest.raises(Unreachable):
        await first.rpc.call(second.id, WAIT, request, timeout_s=2000)


def test_a_caller_that_only_ends_its_direction_gets_its_answer() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(WAIT, Waiter())
        second.rpc.serve(SUM, add_up)
        for frames in (
            [encode_call("test.wait", 60_000, 0, 5.0)],
            [encode_call("test.sum", 60_000, 0, 0), encode_item(b"1234")[0], b"\0\0\0\2\x91\4"],
        ):
            peer = await RawPeer.to(first, second)
            await peer.send(*frames)
            await peer.stream.send_eof()
            assert isinstance(await peer.receive(), ResultFrame)
            with pytest.raises(EOFError):
                await peer.receive()

    play(MEM, scenario)


def test_bytes_after_the_answer_cost_the_stream() -> None:
    async def script(peer: RawPeer, number: int) -> None:
        await peer.receive_call()
        await peer.send(encode_result(1), encode_credit(5))
        await trio.sleep_forever()

    async def scenario(kit: Kit) -> None:
        first, second, _ = await with_script(kit, script)
        with pytest.raises(ProtocolError):
            await first.rpc.call(second.id, ONCE, 1)
        assert idle_streams(first) == 0

    play(MEM, scenario)


def test_a_callee_that_sends_without_credit_costs_the_stream() -> None:
    async def script(peer: RawPeer, number: int) -> None:
        await peer.receive_call()
        while True:
            await peer.send(encode_item(bytes(60_000))[0])

    async def scenario(kit: Kit) -> None:
        first, second, _ = await with_script(kit, script)
        blobs = Method("test.blobs", int, int, item_out=bytes)
        async with first.rpc.stream(second.id, blobs, 1) as call:
            await trio.sleep(10)
            with pytest.raises(Exception, match="without credit") as caught:
                await call.result()
            assert caught.value.peer == second.id  # type: ignore[attr-defined]
        await trio.sleep(1)
        assert idle_streams(first) == 0

    play(MEM, scenario)


@settings(max_examples=30)
@given(data=st.binary(max_size=60))
def test_a_callee_that_answers_garbage_raises_only_documented_errors(data: bytes) -> None:
    async def script(peer: RawPeer, number: int) -> None:
        await peer.receive_call()
        await peer.send(data)

    async def scenario(kit: Kit) -> None:
        first, second, _ = await with_script(kit, script)
        with pytest.raises(
            (DecodeError, ProtocolError, Unreachable, TimedOut, Exception)
        ) as caught:
            await first.rpc.call(second.id, ONCE, 1, timeout_s=5)
        assert type(caught.value).__module__ == "p2p.errors"

    play(MEM, scenario)


def test_rpc_survives_losing_count_of_its_peers() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(ONCE, same)
        assert await first.rpc.call(second.id, ONCE, 1) == 1
        assert isinstance(first.fabric, MemFabric)
        for _ in range(300):  # more than a subscription holds
            first.fabric._emit(PeerUp(second.id))
        await trio.sleep(1)
        assert idle_streams(first) == 0, "what was missed may be anything"
        assert await first.rpc.call(second.id, ONCE, 2) == 2
        await first.fabric.disconnect(second.id)
        await trio.sleep(1)
        assert idle_streams(first) == 0, "and the new subscription works"

    play(MEM, scenario)
