"""Handlers whose name leaves out a version: `expr:` is whatever language its engine takes."""

from __future__ import annotations

from typing import Final

MONTY_VERSION: Final = "1.4.0"
"""The version of pydantic-monty that `expr:` means; pyproject.toml pins the same."""
EXPR_PREFIX: Final = "expr:"
EXPR_ID: Final = f"{EXPR_PREFIX}@{MONTY_VERSION}"
LLM_PREFIX: Final = "llm:"


def full_id(handler: str) -> str:
    """The id under which peers offer what a job calls `handler`.

    Peers with another version of the engine do not compute the same rows, so a job that says
    `expr:` means the version of the node that plans it.
    """
    return EXPR_ID if handler == EXPR_PREFIX else handler
