"""Hostile peers at the RPC door: whatever they send, a bystander is served and nothing grows.

Every attack runs against the real wire (Noise and Yamux over a simulated network). After it, an
honest peer must have been served throughout, the server's books must be back at zero, and memory
must have stayed within a bound that is written down here.
"""

# ruff: noqa: ARG001, ARG002 - the shape of a handler is fixed, whatever it needs of it

from __future__ import annotations

import contextlib
import pickle
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack
import msgspec
import pytest
import trio

from p2p.config import P2pConfig
from p2p.errors import (
    AuthError,
    DecodeError,
    LimitError,
    PeerError,
    ProtocolError,
    RemoteError,
    TransientError,
    Unreachable,
)
from p2p.limits import RPC_FRAME_BYTES_MAX, RPC_WINDOW_BYTES
from p2p.net.seam import PeerDown
from p2p.rpc import Caller, CallStream, Code, Method
from p2p.rpc_frames import (
    ErrorFrame,
    ResultFrame,
    encode_call,
    encode_cancel,
    encode_credit,
    encode_end,
    encode_error,
    encode_item,
    encode_result,
)
from p2p.rpc_mesh import ECHO, Echo
from p2p.rpc_server import PROTOCOL
from tests.helpers.fabrics import WIRE_MEM, Kit, NodeMember, RawPeer, next_event, play

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.seam import Stream

pytestmark = pytest.mark.attack

MEMORY_BYTES_MAX = 64 << 20
"""No attack of one peer may make the process grow by more."""

SHARE_BYTES = 16 << 20
"""Unread bytes of one peer that the server keeps."""

READ_BYTES = 1 << 20
"""What may be under way beyond the share when it is noticed: one frame."""

HANG = Method("test.hang", int, int, concurrent_max=1000)
TAKE = Method("test.take", int, int, item_in=bytes, concurrent_max=1000)
GIVE = Method("test.give", int, bytes, concurrent_max=1000)


class Scene:
    """A server, an attacker and a bystander who calls all the time."""

    def __init__(self, kit: Kit, server: NodeMember, bystander: NodeMember) -> None:
        self.kit = kit
        self.server = server
        self.bystander = bystander
        self.attacker: NodeMember
        self.served = 0
        self.ended: Counter[str] = Counter()
        server.rpc.serve(HANG, self._hang)
        server.rpc.serve(TAKE, self._take)
        server.rpc.serve(GIVE, self._give)

    @property
    def load_bytes(self) -> int:
        """Unread bytes of the attacker that the server counts."""
        load = self.server.rpc._server.loads.get(self.attacker.id)
        return load.buffered_bytes if load else 0

    @property
    def calls(self) -> int:
        """Calls of the attacker that run."""
        load = self.server.rpc._server.loads.get(self.attacker.id)
        return load.calls if load else 0

    async def open(self) -> RawPeer:
        """A new stream of the attacker."""
        return await RawPeer.to(self.attacker, self.server)

    async def ask(self) -> None:
        """The bystander's calls, one after another; each must be answered in time."""
        while True:
            reply = await self.bystander.rpc.call(
                self.server.id, ECHO, Echo(b"bystander"), timeout_s=5
            )
            assert reply.data == b"bystander"
            self.served += 1
            await trio.sleep(0.2)

    async def _hang(self, caller: Caller, request: int, stream: CallStream) -> int:
        try:
            await trio.sleep_forever()
        finally:
            self.ended["hang"] += 1

    async def _take(self, caller: Caller, request: int, stream: CallStream) -> int:
        """Read nothing at all, as a slow application would."""
        try:
            await trio.sleep_forever()
        finally:
            self.ended["take"] += 1

    async def _give(self, caller: Caller, request: int, stream: CallStream) -> bytes:
        return bytes(request)


