"""Bits of `memory.flags`: what the projection found out about a text. Pure."""

from __future__ import annotations

from typing import Final

CJK: Final = 1
"""In the trigram index, for scripts without spaces (a later part sets it)."""

IMPERATIVE: Final = 2
"""The text speaks to a model: others' stays out of answers until somebody trusted backs it."""

PARENT_ERASED: Final = 4
"""Something it was derived from was erased: it may repeat what had to go."""
