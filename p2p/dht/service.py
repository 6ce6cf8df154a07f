"""The DHT of a node: answers others, keeps its table, finds, publishes.

    dht = Dht(signer, fabric, config, env, protocol=..., our_record=..., seeds=..., usable=...)
    await nursery.start(dht.run)
    addrs = await dht.find_peer(peer)
    count = await dht.put(b"name", b"body")            # how many nodes hold it
    body = await dht.get(value_key(owner, b"name"))

Tasks of `run`: one reads the fabric's events and probes peers that serve the DHT; one joins (from
peers we remember) and refreshes; one publishes what is ours; one closes connections that look-ups
left behind and drops expired entries. Source: docs/specs/dht.md.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import trio

from p2p.dht.driver import Asker, prefix_of
from p2p.dht.estimate import SizeEstimate
from p2p.dht.keys import peer_place, peer_record_key, place_of, shared_bits, value_key
from p2p.dht.messages import DhtMessage, DhtPeer, DhtRecord, MessageReader, MessageType, frame
from p2p.dht.publisher import Publisher
from p2p.dht.records import Verified, verify_claim, verify_value
from p2p.dht.recordstore import RecordStore
from p2p.dht.responder import Responder
from p2p.dht.table import Contact, RoutingTable
from p2p.errors import DecodeError, LimitError, P2pError, PeerError
from p2p.identity import peer_multihash
from p2p.net.seam import AddrsChanged, PeerIdentified

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.dht.config import DhtConfig
    from p2p.dht.table import Offer
    from p2p.env import Env
    from p2p.identity import PeerId, Signer
    from p2p.net.seam import Addr, Fabric, Stream

log = logging.getLogger("covey.p2p.dht")

SEEDS_MAX: Final = 32
"""Remembered peers tried in one attempt to join; the next attempt begins with the others."""
JOIN_S_MIN: Final = 5.0
JOIN_S_MAX: Final = 300.0
"""Waits between attempts to join double from the one to the other: a node alone in the world knocks
at its remembered peers every five minutes."""
CONTACTS_FEW: Final = 3
"""With fewer nodes than look-ups have paths the table is as good as empty: join again."""
UNPROVEN_MAX: Final = 256
"""Nodes that answered and have not said what they serve, kept until they do."""
SETTLE_S: Final = 60.0
"""The first refresh: whoever started together with us is there by then."""
REFRESH_BITS_MAX: Final = 12
"""Deepest bucket that is refreshed by a random id: finding one costs 2**bits hashes. What is nearer
is found by looking for ourselves."""


@dataclass(frozen=True, kw_only=True)
class DhtReport:
    """What the DHT does right now, a snapshot for people."""

    mode: Literal["server", "client"]
    table: int
    """Nodes in the routing table."""
    network_nodes: int | None
    """Estimated nodes that serve; None before the first look-up."""
    stored: int
    """Entries held for others."""
    stored_bytes: int
    published: int
    """Records of ours that we keep alive."""
    acknowledged: int
    """Nodes that took our peer record when it was last published."""
    counters: dict[str, int]
    """Requests, look-ups and refusals since the start."""


class Dht:
    """A node of the DHT.

    Args:
        signer: who we are.
        fabric: streams to peers.
        config: limits and times.
        env: clocks and random numbers.
        protocol: the protocol's id.
        our_record: our signed peer record as of now; empty while nobody can dial us.
        seeds: peers to join through, the likeliest first, with addresses to try.
        usable: of the addresses that a stranger names for a peer, those we would dial.
        wanted: whose connections others need, so that we never close them.
    """

    def __init__(
        self,
        signer: Signer,
        fabric: Fabric,
        config: DhtConfig,
        env: Env,
        *,
        protocol: str,
        our_record: Callable[[], bytes],
        seeds: Callable[[], Sequence[tuple[PeerId, Sequence[Addr]]]],
        usable: Callable[[PeerId, Sequence[Addr]], list[Addr]],
        wanted: Callable[[PeerId], bool] = lambda _: False,
    ) -> None:
        self._signer = signer
        self._fabric = fabric
        self._config = config
        self._env = env
        self._protocol = protocol
        self._our_record = our_record
        self._seeds = seeds
        self._usable = usable
        self._is_wanted = wanted
        self._place = peer_place(signer.id)
        self.table = RoutingTable(
            self._place,
            k=config.k,
            per_prefix_bucket_max=config.per_prefix_bucket_max,
            per_prefix_table_max=config.per_prefix_table_max,
        )
        self.store = RecordStore(config)
        self._responder = Responder(
            config, self.table, self.store, own_id=signer.id, own=self._name_ourselves
        )
        self._asker = Asker(
            fabric,
            self.table,
            config,
            env,
            protocol=protocol,
            usable=usable,
            met=self._take,
        )
        self._size = SizeEstimate()
        self._publisher = Publisher(self, signer, config, env, our_record=our_record)
        self._nursery: trio.Nursery | None = None
        self._probes = trio.CapacityLimiter(config.probes_max)
        self._probing: set[PeerId] = set()
        self._unproven: dict[PeerId, Contact] = {}
        self._joined = trio.Event()
        self._seed_next = 0
        self._server = False
        self.set_server(config.server)

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._watch_fabric)
                nursery.start_soon(self._join_and_refresh)
                nursery.start_soon(self._publisher.run)
                nursery.start_soon(self._tidy_forever)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def set_server(self, serves: bool) -> None:
        """Answer others, or stop it. Right for nodes that everybody can reach."""
        if serves == self._server:
            return
        self._server = serves
        if serves:
            per_peer = self._config.streams_per_peer_max
            self._fabric.handle(self._protocol, self._serve, per_peer_max=per_peer)
        else:
            self._fabric.unhandle(self._protocol)

    def addrs_changed(self) -> None:
        """We are reached elsewhere: publish our record again soon."""
        self._publisher.kick()

    def report(self) -> DhtReport:
        """What the DHT does right now."""
        return DhtReport(
            mode="server" if self._server else "client",
            table=len(self.table),
            network_nodes=self._size.nodes,
            stored=self.store.entries,
            stored_bytes=self.store.bytes,
            published=self._publisher.records,
            acknowledged=self._publisher.acknowledged,
            counters=dict(self._asker.counters),
        )

    # --- finding ---

    async def find_peer(self, peer: PeerId) -> list[Addr]:
        """Where `peer` says that it is: addresses we would dial, from its newest record.

        A server is known to its neighbours; a client left its record at the nodes nearest to the
        record's key. Both are asked.
        """
        best: list[Verified] = []
        plain: dict[Addr, None] = {}

        def note(_contact: Contact, reply: DhtMessage) -> bool:
            if not self._config.require_signed:
                named = (addr for each in reply.closer if each.peer == peer for addr in each.addrs)
                plain.update(dict.fromkeys(named))
            return False

        async def as_server() -> None:
            message = DhtMessage(kind=MessageType.FIND_NODE, key=peer_multihash(peer))
            # Its answers fill the cache of records.
            await self._asker.lookup(message, on_answer=note)

        async def as_client() -> None:
            value = await self._best(peer_record_key(peer))
            best.extend([] if value is None else [value])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(as_server)
            nursery.start_soon(as_client)
        named = self._asker.records.newest(peer)
        if best and (named is None or best[0].seq >= named.seq):
            return self._usable(peer, best[0].addrs)
        return list(named.addrs) if named is not None else self._usable(peer, list(plain))

    async def get(self, key: bytes) -> bytes | None:
        """The body of the newest valid value under `key`, or None.

        Args:
            key: see `p2p.dht.keys.value_key`.
        """
        best = await self._best(key)
        return None if best is None else best.body

    async def _best(self, key: bytes) -> Verified | None:
        """The best valid value; nodes nearest to it that had an older one or none get it."""
        valid: dict[PeerId, Verified] = {}
        own = self.store.value(key, self._env.wall_ms())

        def take(contact: Contact, reply: DhtMessage) -> bool:
            value = self._checked(key, reply)
            if value is not None:
                valid[contact.peer] = value
            return len(valid) >= self._config.values_enough

        found = await self._asker.lookup(
            DhtMessage(kind=MessageType.GET_VALUE, key=key), on_answer=take
        )
        best = own
        for value in valid.values():
            if value.beats(best):
                best = value
        if best is not None and self._nursery is not None:
            lacking = [c for c in found.nearest if valid.get(c.peer) != best]
            if lacking:
                self._nursery.start_soon(self._store_at, lacking, key, best.value)
        return best

    def _checked(self, key: bytes, reply: DhtMessage) -> Verified | None:
        """The valid value of an answer, if it has one. One that is only out of date is none.

        Raises:
            PeerError: it is forged: no honest node holds such.
        """
        if reply.record is None:
            return None
        if reply.record.key != key:
            raise DecodeError("an answer with a value for another key")
        try:
            return verify_value(
                key,
                reply.record.value,
                self._env.wall_ms(),
                require_signed=self._config.require_signed,
                lifetime_s=self._config.lifetime_s,
            )
        except LimitError:
            return None

    async def providers(self, key: bytes, limit: int) -> list[tuple[PeerId, list[Addr]]]:
        """Up to `limit` peers that provide what `key` names, with addresses to dial.

        Args:
            key: a multihash, see `p2p.dht.keys.provider_key`.
            limit: the look-up ends when so many are found.
        """
        found: dict[PeerId, list[Addr]] = {}

        def take(_contact: Contact, reply: DhtMessage) -> bool:
            for named in reply.providers:
                addrs = self._provider_addrs(key, named)
                if addrs is not None and named.peer not in found:
                    found[named.peer] = addrs
            return len(found) >= limit

        await self._asker.lookup(
            DhtMessage(kind=MessageType.GET_PROVIDERS, key=key), on_answer=take
        )
        return list(found.items())[:limit]

    def _provider_addrs(self, key: bytes, named: DhtPeer) -> list[Addr] | None:
        """Where a provider is, if it says itself that it is one.

        Raises:
            PeerError: the claim or the record is forged.
        """
        if named.peer == self._signer.id:
            return None
        claimed = self._config.require_signed or bool(named.claim)
        if not claimed and not named.signed_record:
            return self._usable(named.peer, named.addrs)
        record = self._asker.records.verify(named.peer, named.signed_record)
        try:
            if claimed:
                verify_claim(key, named.peer, named.claim, self._env.wall_ms())
        except LimitError:
            return None
        return list((self._asker.records.newest(named.peer) or record).addrs)

    # --- publishing ---

    async def put(self, name: bytes, body: bytes, *, keep: bool = True) -> int:
        """Store a value of ours under our key and `name`.

        Args:
            name: at most 32 bytes.
            body: at most 1,024 bytes, readable by everybody.
            keep: publish it again before it expires, as long as we run.

        Returns:
            How many nodes acknowledged it: 0 means that it is nowhere.
        """
        value = self._publisher.seal(name, body)
        if keep:
            self._publisher.keep_value(name, body)
        return await self.put_record(value_key(self._signer.id, name), value)

    async def put_record(self, key: bytes, value: bytes) -> int:
        """Store a value that is signed already, ours or another's, at the nodes nearest to `key`.

        Returns:
            How many nodes acknowledged it.
        """
        found = await self._asker.lookup(DhtMessage(kind=MessageType.FIND_NODE, key=key))
        return await self._store_at(found.nearest, key, value)

    async def provide(self, key: bytes) -> int:
        """Tell that we provide what `key` names, now and until `unprovide`.

        Returns:
            How many nodes acknowledged it; 0 also while nobody can dial us.
        """
        self._publisher.keep_provided(key)
        return await self.announce(key)

    def keep_provided(self, key: bytes) -> None:
        """As `provide`, without waiting for it."""
        self._publisher.keep_provided(key)
        self._publisher.kick()

    def unprovide(self, key: bytes) -> None:
        """Say so no more; what was said expires within a day."""
        self._publisher.drop_provided(key)

    async def announce(self, key: bytes) -> int:
        """Tell once that we provide `key`; how many nodes acknowledged it."""
        named = self._publisher.provider(key)
        if named is None:
            return 0
        found = await self._asker.lookup(DhtMessage(kind=MessageType.FIND_NODE, key=key))
        message = DhtMessage(kind=MessageType.ADD_PROVIDER, key=key, providers=(named,))
        return await self._send_to(found.nearest, message)

    async def _store_at(self, nodes: Sequence[Contact], key: bytes, value: bytes) -> int:
        message = DhtMessage(kind=MessageType.PUT_VALUE, key=key, record=DhtRecord(key, value))
        return await self._send_to(nodes, message)

    async def _send_to(self, nodes: Sequence[Contact], message: DhtMessage) -> int:
        """Send a write to each node; how many echoed it."""
        done: list[PeerId] = []
        limiter = trio.CapacityLimiter(self._config.alpha)

        async def send(node: Contact) -> None:
            async with limiter:
                try:
                    reply = await self._asker.request(node, message)
                except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError):
                    return
            if reply.key == message.key:
                done.append(node.peer)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(send, node)
        return len(done)

    # --- serving ---

    async def _serve(self, stream: Stream) -> None:
        """Answer the requests of one stream until it ends."""
        reader = MessageReader()
        while True:
            data: bytes | bytearray | None = None
            with trio.move_on_after(self._config.stream_idle_s):
                data = await stream.receive_some()
            if data is None:
                stream.reset()
                return
            if not data:
                if not reader.is_between:
                    raise DecodeError("the stream ended inside a message", stream.peer)
                return
            reader.feed(data)
            while (request := reader.next_message_untrusted()) is not None:
                if not await self._answer(stream, request):
                    stream.reset()
                    return

    async def _answer(self, stream: Stream, request: DhtMessage) -> bool:
        """Answer one request; False if the stream is to be given up."""
        env = self._env
        try:
            reply = self._responder.answer(
                request, stream.peer, now=env.now(), now_ms=env.wall_ms()
            )
        except LimitError as error:
            self._asker.counters["writes_refused"] += 1
            log.debug("dht_write_refused", extra={"f": {"why": str(error)}, "remote": True})
            return False
        with trio.move_on_after(self._config.stream_idle_s) as scope:
            await stream.send_all(frame(reply))
            await trio.lowlevel.checkpoint()  # a hundred requests in one packet stall nobody
        return not scope.cancelled_caught

    def _name_ourselves(self) -> DhtPeer | None:
        record = self._our_record()
        return DhtPeer(self._signer.id, (), record) if record else None

    # --- the table ---

    async def _watch_fabric(self) -> None:
        """Probe whoever turns out to serve the DHT; publish when our addresses change."""
        while True:
            events = self._fabric.events()
            for peer in self._fabric.peers():
                self._identified(peer)
            async for event in events:
                if isinstance(event, PeerIdentified):
                    self._identified(event.peer)
                elif isinstance(event, AddrsChanged):
                    self.addrs_changed()
            # We lagged behind and the channel was closed: reread. A stopped fabric ends us too.
            await trio.lowlevel.checkpoint()

    def _identified(self, peer: PeerId) -> None:
        if self._protocol in self._fabric.protocols(peer):
            answered = self._unproven.pop(peer, None)
            if answered is not None:
                self._take(answered)
                return
            # Whom we dialled for a request just now is judged by its answer to that.
            dialled_s = self._asker.used_s.get(peer, -math.inf)
            if dialled_s < self._env.now() - self._config.request_s:
                self._met(self.table.get(peer) or Contact.of(peer))
        elif self._fabric.protocols(peer):
            self.table.remove(peer)  # it serves no more

    def _met(self, contact: Contact) -> None:
        """A node says that it serves the DHT: ask it who it is before it enters the table."""
        if self.table.is_full(contact) and self._oldest_beside(contact) is None:
            return
        if contact.peer not in self._probing and self._nursery is not None:
            self._probing.add(contact.peer)
            self._nursery.start_soon(self._probe, contact)

    async def _probe(self, contact: Contact) -> None:
        message = DhtMessage(kind=MessageType.FIND_NODE, key=peer_multihash(contact.peer))
        try:
            async with self._probes:
                reply = await self._asker.request(contact, message)
            for named in self._asker.contacts_of(reply.closer):  # remembers its record
                if named.peer == contact.peer and not contact.addrs:
                    contact = named
        except PeerError:
            self.table.remove(contact.peer)
        except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.table.failed(contact.peer)
        else:
            self._take(self._asker.renewed(contact))
        finally:
            self._probing.discard(contact.peer)

    def _take(self, contact: Contact) -> None:
        """A node answered: take it into the table if it may."""
        protocols = self._fabric.protocols(contact.peer)
        if not protocols:
            # It answered before it said what it serves: identify will tell.
            self._unproven[contact.peer] = contact
            while len(self._unproven) > UNPROVEN_MAX:
                del self._unproven[next(iter(self._unproven))]
            return
        if self._protocol not in protocols:
            return  # an answer to a request from before it stopped
        now = self._env.now()
        if self.table.is_full(contact):
            oldest = self._oldest_beside(contact)
            if oldest is not None and oldest.peer not in self._probing and self._nursery:
                self._probing.add(oldest.peer)
                self._nursery.start_soon(self._contest, contact, oldest)
            return
        outcome = self._offer(contact, now)
        if outcome == "added" and len(self.table) <= CONTACTS_FEW:
            self._joined.set()
            self._publisher.kick()

    def _oldest_beside(self, contact: Contact) -> Contact | None:
        """Whom a newcomer may replace, if it is dead; None if even the oldest answered lately."""
        before_s = self._env.now() - self._config.idle_s
        return self.table.oldest_beside(contact, before_s=before_s)

    def _offer(self, contact: Contact, now: float) -> Offer | None:
        info = self._fabric.info(contact.peer)
        if info is None:
            return None
        # Where it really answered, not where it says it is: this is what limits by prefix count.
        return self.table.offer(replace(contact, prefix=prefix_of(info.addr)), now)

    async def _contest(self, contact: Contact, oldest: Contact) -> None:
        """A full bucket takes a newcomer in the place of its oldest node, if that is dead."""
        try:
            async with self._probes:
                lives = await self._lives(oldest)
            if not lives:
                self.table.remove(oldest.peer)
                self._offer(contact, self._env.now())
        finally:
            self._probing.discard(oldest.peer)

    async def _lives(self, contact: Contact) -> bool:
        message = DhtMessage(kind=MessageType.FIND_NODE, key=peer_multihash(self._signer.id))
        try:
            await self._asker.request(contact, message)
        except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        self.table.answered(contact.peer, self._env.now())
        return True

    async def _join_and_refresh(self) -> None:
        wait_s = JOIN_S_MIN
        while True:
            self._joined = trio.Event()
            if len(self.table) < CONTACTS_FEW:
                await self._try_seeds()
            if len(self.table):
                await self._look_around(peer_multihash(self._signer.id))
            if len(self.table) >= CONTACTS_FEW:
                await self._keep_fresh()
                wait_s = JOIN_S_MIN
                continue
            with trio.move_on_after(wait_s):
                await self._joined.wait()  # the first nodes know others: ask them at once
            wait_s = min(JOIN_S_MAX, 2 * wait_s)

    async def _keep_fresh(self) -> None:
        """Refresh as long as there is anybody to ask."""
        wait_s = min(SETTLE_S, self._config.refresh_s)
        while len(self.table) >= CONTACTS_FEW:
            await trio.sleep(wait_s * self._env.rng.uniform(0.75, 1.25))
            await self.refresh()
            wait_s = self._config.refresh_s

    async def _try_seeds(self) -> None:
        """Connect to remembered peers; those that serve the DHT are probed as they tell."""
        seeds = list(self._seeds())
        if not seeds:
            return
        first = self._seed_next % len(seeds)
        chosen = [*seeds[first:], *seeds[:first]][:SEEDS_MAX]
        self._seed_next = first + len(chosen)
        limiter = trio.CapacityLimiter(self._config.probes_max)
        async with trio.open_nursery() as nursery:
            for peer, addrs in chosen:
                if peer != self._signer.id:
                    nursery.start_soon(self._knock, peer, addrs, limiter)

    async def _knock(
        self, peer: PeerId, addrs: Sequence[Addr], limiter: trio.CapacityLimiter
    ) -> None:
        """Connect to a peer; identify tells whether it serves the DHT."""
        async with limiter:
            with trio.move_on_after(self._config.request_s):
                try:
                    await self._fabric.connect(peer, addrs)
                except P2pError:
                    return

    def heard_of(self, peer: PeerId) -> None:
        """`peer` was found in the local network: while we know few nodes, it may know more.

        Whoever calls this limits how often: each call may become a dial.
        """
        if self._nursery is not None and len(self.table) < CONTACTS_FEW:
            self._nursery.start_soon(self._knock, peer, (), self._probes)

    async def refresh(self) -> None:
        """Look for ourselves, and for a random id of each bucket that no look-up fell into lately.

        Source: Kademlia s.2.3.
        """
        await self._look_around(peer_multihash(self._signer.id))
        before_s = self._env.now() - self._config.refresh_s
        for bits in self.table.buckets():
            if bits <= REFRESH_BITS_MAX and self._asker.looked_s.get(bits, -math.inf) <= before_s:
                await self._look_around(self._random_key(bits))

    async def _look_around(self, key: bytes) -> None:
        found = await self._asker.lookup(DhtMessage(kind=MessageType.FIND_NODE, key=key))
        self._size.add(place_of(key), [contact.place for contact in found.nearest])

    def _random_key(self, bits: int) -> bytes:
        """A key whose place shares exactly `bits` bits with ours."""
        while True:
            key = self._env.rng.randbytes(32)
            if shared_bits(place_of(key), self._place) == bits:
                return key

    async def _tidy_forever(self) -> None:
        while True:
            await trio.sleep(self._config.idle_s)
            now = self._env.now()
            self.store.drop_expired(now, self._env.wall_ms())
            await self._close_idle(now)

    async def _close_idle(self, now: float) -> None:
        """Close connections that we made for look-ups and nobody needs."""
        used = self._asker.used_s
        near = {contact.peer for contact in self.table.nearest(self._place, self._config.k)}
        idle = [p for p, last_s in used.items() if last_s <= now - self._config.idle_s]
        for peer in idle:
            info = self._fabric.info(peer)
            if info is None or info.inbound:
                del used[peer]
            elif peer not in near and not info.streams and not self._is_wanted(peer):
                del used[peer]
                await self._fabric.disconnect(peer)
