"""What we ask of the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class MapConfig:
    """`[p2p.mapping]`: a port of the router for us (docs/specs/portmap.md)."""

    enabled: bool = True
    """Ask the router by NAT-PMP or UPnP to forward our port, so that peers outside can dial us."""
    lease_s: float = 3600.0
    """For how long at a time; renewed at half. After a crash the port stays open for so long."""

    def __post_init__(self) -> None:
        if not 120 <= self.lease_s <= 86_400:
            raise UsageError("lease_s must be 120 to 86400")
