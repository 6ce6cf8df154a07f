"""What a node may tune: every limit and time of the mesh that is no matter of agreement.

`P2pConfig` is the requested configuration. The presets are `wan()` (the default), `lan()` and
`test()`. Only `daemon.config` reads files; it passes what it read to `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

from p2p.dht.config import DhtConfig
from p2p.errors import DecodeError, UsageError
from p2p.nat.lan_config import LanConfig
from p2p.nat.portmap_config import MapConfig
from p2p.nat.punch_config import PunchConfig
from p2p.nat.reachability_config import ReachabilityConfig
from p2p.nat.relay_config import RelayConfig
from p2p.wire.multiaddr import split_peer_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.identity import PeerId
    from p2p.net.seam import Addr

KIB = 1024
MIB = 1024 * KIB


def bootstrap_peers(addrs: Iterable[Addr]) -> dict[PeerId, list[Addr]]:
    """Peers of `bootstrap` with their addresses.

    Raises:
        UsageError: an entry is no address, or does not end in `/p2p/<peer>`.
    """
    found: dict[PeerId, list[Addr]] = {}
    for text in addrs:
        try:
            addr, peer = split_peer_untrusted(text)
        except DecodeError as error:
            raise UsageError(f"bootstrap: {text}: {error}") from error
        if peer is None:
            raise UsageError(f"bootstrap: {text} does not end in /p2p/<peer>: add the node's id")
        found.setdefault(peer, []).append(addr)
    return found


@dataclass(frozen=True, kw_only=True)
class P2pConfig:
    """Limits and times of the mesh. Seconds are floats, sizes are bytes."""

    preset: str = "wan"
    """Name of the preset this came from; shown, not read."""
    listen: tuple[Addr, ...] = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    """Addresses to listen at. Port 0 is drawn once (`draw_port`) and kept in the book."""
    network: str = "main"
    """Nodes of different networks do not look for each other."""
    bootstrap: tuple[Addr, ...] = ()
    """Addresses ending in `/p2p/<peer>` of nodes through which this one joins the DHT, besides all
    that it remembers."""
    draw_port: bool = True
    """Draw port 0 from 10,000-32,767 and keep it, so that addresses others hold stay true. False:
    any free port, anew at each start."""
    private_is_public: bool = False
    """Whether loopback and private addresses are told to everybody. Only for tests."""

    local_net: LanConfig = field(default_factory=LanConfig)
    """Peers in the same local network."""
    mapping: MapConfig = field(default_factory=MapConfig)
    """A port of the router for us."""

    # --- upgrade and dialling ---
    upgrade_deadline_s: float = 10.0
    """From the first byte to a proven, multiplexed connection. Longer serves worse links, and
    lets a silent stranger hold a pending slot for as long."""
    dial_each_s: float = 5.0
    """One address: TCP connection and handshake."""
    dial_all_s: float = 15.0
    """All addresses of a peer."""
    dial_stagger_s: float = 0.25
    """Start the next address after this even if the last one has not failed (RFC 8305 s.5)."""
    dial_addrs_max: int = 8
    """Addresses tried in one dial."""

    # --- who may connect ---
    connections_max: int = 512
    """Connections in all. One costs about 60 KiB at rest."""
    connections_for_members: int = 128
    """Part of `connections_max` that strangers may not take."""
    pending_max: int = 64
    """Inbound connections that have not proved who they are."""
    pending_per_ip_max: int | None = 4
    """The same from one address; None: no limit."""
    pending_per_prefix_max: int | None = 16
    """The same from one IPv4 /24 or IPv6 /48 (an IPv6 "address" is its /64)."""
    accepts_per_s: float | None = 5.0
    """Connections accepted a second from one address, sustained; None: no limit."""
    accepts_burst: int = 20
    """Connections accepted at once from one address before `accepts_per_s` holds."""
    inbound_per_ip_max: int | None = 8
    """Proven inbound connections from one address."""
    inbound_per_prefix_max: int | None = 32
    """The same from one prefix."""
    private_prefix_factor: int = 4
    """Private prefixes get this many times the limits: an office is behind one /24."""
    limit_loopback: bool = False
    """Whether the limits by address count for loopback too. Attack tests set it."""

    # --- bans ---
    violations_max: int = 3
    """Violations by a proven peer within `violation_window_s` before it is refused."""
    violation_window_s: float = 600.0
    """Time in which violations are counted together."""
    failed_handshakes_max: int | None = 10
    """Failed handshakes from one address within a minute before it is refused; None: no limit."""
    ban_min_s: float = 60.0
    """First refusal; each further one doubles."""
    ban_max_s: float = 3600.0
    """Longest refusal."""

    # --- liveness ---
    ping_idle_s: float = 15.0
    """Silence before a ping when nothing is outstanding."""
    dead_idle_s: float = 40.0
    """Silence before the connection is given up."""
    ping_busy_s: float = 5.0
    """Silence before a ping while a caller waits."""
    dead_busy_s: float = 15.0
    """Silence before the connection is given up while a caller waits."""
    suspect_s: float = 5.0
    """A ping unanswered for so long makes the connection suspect: we dial beside it."""
    suspect_redial_s: float = 3.0
    """How often we dial beside a suspect connection."""

    network_check_s: float = 2.0
    """How often we look whether this machine has other addresses or woke up; 0: never."""

    # --- keeping connected ---
    backoff_max_s: float = 300.0
    """Longest wait between two attempts to reach a pinned peer. The n-th wait is
    `min(this, 2**n) * uniform(0.5, 1)`."""
    backoff_yield_s: float = 3.0
    """Added on the side with the higher peer id, so that both do not dial at once."""
    stable_s: float = 60.0
    """A connection that lived so long resets the backoff."""
    drain_grace_s: float = 0.5
    """A connection that lost to a better one stays this long after its last stream."""
    close_grace_s: float = 1.0
    """How long a polite goodbye may take to leave."""
    connections_per_peer_max: int = 8
    """Live connections of one peer, draining ones included."""

    # --- streams ---
    stream_send_buffer_bytes: int = 256 * KIB
    """What `send_all` may put aside of one stream before it waits."""
    stream_window_bytes_max: int = 4 * MIB
    """Receive window a fast stream grows to. Throughput = this over the round trip."""
    connection_window_bytes_max: int = 16 * MIB
    """Growth of all windows of a connection, and the unread bytes it may hold."""
    streams_inbound_max: int = 1024
    """Live inbound streams of a connection; more are reset."""
    control_bytes_max: int = 64 * KIB
    """Unsent control frames of a connection: more means that it does not read."""
    unknown_bytes_per_min: int = 4 * MIB
    """Bytes for streams that do not exist, in a minute, before the connection is closed."""
    negotiate_s: float = 10.0
    """An inbound stream that has not named its protocol by then is reset."""
    linger_s: float = 10.0
    """A stream we closed is reset if the other side has not closed by then."""

    # --- identify, book ---
    identify_s: float = 5.0
    """Time for the other side to say who it is."""
    push_delay_s: float = 1.0
    """Changes of our addresses or protocols within this time go out as one push."""
    book_peers_max: int = 1000
    """Peers remembered; the longest unseen are forgotten first."""
    book_save_s: float = 2.0
    """A changed book is written at most this often, and at the end: after a crash it is how members
    find each other again."""
    events_max: int = 256
    """Events a subscriber may lag behind before its channel is closed."""

    # --- reachability and relays (p2p.nat) ---
    reachability: Literal["auto", "public", "private"] = "auto"
    """Whether others can dial us. "auto" finds out; the others are for who knows better."""
    reach: ReachabilityConfig = field(default_factory=ReachabilityConfig)
    """How "auto" finds out, and what we do for others who want to know."""
    punch: PunchConfig = field(default_factory=PunchConfig)
    """How relayed connections become direct ones."""
    relay: RelayConfig = field(default_factory=RelayConfig)
    """What we give as a relay, and how many we use."""

    # --- finding peers that moved (p2p.dht) ---
    dht: DhtConfig = field(default_factory=DhtConfig)
    """The distributed hash table."""

    # --- peer RPC (p2p.rpc) ---
    rpc_calls_per_peer_max: int = 64
    """Calls served at once for one peer."""
    rpc_calls_max: int = 512
    """Calls served at once in all."""
    rpc_buffer_per_peer_bytes: int = 16 * MIB
    """Request and item bytes held for one peer before its calls are refused as busy."""
    rpc_idle_streams_max: int = 8
    """Streams to one peer kept open for the next call."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value: object = getattr(self, each.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
                raise UsageError(f"{each.name} is {value}: it must not be negative")
        bootstrap_peers(self.bootstrap)
        if not self.network.isascii() or not self.network.isalnum():
            raise UsageError("network must be a word of letters and digits")
        if self.connections_for_members > self.connections_max:
            raise UsageError("connections_for_members is larger than connections_max: lower it")
        for shorter, longer in (
            ("ping_idle_s", "dead_idle_s"),
            ("ping_busy_s", "dead_busy_s"),
            ("ban_min_s", "ban_max_s"),
        ):
            low: object = getattr(self, shorter)
            high: object = getattr(self, longer)
            assert isinstance(low, float | int)
            assert isinstance(high, float | int)
            if low > high:
                raise UsageError(f"{shorter} is longer than {longer}: lower it")
        if self.stream_window_bytes_max < 256 * KIB:
            raise UsageError("stream_window_bytes_max is below 262144, where every stream starts")

    @classmethod
    def wan(cls) -> P2pConfig:
        """Peers anywhere."""
        return cls()

    @classmethod
    def lan(cls) -> P2pConfig:
        """Peers in one network: a lost one is noticed in 10 s, and no router has to let us out."""
        return cls(
            preset="lan",
            ping_idle_s=3.0,
            dead_idle_s=10.0,
            ping_busy_s=3.0,
            dead_busy_s=10.0,
            suspect_s=3.0,
            mapping=MapConfig(enabled=False),
        )

    @classmethod
    def test(cls) -> P2pConfig:
        """One machine: loopback counts as public, no limits by address, any free port.

        The local network and the router are neither asked nor told anything.
        """
        return replace(
            cls(),
            preset="test",
            listen=("/ip4/127.0.0.1/tcp/0",),
            draw_port=False,
            private_is_public=True,
            pending_per_ip_max=None,
            pending_per_prefix_max=None,
            accepts_per_s=None,
            inbound_per_ip_max=None,
            inbound_per_prefix_max=None,
            failed_handshakes_max=None,
            network_check_s=0,
            local_net=LanConfig(discovery=False, announce=False),
            mapping=MapConfig(enabled=False),
            dht=DhtConfig.test(),
        )
