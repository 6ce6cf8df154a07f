"""What of ours is in the DHT, and keeping it there: our peer record, values, what we provide.

Published at the start, soon after, then every 8 h; again when our addresses change; and sooner if
nobody took it. Source: docs/specs/dht.md s.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p.dht.keys import KEY_BYTES_MAX, peer_record_key, value_key
from p2p.dht.messages import DhtPeer
from p2p.dht.records import seal_claim, seal_value, with_addrs
from p2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.dht.config import DhtConfig
    from p2p.env import Env
    from p2p.identity import Signer

OWN_MAX: Final = 256
"""Values and provided keys of ours: what one sender may store at a node, less our peer record."""
BATCH: Final = 10
"""Records sent without a pause: half of what a node takes of a sender in a minute."""
RETRY_S_MIN: Final = 10.0
RETRY_S_MAX: Final = 300.0
AGAIN_S_MIN: Final = 60.0
"""The first repetition: a network that starts together with us is complete by then. The next ones
come after four times as long each, up to `republish_s`."""


class Door(Protocol):
    """The part of `p2p.dht.service.Dht` that sends."""

    async def put_record(self, key: bytes, value: bytes) -> int:
        """Store a signed value; how many acknowledged it."""
        ...

    async def announce(self, key: bytes) -> int:
        """Tell that we provide something; how many acknowledged it."""
        ...


class Publisher:
    """Keeps our records alive.

    Args:
        door: sends them.
        signer: who we are.
        config: times.
        env: the wall clock dates them.
        our_record: our signed peer record; empty while nobody can dial us.
    """

    def __init__(
        self,
        door: Door,
        signer: Signer,
        config: DhtConfig,
        env: Env,
        *,
        our_record: Callable[[], bytes],
    ) -> None:
        self.acknowledged = 0
        """Nodes that took our peer record the last time."""
        self._door = door
        self._signer = signer
        self._config = config
        self._env = env
        self._our_record = our_record
        self._values: dict[bytes, bytes] = {}
        self._provided: dict[bytes, None] = {}
        self._seq = 0
        self._dirty = trio.Event()

    @property
    def records(self) -> int:
        """Records of ours that are kept alive, the peer record included."""
        return len(self._values) + len(self._provided) + bool(self._our_record())

    def kick(self) -> None:
        """Publish everything again soon."""
        self._dirty.set()

    def keep_value(self, name: bytes, body: bytes) -> None:
        """Publish a value again and again.

        Raises:
            UsageError: there are 256 records of ours already.
        """
        self._check_room(name in self._values)
        self._values[name] = body

    def keep_provided(self, key: bytes) -> None:
        """Tell again and again that we provide `key`.

        Raises:
            UsageError: there are 256 records of ours already, or the key is too long.
        """
        if not 0 < len(key) <= KEY_BYTES_MAX:
            raise UsageError(f"a provider's key has 1 to {KEY_BYTES_MAX} bytes")
        self._check_room(key in self._provided)
        self._provided[key] = None

    def _check_room(self, known: bool) -> None:
        if not known and len(self._values) + len(self._provided) >= OWN_MAX:
            raise UsageError(f"the DHT keeps at most {OWN_MAX} records of one node: drop some")

    def drop_provided(self, key: bytes) -> None:
        """Tell it no more."""
        self._provided.pop(key, None)

    def seal(self, name: bytes, body: bytes) -> bytes:
        """A value of ours, signed now: newer than any before."""
        now_ms = self._env.wall_ms()
        self._seq = max(now_ms, self._seq + 1)
        expires_s = now_ms // 1000 + int(self._config.lifetime_s)
        return seal_value(self._signer, name, self._seq, expires_s, body)

    def provider(self, key: bytes) -> DhtPeer | None:
        """Ourselves as a provider of `key`; None while nobody can dial us."""
        record = self._our_record()
        if not record:
            return None
        expires_s = self._env.wall_ms() // 1000 + int(self._config.lifetime_s)
        named = DhtPeer(self._signer.id, (), record, seal_claim(self._signer, key, expires_s))
        return named if self._config.require_signed else with_addrs(named)

    async def run(self) -> None:
        """Publish until cancelled."""
        retry_s, again_s = RETRY_S_MIN, AGAIN_S_MIN
        while True:
            self._dirty = trio.Event()
            if await self._publish():
                wait_s = min(self._config.republish_s, again_s)
                retry_s, again_s = RETRY_S_MIN, 4 * again_s
            else:
                wait_s = retry_s
                retry_s = min(RETRY_S_MAX, 2 * retry_s)
            with trio.move_on_after(wait_s):
                await self._dirty.wait()
                again_s = AGAIN_S_MIN
                await trio.sleep(self._config.publish_delay_s)

    async def _publish(self) -> bool:
        """Send everything; whether somebody took our peer record, or there was none to take."""
        record = self._our_record()
        if record:
            self.acknowledged = await self._door.put_record(
                peer_record_key(self._signer.id), record
            )
            if not self.acknowledged:
                return False  # nobody is there: the rest would go nowhere either
        sent = 1
        for name, body in list(self._values.items()):
            await self._pause(sent)
            await self._door.put_record(value_key(self._signer.id, name), self.seal(name, body))
            sent += 1
        for key in list(self._provided):
            await self._pause(sent)
            await self._door.announce(key)
            sent += 1
        return True

    async def _pause(self, sent: int) -> None:
        if sent >= BATCH:
            await trio.sleep(self._config.publish_gap_s)
