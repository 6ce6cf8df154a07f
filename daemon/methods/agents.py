"""`agents.*`: tokens of the agents on this machine."""

from __future__ import annotations

import contextlib
import os

import msgspec

from daemon.agents import DEFAULT_SCOPES, AgentView
from daemon.errors import RpcError
from daemon.paths import make_private
from daemon.rpc.registry import Call, Empty, method


class AddParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An agent to register.

    Attributes:
        name: 1 to 64 of a-z, 0-9, dot, underscore and hyphen.
        scopes: what its token may do; empty for the default.
        client: its software, for people.
        save: also keep the token in the state folder, where the MCP relay looks for it when the
            agent's configuration holds none (project files are often committed).
    """

    name: str
    scopes: list[str] = []
    client: str = ""
    save: bool = False


class Added(msgspec.Struct, kw_only=True):
    """A new token. It is shown once: the daemon keeps its hash alone."""

    name: str
    token: str


class NameParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An agent by name."""

    name: str


class Revoked(msgspec.Struct, kw_only=True):
    """Whose token no longer works."""

    name: str


def write_token(path: str, token: str) -> None:
    """Keep a token where only we can read it."""
    make_private(os.path.dirname(path))
    remove_token(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(token + "\n")


def remove_token(path: str) -> None:
    """Forget a token that is no longer good; absent is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@method("agents.add", scope="admin")
async def add(call: Call, p: AddParams) -> Added:
    """Register an agent and make its token."""
    beyond = [s for s in p.scopes or DEFAULT_SCOPES if not call.principal.covers(s)]
    if beyond:
        raise RpcError(
            "forbidden",
            f"a token cannot give what it has not: {', '.join(beyond)}",
            remedy="Name fewer scopes, or let the person make the token at a terminal.",
        )
    token = await call.services.agents.add(p.name, p.scopes, p.client)
    if p.save:
        write_token(call.services.paths.agent_token(p.name), token)
    call.services.events.publish("agent.added", {"name": p.name})
    return Added(name=p.name, token=token)


@method("agents.revoke", scope="admin")
async def revoke(call: Call, p: NameParams) -> Revoked:
    """End an agent's token at once, also on its open connections."""
    await call.services.agents.revoke(p.name)
    remove_token(call.services.paths.agent_token(p.name))
    call.services.events.publish("agent.revoked", {"name": p.name})
    return Revoked(name=p.name)


@method("agents.list", scope="admin")
async def list_agents(call: Call, p: Empty) -> list[AgentView]:
    """List agents with their scopes, revoked ones too."""
    del p
    return await call.services.agents.list()
