"""The little that the relay reads of a line. Light: `json` only."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeGuard

DRAINING = 1010
"""A daemon that is about to end; the next one will take us."""


def is_id(value: object) -> TypeGuard[int | str]:
    """Whether a request may have this id (JSON's true is no number)."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def read_envelope(line: bytes, *, answer: bool = False) -> tuple[str, int | str | None, object]:
    """What the relay needs of a line.

    Args:
        line: one line of MCP.
        answer: whether it came from the daemon, where ids stand in answers.

    Returns:
        Method ("" without one), id of a request (or answer), id that it cancels.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return "", None, None
    if not isinstance(message, dict):
        return "", None, None
    method, request_id = message.get("method"), message.get("id")
    if not isinstance(method, str):
        method = ""
    cancelled = None
    if method == "notifications/cancelled" and isinstance(message.get("params"), dict):
        cancelled = message["params"].get("requestId")
    if not is_id(request_id) or not (method or answer):
        request_id = None
    return method, request_id, cancelled


def read_refusal(answer: bytes) -> str | None:
    """Why a hello was refused; None when it was taken, "" when it is worth trying again."""
    try:
        message = json.loads(answer)
        error = message.get("error")
        if error is None:
            return None
        text, code = str(error["message"]), error["code"]
        remedy = error.get("data", {}).get("remedy", "")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return ""
    if code == DRAINING:
        return ""
    return f"the Covey daemon refused: {text}. {remedy}".strip()
