"""What we hold for others: values and providers, bounded in every direction.

Everything that comes in was verified (`p2p.dht.records`) before. Here it is counted: in all, by
bytes, by who put it here, and by how often that one writes. A flood fills its sender's share and
nothing else; nobody's entry is dropped to make room for a stranger's. Expired entries leave.
Source: docs/specs/dht.md s.7.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from p2p.dht.config import DhtConfig
    from p2p.dht.records import Verified
    from p2p.identity import PeerId
    from p2p.net.seam import Addr

Verdict: TypeAlias = Literal["stored", "older", "full", "sender", "rate", "providers"]
"""What became of a write: kept; not better than what is here; the store, the sender's share, the
sender's rate or the key's providers are at their limit."""

_ENTRY_BYTES: Final = 200
"""Bookkeeping counted for each entry besides its bytes: a guess at the objects' size."""


@dataclass(frozen=True)
class StoredProvider:
    """Somebody who provides something."""

    peer: PeerId
    record: bytes
    claim: bytes
    expires_s: int
    addrs: tuple[Addr, ...] = ()
    """Addresses without a signature; only where none is required."""


@dataclass
class _Held:
    sender: PeerId
    size: int
    expires_s: int


@dataclass
class _HeldValue(_Held):
    value: Verified


@dataclass
class _HeldProvider(_Held):
    provider: StoredProvider


class RecordStore:
    """Values by key, providers by key and peer.

    Args:
        config: the limits.

    *Invariants*: entries, bytes, entries of a sender and providers of a key are within their
    limits; the counts equal what is held.
    """

    def __init__(self, config: DhtConfig) -> None:
        self._config = config
        self._values: dict[bytes, _HeldValue] = {}
        self._providers: dict[bytes, dict[PeerId, _HeldProvider]] = {}
        self._per_sender: Counter[PeerId] = Counter()
        self._writes: dict[PeerId, deque[float]] = {}
        self.entries = 0
        self.bytes = 0

    def put_value(
        self, key: bytes, value: Verified, sender: PeerId, *, now: float, now_ms: int
    ) -> Verdict:
        """Keep a verified value if it beats what is here and the sender is within its share."""
        if not self._may_write(sender, now):
            return "rate"
        old = self._live_value(key, now_ms)
        if old is not None and old.value.value == value.value:
            return "stored"
        if old is not None and not value.beats(old.value):
            return "older"
        held = _HeldValue(sender, len(key) + len(value.value), value.expires_s, value)
        refusal = self._refusal(held, old, now_ms)
        if refusal is None:
            self._account(held, old)
            self._values[key] = held
        return refusal or "stored"

    def value(self, key: bytes, now_ms: int) -> Verified | None:
        """The unexpired value under `key`."""
        held = self._live_value(key, now_ms)
        return None if held is None else held.value

    def add_provider(
        self, key: bytes, provider: StoredProvider, *, now: float, now_ms: int
    ) -> Verdict:
        """Keep a verified provider, who is the sender."""
        sender = provider.peer
        if not self._may_write(sender, now):
            return "rate"
        self._drop_expired_providers(key, now_ms)
        here = self._providers.get(key, {})
        old = here.get(sender)
        if old is None and len(here) >= self._config.providers_per_key_max:
            return "providers"
        size = len(key) + len(provider.record) + len(provider.claim)
        held = _HeldProvider(sender, size, provider.expires_s, provider)
        refusal = self._refusal(held, old, now_ms)
        if refusal is None:
            self._account(held, old)
            self._providers.setdefault(key, {})[sender] = held
        return refusal or "stored"

    def providers(self, key: bytes, now_ms: int) -> list[StoredProvider]:
        """Unexpired providers of `key`, the latest to expire first."""
        self._drop_expired_providers(key, now_ms)
        found = [held.provider for held in self._providers.get(key, {}).values()]
        return sorted(found, key=lambda provider: -provider.expires_s)

    def drop_expired(self, now: float, now_ms: int) -> None:
        """Let go of what is void; called now and then."""
        for key in [key for key, held in self._values.items() if _void(held, now_ms)]:
            self._account(None, self._values.pop(key))
        for key in list(self._providers):
            self._drop_expired_providers(key, now_ms)
        for sender in [s for s, times in self._writes.items() if times[-1] <= now - 60]:
            del self._writes[sender]

    def _live_value(self, key: bytes, now_ms: int) -> _HeldValue | None:
        held = self._values.get(key)
        if held is not None and _void(held, now_ms):
            self._account(None, self._values.pop(key))
            return None
        return held

    def _drop_expired_providers(self, key: bytes, now_ms: int) -> None:
        here = self._providers.get(key, {})
        for peer in [peer for peer, held in here.items() if _void(held, now_ms)]:
            self._account(None, here.pop(peer))
        if not here:
            self._providers.pop(key, None)

    def _may_write(self, sender: PeerId, now: float) -> bool:
        times = self._writes.setdefault(sender, deque())
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= self._config.store_writes_per_min:
            return False
        times.append(now)
        return True

    def _refusal(self, new: _Held, old: _Held | None, now_ms: int) -> Verdict | None:
        grown = new.size - old.size if old is not None else new.size + _ENTRY_BYTES
        more = old is None
        config = self._config
        share = self._per_sender[new.sender]
        if (more or old is None or old.sender != new.sender) and (
            share >= config.store_entries_per_sender_max
        ):
            return "sender"
        if self.entries + more > config.store_entries_max:
            return "full"
        if self.bytes + grown > config.store_bytes_max:
            return "full"
        assert not _void(new, now_ms), "verified before it came here"
        return None

    def _account(self, new: _Held | None, old: _Held | None) -> None:
        if old is not None:
            self.entries -= 1
            self.bytes -= old.size + _ENTRY_BYTES
            self._per_sender[old.sender] -= 1
            if not self._per_sender[old.sender]:
                del self._per_sender[old.sender]
        if new is not None:
            self.entries += 1
            self.bytes += new.size + _ENTRY_BYTES
            self._per_sender[new.sender] += 1


def _void(held: _Held, now_ms: int) -> bool:
    return held.expires_s * 1000 <= now_ms