def attack(
    plan: Callable[[Scene], Awaitable[None]],
    *,
    memory: bool = False,
    share_bytes: int = SHARE_BYTES,
) -> None:
    """Run `plan`, then check that the bystander was served and everything is as before."""

    async def scenario(kit: Kit) -> None:
        config = replace(P2pConfig.test(), rpc_buffer_per_peer_bytes=share_bytes)
        server, bystander = await kit.node(1, config=config), await kit.node(2)
        scene = Scene(kit, server, bystander)
        scene.attacker = await kit.node(3)
        for peer in (bystander, scene.attacker):
            peer.node.learn(server.id, server.fabric.addrs())
            await peer.rpc.call(server.id, ECHO, Echo(b"hello"))
        with trio.CancelScope() as asking:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scene.ask)
                await trio.sleep(1)
                before = scene.served
                await plan(scene)
                await trio.sleep(1)
                assert scene.served > before, "the bystander was not served"
                asking.cancel()
        await scene.attacker.fabric.disconnect(server.id)
        await trio.sleep(10)
        assert set(server.rpc._server.loads) <= {bystander.id}
        assert server.rpc._server.calls == 0
        assert all(load.buffered_bytes == 0 for load in server.rpc._server.loads.values())
        assert server.rpc.counters()["bugs"] == 0
        assert bystander.id in server.fabric.peers()

    if memory:
        tracemalloc.start()
    try:
        play(WIRE_MEM, scenario)
        if memory:
            _, peak = tracemalloc.get_traced_memory()
            assert peak < MEMORY_BYTES_MAX, f"the process grew by {peak >> 20} MiB"
    finally:
        tracemalloc.stop()


async def is_reset(peer: RawPeer) -> bool:
    """Whether the other side gave the stream up, within 5 s."""
    with trio.move_on_after(5):
        try:
            while True:
                await peer.receive()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return True
        except EOFError:
            return False
    return False


async def error_of(peer: RawPeer) -> ErrorFrame:
    """The next frame, which must be an ERROR."""
    with trio.fail_after(10):
        frame = await peer.receive()
    assert isinstance(frame, ErrorFrame)
    return frame


def framed(payload: bytes) -> bytes:
    """`payload` with its length before it."""
    return len(payload).to_bytes(4, "big") + payload


# --- Malformed ------------------------------------------------------------------------------------

