"""How a node finds out whether others can dial it, and how much it helps others to."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReachabilityConfig:
    """Reachability, from both ends."""

    serve: bool = True
    """Whether we tell others if they can be dialled, once we are known to be reachable."""
    contact_s: float = 300.0
    """For so long after the last packet to a host its packets prove nothing: a NAT may let them in
    for our sake. NATs keep what a closed connection opened for 4 minutes (RFC 5382 REQ-5)."""
    nonce_s: float = 15.0
    """From a request until its nonce must have come."""
    failures_max: int = 3
    """Failed checks in a row after which an address counts as not reachable."""
    servers_max: int = 3
    """Servers asked of one address in one round; more find rarer helpers and cost more traffic."""
    candidates_max: int = 4
    """Addresses of ours that are checked; a server takes six requests a minute of us."""
    recheck_s: float = 900.0
    """Between two checks of an address that is proved reachable."""
    recheck_failed_s: float = 60.0
    """The same if the last one failed."""
    retry_min_s: float = 300.0
    """Before the second check of any other address; each further one waits twice as long."""
    retry_max_s: float = 3600.0
    """Longest such wait."""
    relays_after_s: float = 10.0
    """How long a node that does not know yet waits before it asks for places at relays."""
    dial_s: float = 5.0
    """Time to dial a client and deliver its nonce."""
    talk_s: float = 15.0
    """Time for the other side's message."""
    dials_per_min: int = 60
    """Dials for clients in a minute, all together. A dial is some 10 packets to the client."""
    dials_per_peer_per_min: int = 6
    """The same for one client."""
    passes_per_min: int = 6
    """Dial-backs we ask of others for our clients in a minute, and as many we do for others."""

    def __post_init__(self) -> None:
        if min(self.nonce_s, self.dial_s, self.talk_s, self.retry_min_s, self.recheck_s) <= 0:
            raise UsageError("reachability: times must be positive")
        if min(self.failures_max, self.servers_max, self.candidates_max) < 1:
            raise UsageError(
                "reachability: failures_max, servers_max, candidates_max are at least 1"
            )
