"""Requests to other nodes and look-ups, over a fabric. What to ask whom is `p2p.dht.lookup`'s."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2p.dht.keys import peer_place, place_of, shared_bits
from p2p.dht.lookup import Lookup, LookupLimits
from p2p.dht.messages import DhtMessage, MessageReader, frame
from p2p.dht.records import verify_peer_record
from p2p.dht.table import Contact
from p2p.errors import P2pError, PeerError, TimedOut
from p2p.identity import peer_text
from p2p.wire.multiaddr import ip_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.dht.config import DhtConfig
    from p2p.dht.messages import DhtPeer
    from p2p.dht.table import RoutingTable
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.seam import Addr, Fabric

log = logging.getLogger("covey.p2p.dht")

RECORDS_MAX: Final = 2048
"""Verified peer records kept, so that the same one is not verified again for each answer: about
the nodes that a table and the look-ups of ten minutes meet."""


class RecordCache:
    """Peer records that were verified, the newest of each peer, as contacts.

    Args:
        usable: of the addresses that a stranger names for a peer, those we would dial.
    """

    def __init__(self, usable: Callable[[PeerId, Sequence[Addr]], list[Addr]]) -> None:
        self._usable = usable
        self._known: dict[PeerId, Contact] = {}

    def verify(self, peer: PeerId, record: bytes) -> Contact:
        """The record's peer and where it is, verified unless these bytes were before.

        Raises:
            DecodeError: malformed.
            AuthError: not signed by `peer`.
        """
        known = self._known.get(peer)
        if known is not None and known.record == record:
            return known
        opened = verify_peer_record(peer, record)
        addrs = tuple(self._usable(peer, opened.addrs))
        prefix = prefix_of(addrs[0]) if addrs else ""
        contact = Contact(peer, peer_place(peer), addrs, record, opened.seq, prefix)
        if known is None or contact.seq > known.seq:
            self._known.pop(peer, None)
            self._known[peer] = contact
            while len(self._known) > RECORDS_MAX:
                del self._known[next(iter(self._known))]
        return contact

    def newest(self, peer: PeerId) -> Contact | None:
        """What the newest record seen of `peer` says."""
        return self._known.get(peer)


def prefix_of(addr: Addr) -> str:
    """The network of an address: its IPv4 /24 or IPv6 /48; empty for a name."""
    ip = ip_of(addr)
    if ip is None:
        return ""
    return f"{ip.version}:{ip.packed[: 3 if ip.version == 4 else 6].hex()}"


@dataclass
class Found:
    """How a look-up ended."""

    nearest: list[Contact] = field(default_factory=list)
    asked: int = 0


class Asker:
    """Our requests.

    Args:
        fabric: streams to peers.
        table: where look-ups start, and which learns who answers.
        config: limits and times.
        env: clocks.
        protocol: the protocol's id.
        usable: of the addresses that a stranger names for a peer, those we would dial.
        met: called with every node that answered and is not in the table, or with an older record.
    """

    def __init__(
        self,
        fabric: Fabric,
        table: RoutingTable,
        config: DhtConfig,
        env: Env,
        *,
        protocol: str,
        usable: Callable[[PeerId, Sequence[Addr]], list[Addr]],
        met: Callable[[Contact], None],
    ) -> None:
        self.records = RecordCache(usable)
        self.used_s: dict[PeerId, float] = {}
        """Peers that we connected to for a request, and when we last needed them."""
        self.looked_s: dict[int, float] = {}
        """When the last look-up fell into each bucket."""
        self.counters = {"lookups": 0, "requests": 0, "requests_failed": 0}
        self.counters |= {"answers_refused": 0, "writes_refused": 0}
        self._own = peer_place(fabric.id)
        self._fabric = fabric
        self._table = table
        self._config = config
        self._env = env
        self._protocol = protocol
        self._usable = usable
        self._met = met
        self._limits = LookupLimits(
            k=config.k,
            alpha=config.alpha,
            paths=config.paths,
            asked_max=config.lookup_asked_max,
            per_prefix_max=config.per_prefix_table_max,
        )

    async def request(self, contact: Contact, message: DhtMessage) -> DhtMessage:
        """Ask one node.

        Raises:
            TransientError: no connection, or no answer in time.
            PeerError: the answer is no answer.
            trio.BrokenResourceError: it reset the stream: it does not serve, or refuses this.
        """
        self.counters["requests"] += 1
        try:
            with trio.move_on_after(self._config.request_s):
                return await self._exchange(contact, message)
            raise TimedOut(f"{peer_text(contact.peer)}: no answer in {self._config.request_s:g} s")
        except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.counters["requests_failed"] += 1
            raise

    async def _exchange(self, contact: Contact, message: DhtMessage) -> DhtMessage:
        peer = contact.peer
        connected = bool(self._fabric.protocols(peer))
        if not connected or peer in self.used_s:
            self.used_s[peer] = self._env.now()
        if not connected:
            await self._fabric.connect(peer, contact.addrs)
        stream = await self._fabric.open(peer, self._protocol)
        reader = MessageReader()
        answered = False
        try:
            await stream.send_all(frame(message))
            while (reply := reader.next_message_untrusted()) is None:
                data = await stream.receive_some()
                if not data:
                    raise trio.BrokenResourceError("the node ended the stream without an answer")
                reader.feed(data)
            answered = True
        finally:
            if not answered:
                stream.reset()
        await stream.aclose()
        if reply.kind is not message.kind:
            raise PeerError("an answer of another kind than the request", peer)
        return reply

    async def lookup(
        self,
        message: DhtMessage,
        *,
        on_answer: Callable[[Contact, DhtMessage], bool] = lambda _contact, _reply: False,
    ) -> Found:
        """Find the nodes nearest to `message.key`, sending `message` to each on the way.

        Args:
            message: FIND_NODE, GET_VALUE or GET_PROVIDERS.
            on_answer: sees every answer; True ends the look-up.
        """
        self.counters["lookups"] += 1
        target = place_of(message.key)
        self.looked_s[shared_bits(self._own, target)] = self._env.now()
        start = self._table.nearest(target, self._config.k)
        look = Lookup(target, start, own=self._fabric.id, limits=self._limits)
        run = _Run(look, message, on_answer)
        with trio.move_on_after(self._config.lookup_s):
            async with trio.open_nursery() as nursery:
                while not look.done and not run.enough:
                    for contact in look.next_requests():
                        nursery.start_soon(self._ask, run, contact)
                    await run.changed.wait()
                    run.changed = trio.Event()
                nursery.cancel_scope.cancel()
        nearest = look.nearest()
        if nearest:
            # If nobody at all answered, it is us who are cut off: the table is not to blame.
            for peer in run.silent:
                self._table.failed(peer)
        return Found(nearest, look.asked)

    async def _ask(self, run: _Run, contact: Contact) -> None:
        peer = contact.peer
        try:
            reply = await self.request(contact, run.message)
            closer = self.contacts_of(reply.closer)
            contact = self._seen(contact)
            run.enough = run.on_answer(contact, reply) or run.enough
        except PeerError as error:
            # It answers, with nonsense or forgeries: worse than not at all.
            self.counters["answers_refused"] += 1
            log.info(
                "dht_answer_refused",
                extra={"f": {"peer": peer_text(peer), "why": str(error)}, "remote": True},
            )
            self._table.remove(peer)
            run.look.failed(peer)
        except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError):
            run.silent.append(peer)
            run.look.failed(peer)
        else:
            run.look.answered(contact, closer)
        run.changed.set()

    def _seen(self, contact: Contact) -> Contact:
        """A node answered: note it, with the newest record we know of it."""
        renewed = self.renewed(contact)
        known = self._table.get(contact.peer)
        if known is None or renewed.seq > known.seq:
            self._met(renewed)
        else:
            self._table.answered(contact.peer, self._env.now())
        return renewed

    def renewed(self, contact: Contact) -> Contact:
        """A node with the newest record we verified of it."""
        known = self.records.newest(contact.peer)
        return contact if known is None or known.seq <= contact.seq else known

    def contacts_of(self, named: Sequence[DhtPeer]) -> list[Contact]:
        """The peers of an answer that can be asked; those without a way to dial are left out.

        Raises:
            DecodeError: a record in it is malformed.
            AuthError: a record in it is forged. No honest node hands on what it did not verify.
        """
        found: list[Contact] = []
        for peer in named:
            if peer.peer == self._fabric.id:
                continue
            if peer.signed_record:
                contact = self.records.verify(peer.peer, peer.signed_record)
            elif self._config.require_signed:
                continue
            else:
                addrs = tuple(self._usable(peer.peer, peer.addrs))
                contact = Contact(peer.peer, peer_place(peer.peer), addrs)
            if contact.addrs or self._fabric.protocols(peer.peer):
                found.append(contact)
        return found


class _Run:
    """A look-up under way."""

    def __init__(
        self,
        look: Lookup,
        message: DhtMessage,
        on_answer: Callable[[Contact, DhtMessage], bool],
    ) -> None:
        self.look = look
        self.message = message
        self.on_answer = on_answer
        self.changed = trio.Event()
        self.enough = False
        self.silent: list[PeerId] = []
