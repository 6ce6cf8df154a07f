"""`mesh.dialback`: a public member delivers a nonce for another, from an address nobody expects.

A server that reached its client proves little: the client had dialled it, and a NAT may let in just
such hosts. So for a client of its groups it asks one more public member, whom the client has not
talked to, to deliver the same nonce.

The member that dials cannot check that the address is the client's. What bounds it: only members
ask, six times a minute in all; the address is public and its port no system service's; it is
dialled once, for five seconds; whoever answers there must prove to be the client before it is told
anything. A lying member gains one connection attempt for one call, which it could make itself.
Source: docs/specs/reachability.md s.3.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from p2p.errors import Busy, P2pError, RemoteError
from p2p.identity import KEY_BYTES, PeerId, peer_text
from p2p.nat.autonat_budget import MinuteBudget
from p2p.nat.autonat_messages import DIAL_REQUEST, DialStatus, avoided_hash
from p2p.nat.dialback_wire import may_dial
from p2p.net.contacts import host_of
from p2p.rpc_types import Caller, CallStream, Code, Method
from p2p.wire.multiaddr import ip_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.env import Env
    from p2p.nat.dialback_wire import NonceDialer
    from p2p.nat.reachability_config import ReachabilityConfig
    from p2p.net.seam import Addr, Fabric
    from p2p.rpc import Rpc

log = logging.getLogger("covey.p2p.reachability")

NONCE_BYTES: Final = 8
ADDR_CHARACTERS_MAX: Final = 256
BUSY_MS: Final = 60_000


class DialBackQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Dial this peer there, and deliver the nonce."""

    peer: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    addr: Annotated[str, msgspec.Meta(max_length=ADDR_CHARACTERS_MAX)]
    """Where the caller sees it, and nowhere else."""
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    """Big-endian."""


class DialBackReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How it went."""

    delivered: bool


DIALBACK: Final = Method(
    "mesh.dialback", DialBackQuery, DialBackReply, direct_only=True, concurrent_max=2
)


class DialBacks:
    """Delivers nonces for other servers, and asks other servers to deliver ours.

    Args:
        rpc: calls and serves the method.
        fabric: who is connected.
        dialer: dials.
        config: how often.
        env: clocks; draws whom to ask.
        is_public: whether an address can be aimed at.
    """

    def __init__(
        self,
        rpc: Rpc,
        fabric: Fabric,
        dialer: NonceDialer,
        config: ReachabilityConfig,
        env: Env,
        *,
        is_public: Callable[[Addr], bool],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.serving = False
        """Whether we can help: only who is reachable itself dials from where it seems to be."""
        self._rpc = rpc
        self._fabric = fabric
        self._dialer = dialer
        self._config = config
        self._env = env
        self._is_public = is_public
        each = config.passes_per_min
        self._asked = MinuteBudget(per_peer_max=each, all_max=each)
        self._served = MinuteBudget(per_peer_max=each, all_max=each)
        rpc.serve(DIALBACK, self._serve)

    async def pass_on(
        self, client: PeerId, addr: Addr, nonce: int, avoided: frozenset[bytes]
    ) -> None:
        """Have somebody else deliver `nonce` too, if there is anybody.

        Args:
            client: who asked us; a member.
            addr: where we reached it.
            nonce: its.
            avoided: hashes of peers that it talked to lately.
        """
        helper = self._helper(client, addr, nonce, avoided)
        if helper is None:
            self.counters["dialback_no_helper"] += 1
            return
        if not self._asked.spend(client, self._env.now()):
            self.counters["dialback_over_budget"] += 1
            return
        query = DialBackQuery(client, addr, nonce.to_bytes(NONCE_BYTES, "big"))
        try:
            reply = await self._rpc.call(helper, DIALBACK, query, timeout_s=self._config.talk_s)
        except P2pError as error:
            log.debug("dialback_declined", extra={"f": {"why": str(error)}})
            self.counters["dialback_declined"] += 1
        else:
            self.counters["dialback_helped" if reply.delivered else "dialback_missed"] += 1

    def _helper(
        self, client: PeerId, addr: Addr, nonce: int, avoided: frozenset[bytes]
    ) -> PeerId | None:
        target = ip_of(addr)
        assert target is not None, "an address that was dialled"
        found = []
        for peer, info in self._fabric.peers().items():
            ip = ip_of(info.addr)
            if (
                peer != client
                and info.path == "direct"
                and ip is not None
                and host_of(ip) != host_of(target)
                and self._rpc.is_member(peer)
                and DIAL_REQUEST in self._fabric.protocols(peer)
                and avoided_hash(nonce, peer) not in avoided
            ):
                found.append(peer)
        return self._env.rng.choice(sorted(found)) if found else None

    async def _serve(
        self,
        caller: Caller,
        query: DialBackQuery,
        stream: CallStream,  # noqa: ARG002 - a handler's shape
    ) -> DialBackReply:
        peer = PeerId(query.peer)
        if not self.serving:
            raise RemoteError(Code.UNAVAILABLE, "not known to be reachable itself")
        if peer in (self._fabric.id, caller.peer) or not may_dial(query.addr, self._is_public):
            self.counters["dialback_refused"] += 1
            raise RemoteError(Code.APPLICATION, "not an address to dial for somebody else")
        if not self._served.spend(caller.peer, self._env.now()):
            self.counters["dialback_over_budget"] += 1
            raise Busy("dial-backs of this minute are used up", retry_after_ms=BUSY_MS)
        self.counters["dialback_served"] += 1
        log.info("dialback", extra={"f": {"for": peer_text(caller.peer)}, "remote": True})
        status = await self._dialer.deliver(peer, query.addr, int.from_bytes(query.nonce, "big"))
        return DialBackReply(status is DialStatus.OK)
