"""How much a member's weight may be; no arrays, so that whoever reads or sends one can name it."""

from __future__ import annotations

from typing import Final

WEIGHT_MAX: Final = 2.0**53
"""Up to here a float64 counts every example; a larger claim would not."""
