"""What is said of a fault on this side, where a supervisor goes on after it."""

from __future__ import annotations


def line_of(error: BaseException) -> str:
    """The first of what went wrong, in a line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
