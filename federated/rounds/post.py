"""The rounds' messages and bytes on their way between members: the peer RPC side.

`fed.message` carries one packet; `fed.fetch` streams a part or a merged part from an offset. Both
are idempotent. A packet for a round that has not begun here waits a moment: members learn of a new
circle one after the other.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from federated.rounds.protocol.wire import CONTROL_BYTES_MAX, U32, U63, Hash, Packet
from federated.rounds.rates import Meter
from p2p.errors import DecodeError, P2pError, RemoteError
from p2p.identity import PeerId
from p2p.rpc_types import Code, Method

if TYPE_CHECKING:
    from collections.abc import Iterable
    from mmap import mmap

    from federated.seams import Mesh
    from p2p.env import Env, Offload
    from p2p.rpc_types import Caller, CallStream

log = logging.getLogger("covey.rounds")

ITEM_BYTES: Final = 262_144
CALL_S: Final = 10.0
QUEUE_MAX: Final = 256
"""Packets waiting for one member. What is dropped is asked for again."""
STATE_PART: Final = 2**32 - 1
"""The part number under which a federation's state is fetched."""
EARLY_MAX: Final = 256
EARLY_S: Final = 10.0
EARLY_BYTES_MAX: Final = 4 * 2**20
SILENT_S: Final = 15.0
"""Without a byte for so long a transfer is dead, and another holder is asked."""
RATE_MIN: Final = 16_384
"""Bytes a second below which a transfer as a whole is given up. Guess: a phone's poor uplink."""
PARTIAL_MAX: Final = 64
PARTIAL_BYTES_MAX: Final = 256 * 2**20
"""Of what came in part and waits for its next try."""


