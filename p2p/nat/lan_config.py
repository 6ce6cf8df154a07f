"""What LAN discovery may do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LanConfig:
    """`[p2p.lan]`: peers in the same local network (docs/specs/lan.md)."""

    discovery: bool = True
    """Ask the local network for peers by multicast DNS, and remember where they are."""
    announce: bool = True
    """Tell whoever asks the local network that we are here: our id and our addresses in it."""
