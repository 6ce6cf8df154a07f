"""A port that the gateway forwards to us: the machine of one lease.

Theory of operation. A lease is asked for (ASKING), held (HELD), renewed at half its time
(RENEWING), and looked after meanwhile (CHECKING): a gateway that restarted has forgotten it, and a
new external address makes the old candidate false. What is refused rests (RESTING) for a minute,
then two, up to an hour, and a change of network asks at once. While a renewal is refused the lease
is still good until its time is over.

Which protocol was spoken is not this file's matter: it is told what came of the work that it gave,
as a `Grant`, or the reason for there being none. The gateway is believed in one thing only, that it
forwards the port; whether the address that it names is ours shows when a peer dials it. An address
that is not public means another NAT behind the gateway: no candidate, and a report that says so.

           want           granted          timer: half
    IDLE --------> ASKING --------> HELD ---------------> RENEWING
                     |  ^            |  ^ same               | granted: HELD
             refused |  | timer      |  |                    | refused: RESTING
                     v  |     check  v  |  lost, refused     |
                   RESTING         CHECKING -----------------+

Source: RFC 6886 s.3.3-3.7; docs/specs/portmap.md s.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from p2p.errors import UsageError
from p2p.nat.natpmp import EpochWatch
from p2p.wire.multiaddr import TcpAddr, scope_of

if TYPE_CHECKING:
    import ipaddress
    import random
    from collections.abc import Callable, Mapping

CHECK_S: Final = 300.0
"""A held lease is looked after so often: a restarted gateway is noticed within five minutes."""
LIFETIME_MIN_S: Final = 60.0
"""Shorter leases are not taken: renewing them would never end. Gateways use 120 s and more."""
REST_MIN_S: Final = 60.0
REST_MAX_S: Final = 3600.0
"""After a refusal; doubled each time. Guess: somebody may switch the router's setting on."""

Kind: TypeAlias = Literal["nat-pmp", "upnp"]


class MapState(Enum):
    """Where a lease is."""

    IDLE = "idle"
    ASKING = "asking"
    HELD = "held"
    CHECKING = "checking"
    RENEWING = "renewing"
    RESTING = "resting"


class MapInput(Enum):
    """What happens to it."""

    SEND_WANT = "want"
    SEND_DROP = "drop"
    RECV_GRANT = "grant"
    RECV_SAME = "same"
    RECV_LOST = "lost"
    RECV_REFUSAL = "refusal"
    TIMER_CHECK = "check"
    TIMER_RENEW = "renew"
    TIMER_RETRY = "retry"


TRANSITIONS: Final[Mapping[tuple[MapState, MapInput], MapState]] = {
    **{(state, MapInput.SEND_WANT): MapState.ASKING for state in MapState},
    **{(state, MapInput.SEND_DROP): MapState.IDLE for state in MapState},
    (MapState.ASKING, MapInput.RECV_GRANT): MapState.HELD,
    (MapState.ASKING, MapInput.RECV_REFUSAL): MapState.RESTING,
    (MapState.HELD, MapInput.TIMER_CHECK): MapState.CHECKING,
    (MapState.HELD, MapInput.TIMER_RENEW): MapState.RENEWING,
    (MapState.CHECKING, MapInput.RECV_SAME): MapState.HELD,
    (MapState.CHECKING, MapInput.RECV_LOST): MapState.RENEWING,
    (MapState.CHECKING, MapInput.RECV_REFUSAL): MapState.RENEWING,
    (MapState.RENEWING, MapInput.RECV_GRANT): MapState.HELD,
    (MapState.RENEWING, MapInput.RECV_REFUSAL): MapState.RESTING,
    (MapState.RESTING, MapInput.TIMER_RETRY): MapState.ASKING,
}


class Work(Enum):
    """What the driver has to do for a lease."""

    MAP = "map"
    CHECK = "check"


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a gateway said."""

    kind: Kind
    external_ip: ipaddress.IPv4Address | None
    """Its external address; None if it has none."""
    external_port: int
    lifetime_s: float
    epoch_s: int | None = None
    """Its clock, where the protocol tells it."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A port that is forwarded to us."""

    kind: Kind
    internal_port: int
    external_ip: ipaddress.IPv4Address | None
    external_port: int
    expires_s: float
    """Monotonic."""

    @property
    def addr(self) -> str | None:
        """The multiaddr outside, if it has an address there at all."""
        ip = self.external_ip
        return None if ip is None else TcpAddr("ip4", str(ip), self.external_port).text


