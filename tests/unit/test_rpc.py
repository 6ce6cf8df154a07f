"""Peer RPC from end to end, in virtual time, without and with the real wire: calls and refusals."""

# ruff: noqa: ARG001 - the shape of a handler is fixed, whatever it needs of it

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack
import pytest
import trio

from p2p.config import P2pConfig
from p2p.errors import (
    AuthError,
    Busy,
    DecodeError,
    RemoteError,
    TimedOut,
    Unreachable,
    UsageError,
)
from p2p.rpc import Caller, CallStream, Code, Method, anyone
from p2p.rpc_frames import (
    ErrorFrame,
    ResultFrame,
    encode_call,
)
from tests.helpers.cancel import Cut, cancel_at_every_step
from tests.helpers.fabrics import MEM, Kit, NodeMember, RawPeer, play
from tests.helpers.leaks import task_count
from tests.helpers.peer_rpc import (
    ADD,
    CHAT,
    ONCE,
    SUM,
    TWICE,
    WAIT,
    Pair,
    Waiter,
    add,
    add_up,
    both_kinds,
    calls_served,
    idle_streams,
    never,
    parrot,
    same,
)

if TYPE_CHECKING:
    from p2p.identity import PeerId

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
        assert idle_streams(first) == 1
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(first.rpc.call, second.id, WAIT, 0.5)
        await trio.sleep(1)
        assert idle_streams(first) == 8
        await trio.sleep(60)
        assert idle_streams(first) == 0, "idle streams are closed after a while"
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
            assert idle_streams(first) == 1, "the stream was settled, not replaced"
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
            second.rpc.serve(SUM, add_up)
            await first.rpc.call(second.id, ADD, Pair(1, "x"))
            await cut.attempt(lambda: first.rpc.call(second.id, ADD, Pair(2, "x")))
            assert await first.rpc.call(second.id, ADD, Pair(3, "x"), timeout_s=20) == 4
            await trio.sleep(6)
            assert calls_served(second) == 0
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
        assert idle_streams(first) == 1
        assert calls_served(second) == 0

    play(MEM, scenario)


def test_a_stream_needs_two_tasks_whatever_its_handlers_do() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.rpc.serve(WAIT, Waiter())
        second.rpc.serve(ONCE, same)
        second.rpc.serve(CHAT, parrot)
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
        assert idle_streams(first) == 1, "a refusal leaves the stream usable"

    play(kind, scenario)


def test_strangers_are_denied_before_their_body_is_decoded() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        asked: list[PeerId] = []

        def refuse(peer: PeerId) -> bool:
            asked.append(peer)
            return False

        second.rpc.serve(ADD, add)
        second.rpc.serve(ONCE, never, allow=refuse)
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
        assert idle_streams(first) == 1
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
