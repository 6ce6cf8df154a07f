"""Principals of the local socket: the person, and agents with tokens of their own.

A token is `cvy_` and 256 random bits in base32; the database keeps its SHA-256 alone, so a
stolen database gives no access. Scopes confine confused agents. They do not confine malware:
whoever runs as the same user can read the same files. Source: docs/specs/local-rpc.md.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from daemon.errors import RpcError
from memory.model import Caller, ScopeSet

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    import apsw

    from federated.seams import Db

TOKEN_PREFIX: Final = "cvy_"  # noqa: S105 - a prefix, no secret
TOKEN_BYTES: Final = 32
AGENT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SCOPE_VERBS: Final = frozenset({
    "read", "write", "share", "erase", "jobs", "state", "rounds", "peers", "trust", "admin",
})  # fmt: skip
# Read everything, write into the own project, and take part in shared work.
DEFAULT_SCOPES: Final = ("read:*", "write:own", "jobs:submit", "state")
# A token that is used all day is not worth a database write per call.
_SEEN_EVERY_MS: Final = 60_000
MAIN_SCOPE: Final = "main"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who speaks on a connection.

    Attributes:
        agent: agent name, empty for the person at the terminal.
        agent_id: row of the agent table; 0 for the person, and for an agent that is known only by
            what its process says (the command line run inside an agent).
        is_owner: whether it is the person.
        scopes: token scopes such as `read:*`; the person may do everything.
    """

    agent: str
    agent_id: int
    is_owner: bool
    scopes: tuple[str, ...]

    def allows(self, scope: str) -> bool:
        """Whether a method that needs `scope` may be called ("": by anyone)."""
        if self.is_owner or not scope:
            return True
        if scope == "owner":
            return False
        return any(own == scope or own.partition(":")[0] == scope for own in self.scopes)

    def covers(self, scope: str) -> bool:
        """Whether a token with `scope` could do nothing that this principal cannot."""
        verb, _, target = scope.partition(":")
        return self.is_owner or any(
            own == scope or own in {verb, f"{verb}:*"}
            for own in self.scopes
            if target or own in {verb, f"{verb}:*"}
        )

    def memory_scopes(self, verb: str, project: str) -> ScopeSet:
        """Memory scopes that `verb` (read or write) reaches.

        Args:
            verb: `read` or `write`.
            project: the session's project; `own` stands for it and for `main`.
        """
        if self.is_owner:
            return ScopeSet(everything=True)
        names: set[str] = set()
        for scope in self.scopes:
            own, _, target = scope.partition(":")
            if own != verb:
                continue
            if target in {"*", ""}:
                return ScopeSet(everything=True)
            if target == "own":
                for name in (project or MAIN_SCOPE, MAIN_SCOPE):
                    names |= {name, f"private/{name}"}
            else:
                names.add(target)
        return ScopeSet(names=frozenset(names))

    def caller(self, device: bytes, *, session: str, project: str) -> Caller:
        """This principal as the memory sees it."""
        return Caller(
            device=device,
            agent=self.agent,
            is_owner=self.is_owner,
            read=self.memory_scopes("read", project),
            write=self.memory_scopes("write", project),
            session=session,
        )


OWNER: Final = Principal(agent="", agent_id=0, is_owner=True, scopes=("*",))


class AgentView(msgspec.Struct, kw_only=True):
    """An agent as `agents.list` shows it.

    Attributes:
        name: its name, which the device signs into what the agent writes.
        client: what its software called itself when last seen.
        scopes: what its token may do.
        created_ms: Unix milliseconds.
        revoked_ms: when its token stopped working, None while it works.
        last_seen_ms: about when it was last connected, None if never.
    """

    name: str
    client: str
    scopes: list[str]
    created_ms: int
    revoked_ms: int | None
    last_seen_ms: int | None


def check_scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    """Validate token scopes.

    Raises:
        RpcError: invalid_params, naming the scope and the verbs there are.
    """
    for scope in scopes:
        verb, _, target = scope.partition(":")
        if verb not in SCOPE_VERBS or len(scope) > 128 or re.search(r"[\s,]", target):
            raise RpcError(
                "invalid_params",
                "unknown scope: write it as verb or verb:memory-scope, with a verb of "
                + ", ".join(sorted(SCOPE_VERBS)),
            )
    return tuple(dict.fromkeys(scopes))


def check_name(name: str) -> str:
    """Validate an agent name.

    Raises:
        RpcError: invalid_params.
    """
    if not AGENT_NAME.fullmatch(name):
        raise RpcError(
            "invalid_params",
            "an agent's name is 1 to 64 of a-z, 0-9, dot, underscore and hyphen: claude-code",
        )
    return name


def assumed(agent: str) -> Principal:
    """An agent without a token: the command line inside an agent says whose hands it is in."""
    return Principal(agent=check_name(agent), agent_id=0, is_owner=False, scopes=DEFAULT_SCOPES)


