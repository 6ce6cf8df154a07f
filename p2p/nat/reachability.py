"""Can others dial us? The decision from what was seen, an address at a time. Pure.

Theory of operation
-------------------
A node must not guess: one that believes it is reachable becomes a relay and a server of the DHT
that nobody reaches, one that believes the opposite burdens relays. Each candidate address (of an
interface, mapped by the gateway, or seen by peers) is in one of four states:

    UNKNOWN   nobody has tried
    LIKELY    somebody we had talked to got in
    PUBLIC    somebody we had not talked to got in
    PRIVATE   nobody could

The trap between the second and the third: a NAT that filters by address lets in every packet of a
host that we have sent to, from any port, so every server that we can ask succeeds. Only a host that
was no contact for five minutes (`p2p.net.contacts`) shows that everybody gets in. It comes by two
ways: a server asks another peer to deliver the nonce, or somebody connects unasked to the address
of an interface, which is how the first public node of all finds out.

Failures count in a row: three make an address PRIVATE, or one round in which every server failed,
unless it was PUBLIC, which a single server's trouble shall not undo. What a server merely says
counts for nothing when it is good and as one failure when it is bad, so a lying server can delay
the truth by a round, not change it: others are asked too.

Timers: a PUBLIC address is checked again after 15 minutes (1 after a failure), any other after 5,
then 10, ... 60. Without a server to ask, time stands still until there is one. A change of the
network forgets everything. Source: docs/specs/reachability.md s.4; RFC 4787 s.4, s.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.nat.reachability_config import ReachabilityConfig
    from p2p.net.seam import Addr

SERVER_PAUSE_S: Final = 60.0
"""A new server is asked of a LIKELY address at the earliest so long after the last round."""

CandidateSource: TypeAlias = Literal["interface", "mapped", "observed"]


class Reach(Enum):
    """Whether an address, or the node, can be dialled by everybody."""

    UNKNOWN = "unknown"
    LIKELY = "likely"
    PUBLIC = "public"
    PRIVATE = "private"


class Seen(Enum):
    """What was seen of an address."""

    RECV_PROOF = auto()
    """A host that was no contact got in."""
    RECV_NONCE = auto()
    """A server that was one got in."""
    RECV_FAILED_OFTEN = auto()
    """The last three checks failed."""
    RECV_ALL_FAILED = auto()
    """Every server there is failed."""
    TIMER_NETWORK = auto()
    """The network changed."""


TRANSITIONS: Final[Mapping[tuple[Reach, Seen], Reach]] = {
    (Reach.UNKNOWN, Seen.RECV_PROOF): Reach.PUBLIC,
    (Reach.UNKNOWN, Seen.RECV_NONCE): Reach.LIKELY,
    (Reach.UNKNOWN, Seen.RECV_FAILED_OFTEN): Reach.PRIVATE,
    (Reach.UNKNOWN, Seen.RECV_ALL_FAILED): Reach.PRIVATE,
    (Reach.UNKNOWN, Seen.TIMER_NETWORK): Reach.UNKNOWN,
    (Reach.LIKELY, Seen.RECV_PROOF): Reach.PUBLIC,
    (Reach.LIKELY, Seen.RECV_NONCE): Reach.LIKELY,
    (Reach.LIKELY, Seen.RECV_FAILED_OFTEN): Reach.PRIVATE,
    (Reach.LIKELY, Seen.RECV_ALL_FAILED): Reach.PRIVATE,
    (Reach.LIKELY, Seen.TIMER_NETWORK): Reach.UNKNOWN,
    (Reach.PUBLIC, Seen.RECV_PROOF): Reach.PUBLIC,
    (Reach.PUBLIC, Seen.RECV_NONCE): Reach.PUBLIC,
    (Reach.PUBLIC, Seen.RECV_FAILED_OFTEN): Reach.PRIVATE,
    (Reach.PUBLIC, Seen.RECV_ALL_FAILED): Reach.PUBLIC,
    (Reach.PUBLIC, Seen.TIMER_NETWORK): Reach.UNKNOWN,
    (Reach.PRIVATE, Seen.RECV_PROOF): Reach.PUBLIC,
    (Reach.PRIVATE, Seen.RECV_NONCE): Reach.LIKELY,
    (Reach.PRIVATE, Seen.RECV_FAILED_OFTEN): Reach.PRIVATE,
    (Reach.PRIVATE, Seen.RECV_ALL_FAILED): Reach.PRIVATE,
    (Reach.PRIVATE, Seen.TIMER_NETWORK): Reach.UNKNOWN,
}


@dataclass(frozen=True, kw_only=True)
class AddrReport:
    """What is known of one address of ours."""

    addr: Addr
    source: CandidateSource
    state: Reach
    proved_by: str | None
    """The host that got in last; None: nobody did."""
    failures: int
    """Failed checks in a row."""
    checked_s: float | None
    """`env.now()` of the last check that was answered."""


class _Candidate:
    """One address: its state, and when it is checked next."""

    def __init__(self, source: CandidateSource, now: float, wait_s: float) -> None:
        self.source: CandidateSource = source
        self.state = Reach.UNKNOWN
        self.failures = 0
        self.proved_by: str | None = None
        self.checked_s: float | None = None
        self.due_s = now
        self.wait_s = wait_s

    def see(self, what: Seen) -> None:
        self.state = TRANSITIONS[self.state, what]


class Reachability:
    """The states of our addresses, and of the node: its best address's.

    Args:
        config: how often is checked and believed.
    """

    def __init__(self, config: ReachabilityConfig) -> None:
        self._config = config
        self._candidates: dict[Addr, _Candidate] = {}
        self.symmetric: bool | None = None
        """Whether our NAT draws a port for each target; None: too few peers told."""

    # --- what is asked of it ---

    @property
    def state(self) -> Reach:
        """The node's."""
        states = [each.state for each in self._candidates.values()]
        for state in (Reach.PUBLIC, Reach.LIKELY):
            if state in states:
                return state
        if states and all(state is Reach.PRIVATE for state in states):
            return Reach.PRIVATE
        if not states and self.symmetric:
            return Reach.PRIVATE
        return Reach.UNKNOWN

    def state_of(self, addr: Addr) -> Reach | None:
        """One address's; None if it is no candidate."""
        candidate = self._candidates.get(addr)
        return None if candidate is None else candidate.state

    def why(self) -> str:
        """The reason for `state`, for people."""
        best = self.state
        rows = [row for row in self.report() if row.state is best]
        match best:
            case Reach.PUBLIC:
                return f"{rows[0].proved_by} reached us unasked at {rows[0].addr}"
            case Reach.LIKELY:
                return (
                    f"{rows[0].proved_by} reached us at {rows[0].addr}, but we had talked to it "
                    "before: a NAT may let in such hosts only"
                )
            case Reach.PRIVATE if not rows:
                return "our NAT draws another port for each peer, and maps none for everybody"
            case Reach.PRIVATE:
                return "no server could reach us at " + ", ".join(row.addr for row in rows)
            case Reach.UNKNOWN:
                if not self._candidates:
                    return "no public address of ours is known"
                return "nobody has tried to reach us yet"

    def report(self) -> tuple[AddrReport, ...]:
        """Every candidate."""
        return tuple(
            AddrReport(
                addr=addr,
                source=each.source,
                state=each.state,
                proved_by=each.proved_by,
                failures=each.failures,
                checked_s=each.checked_s,
            )
            for addr, each in self._candidates.items()
        )

    def due(self, now: float) -> Addr | None:
        """The address to check next; None: none is due."""
        ready = [(each.due_s, addr) for addr, each in self._candidates.items() if each.due_s <= now]
        return min(ready)[1] if ready else None

    def next_timer(self) -> float:
        """When something is due; infinity: when there is news."""
        return min((each.due_s for each in self._candidates.values()), default=math.inf)

    # --- what it is told ---

    def set_candidates(self, found: Mapping[Addr, CandidateSource], now: float) -> None:
        """Our addresses as they are now; of more than are checked, the first."""
        kept = list(found.items())[: self._config.candidates_max]
        before, self._candidates = self._candidates, {}
        for addr, source in kept:
            candidate = before.get(addr) or _Candidate(source, now, self._config.retry_min_s)
            candidate.source = source
            self._candidates[addr] = candidate

    def network_changed(self, now: float) -> None:
        """What was seen was seen on another network."""
        for each in self._candidates.values():
            each.see(Seen.TIMER_NETWORK)
            each.failures = 0
            each.proved_by = None
            each.due_s = now
            each.wait_s = self._config.retry_min_s

    def reached(self, addr: Addr, host: str, now: float, *, strong: bool) -> None:
        """`host` got in at `addr`; strong: it was no contact of ours."""
        candidate = self._candidates.get(addr)
        if candidate is None:
            return
        candidate.see(Seen.RECV_PROOF if strong else Seen.RECV_NONCE)
        candidate.failures = 0
        if strong or candidate.state is not Reach.PUBLIC:
            candidate.proved_by = host
        if candidate.state is Reach.PUBLIC:
            candidate.checked_s = now
            candidate.wait_s = self._config.retry_min_s
            candidate.due_s = max(candidate.due_s, now + self._config.recheck_s)

    def failed(self, addr: Addr) -> None:
        """A server could not reach `addr`."""
        candidate = self._candidates.get(addr)
        if candidate is None:
            return
        candidate.failures += 1
        if candidate.failures >= self._config.failures_max:
            candidate.see(Seen.RECV_FAILED_OFTEN)

    def round_over(self, addr: Addr, now: float, *, reached: int, failed: int) -> None:
        """All servers that should be were asked.

        Args:
            addr: of what.
            now: monotonic seconds.
            reached: how many got in.
            failed: how many could not; the others gave no answer of use.
        """
        candidate = self._candidates.get(addr)
        if candidate is None:
            return
        config = self._config
        if failed and not reached:
            candidate.see(Seen.RECV_ALL_FAILED)
        if failed or reached:
            candidate.checked_s = now
        if candidate.state is Reach.PUBLIC:
            candidate.due_s = now + (config.recheck_failed_s if failed else config.recheck_s)
            return
        candidate.due_s = now + candidate.wait_s
        candidate.wait_s = min(config.retry_max_s, candidate.wait_s * 2)

    def no_server(self, addr: Addr) -> None:
        """There is nobody to ask: wait until there is."""
        candidate = self._candidates.get(addr)
        if candidate is not None:
            candidate.due_s = math.inf

    def new_server(self, now: float) -> None:
        """Somebody can be asked who could not before."""
        for each in self._candidates.values():
            if each.due_s == math.inf or each.state is Reach.UNKNOWN:
                each.due_s = min(each.due_s, now)
            elif each.state is Reach.LIKELY:
                last_s = -math.inf if each.checked_s is None else each.checked_s
                each.due_s = min(each.due_s, max(now, last_s + SERVER_PAUSE_S))