MALFORMED = {
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "empty frame": framed(b""),
    "not an array": framed(b"\xc0"),
    "unknown frame": framed(b"\x91\x63"),
    "pickle": framed(pickle.dumps({"a": 1})),
    "too deep": framed(b"\x92\x02" + b"\x91" * 200_000),
    "bad text": framed(b"\x95\x01\xa2\xff\xfe\x01\x00\xc0"),
    "trailing bytes": framed(b"\x91\x04\x91\x04"),
    "extra field": framed(b"\x92\x04\xc0"),
    "negative deadline": framed(msgpack.packb([1, "mesh.echo", -1, 0, None])),
    "name of 65": framed(msgpack.packb([1, "m" * 65, 1, 0, None])),
    "result to a callee": bytes(encode_result(1)),
    "error to a callee": bytes(encode_error(8, "x", dispatched=True)),
    "second call": bytes(encode_call("test.hang", 9000, 0, 1)) * 2,
    "item for a method without": bytes(encode_call("test.hang", 9000, 0, 1) + encode_item(b"x")[0]),
    "item after end": bytes(
        encode_call("test.take", 9000, 0, 1) + encode_end() + encode_item(b"x")[0]
    ),
    "end twice": bytes(encode_call("test.take", 9000, 0, 1) + encode_end() * 2),
    "absurd credit": bytes(encode_call("test.take", 9000, 1 << 21, 1)),
    "credit overflow": bytes(encode_call("test.take", 9000, 1 << 20, 1) + encode_credit(1)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_or_forbidden_frame_costs_its_stream_and_is_counted(name: str) -> None:
    async def plan(scene: Scene) -> None:
        before = scene.server.rpc.counters()["rpc_violations"]
        other = await scene.open()
        peer = await scene.open()
        await peer.send(MALFORMED[name])
        assert await is_reset(peer)
        assert scene.server.rpc.counters()["rpc_violations"] == before + 1
        await other.send(encode_call("mesh.echo", 1000, 0, Echo(b"mine")))
        assert isinstance(await other.receive(), ResultFrame), "other streams live on"

    attack(plan)


def test_a_peer_that_keeps_breaking_the_protocol_is_refused() -> None:
    async def plan(scene: Scene) -> None:
        events = scene.attacker.fabric.events()
        with contextlib.suppress(trio.BrokenResourceError, Unreachable):
            for _ in range(10):
                peer = await scene.open()
                await peer.send(b"\x00\x00\x00\x01\xc0")
                await is_reset(peer)
        await next_event(events, PeerDown, scene.server.id, within_s=10)
        with pytest.raises(Unreachable):
            await scene.attacker.fabric.connect(scene.server.id)
        assert scene.server.rpc.counters()["rpc_violations"] <= 4

    attack(plan)


def test_a_length_bomb_allocates_nothing() -> None:
    async def plan(scene: Scene) -> None:
        for length in (RPC_FRAME_BYTES_MAX + 1, 1 << 30):
            peer = await scene.open()
            await peer.send(length.to_bytes(4, "big"), bytes(1000))
            assert await is_reset(peer)

    attack(plan, memory=True)


def test_a_body_of_another_type_is_refused_without_effect() -> None:
    bodies = [
        None,
        pickle.dumps([1]),
        {"__reduce__": ["os.system", ["true"]]},
        "1",
        [1],
        1.5,
        True,
        -(1 << 63),
    ]

    async def plan(scene: Scene) -> None:
        peer = await scene.open()
        for body in bodies[:-1]:
            await peer.send(encode_call("test.hang", 1000, 0, body))
            error = await error_of(peer)
            assert (error.code, error.dispatched) == (Code.BAD_REQUEST, False)
        assert scene.calls == 0

    attack(plan)


# --- Credit ---------------------------------------------------------------------------------------


def test_an_item_without_credit_costs_the_stream_and_cancels_the_handler() -> None:
    async def plan(scene: Scene) -> None:
        peer = await scene.open()
        await peer.send(encode_call("test.take", 0, 0, 1))
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(100):
                await peer.send(encode_item(bytes(60_000))[0])
        assert await is_reset(peer)
        assert scene.ended["take"] == 1
        assert scene.load_bytes == 0

    attack(plan)


def test_the_last_item_may_overdraw_by_its_own_size_only() -> None:
    async def plan(scene: Scene) -> None:
        peer = await scene.open()
        await peer.send(encode_call("test.take", 0, 0, 1))
        await peer.send(encode_item(bytes(RPC_WINDOW_BYTES - 10))[0])
        await peer.send(encode_item(bytes(1_000_000))[0])
        await trio.sleep(1)
        assert scene.calls == 1
        assert scene.load_bytes < RPC_WINDOW_BYTES + 1_001_000
        await peer.send(encode_item(b"")[0])
        assert await is_reset(peer)

    attack(plan)


def test_a_flood_of_tiny_items_is_charged_what_it_costs_and_ends_its_call() -> None:
    share_bytes = 1 << 20

    async def plan(scene: Scene) -> None:
        peer = await scene.open()
        await peer.send(encode_call("test.take", 0, 0, 1))
        tiny = bytes(encode_item(b"")[0]) * 200  # two bytes an item: all within the window
        sent = highest = 0
        with contextlib.suppress(trio.BrokenResourceError):
            while sent < 60_000:
                await peer.send(tiny)
                await trio.sleep(0.05)
                sent += 200
                highest = max(highest, scene.load_bytes)
        assert share_bytes / 2 < highest < share_bytes + 100_000
        # Ended by a busy answer, or, when a frame was cut just then, by a reset.
        with contextlib.suppress(trio.BrokenResourceError):
            assert (await error_of(peer)).code == Code.BUSY
        assert scene.ended["take"] == 1
        assert scene.load_bytes < 10_000
        assert scene.server.rpc.counters()["rpc_violations"] == 0, "slow is not hostile"

    attack(plan, share_bytes=share_bytes)


# --- Calls ----------------------------------------------------------------------------------------


def test_a_peer_runs_64_calls_and_more_are_busy() -> None:
    async def plan(scene: Scene) -> None:
        peers = [await scene.open() for _ in range(80)]
        for peer in peers:
            await peer.send(encode_call("test.hang", 600_000, 0, 1))
        await trio.sleep(1)
        assert scene.calls == 64
        busy = 0
        for peer in peers:
            with trio.move_on_after(0.1):
                error = await peer.receive()
                assert isinstance(error, ErrorFrame)
                assert (error.code, error.dispatched) == (Code.BUSY, False)
                assert error.retry_after_ms > 0
                busy += 1
        assert busy == 16
        for peer in peers:
            peer.stream.reset()
        await trio.sleep(1)
        assert scene.calls == 0
        assert scene.ended["hang"] == 64

    attack(plan)


def test_streams_over_the_peers_limit_are_reset() -> None:
    async def plan(scene: Scene) -> None:
        peers = []
        for _ in range(300):
            peer = await scene.open()
            with contextlib.suppress(trio.BrokenResourceError):
                await peer.send(encode_call("test.hang", 600_000, 0, 1))
            peers.append(peer)
        await trio.sleep(1)
        assert scene.calls == 64
        assert scene.server.rpc._server.loads[scene.attacker.id].streams <= 88

    attack(plan)


def test_a_flood_of_calls_whose_answers_are_not_read_stops_by_itself() -> None:
    async def plan(scene: Scene) -> None:
        peer = await scene.open()
        sent = 0
        flood = bytes(encode_call("no.such", 1000, 0, 1)) * 1000
        with trio.move_on_after(60):
            while True:
                await peer.send(flood)
                sent += 1000
        assert sent < 200_000, "back-pressure must reach the one who does not read"
        assert scene.calls == 0

    attack(plan)


def test_unread_answers_are_charged_to_the_one_who_asked() -> None:
    async def plan(scene: Scene) -> None:
        peers = [await scene.open() for _ in range(60)]
        for peer in peers:
            await peer.send(encode_call("test.give", 60_000, 0, 1_000_000))
            await trio.sleep(0.05)
        assert scene.load_bytes < SHARE_BYTES + READ_BYTES
        refused = scene.server.rpc.counters()["rpc_refused"]
        assert refused > 30, "beyond its share a peer is busy"

    attack(plan, memory=True)


def test_unfinished_frames_are_charged_and_bounded() -> None:
    async def plan(scene: Scene) -> None:
        head = (RPC_FRAME_BYTES_MAX).to_bytes(4, "big")
        peers = [await scene.open() for _ in range(40)]
        highest = 0
        for peer in peers:
            with contextlib.suppress(trio.BrokenResourceError, Unreachable), trio.move_on_after(5):
                await peer.send(head, bytes(RPC_FRAME_BYTES_MAX - 1))
            highest = max(highest, scene.load_bytes)
        await trio.sleep(1)
        assert 1_000_000 < highest < SHARE_BYTES + READ_BYTES

    attack(plan, memory=True)


def test_cancels_and_credit_without_a_call_do_nothing() -> None:
    async def plan(scene: Scene) -> None:
        peer = await scene.open()
        for _ in range(50):
            await peer.send(encode_cancel() * 100, encode_credit(1) * 100, encode_end() * 100)
        await peer.send(encode_call("mesh.echo", 1000, 0, Echo(b"x")))
        assert isinstance(await peer.receive(), ResultFrame)
        assert scene.server.rpc.counters()["rpc_violations"] == 0

    attack(plan)


def test_a_stranger_gets_nothing_run_or_decoded() -> None:
    async def plan(scene: Scene) -> None:
        scene.server.node.set_members(lambda peer: peer == scene.bystander.id)
        peer = await scene.open()
        for method in ("test.hang", "test.take", "mesh.addrs", "mesh.echo", "mesh.info"):
            for _ in range(20):
                await peer.send(encode_call(method, 1000, 0, b"\x91" * 1000))
                error = await error_of(peer)
                assert (error.code, error.message) == (Code.DENIED, "denied")
        assert scene.calls == 0
        assert scene.server.rpc.counters()["rpc_calls_in"] <= scene.served + 10

    attack(plan)


# --- Hostile callees ------------------------------------------------------------------------------


def hostile_callee(answer: Callable[[RawPeer], Awaitable[None]]) -> tuple[type[object], float]:
    """Call a peer that answers by `answer`: what the caller raised, and after how long."""
    outcome: list[tuple[type[object], float]] = []

    async def scenario(kit: Kit) -> None:
        honest = await kit.node(1)
        hostile = await kit.start(2)
        honest.node.learn(hostile.id, hostile.fabric.addrs())

        async def handler(stream: Stream) -> None:
            peer = RawPeer(stream)
            await peer.receive_call()
            with contextlib.suppress(trio.BrokenResourceError):
                await answer(peer)
            await trio.sleep_forever()

        hostile.fabric.handle(PROTOCOL, handler, per_peer_max=10)
        method = Method("test.any", int, int, item_out=bytes)
        start = trio.current_time()
        try:
            async with honest.rpc.stream(hostile.id, method, 1, timeout_s=20) as call:
                await trio.sleep(1)  # let it do its worst before anything is taken
                await call.result()
                outcome.append((type(None), 0.0))
        except (PeerError, TransientError, RemoteError) as error:
            outcome.append((type(error), trio.current_time() - start))
        await trio.sleep(10)
        assert honest.rpc._client.idle_streams == 0, "a stream of a liar must not be kept"
        assert not honest.rpc._client._peers

    play(WIRE_MEM, scenario)
    return outcome[0]


@pytest.mark.parametrize(
    ("sent", "raised"),
    [
        (b"\x00\x00\x00\x01\xc0", DecodeError),
        (b"\xff\xff\xff\xff", LimitError),
        (bytes(encode_call("test.any", 1, 0, 1)), ProtocolError),
        (bytes(encode_cancel()), ProtocolError),
        (bytes(encode_credit((1 << 20) + 1)), LimitError),
        (bytes(encode_end() + encode_item(b"x")[0]), ProtocolError),
        (bytes(encode_item(bytes(1_000_000))[0] * 2), LimitError),
        (bytes(encode_result(1) + encode_end()), type(None)),  # the reply counts, the stream goes
        (framed(msgpack.packb([6, 8, "x" * 513, 0, True, None])), DecodeError),
    ],
    ids=range(9),
)
def test_a_callee_that_breaks_the_protocol_is_a_peer_error_at_once(
    sent: bytes, raised: type[object]
) -> None:
    async def answer(peer: RawPeer) -> None:
        await peer.send(sent)

    kind, after_s = hostile_callee(answer)
    assert kind is raised
    assert after_s < 2


def test_a_callee_that_never_answers_costs_the_callers_time_limit_and_a_stream() -> None:
    async def answer(peer: RawPeer) -> None:
        await trio.sleep_forever()

    kind, after_s = hostile_callee(answer)
    assert issubclass(kind, TransientError)
    assert after_s == pytest.approx(20, abs=1)


def test_what_a_callee_says_is_shown_as_data_and_never_as_control_characters() -> None:
    async def scenario(kit: Kit) -> None:
        honest, server = await kit.nodes()

        async def refuse(caller: Caller, request: int, stream: CallStream) -> int:
            raise AuthError("\x1b[2J\x07 you may not\n" + "x" * 5000)

        server.rpc.serve(HANG, refuse)
        with pytest.raises(AuthError) as caught:
            await honest.rpc.call(server.id, HANG, 1)
        assert "\x1b" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700

    play(WIRE_MEM, scenario)


def test_a_body_that_decodes_to_much_more_than_it_weighs_needs_a_type_that_allows_it() -> None:
    """1 MiB of empty lists decoded without a type takes 65 MiB: our methods are typed."""
    body = b"\xdd\x00\x0f\xff\xf0" + b"\x90" * 0xFFFF0
    tracemalloc.start()
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.Decoder(Echo).decode(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