class PortLease:
    """The machine of one port.

    Args:
        internal_port: the port we listen at.
        lease_s: lifetime to ask for.
        rng: spreads retries.
        is_public: whether an address may be dialled from everywhere.
    """

    def __init__(
        self,
        internal_port: int,
        lease_s: float,
        rng: random.Random,
        *,
        is_public: Callable[[ipaddress.IPv4Address], bool] = lambda ip: scope_of(ip) == "public",
    ) -> None:
        self.internal_port = internal_port
        self.state = MapState.IDLE
        self.lease: Lease | None = None
        """What is held, also while it is renewed or a renewal was refused."""
        self.problem = ""
        """Why nothing is held or the last renewal failed; for people."""
        self._lease_s = lease_s
        self._rng = rng
        self._is_public = is_public
        self._epochs = EpochWatch()
        self._check_at_s = 0.0
        self._renew_at_s = 0.0
        self._retry_at_s = 0.0
        self._rest_s = REST_MIN_S

    # --- what is asked of it ---

    def want(self) -> None:
        """Ask now: at the start, and after each change of the network. What was held is not."""
        self._step(MapInput.SEND_WANT)
        self.lease = None
        self._epochs = EpochWatch()
        self._rest_s = REST_MIN_S

    def look_now(self, now: float) -> None:
        """Check or try again at once: the machine slept, or the network hiccuped."""
        self._check_at_s = min(self._check_at_s, now)
        self._retry_at_s = min(self._retry_at_s, now)
        self._rest_s = REST_MIN_S

    def drop(self) -> None:
        """Hold nothing any more."""
        self._step(MapInput.SEND_DROP)
        self.lease = None
        self.problem = ""

    @property
    def work(self) -> Work | None:
        """What to do now; its outcome is told by `granted`, `checked` or `refused`."""
        match self.state:
            case MapState.ASKING | MapState.RENEWING:
                return Work.MAP
            case MapState.CHECKING:
                return Work.CHECK
            case _:
                return None

    @property
    def candidate(self) -> str | None:
        """The address to tell others; None while nothing is held, or behind a second NAT."""
        lease = self.lease
        if lease is None or lease.external_ip is None or not self._is_public(lease.external_ip):
            return None
        return lease.addr

    @property
    def double_nat(self) -> bool:
        """Whether the gateway is itself behind a NAT: its external address is private."""
        ip = self.lease.external_ip if self.lease is not None else None
        return ip is not None and not self._is_public(ip) and scope_of(ip) == "private"

    # --- what came of it ---

    def granted(self, grant: Grant, now: float) -> None:
        """The gateway forwards a port, or renewed that."""
        if not 0 < grant.external_port < 65_536 or grant.lifetime_s < LIFETIME_MIN_S:
            self.refused("it granted no port, or for less than a minute", now)
            return
        self._step(MapInput.RECV_GRANT)
        lifetime_s = min(grant.lifetime_s, self._lease_s)
        if grant.epoch_s is not None:
            self._epochs.restarted(grant.epoch_s, now)  # it has just mapped anew: only remembered
        self.lease = Lease(
            kind=grant.kind,
            internal_port=self.internal_port,
            external_ip=grant.external_ip,
            external_port=grant.external_port,
            expires_s=now + lifetime_s,
        )
        self.problem = self._problem_of(grant.external_ip)
        self._renew_at_s = now + lifetime_s / 2
        self._check_at_s = now + CHECK_S
        self._rest_s = REST_MIN_S

    def checked(
        self,
        external_ip: ipaddress.IPv4Address | None,
        now: float,
        *,
        epoch_s: int | None = None,
        forwards: bool = True,
    ) -> None:
        """The gateway answered a check.

        Args:
            external_ip: its external address now.
            now: monotonic seconds.
            epoch_s: its clock, where the protocol tells it.
            forwards: False if it said that the mapping is gone.
        """
        lease = self.lease
        restarted = epoch_s is not None and self._epochs.restarted(epoch_s, now)
        moved = lease is None or external_ip != lease.external_ip
        if restarted or moved or not forwards:
            self._step(MapInput.RECV_LOST)
            return
        self._step(MapInput.RECV_SAME)
        self._check_at_s = now + CHECK_S

    def refused(self, why: str, now: float) -> None:
        """The gateway said no, or nothing."""
        self._step(MapInput.RECV_REFUSAL)
        if self.state is MapState.RESTING:
            self.problem = why
            self._retry_at_s = now + self._rest_s * self._rng.uniform(0.8, 1.0)
            self._rest_s = min(2 * self._rest_s, REST_MAX_S)

    def _problem_of(self, ip: ipaddress.IPv4Address | None) -> str:
        if ip is None:
            return "the router has no external address: it is offline itself"
        if self._is_public(ip):
            return ""
        if scope_of(ip) == "private":
            return f"the router's own address {ip} is private: there is a second NAT behind it"
        return f"the router names {ip} as its address, which nobody can dial"

    # --- time ---

    def next_timer(self) -> float | None:
        """When `on_timer` has something to do; None while there is work or nothing to wait for."""
        match self.state:
            case MapState.HELD:
                return min(self._check_at_s, self._renew_at_s)
            case MapState.RESTING:
                expires_s = self.lease.expires_s if self.lease is not None else self._retry_at_s
                return min(self._retry_at_s, expires_s)
            case _:
                return None

    def on_timer(self, now: float) -> None:
        """Take up what is due."""
        if self.lease is not None and now >= self.lease.expires_s:
            self.lease = None
        if self.state is MapState.HELD:
            if self.lease is None or now >= self._renew_at_s:
                self._step(MapInput.TIMER_RENEW)
            elif now >= self._check_at_s:
                self._step(MapInput.TIMER_CHECK)
        elif self.state is MapState.RESTING and now >= self._retry_at_s:
            self._step(MapInput.TIMER_RETRY)

    def _step(self, what: MapInput) -> None:
        following = TRANSITIONS.get((self.state, what))
        if following is None:
            raise UsageError(f"a lease that is {self.state.value} takes no {what.value}")
        self.state = following
