"""Tiers of memories: which full-text index one is in. Pure."""

from __future__ import annotations

MAIN, LOW, NONE = 0, 1, 2
"""The main index, the low index, no index."""
