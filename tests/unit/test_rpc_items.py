"""Peer RPC calls that carry items, from end to end, in virtual time."""

# ruff: noqa: ARG001 - the shape of a handler is fixed, whatever it needs of it

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import trio

from p2p.config import P2pConfig
from p2p.errors import (
    DecodeError,
    RemoteError,
    TimedOut,
    Unreachable,
    UsageError,
)
from p2p.rpc import Caller, CallStream, Code, Method
from p2p.rpc_frames import (
    encode_item,
    encode_result,
)
from tests.helpers.cancel import Cut, cancel_at_every_step
from tests.helpers.fabrics import MEM, Kit, RawPeer, play
from tests.helpers.peer_rpc import (
    CHAT,
    COUNT,
    ONCE,
    SUM,
    add_up,
    both_kinds,
    calls_served,
    count,
    idle_streams,
    parrot,
    send_for_ever,
    with_script,
)


@both_kinds
def test_a_slow_consumer_gets_5000_of_5000(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        blobs = Method("test.blobs", int, int, item_out=bytes)

        async def send(caller: Caller, request: int, stream: CallStream) -> int:
            for number in range(request):
                await stream.send(number.to_bytes(4, "big") * 64)
            return request

        second.rpc.serve(blobs, send)
        async with first.rpc.stream(second.id, blobs, 5000) as call:
            got = 0
            async for item in call:
                assert isinstance(item, bytes)
                assert item[:4] == got.to_bytes(4, "big")
                got += 1
                if got % 100 == 0:
                    await trio.sleep(1)
            assert got == 5000
            assert await call.result() == 5000

    play(kind, scenario)


@both_kinds
def test_a_slow_handler_gets_5000_of_5000_and_holds_its_caller_back(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        ahead: list[int] = []
        sent = 0

        async def slow(caller: Caller, request: int, stream: CallStream) -> int:
            got = 0
            async for item in stream:
                assert isinstance(item, bytes)
                got += 1
                if got % 500 == 0:
                    await trio.sleep(1)
                    ahead.append(sent - got)
            return got

        second.rpc.serve(SUM, slow)
        async with first.rpc.stream(second.id, SUM, 0) as call:
            for _ in range(5000):
                await call.send(bytes(500))
                sent += 1
            assert await call.result() == 5000
        # A window is 262,144 bytes; the queue to the writer and the stream below hold as much each.
        assert max(ahead) < 4 * 262_144 / 500
        assert max(ahead) > 100

    play(kind, scenario)


@both_kinds
def test_items_flow_both_ways_at_once(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()

        async def chat(caller: Caller, request: str, stream: CallStream) -> int:
            turns = 0
            async for item in stream:
                await stream.send(f"{request} {item}")
                turns += 1
            return turns

        second.rpc.serve(CHAT, chat)
        async with first.rpc.stream(second.id, CHAT, "re:") as call:
            for number in range(20):
                await call.send(str(number))
                assert await call.receive() == f"re: {number}"
            await call.end()
            await call.end()
            with pytest.raises(trio.EndOfChannel):
                await call.receive()
            assert await call.result() == 20
            with pytest.raises(trio.EndOfChannel):
                await call.receive()
        await trio.sleep(1)
        assert idle_streams(first) == 1, "the stream is pooled after a clean end"
        async with first.rpc.stream(second.id, CHAT, "re:") as call:
            assert await call.result() == 0
        await trio.sleep(1)
        assert idle_streams(first) == 1

    play(kind, scenario)


def test_an_item_larger_than_the_window_passes() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(SUM, add_up)
        async with first.rpc.stream(second.id, SUM, 0) as call:
            for _ in range(5):
                await call.send(bytes(1_000_000))
            assert await call.result() == 5_000_000
            with pytest.raises(Unreachable, match="the call is over"):
                await call.send(b"more")

    play(MEM, scenario)


@both_kinds
def test_leaving_the_block_cancels_the_handler_and_leaves_the_stream_usable(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        ended = trio.Event()

        async def endless(caller: Caller, request: str, stream: CallStream) -> int:
            try:
                while True:
                    await stream.send(request)
            finally:
                ended.set()

        second.rpc.serve(CHAT, endless)
        for _ in range(10):
            async with first.rpc.stream(second.id, CHAT, "x" * 5000) as call:
                for _ in range(30):
                    assert await call.receive() == "x" * 5000
            with trio.fail_after(2):
                await ended.wait()
            await trio.sleep(1)
            assert idle_streams(first) == 1
            with pytest.raises(UsageError, match="block was left"):
                await call.result()

    play(kind, scenario)


def test_a_stream_cancelled_at_any_step_leaves_both_sides_whole() -> None:
    async def scenario(cut: Cut) -> None:
        async with trio.open_nursery() as nursery:
            kit = Kit(MEM, nursery)
            first, second = await kit.nodes()
            second.rpc.serve(CHAT, parrot)

            async def talk() -> None:
                async with first.rpc.stream(second.id, CHAT, "") as call:
                    for number in range(3):
                        await call.send(str(number) * 1000)
                        await call.receive()
                    assert await call.result() == 3

            await cut.attempt(talk)
            await trio.sleep(6)
            assert calls_served(second) == 0
            async with first.rpc.stream(second.id, CHAT, "", timeout_s=20) as call:
                await call.send("again")
                assert await call.receive() == "again"
                assert await call.result() == 1
            assert second.rpc.counters()["rpc_violations"] == 0
            nursery.cancel_scope.cancel()

    assert cancel_at_every_step(scenario) > 20


def test_a_streaming_call_out_of_time_is_timed_out_on_both_sides() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        cancelled = trio.Event()

        async def hang(caller: Caller, request: str, stream: CallStream) -> int:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        second.rpc.serve(CHAT, hang)
        start = trio.current_time()
        async with first.rpc.stream(second.id, CHAT, "", timeout_s=4) as call:
            for wait in (call.receive, call.result):
                with pytest.raises(TimedOut):
                    await wait()
        assert trio.current_time() - start == pytest.approx(4, abs=0.1)
        with trio.fail_after(1):
            await cancelled.wait()

    play(MEM, scenario)


def test_a_streaming_call_without_a_limit_has_none() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        deadlines = []

        async def wait(caller: Caller, request: str, stream: CallStream) -> int:
            deadlines.append(caller.deadline)
            await trio.sleep(80_000)
            return 1

        second.rpc.serve(CHAT, wait)
        async with first.rpc.stream(second.id, CHAT, "") as call:
            assert await call.result() == 1
        assert deadlines == [math.inf]

    play(MEM, scenario)


def test_a_handler_may_answer_before_it_took_all_items() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()

        async def enough(caller: Caller, request: int, stream: CallStream) -> int:
            await stream.receive()
            return 1

        second.rpc.serve(SUM, enough)
        async with first.rpc.stream(second.id, SUM, 0) as call:
            with pytest.raises(Unreachable, match="takes no more items"):
                await send_for_ever(call)
            assert await call.result() == 1
        await trio.sleep(1)
        async with first.rpc.stream(second.id, SUM, 0) as call:
            await call.send(b"x")
            assert await call.result() == 1
        assert second.rpc.counters()["rpc_violations"] == 0

    play(MEM, scenario)


def test_a_failing_handler_fails_every_wait_of_its_stream() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()

        async def fail(caller: Caller, request: str, stream: CallStream) -> int:
            await stream.send("one")
            raise RemoteError(Code.APPLICATION, "enough")

        second.rpc.serve(CHAT, fail)
        async with first.rpc.stream(second.id, CHAT, "") as call:
            assert await call.receive() == "one", "what came before the failure is delivered"
            with pytest.raises(RemoteError, match="enough"):
                await call.receive()
            with pytest.raises(RemoteError, match="enough"):
                await call.send("x")
            with pytest.raises(RemoteError, match="enough"):
                await call.result()

    play(MEM, scenario)


def test_an_item_of_another_type_is_a_decode_error_at_either_side() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()

        async def take(caller: Caller, request: str, stream: CallStream) -> int:
            await stream.receive()
            return 1

        second.rpc.serve(CHAT, take)
        async with first.rpc.stream(second.id, CHAT, "") as call:
            await call.send(5)
            with pytest.raises(RemoteError) as caught:
                await call.result()
            assert caught.value.code == Code.BAD_REQUEST

        async def lie(caller: Caller, request: int, stream: CallStream) -> int:
            await stream.send("text")
            await trio.sleep(1000)
            return 1

        second.rpc.serve(COUNT, lie)
        async with first.rpc.stream(second.id, COUNT, 1) as counting:
            with pytest.raises(DecodeError):
                await counting.receive()

    play(MEM, scenario)


def test_misuse_is_told_at_once() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(SUM, add_up)
        second.rpc.serve(COUNT, count)
        with pytest.raises(UsageError, match="use `stream`"):
            await first.rpc.call(second.id, SUM, 1)
        with pytest.raises(UsageError, match="use `call`"):
            first.rpc.stream(second.id, ONCE, 1)
        with pytest.raises(UsageError, match="served already"):
            second.rpc.serve(SUM, add_up)
        with pytest.raises(UsageError, match="does not encode"):
            await first.rpc.call(second.id, Method("test.bad", object, int), object())
        async with first.rpc.stream(second.id, SUM, 0) as call:
            with pytest.raises(UsageError, match="no items in this direction"):
                await call.receive()
            await call.end()
            with pytest.raises(UsageError, match="after the end"):
                await call.send(b"x")
        async with first.rpc.stream(second.id, COUNT, 1) as counting:
            with pytest.raises(UsageError, match="no items in this direction"):
                await counting.send(1)
        for name in ("", "m" * 65):
            with pytest.raises(ValueError, match="1 to 64"):
                Method(name, int, int)
        with pytest.raises(ValueError, match="concurrent_max"):
            Method("m", int, int, concurrent_max=0)

    play(MEM, scenario)


def test_a_streaming_call_replaces_an_idle_stream_that_died() -> None:
    async def script(peer: RawPeer, number: int) -> None:
        await peer.receive_call()
        await peer.send(encode_item("hello")[0], encode_result(number))
        await trio.sleep(0.2)
        peer.stream.reset()
        await trio.sleep_forever()

    async def scenario(kit: Kit) -> None:
        first, second, streams = await with_script(kit, script)
        for number in range(3):
            async with first.rpc.stream(second.id, CHAT, "") as call:
                assert await call.receive() == "hello"
                assert await call.result() == number
            await trio.sleep(0.5)
        assert streams == [0, 1, 2]

    play(MEM, scenario)


def test_a_streaming_call_that_finds_no_place_in_time_is_timed_out() -> None:
    async def scenario(kit: Kit) -> None:
        config = replace(P2pConfig.test(), rpc_calls_per_peer_max=1)
        first, second = await kit.nodes(config=config)
        second.rpc.serve(CHAT, parrot)
        async with first.rpc.stream(second.id, CHAT, "") as call:
            with pytest.raises(TimedOut, match="could not start"):
                async with first.rpc.stream(second.id, CHAT, "", timeout_s=3):
                    raise AssertionError("entered")
            await call.send("still here")
            assert await call.receive() == "still here"
        await trio.sleep(1)
        async with first.rpc.stream(second.id, CHAT, "", timeout_s=3) as call:
            assert await call.result() == 0

    play(MEM, scenario)


def test_a_bad_request_of_a_streaming_call_is_our_own_error_and_costs_nothing() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        odd = Method("test.odd", object, int, item_in=int)
        with pytest.raises(UsageError, match="does not encode"):
            async with first.rpc.stream(second.id, odd, object()):
                raise AssertionError("entered")
        await trio.sleep(1)
        assert not first.rpc._client._peers

    play(MEM, scenario)


def test_when_this_node_stops_its_streaming_calls_say_so() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(CHAT, parrot)
        async with first.rpc.stream(second.id, CHAT, "") as call:
            first.scope.cancel()
            with pytest.raises(Unreachable):
                await call.receive()
            with pytest.raises(Unreachable):
                await call.result()
        with pytest.raises(Unreachable):
            await first.rpc.call(second.id, ONCE, 1)

    play(MEM, scenario)
