"""What a node may tune of its DHT: limits and times that are no matter of agreement."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from p2p.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DhtConfig:
    """Limits and times of the DHT. Seconds are floats, sizes are bytes."""

    enabled: bool = True
    """Whether to take part at all: look up, publish and, as a server, answer."""
    server: bool = False
    """Whether to answer others from the start. Set it on a machine that everybody can reach;
    elsewhere the node decides when it learns how it is reached."""
    protocol: str = ""
    """Protocol id. Empty: `/covey/<network>/kad/1`. Tests against other software set
    `/ipfs/kad/1.0.0`."""
    require_signed: bool = True
    """Whether peers, providers and values without a signature are refused. Only tests against other
    software switch it off: its nodes sign none of them."""

    # --- Kademlia ---
    k: int = 20
    """Nodes in a bucket, nodes that hold a record, nodes in an answer (Kademlia s.2.1: so many
    that they are unlikely to fail together within an hour)."""
    alpha: int = 10
    """Requests of one look-up under way at once. More is faster and costs more wasted requests."""
    paths: int = 3
    """Disjoint paths of a look-up (S/Kademlia s.4.4): an attacker must hold a node on each."""
    request_s: float = 3.0
    """One request, connecting included."""
    lookup_s: float = 10.0
    """One look-up in all."""
    lookup_asked_max: int = 200
    """Nodes asked in one look-up. An honest one asks about `k * log(network size)`."""
    values_enough: int = 3
    """Valid answers after which a `get` ends early."""

    # --- routing table ---
    per_prefix_bucket_max: int | None = 2
    """Nodes of one IPv4 /24 or IPv6 /48 in a bucket, so that one network cannot fill it; None: no
    limit."""
    per_prefix_table_max: int | None = 10
    """The same in the whole table, and among the nodes of one look-up."""
    refresh_s: float = 600.0
    """How often the node looks for itself and for a random id of each bucket in use."""
    probes_max: int = 8
    """Nodes asked at once whether they answer, before they enter the table."""
    idle_s: float = 60.0
    """A connection made for a look-up and unused for so long is closed, unless its peer is among
    our `k` nearest."""

    # --- what others store here ---
    store_entries_max: int = 50_000
    """Values and providers held for others."""
    store_bytes_max: int = 64 << 20
    """Their bytes."""
    store_entries_per_sender_max: int = 256
    """Entries that one peer may have put here."""
    store_writes_per_min: int = 20
    """Writes a minute that one peer may make here."""
    providers_per_key_max: int = 64
    """Providers of one key."""
    streams_per_peer_max: int = 16
    """Streams of one peer served at once."""
    stream_idle_s: float = 30.0
    """A stream on which nothing is asked for so long is closed."""

    # --- what we store at others ---
    lifetime_s: float = 86_400.0
    """How long a record is held, from when it was signed."""
    republish_s: float = 28_800.0
    """How often we publish our own records again: a third of their life, so that two may fail."""
    publish_delay_s: float = 5.0
    """Changes of our addresses within this time are published once. Less than 30 s, which is what
    peers that look for us count on."""
    publish_gap_s: float = 3.5
    """Pause between two of our records once a batch of 10 is out, so that nodes which hold all of
    them stay below their `store_writes_per_min`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise UsageError(f"dht.{field.name} is {value}: it must be above zero")
        if self.republish_s > self.lifetime_s:
            raise UsageError("dht.republish_s is longer than dht.lifetime_s: lower it")

    @classmethod
    def test(cls) -> DhtConfig:
        """One machine: every node serves, no limits by address.

        Off, as it would connect nodes that a test wants apart; `lab` is the same and on.
        """
        return replace(cls.lab(), enabled=False)

    @classmethod
    def lab(cls) -> DhtConfig:
        """One machine: every node serves, no limits by address."""
        return replace(cls(), server=True, per_prefix_bucket_max=None, per_prefix_table_max=None)