class Letter(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A packet and the federation it is for."""

    federation: Hash
    packet: Packet


class Wanted(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Bytes to fetch: a sender's part (`merged` false), or a merged part by its hash."""

    federation: Hash
    plan: Hash
    part: U32
    merged: bool
    sha256: Hash
    offset: U63


MESSAGE: Final = Method("fed.message", request=Letter, reply=bool, idempotent=True)
FETCH: Final = Method(
    "fed.fetch", request=Wanted, reply=int, item_out=bytes, idempotent=True, concurrent_max=64
)


class Seat(Protocol):
    """A round that is under way here."""

    def receive(self, sender: bytes, packet: Packet) -> None:
        """A packet came."""
        ...

    def serve(self, caller: bytes, wanted: Wanted) -> bytes | mmap | None:
        """The bytes asked for, if this caller may have them."""
        ...


class Post:
    """Carries packets and bytes.

    Args:
        mesh: peers and calls.
        env: clocks.
        offload: where large bytes are hashed.
    """

    def __init__(self, mesh: Mesh, env: Env, offload: Offload) -> None:
        self._mesh = mesh
        self._env = env
        self._offload = offload
        self._seats: dict[bytes, Seat] = {}
        self._queues: dict[bytes, deque[Letter]] = {}
        self._early: deque[tuple[float, bytes, Letter]] = deque()
        self._early_bytes = 0
        self._nursery: trio.Nursery | None = None
        self._partial: OrderedDict[tuple[bytes, Wanted], bytearray] = OrderedDict()
        self.bytes_in = 0
        self.bytes_out = 0
        self.down = Meter()
        self.up = Meter()

    def register(self) -> None:
        """Serve the methods."""
        self._mesh.rpc.serve(MESSAGE, self._on_message)
        self._mesh.rpc.serve(FETCH, self._on_fetch)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # ---- seats

    def seat(self, federation: bytes, seat: Seat) -> None:
        """Have what is for a round given to `seat`, also what came a moment too early."""
        self._seats[federation] = seat
        early, self._early = self._early, deque()
        self._early_bytes = 0
        for at, sender, letter in early:
            if letter.federation == federation:
                self._give(seat, sender, letter.packet)
            else:
                self._keep_early(at, sender, letter)

    def unseat(self, federation: bytes, seat: Seat) -> None:
        """A round has ended here; another one of the same federation may have its seat already."""
        if self._seats.get(federation) is seat:
            del self._seats[federation]

    def _keep_early(self, at: float, sender: bytes, letter: Letter) -> None:
        size = len(letter.packet.body)
        while self._early and (
            len(self._early) >= EARLY_MAX
            or self._early_bytes + size > EARLY_BYTES_MAX
            or self._early[0][0] < self._env.now() - EARLY_S
        ):
            self._early_bytes -= len(self._early.popleft()[2].packet.body)
        self._early.append((at, sender, letter))
        self._early_bytes += size

    def _give(self, seat: Seat, sender: bytes, packet: Packet) -> None:
        try:
            seat.receive(sender, packet)
        except DecodeError as error:
            log.info("round_message_refused", extra={"f": {"why": str(error)}})

    async def _on_message(self, caller: Caller, letter: Letter, _: CallStream) -> bool:
        if len(letter.packet.body) > CONTROL_BYTES_MAX:
            raise DecodeError("a round's message is too large")
        self.bytes_in += len(letter.packet.body)
        seat = self._seats.get(letter.federation)
        if seat is None:
            self._keep_early(self._env.now(), bytes(caller.peer), letter)
            return False
        seat.receive(bytes(caller.peer), letter.packet)
        return True

    # ---- out

    def send(self, peer: bytes, federation: bytes, packet: Packet) -> None:
        """Send, some time; lost if the peer cannot be reached."""
        assert self._nursery is not None
        queue = self._queues.get(peer)
        letter = Letter(federation, packet)
        if queue is not None:
            if len(queue) < QUEUE_MAX:
                queue.append(letter)
            return
        self._queues[peer] = deque([letter])
        self._nursery.start_soon(self._drain, peer)

    async def _drain(self, peer: bytes) -> None:
        queue = self._queues[peer]
        try:
            while queue:
                await self._send_one(peer, queue.popleft())
        finally:
            del self._queues[peer]

    async def _send_one(self, peer: bytes, letter: Letter) -> None:
        self.bytes_out += len(letter.packet.body)
        try:
            await self._mesh.rpc.call(PeerId(peer), MESSAGE, letter, timeout_s=CALL_S)
        except P2pError as error:
            log.debug("round_message_lost", extra={"f": {"why": type(error).__name__}})

    # ---- bytes

    async def _on_fetch(self, caller: Caller, wanted: Wanted, stream: CallStream) -> int:
        seat = self._seats.get(wanted.federation)
        data = None if seat is None else seat.serve(bytes(caller.peer), wanted)
        if data is None:
            raise RemoteError(Code.APPLICATION, "not here, or not for you")
        self.up.begin(self._env.now())
        try:
            for start in range(wanted.offset, len(data), ITEM_BYTES):
                piece = data[start : start + ITEM_BYTES]
                await stream.send(piece)
                self.bytes_out += len(piece)
                self.up.add(self._env.now(), len(piece))
        finally:
            self.up.end(self._env.now())
        return len(data)

    def relayed(self, peers: Iterable[bytes]) -> bool:
        """Whether most of these members reach us by a relay: then bulk should not come to us."""
        paths = [
            info.path
            for peer in peers
            if (info := self._mesh.fabric.info(PeerId(peer))) is not None
        ]
        return 2 * sum(path == "relay" for path in paths) > len(paths)

    async def fetch_state(self, peer: bytes, federation: bytes, nbytes: int) -> bytes | None:
        """The file of a federation's last state; None if the peer does not give it now.

        Its caller checks what is in it.
        """
        wanted = Wanted(federation, bytes(32), STATE_PART, True, bytes(32), 0)
        data = bytearray()
        if not await self._receive(peer, wanted, data, nbytes) or len(data) != nbytes:
            return None
        return bytes(data)

    async def fetch(self, peer: bytes, wanted: Wanted, nbytes: int) -> bytes | None:
        """Bytes with this hash and length, or None if the peer does not give them now.

        What arrived stays for the next try, also of who is cancelled; bytes that turn out wrong are
        forgotten.
        """
        data = self._partial.pop((peer, wanted), bytearray())
        rest = msgspec.structs.replace(wanted, offset=len(data))
        ended = False
        try:
            ended = await self._receive(peer, rest, data, nbytes)
        finally:
            if not ended:
                self._keep_partial((peer, wanted), data)
        if not ended:
            return None
        if len(data) != nbytes or await self._digest(data) != wanted.sha256:
            log.warning("round_bytes_wrong", extra={"f": {"bytes": len(data)}})
            return None
        return bytes(data)

    async def _digest(self, data: bytearray) -> bytes:
        # SHA-256 of a large part takes as long as many messages: not in the loop.
        return await self._offload.run(lambda: sha256(data).digest())

    def _keep_partial(self, key: tuple[bytes, Wanted], data: bytearray) -> None:
        if not data:
            return
        self._partial[key] = data
        while (
            len(self._partial) > PARTIAL_MAX
            or sum(map(len, self._partial.values())) > PARTIAL_BYTES_MAX
        ):
            self._partial.popitem(last=False)

    async def _receive(self, peer: bytes, wanted: Wanted, data: bytearray, nbytes: int) -> bool:
        """Append what comes, a little more than `nbytes` at most; whether it came to its end."""
        self.down.begin(self._env.now())
        try:
            return await self._take(peer, wanted, data, nbytes)
        finally:
            self.down.end(self._env.now())

    async def _take(self, peer: bytes, wanted: Wanted, data: bytearray, nbytes: int) -> bool:
        last = trio.current_time() + SILENT_S + nbytes / RATE_MIN
        with trio.CancelScope(deadline=trio.current_time() + SILENT_S) as patience:
            try:
                async with self._mesh.rpc.stream(PeerId(peer), FETCH, wanted) as call:
                    async for item in call:
                        assert isinstance(item, bytes)
                        data += item
                        self.bytes_in += len(item)
                        self.down.add(self._env.now(), len(item))
                        if len(data) > nbytes:
                            return True
                        if item:
                            patience.deadline = min(last, trio.current_time() + SILENT_S)
                    await call.result()
            except P2pError as error:
                log.debug("round_bytes_lost", extra={"f": {"why": type(error).__name__}})
                return False
        if patience.cancelled_caught:
            log.info("round_bytes_stalled", extra={"f": {"bytes": len(data)}})
        return not patience.cancelled_caught
