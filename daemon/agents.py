"""Principals of the local socket: the person, and agents with tokens of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who speaks on a connection.

    Attributes:
        agent: agent name, empty for the person at the terminal.
        agent_id: row of the agent table, 0 for the person.
        is_owner: whether it is the person.
        scopes: token scopes such as `read:*`; meaningless for the person, who may do everything.
    """

    agent: str
    agent_id: int
    is_owner: bool
    scopes: tuple[str, ...]


OWNER = Principal(agent="", agent_id=0, is_owner=True, scopes=("*",))
