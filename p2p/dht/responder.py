"""What a server of the DHT answers, as a pure machine: one request in, one answer out.

Theory of operation. Anybody may ask anything; only what is verified is kept, and only what somebody
signed is handed on. A request costs us a look into a table and at most two signatures to verify, so
the caller bounds requests by streams a peer, and the store bounds writes a minute. A write that is
not kept is not echoed: the writer's count of acknowledgements tells the truth.
Source: docs/specs/dht.md s.3, s.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.dht.keys import place_of
from p2p.dht.messages import DhtMessage, DhtPeer, DhtRecord, MessageType
from p2p.dht.records import verify_claim, verify_peer_record, verify_value, with_addrs
from p2p.dht.recordstore import StoredProvider
from p2p.errors import LimitError, ProtocolError
from p2p.identity import peer_multihash

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.dht.config import DhtConfig
    from p2p.dht.recordstore import RecordStore, Verdict
    from p2p.dht.table import Contact, RoutingTable
    from p2p.identity import PeerId


class Responder:
    """Answers requests from a table and a store.

    Args:
        config: limits, and whether signatures are required.
        table: nodes we can name.
        store: what we hold for others.
        own_id: our peer id.
        own: ourselves with our signed record, or None while nobody can dial us.
    """

    def __init__(
        self,
        config: DhtConfig,
        table: RoutingTable,
        store: RecordStore,
        *,
        own_id: PeerId,
        own: Callable[[], DhtPeer | None],
    ) -> None:
        self._own_key = peer_multihash(own_id)
        self._own = own
        self._config = config
        self._table = table
        self._store = store

    def answer(self, request: DhtMessage, sender: PeerId, *, now: float, now_ms: int) -> DhtMessage:
        """Serve one request of a proven peer.

        Raises:
            DecodeError: what it wants stored is malformed or unsigned.
            AuthError: it speaks for somebody else.
            LimitError: a limit of the store or of dates refuses the write. An honest node whose
                clock is wrong meets it too: no violation.
            ProtocolError: a request that makes no sense.
        """
        match request.kind:
            case MessageType.FIND_NODE:
                return self._named(request, sender)
            case MessageType.GET_VALUE:
                return self._value(request, sender, now_ms)
            case MessageType.GET_PROVIDERS:
                return self._providers(request, sender, now_ms)
            case MessageType.PUT_VALUE:
                return self._put(request, sender, now, now_ms)
            case MessageType.ADD_PROVIDER:
                return self._add_provider(request, sender, now, now_ms)

    def _named(self, request: DhtMessage, sender: PeerId) -> DhtMessage:
        closer = self._closer(request.key, sender)
        if request.key == self._own_key:
            # Asked for ourselves: our record is how the asker can tell others of us.
            own = self._own()
            if own is not None:
                closer = (self._told(own), *closer[: self._config.k - 1])
        return DhtMessage(kind=request.kind, key=request.key, closer=closer)

    def _closer(self, key: bytes, sender: PeerId) -> tuple[DhtPeer, ...]:
        # One more than k, as the asker itself may be among them.
        found = self._table.nearest(place_of(key), self._config.k + 1)
        named = [self._name(contact) for contact in found if contact.peer != sender]
        return tuple(peer for peer in named if peer is not None)[: self._config.k]

    def _name(self, contact: Contact) -> DhtPeer | None:
        if not self._config.require_signed:
            # Other software reads no record.
            return DhtPeer(contact.peer, contact.addrs, contact.record)
        return DhtPeer(contact.peer, (), contact.record) if contact.record else None

    def _value(self, request: DhtMessage, sender: PeerId, now_ms: int) -> DhtMessage:
        held = self._store.value(request.key, now_ms)
        return DhtMessage(
            kind=request.kind,
            key=request.key,
            record=None if held is None else DhtRecord(request.key, held.value),
            closer=self._closer(request.key, sender),
        )

    def _providers(self, request: DhtMessage, sender: PeerId, now_ms: int) -> DhtMessage:
        held = self._store.providers(request.key, now_ms)
        return DhtMessage(
            kind=request.kind,
            key=request.key,
            closer=self._closer(request.key, sender),
            providers=tuple(
                self._told(DhtPeer(provider.peer, provider.addrs, provider.record, provider.claim))
                for provider in held
            ),
        )

    def _told(self, named: DhtPeer) -> DhtPeer:
        """A peer as we name it: other software reads no record."""
        return named if self._config.require_signed else with_addrs(named)

    def _put(self, request: DhtMessage, sender: PeerId, now: float, now_ms: int) -> DhtMessage:
        record = request.record
        if record is None or record.key != request.key:
            raise ProtocolError("a PUT_VALUE without a record for its key", sender)
        config = self._config
        value = verify_value(
            request.key,
            record.value,
            now_ms,
            require_signed=config.require_signed,
            lifetime_s=config.lifetime_s,
        )
        verdict = self._store.put_value(request.key, value, sender, now=now, now_ms=now_ms)
        _check(verdict, sender)
        return DhtMessage(kind=request.kind, key=request.key, record=record)

    def _add_provider(
        self, request: DhtMessage, sender: PeerId, now: float, now_ms: int
    ) -> DhtMessage:
        named = next((peer for peer in request.providers if peer.peer == sender), None)
        if named is None or len(request.providers) > 1:
            raise ProtocolError("an ADD_PROVIDER that does not name its sender alone", sender)
        expires_s = self._verify_provider(request.key, named, now_ms)
        provider = StoredProvider(
            sender,
            named.signed_record,
            named.claim,
            min(expires_s, now_ms // 1000 + int(self._config.lifetime_s)),
            () if self._config.require_signed else named.addrs,
        )
        _check(self._store.add_provider(request.key, provider, now=now, now_ms=now_ms), sender)
        return DhtMessage(kind=request.kind, key=request.key, providers=(named,))

    def _verify_provider(self, key: bytes, named: DhtPeer, now_ms: int) -> int:
        """Unix seconds until which the sender says that it provides `key`."""
        if not self._config.require_signed and not named.claim:
            return now_ms // 1000 + int(self._config.lifetime_s)
        verify_peer_record(named.peer, named.signed_record)
        return verify_claim(key, named.peer, named.claim, now_ms)


def _check(verdict: Verdict, sender: PeerId) -> None:
    if verdict == "older":
        raise LimitError("a better value is here already", sender)
    if verdict != "stored":
        raise LimitError(f"the store refuses more: {verdict}", sender)
