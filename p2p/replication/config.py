"""Settings of replication: the limits of docs/specs/sync.md that may be moved."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class ReplicationConfig:
    """What replication is asked to do; requested configuration, not running state."""

    sync_interval_s: float = 300.0
    """Seconds between two sessions with a connected member; raising it delays repair, not push."""

    sync_jitter_ratio: float = 0.2
    """Each interval is drawn from interval * (1 - ratio, 1 + ratio), so that members spread out."""

    push: bool = True
    """Send committed records at once to connected members; without it they wait for a session."""

    push_delay_s: float = 0.02
    """Commits within this time travel in one frame; the floor of a record's delay to a
    neighbour."""

    push_full_max: int = 16
    """Up to so many connected members of a group get every record in full."""

    push_sample: int = 8
    """Above `push_full_max`, so many members get it in full and the rest its id."""

    push_ask_after_s: float = 1.0
    """A record known by id only is asked for after this time, unless it came by another way."""

    push_queue_records_max: int = 1000
    """Records that wait for one slow peer; over it the oldest is dropped and a session follows."""

    push_queue_bytes_max: int = 4 * 1024 * 1024
    """The same limit in bytes of wire form."""

    skew_s: float = 600.0
    """A record dated further ahead of our wall clock is held and never moves our clock."""

    quarantine_records_max: int = 10_000
    """Held records of a group; the farthest in the future goes first."""

    quarantine_bytes_max: int = 64 * 1024 * 1024
    """The same limit in bytes of wire form."""

    quarantine_author_max: int = 1000
    """Held records of one author in a group."""

    quarantine_retry_s: float = 30.0
    """How often held records are looked at; a due one waits at most this long."""

    pending_bytes_max: int = 16 << 20
    """Bytes of records of a group that wait for what they cite; a control record has up to 66 KB,
    so the number alone is no bound."""
    pending_stranger_records_max: int = 64
    """Of these, how many may come from peers that are no members, all of them together: enough for
    a newcomer to show how it was let in."""
    pending_records_max: int = 4096
    """Records of a group that wait for a control record they cite."""

    pending_s: float = 3600.0
    """How long such a record waits."""

    session_idle_s: float = 30.0
    """A session without a byte for so long is closed."""

    session_s: float = 900.0
    """Longest session; the next one goes on where it stopped."""

    session_bytes_max: int = 256 * 1024 * 1024
    """Bytes of a session, both ways; the next one goes on where it stopped."""

    unsent_bytes_max: int = 1024 * 1024
    """Bytes cut into frames that wait for the peer; no more is read from the store meanwhile."""

    resume_s: float = 5.0
    """Pause before a session that follows a cut, a fork or a push gap."""

    records_per_min: int = 600
    """Foreign records a peer may bring a minute; over it we stop asking. Own devices are exempt."""

    records_burst: int = 20_000
    """Records a peer may bring at once before the rate counts."""

    refusals_max: int = 3
    """A peer that sent so many refused records is closed: it should have checked them itself."""

    ban_s: float = 600.0
    """For how long a closed peer is not spoken to."""

    group_headers_max: int = 1_000_000
    """Records of a group here; what is over waits."""

    author_headers_max: int = 250_000
    """Records of one author in a group, all its logs together: a log has its limit, and an author
    may begin new ones. Own devices are exempt."""

    group_headroom_ratio: float = 0.25
    """The last part of `group_headers_max`: only for authors with less than an equal share of the
    group's records, so that a few who fill the rest leave room for the others."""

    group_ops_max: int = 4096
    """Authority operations of a group here; admins' operations never wait."""

    log_data_max: int = 200_000
    """Data records of one log."""

    log_control_max: int = 4096
    """Control records of one log."""

    members_max: int = 400
    """Members of a group; checked by who admits."""

    join_refusals_per_h: int = 5
    """Refused asks of a peer at the join door in an hour; then it is not answered."""

    join_s: float = 30.0
    """Longest exchange at the join door, either side."""

    upkeep_s: float = 20.0
    """How often expired invites are closed, held records retried and counters let go."""

    def __post_init__(self) -> None:
        """Refuse values that would make a loop spin or a queue useless.

        Raises:
            ValueError: names the field and the value.
        """
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, bool):
                continue
            if not isinstance(value, (int, float)) or value < 0 or value != value:
                raise ValueError(f"replication.{name} must not be negative, got {value!r}")
        for name in ("sync_interval_s", "upkeep_s", "session_idle_s", "quarantine_retry_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"replication.{name} must be positive")
        if not self.sync_jitter_ratio < 1:
            raise ValueError("replication.sync_jitter_ratio must be below 1")

    @classmethod
    def wan(cls) -> ReplicationConfig:
        """The default: members behind home connections."""
        return cls()

    @classmethod
    def lan(cls) -> ReplicationConfig:
        """One building: repair sooner, the bytes are cheap."""
        return cls(sync_interval_s=60.0)

    @classmethod
    def test(cls) -> ReplicationConfig:
        """Simulations and tests: short intervals, the same limits."""
        return replace(cls(), sync_interval_s=30.0, resume_s=0.5, upkeep_s=5.0, ban_s=60.0)
