"""Peer RPC from end to end, in virtual time, without and with the real wire below it."""

# ruff: noqa: ARG001, ARG002 - the shape of a handler is fixed, whatever it needs of it

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.config import P2pConfig
from p2p.errors import (
    AuthError,
    Busy,
    DecodeError,
    ProtocolError,
    RemoteError,
    TimedOut,
    Unreachable,
    UsageError,
)
from p2p.net.memory_fabric import MemFabric
from p2p.net.seam import PeerUp
from p2p.rpc import Caller, CallStream, Code, Method, anyone
from p2p.rpc_frames import (
    ErrorFrame,
    ResultFrame,
    encode_call,
    encode_credit,
    encode_error,
    encode_item,
    encode_result,
)
from p2p.rpc_server import PROTOCOL
from tests.helpers.cancel import Cut, cancel_at_every_step
from tests.helpers.fabrics import MEM, WIRE_MEM, Kit, Member, NodeMember, RawPeer, play
from tests.helpers.leaks import task_count

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.identity import PeerId
    from p2p.net.seam import Stream

both_kinds = pytest.mark.parametrize("kind", [MEM, WIRE_MEM])


class Pair(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A request with parts."""

    number: int
    text: str


ADD = Method("test.add", Pair, int, idempotent=True)
WAIT = Method("test.wait", float, float, concurrent_max=200)
COUNT = Method("test.count", int, int, item_out=int)
SUM = Method("test.sum", int, int, item_in=bytes)
CHAT = Method("test.chat", str, int, item_in=str, item_out=str)
ONCE = Method("test.once", int, int)
TWICE = Method("test.twice", int, int, idempotent=True)


async def add(caller: Caller, request: Pair, stream: CallStream) -> int:
    return request.number + len(request.text)


async def count(caller: Caller, request: int, stream: CallStream) -> int:
    for number in range(request):
        await stream.send(number)
    return request


class Waiter:
    """Handles `WAIT` and notes what became of each call."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.ended: Counter[str] = Counter()
        self.entered = trio.Event()

    async def __call__(self, caller: Caller, request: float, stream: CallStream) -> float:
        self.callers.append(caller)
        self.entered.set()
        try:
            await trio.sleep(request)
        except trio.Cancelled:
            self.ended["cancelled"] += 1
            raise
        self.ended["done"] += 1
        return request


# --- Unary ----------------------------------------------------------------------------------------


@both_kinds
def test_a_call_returns_the_typed_reply_and_the_caller_is_the_proven_peer(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        callers = []

        async def note(caller: Caller, request: Pair, stream: CallStream) -> int:
            callers.append(caller)
            return await add(caller, request, stream)

        second.rpc.serve(ADD, note)
        assert await first.rpc.call(second.id, ADD, Pair(40, "ab"), timeout_s=9) == 42
        assert callers[0].peer == first.id
        assert callers[0].path == first.fabric.peers()[second.id].path
        assert 8 < callers[0].deadline - trio.current_time() <= 9

    play(kind, scenario)


@both_kinds
def test_streams_are_reused_and_at_most_eight_idle_ones_are_kept(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(WAIT, Waiter())
        for _ in range(20):
            await first.rpc.call(second.id, WAIT, 0.0)
        assert _streams(first) == 1
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(first.rpc.call, second.id, WAIT, 0.5)
        await trio.sleep(1)
        assert _streams(first) == 8
        await trio.sleep(60)
        assert _streams(first) == 0, "idle streams are closed after a while"
        assert await first.rpc.call(second.id, WAIT, 0.0) == 0.0

    play(kind, scenario)


@both_kinds
def test_the_deadline_travels_and_the_handler_is_cancelled_at_it(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        waiter = Waiter()
        second.rpc.serve(WAIT, waiter)
        start = trio.current_time()
        with pytest.raises(TimedOut, match=r"test\.wait"):
            await first.rpc.call(second.id, WAIT, 100.0, timeout_s=3)
        assert trio.current_time() - start == pytest.approx(3)
        await trio.sleep(0.1)
        assert waiter.ended == {"cancelled": 1}
        assert waiter.callers[0].deadline == pytest.approx(start + 3, abs=0.1)

    play(kind, scenario)


def test_a_deadline_that_passes_at_the_callee_is_answered_by_code_4() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(WAIT, Waiter())
        peer = await RawPeer.to(first, second)
        await peer.send(encode_call("test.wait", 500, 0, 60.0))
        answer = await peer.receive()
        assert isinstance(answer, ErrorFrame)
        assert answer.code == Code.DEADLINE
        assert answer.dispatched
        await peer.send(encode_call("test.wait", 500, 0, 0.1))
        assert isinstance(await peer.receive(), ResultFrame), "the stream serves the next call"

    play(MEM, scenario)


def test_nested_calls_inherit_the_remaining_time() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        third = await kit.node(3)
        second.node.learn(third.id, third.fabric.addrs())
        waiter = Waiter()
        third.rpc.serve(WAIT, waiter)

        async def relay(caller: Caller, request: Pair, stream: CallStream) -> int:
            await trio.sleep(2)
            await second.rpc.call(third.id, WAIT, 100.0, timeout_s=50)
            return 0

        second.rpc.serve(ADD, relay)
        start = trio.current_time()
        with pytest.raises(TimedOut):
            await first.rpc.call(second.id, ADD, Pair(1, ""), timeout_s=5)
        assert trio.current_time() - start == pytest.approx(5)
        assert waiter.callers[0].deadline == pytest.approx(start + 5, abs=0.2)
        await trio.sleep(0.2)
        assert waiter.ended == {"cancelled": 1}

    play(MEM, scenario)


def test_an_enclosing_deadline_travels_too() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        waiter = Waiter()
        second.rpc.serve(WAIT, waiter)
        with trio.move_on_after(2):
            await first.rpc.call(second.id, WAIT, 100.0, timeout_s=60)
        assert waiter.callers[0].deadline == pytest.approx(trio.current_time(), abs=0.1)

    play(MEM, scenario)


@both_kinds
def test_a_cancelled_call_cancels_the_handler_and_leaves_the_stream_usable(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        waiter = Waiter()
        second.rpc.serve(WAIT, waiter)
        await first.rpc.call(second.id, WAIT, 0.0)
        for number in range(50):
            with trio.move_on_after(0.012 + number * 0.001):
                await first.rpc.call(second.id, WAIT, 60.0)
            await trio.sleep(0.1)
            assert _streams(first) == 1, "the stream was settled, not replaced"
        assert waiter.ended["cancelled"] == len(waiter.callers) - 1
        assert waiter.ended["cancelled"] >= 40
        assert await first.rpc.call(second.id, WAIT, 0.0) == 0.0

    play(kind, scenario)


def test_cancelled_at_any_step_a_call_runs_whole_or_not_and_the_next_works() -> None:
    async def scenario(cut: Cut) -> None:
        async with trio.open_nursery() as nursery:
            kit = Kit(MEM, nursery)
            first, second = await kit.nodes()
            second.rpc.serve(ADD, add)
            second.rpc.serve(SUM, _sum)
            await first.rpc.call(second.id, ADD, Pair(1, "x"))
            await cut.attempt(lambda: first.rpc.call(second.id, ADD, Pair(2, "x")))
            assert await first.rpc.call(second.id, ADD, Pair(3, "x"), timeout_s=20) == 4
            await trio.sleep(6)
            assert _calls(second) == 0
            nursery.cancel_scope.cancel()

    assert cancel_at_every_step(scenario) > 5


def test_a_callee_that_ignores_cancel_costs_the_stream_and_nothing_else() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()

        async def stubborn(caller: Caller, request: float, stream: CallStream) -> float:
            with trio.CancelScope(shield=True):
                await trio.sleep(30)
            return request

        second.rpc.serve(WAIT, stubborn)
        with pytest.raises(TimedOut):
            await first.rpc.call(second.id, WAIT, 1.0, timeout_s=1)
        assert first.fabric.peers()[second.id].streams == 1
        await trio.sleep(6)
        assert first.fabric.peers()[second.id].streams == 0
        with pytest.raises(TimedOut):
            await first.rpc.call(second.id, WAIT, 1.0, timeout_s=1)

    play(MEM, scenario)


def test_a_unary_handler_has_no_items_and_may_answer_without_waiting() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        tried = []

        async def quick(caller: Caller, request: int, stream: CallStream) -> int:
            if request == 0:
                for use in (stream.receive, lambda: stream.send(1)):
                    with pytest.raises(UsageError, match="no items"):
                        await use()
                    tried.append(use)
                await stream.end()
            return request

        second.rpc.serve(ONCE, quick)
        for number in (0, 1, 2, 0, 1):
            assert await first.rpc.call(second.id, ONCE, number) == number
        assert len(tried) == 4
        assert _streams(first) == 1
        assert _calls(second) == 0

    play(MEM, scenario)


def test_a_stream_needs_two_tasks_whatever_its_handlers_do() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(WAIT, Waiter())
        second.rpc.serve(ONCE, _identity)
        second.rpc.serve(CHAT, _parrot)
        await first.rpc.call(second.id, WAIT, 0.1)
        await trio.sleep(1)
        tasks = task_count()
        for number in range(30):
            await first.rpc.call(second.id, WAIT, 0.01 * (number % 3))
            assert await first.rpc.call(second.id, ONCE, number) == number
            with trio.move_on_after(0.05):
                await first.rpc.call(second.id, WAIT, 60.0)
            await trio.sleep(0.5)
        assert task_count() == tasks
        async with first.rpc.stream(second.id, CHAT, "") as call:
            await call.send("x")
            assert await call.receive() == "x"
            assert await call.result() == 1
        await trio.sleep(1)
        assert task_count() == tasks + 1, "its writer"

    play(MEM, scenario)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "code", "seen"),
    [
        (DecodeError("field 3 is no date"), Code.BAD_REQUEST, RemoteError),
        (AuthError("not for you"), Code.DENIED, AuthError),
        (TimedOut("the disk is slow"), Code.DEADLINE, TimedOut),
        (Busy("queue full", retry_after_ms=700), Code.BUSY, Busy),
        (Unreachable("upstream"), Code.UNAVAILABLE, Unreachable),
        (RemoteError(Code.APPLICATION, "no such note", data=msgpack.packb([1])), 9, RemoteError),
        (RemoteError(77, "a later code"), 77, RemoteError),
        (RuntimeError("secret path"), Code.INTERNAL, RemoteError),
        (AssertionError("secret state"), Code.INTERNAL, RemoteError),
        (UsageError("secret misuse"), Code.INTERNAL, RemoteError),
        (ExceptionGroup("g", [AuthError("inside a nursery")]), Code.DENIED, AuthError),
        (ExceptionGroup("g", [AuthError("a"), Busy("b")]), Code.INTERNAL, RemoteError),
    ],
    ids=repr,
)
def test_what_a_handler_raises_is_what_the_caller_sees(
    raised: Exception, code: int, seen: type[Exception]
) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        runs = 0

        async def refuse(caller: Caller, request: int, stream: CallStream) -> int:
            nonlocal runs
            runs += 1
            raise raised

        second.rpc.serve(TWICE, refuse)
        with pytest.raises(seen) as caught:
            await first.rpc.call(second.id, TWICE, 1)
        assert type(caught.value) is seen
        assert "secret" not in str(caught.value)
        if isinstance(caught.value, RemoteError):
            assert caught.value.code == code
            assert caught.value.data == getattr(raised, "data", b"")
        if isinstance(caught.value, Busy):
            assert caught.value.retry_after_ms == 700
        if isinstance(caught.value, AuthError):
            assert caught.value.peer == second.id
        assert runs == 1, "a handler that raises runs once, idempotent or not"
        assert second.rpc.counters()["bugs"] == (code == Code.INTERNAL)

    play(MEM, scenario)


def test_data_of_a_refusal_that_is_no_messagepack_is_left_out() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()

        async def refuse(caller: Caller, request: int, stream: CallStream) -> int:
            raise RemoteError(Code.APPLICATION, "why", data=b"\xc1\xff")

        second.rpc.serve(ONCE, refuse)
        with pytest.raises(RemoteError, match="why") as caught:
            await first.rpc.call(second.id, ONCE, 1)
        assert caught.value.data == b""

    play(MEM, scenario)


@both_kinds
def test_an_unknown_method_is_code_1(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        with pytest.raises(RemoteError) as caught:
            await first.rpc.call(second.id, ONCE, 1)
        assert caught.value.code == Code.UNKNOWN_METHOD
        assert _streams(first) == 1, "a refusal leaves the stream usable"

    play(kind, scenario)


def test_strangers_are_denied_before_their_body_is_decoded() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        asked: list[PeerId] = []

        def refuse(peer: PeerId) -> bool:
            asked.append(peer)
            return False

        second.rpc.serve(ADD, add)
        second.rpc.serve(ONCE, _never, allow=refuse)
        second.node.set_members(lambda peer: False)  # noqa: ARG005 - nobody
        peer = await RawPeer.to(first, second)
        for method in ("test.add", "test.once"):
            await peer.send(encode_call(method, 1000, 0, {"not": "the type"}))
            answer = await peer.receive()
            assert isinstance(answer, ErrorFrame)
            assert answer.code == Code.DENIED
            assert not answer.dispatched
        assert asked == [first.id]
        second.node.set_members(lambda peer: peer == first.id)
        await peer.send(encode_call("test.add", 1000, 0, {"not": "the type"}))
        answer = await peer.receive()
        assert isinstance(answer, ErrorFrame)
        assert answer.code == Code.BAD_REQUEST
        assert not answer.dispatched

    play(MEM, scenario)


def test_before_members_are_known_everybody_is_a_stranger() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc._members = None
        second.rpc.serve(ADD, add)
        second.rpc.serve(WAIT, Waiter(), allow=anyone)
        with pytest.raises(AuthError):
            await first.rpc.call(second.id, ADD, Pair(1, ""))
        assert await first.rpc.call(second.id, WAIT, 0.0) == 0.0

    play(MEM, scenario)


def test_a_unary_call_without_a_deadline_is_a_bad_request() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(ADD, add)
        peer = await RawPeer.to(first, second)
        await peer.send(encode_call("test.add", 0, 0, Pair(1, "")))
        answer = await peer.receive()
        assert isinstance(answer, ErrorFrame)
        assert answer.code == Code.BAD_REQUEST

    play(MEM, scenario)


def test_calls_over_a_methods_limit_are_busy_and_the_rest_run() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        narrow = replace(WAIT, concurrent_max=3)
        second.rpc.serve(narrow, Waiter())
        outcomes: Counter[str] = Counter()

        async def one() -> None:
            try:
                await first.rpc.call(second.id, narrow, 1.0)
                outcomes["done"] += 1
            except Busy as busy:
                outcomes["busy" if busy.retry_after_ms else "busy for how long?"] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert outcomes == {"done": 3, "busy": 7}
        assert await first.rpc.call(second.id, narrow, 0.0) == 0.0

    play(MEM, scenario)


def test_one_peers_calls_are_limited_here_and_the_callers_wait_there() -> None:
    async def scenario(kit: Kit) -> None:
        config = replace(P2pConfig.test(), rpc_calls_per_peer_max=4)
        first, second = await kit.nodes(config=config)
        third = await kit.node(3)
        third.node.learn(second.id, second.fabric.addrs())
        second.rpc.serve(WAIT, Waiter())
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(first.rpc.call, second.id, WAIT, 1.0)
            await trio.sleep(0.5)
            before = trio.current_time()
            assert await third.rpc.call(second.id, WAIT, 0.1) == 0.1
            assert trio.current_time() - before < 0.5, "another peer is not held up"
        assert 3 <= trio.current_time() - start < 4, "twelve calls, four at a time"

    play(MEM, scenario)


def test_calls_over_the_nodes_limit_are_busy() -> None:
    async def scenario(kit: Kit) -> None:
        second = await kit.node(2, config=replace(P2pConfig.test(), rpc_calls_max=5))
        second.rpc.serve(WAIT, Waiter())
        outcomes: Counter[str] = Counter()

        async def one(caller: NodeMember) -> None:
            caller.node.learn(second.id, second.fabric.addrs())
            try:
                await caller.rpc.call(second.id, WAIT, 1.0)
                outcomes["done"] += 1
            except Busy:
                outcomes["busy"] += 1

        callers = [await kit.node(number) for number in range(3, 11)]
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(one, caller)
        assert outcomes == {"done": 5, "busy": 3}

    play(MEM, scenario)


@both_kinds
def test_what_is_too_large_says_so_and_leaves_the_stream_usable(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        blob = Method("test.blob", bytes, bytes)

        async def inflate(caller: Caller, request: bytes, stream: CallStream) -> bytes:
            return request * 2

        second.rpc.serve(blob, inflate)
        large = bytes(1 << 19)
        reply = await first.rpc.call(second.id, blob, large[:-10])
        assert len(reply) == (1 << 20) - 20
        with pytest.raises(RemoteError) as caught:
            await first.rpc.call(second.id, blob, bytes(1 << 20)[:-20])
        assert caught.value.code == Code.TOO_LARGE
        with pytest.raises(UsageError, match="send it as items"):
            await first.rpc.call(second.id, blob, bytes(2 << 20))
        assert _streams(first) == 1
        peer = await RawPeer.to(first, second)
        body = bytes((1 << 20) + 1)
        await peer.send(encode_call("test.blob", 1000, 0, body))
        answer = await peer.receive()
        assert isinstance(answer, ErrorFrame)
        assert (answer.code, answer.dispatched) == (Code.TOO_LARGE, False)

    play(kind, scenario)


def test_a_reply_of_another_type_is_a_decode_error_of_that_peer() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()

        async def lie(caller: Caller, request: int, stream: CallStream) -> str:
            return "not a number"

        second.rpc.serve(Method("test.once", int, str), lie)
        with pytest.raises(DecodeError) as caught:
            await first.rpc.call(second.id, ONCE, 1)
        assert caught.value.peer == second.id
        assert "not a number" not in str(caught.value)

    play(MEM, scenario)


# --- Retry ----------------------------------------------------------------------------------------


def serve_by_hand(member: Member, script: Callable[[RawPeer, int], Awaitable[None]]) -> list[int]:
    """Answer RPC streams of `member` by a script; returns their numbers, as they come."""
    numbers: list[int] = []

    async def handler(stream: Stream) -> None:
        numbers.append(len(numbers))
        await script(RawPeer(stream), numbers[-1])

    member.fabric.handle(PROTOCOL, handler, per_peer_max=100)
    return numbers


async def _with_script(
    kit: Kit, script: Callable[[RawPeer, int], Awaitable[None]]
) -> tuple[NodeMember, Member, list[int]]:
    first = await kit.node(1)
    second = await kit.start(2)
    first.node.learn(second.id, second.fabric.addrs())
    return first, second, serve_by_hand(second, script)


async def _die_after_call(peer: RawPeer, number: int) -> None:
    await peer.receive_call()
    peer.stream.reset()
    await trio.sleep_forever()


def test_a_call_that_may_have_run_is_not_repeated() -> None:
    async def scenario(kit: Kit) -> None:
        first, second, streams = await _with_script(kit, _die_after_call)
        with pytest.raises(Unreachable, match="died before the reply"):
            await first.rpc.call(second.id, ONCE, 1)
        assert streams == [0]

    play(MEM, scenario)


def test_an_idempotent_call_is_repeated_once() -> None:
    async def scenario(kit: Kit) -> None:
        first, second, streams = await _with_script(kit, _die_after_call)
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
        first, second, streams = await _with_script(kit, script)
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
        first, second, streams = await _with_script(kit, script)
        with pytest.raises((Unreachable, Busy, RemoteError)):
            await first.rpc.call(second.id, TWICE, 1)
        assert streams == [0]
        assert first.rpc.counters()["rpc_retries"] == 0

    play(MEM, scenario)


@both_kinds
def test_an_idle_stream_that_died_is_replaced_unnoticed_and_nothing_runs_twice(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second, streams = await _with_script(kit, _answer_once_then_reset)
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
        second.rpc.serve(ONCE, _identity)
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


# --- Items ----------------------------------------------------------------------------------------


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
        assert _streams(first) == 1, "the stream is pooled after a clean end"
        async with first.rpc.stream(second.id, CHAT, "re:") as call:
            assert await call.result() == 0
        await trio.sleep(1)
        assert _streams(first) == 1

    play(kind, scenario)


def test_an_item_larger_than_the_window_passes() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(SUM, _sum)
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
            assert _streams(first) == 1
            with pytest.raises(UsageError, match="block was left"):
                await call.result()

    play(kind, scenario)


def test_a_stream_cancelled_at_any_step_leaves_both_sides_whole() -> None:
    async def scenario(cut: Cut) -> None:
        async with trio.open_nursery() as nursery:
            kit = Kit(MEM, nursery)
            first, second = await kit.nodes()
            second.rpc.serve(CHAT, _parrot)

            async def talk() -> None:
                async with first.rpc.stream(second.id, CHAT, "") as call:
                    for number in range(3):
                        await call.send(str(number) * 1000)
                        await call.receive()
                    assert await call.result() == 3

            await cut.attempt(talk)
            await trio.sleep(6)
            assert _calls(second) == 0
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
                await _send_for_ever(call)
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
        second.rpc.serve(SUM, _sum)
        second.rpc.serve(COUNT, count)
        with pytest.raises(UsageError, match="use `stream`"):
            await first.rpc.call(second.id, SUM, 1)
        with pytest.raises(UsageError, match="use `call`"):
            first.rpc.stream(second.id, ONCE, 1)
        with pytest.raises(UsageError, match="served already"):
            second.rpc.serve(SUM, _sum)
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
        first, second, streams = await _with_script(kit, script)
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
        second.rpc.serve(CHAT, _parrot)
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
        second.rpc.serve(CHAT, _parrot)
        async with first.rpc.stream(second.id, CHAT, "") as call:
            first.scope.cancel()
            with pytest.raises(Unreachable):
                await call.receive()
            with pytest.raises(Unreachable):
                await call.result()
        with pytest.raises(Unreachable):
            await first.rpc.call(second.id, ONCE, 1)

    play(MEM, scenario)


def test_rpc_survives_losing_count_of_its_peers() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(ONCE, _identity)
        assert await first.rpc.call(second.id, ONCE, 1) == 1
        assert isinstance(first.fabric, MemFabric)
        for _ in range(300):  # more than a subscription holds
            first.fabric._emit(PeerUp(second.id))
        await trio.sleep(1)
        assert _streams(first) == 0, "what was missed may be anything"
        assert await first.rpc.call(second.id, ONCE, 2) == 2
        await first.fabric.disconnect(second.id)
        await trio.sleep(1)
        assert _streams(first) == 0, "and the new subscription works"

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
        assert _calls(second) == 0
        assert not second.rpc._server.loads

    play(kind, scenario)


async def _suppress(first: NodeMember, second: NodeMember, request: float) -> None:
    with pytest.raises(Unreachable):
        await first.rpc.call(second.id, WAIT, request, timeout_s=2000)


def test_a_caller_that_only_ends_its_direction_gets_its_answer() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(WAIT, Waiter())
        second.rpc.serve(SUM, _sum)
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
        first, second, _ = await _with_script(kit, script)
        with pytest.raises(ProtocolError):
            await first.rpc.call(second.id, ONCE, 1)
        assert _streams(first) == 0

    play(MEM, scenario)


def test_a_callee_that_sends_without_credit_costs_the_stream() -> None:
    async def script(peer: RawPeer, number: int) -> None:
        await peer.receive_call()
        while True:
            await peer.send(encode_item(bytes(60_000))[0])

    async def scenario(kit: Kit) -> None:
        first, second, _ = await _with_script(kit, script)
        blobs = Method("test.blobs", int, int, item_out=bytes)
        async with first.rpc.stream(second.id, blobs, 1) as call:
            await trio.sleep(10)
            with pytest.raises(Exception, match="without credit") as caught:
                await call.result()
            assert caught.value.peer == second.id  # type: ignore[attr-defined]
        await trio.sleep(1)
        assert _streams(first) == 0

    play(MEM, scenario)


@settings(max_examples=30)
@given(data=st.binary(max_size=60))
def test_a_callee_that_answers_garbage_raises_only_documented_errors(data: bytes) -> None:
    async def script(peer: RawPeer, number: int) -> None:
        await peer.receive_call()
        await peer.send(data)

    async def scenario(kit: Kit) -> None:
        first, second, _ = await _with_script(kit, script)
        with pytest.raises(
            (DecodeError, ProtocolError, Unreachable, TimedOut, Exception)
        ) as caught:
            await first.rpc.call(second.id, ONCE, 1, timeout_s=5)
        assert type(caught.value).__module__ == "p2p.errors"

    play(MEM, scenario)


# --- Small handlers and counters ------------------------------------------------------------------


async def _sum(caller: Caller, request: int, stream: CallStream) -> int:
    total = request
    async for item in stream:
        assert isinstance(item, bytes)
        total += len(item)
    return total


async def _send_for_ever(call: CallStream) -> None:
    while True:
        await call.send(bytes(100_000))


async def _parrot(caller: Caller, request: str, stream: CallStream) -> int:
    said = 0
    async for item in stream:
        await stream.send(item)
        said += 1
    return said


async def _identity(caller: Caller, request: int, stream: CallStream) -> int:
    return request


async def _never(caller: Caller, request: int, stream: CallStream) -> int:
    raise AssertionError("a denied call must not run")


def _streams(member: NodeMember) -> int:
    """Idle RPC streams this node keeps."""
    return member.rpc._client.idle_streams


def _calls(member: NodeMember) -> int:
    """Calls this node serves now."""
    return member.rpc._server.calls