def new_token(rng: random.Random) -> str:
    """A fresh token of 256 bits."""
    raw = rng.randbytes(TOKEN_BYTES)
    return TOKEN_PREFIX + base64.b32encode(raw).decode().rstrip("=").lower()


def token_hash(token: str) -> bytes:
    """What the database keeps of a token."""
    return hashlib.sha256(token.encode()).digest()


class AgentStore:
    """The agent table, with the valid tokens in memory.

    Args:
        db: the database; its `agent` table comes with memory's migrations.
        rng: source of tokens.
        wall_ms: clock of the dates.
    """

    def __init__(self, db: Db, rng: random.Random, wall_ms: Callable[[], int]) -> None:
        self._db = db
        self._rng = rng
        self._wall_ms = wall_ms
        self._by_hash: dict[bytes, Principal] = {}
        self._seen_ms: dict[int, int] = {}

    async def load(self) -> None:
        """Read the valid tokens; call before the first connection."""

        def read(connection: apsw.Connection) -> list[tuple[int, str, bytes, str]]:
            rows = connection.execute(
                "SELECT id, name, token_hash, scopes FROM agent WHERE revoked_ms IS NULL"
            )
            return [(int(i), str(n), bytes(h), str(s)) for i, n, h, s in rows]

        self._by_hash = {
            digest: Principal(
                agent=name, agent_id=ident, is_owner=False, scopes=tuple(scopes.split())
            )
            for ident, name, digest, scopes in await self._db.read(read)
        }

    def authenticate(self, token: str) -> Principal:
        """Whose token it is.

        Raises:
            RpcError: unauthenticated.
        """
        # A dictionary of SHA-256 values: an attacker who times the look-up learns of hashes, and
        # no hash leads back to a token of 256 bits.
        found = self._by_hash.get(token_hash(token))
        if found is None:
            raise RpcError("unauthenticated", "the token is unknown or was revoked")
        return found

    def any_registered(self) -> bool:
        """Whether an agent has a valid token."""
        return bool(self._by_hash)

    async def add(self, name: str, scopes: Sequence[str], client: str = "") -> str:
        """Register an agent.

        Returns:
            Its token: shown once, kept as a hash.

        Raises:
            RpcError: conflict when the name has a valid token; invalid_params.
        """
        check_name(name)
        chosen = check_scopes(scopes or DEFAULT_SCOPES)
        token = new_token(self._rng)
        digest = token_hash(token)
        now = self._wall_ms()

        def write(connection: apsw.Connection) -> bool:
            taken = connection.execute(
                "SELECT 1 FROM agent WHERE name = ? AND revoked_ms IS NULL", (name,)
            ).fetchone()
            if taken:
                return False
            connection.execute(
                "INSERT INTO agent (name, client, token_hash, scopes, created_ms)"
                " VALUES (?, ?, ?, ?, ?)",
                (name, client[:64], digest, " ".join(chosen), now),
            )
            return True

        if not await self._db.write(write):
            raise RpcError(
                "conflict",
                f"agent {name} has a token already",
                remedy=f"Revoke it first: `covey agents revoke {name}`.",
            )
        await self.load()
        return token

    async def revoke(self, name: str) -> None:
        """End the agent's token at once.

        Raises:
            RpcError: not_found.
        """
        now = self._wall_ms()

        def write(connection: apsw.Connection) -> int:
            connection.execute(
                "UPDATE agent SET revoked_ms = ? WHERE name = ? AND revoked_ms IS NULL", (now, name)
            )
            return connection.changes()

        if not await self._db.write(write):
            raise RpcError("not_found", "no agent of that name has a token")
        await self.load()

    async def list(self) -> list[AgentView]:
        """All agents, newest first, revoked ones too."""

        def read(connection: apsw.Connection) -> list[AgentView]:
            rows = connection.execute(
                "SELECT name, client, scopes, created_ms, revoked_ms, last_seen_ms"
                " FROM agent ORDER BY created_ms DESC, id DESC LIMIT 1000"
            )
            return [
                AgentView(
                    name=str(name),
                    client=str(client or ""),
                    scopes=str(scopes).split(),
                    created_ms=int(created),
                    revoked_ms=revoked,
                    last_seen_ms=seen,
                )
                for name, client, scopes, created, revoked, seen in rows
            ]

        return await self._db.read(read)

    def still_valid(self, principal: Principal) -> bool:
        """Whether the principal's token still works (the person's rights do not end)."""
        return principal.agent_id == 0 or principal in self._by_hash.values()

    async def touch(self, principal: Principal, client: str) -> None:
        """Note that an agent connected; at most one write a minute each."""
        now = self._wall_ms()
        if principal.agent_id == 0:
            return
        if now - self._seen_ms.get(principal.agent_id, 0) < _SEEN_EVERY_MS:
            return
        self._seen_ms[principal.agent_id] = now

        def write(connection: apsw.Connection) -> None:
            connection.execute(
                "UPDATE agent SET last_seen_ms = ?, client = ? WHERE id = ?",
                (now, client[:64], principal.agent_id),
            )

        await self._db.write(write)
