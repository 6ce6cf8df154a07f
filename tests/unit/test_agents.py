"""Tokens and scopes of agents."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from daemon.agents import (
    DEFAULT_SCOPES,
    OWNER,
    AgentStore,
    Principal,
    assumed,
    check_name,
    check_scopes,
    new_token,
    token_hash,
)
from daemon.errors import RpcError
from memory.storage.db import Db
from p2p.env import SystemEnv

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def open_store(folder: Path, rng: random.Random | None = None) -> AsyncIterator[AgentStore]:
    env = SystemEnv()
    db = Db(folder / "covey.db", env)
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        store = AgentStore(db, rng or env.rng, env.wall_ms)
        await store.load()
        yield store
        nursery.cancel_scope.cancel()


async def test_a_token_names_its_agent_until_it_is_revoked(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        token = await store.add("helper", ["read:*"], client="editor 1.0")
        found = store.authenticate(token)
        assert (found.agent, found.is_owner, found.scopes) == ("helper", False, ("read:*",))
        assert store.still_valid(found)
        await store.revoke("helper")
        assert not store.still_valid(found)
        with pytest.raises(RpcError, match="revoked"):
            store.authenticate(token)
        (view,) = await store.list()
        assert view.revoked_ms is not None
        assert view.client == "editor 1.0"


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_the_database_keeps_only_the_hash(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        token = await store.add("helper", [])
        raw = token.removeprefix("cvy_")
    data = everything_in(tmp_path)
    assert b"helper" in data
    assert raw[:20].encode() not in data
    assert len(raw) == 52


async def test_tokens_survive_a_restart(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        token = await store.add("helper", [])
    async with open_store(tmp_path) as store:
        assert store.authenticate(token).agent == "helper"
        assert store.any_registered()


async def test_a_name_has_one_valid_token(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.add("helper", [])
        with pytest.raises(RpcError) as refused:
            await store.add("helper", [])
        assert refused.value.name == "conflict"
        assert "revoke" in refused.value.remedy
        await store.revoke("helper")
        await store.add("helper", [])
        assert [view.revoked_ms is None for view in await store.list()] == [True, False]
        with pytest.raises(RpcError) as refused:
            await store.revoke("nobody")
        assert refused.value.name == "not_found"


def test_tokens_differ_and_hold_256_bits() -> None:
    dice = random.Random(3)
    tokens = {new_token(dice) for _ in range(50)}
    assert len(tokens) == 50
    assert len({token_hash(token) for token in tokens}) == 50
    assert all(len(token) == 4 + 52 for token in tokens)


@pytest.mark.parametrize("name", ["", "A", "-x", ".x", "a b", "a/b", "x" * 65, "ä", "a\n"])
@pytest.mark.attack
def test_names_that_could_mislead_are_refused(name: str) -> None:
    with pytest.raises(RpcError, match="name"):
        check_name(name)


@pytest.mark.parametrize("scope", ["", "sudo", "read:a b", "write:a,b", "read:" + "x" * 200])
@pytest.mark.attack
def test_unknown_scopes_are_refused(scope: str) -> None:
    with pytest.raises(RpcError, match="scope"):
        check_scopes([scope])


def test_scopes_keep_their_order_once() -> None:
    assert check_scopes(["read:*", "state", "read:*"]) == ("read:*", "state")


def agent(*scopes: str) -> Principal:
    return Principal(agent="a", agent_id=1, is_owner=False, scopes=scopes)


def test_what_a_scope_allows() -> None:
    assert OWNER.allows("admin")
    assert OWNER.allows("owner")
    helper = agent("read:*", "write:api")
    assert helper.allows("")
    assert helper.allows("read")
    assert helper.allows("write")
    assert not helper.allows("admin")
    assert not helper.allows("owner")
    assert not agent("readx").allows("read")


def test_memory_scopes_of_a_principal() -> None:
    assert OWNER.memory_scopes("write", "x").everything
    helper = agent(*DEFAULT_SCOPES)
    assert helper.memory_scopes("read", "api").everything
    own = helper.memory_scopes("write", "api")
    assert not own.everything
    assert own.names == {"api", "private/api", "main", "private/main"}
    assert helper.memory_scopes("write", "").names == {"main", "private/main"}
    assert agent("write:team/plan").memory_scopes("write", "x").names == {"team/plan"}
    assert agent("write:*").memory_scopes("write", "x").everything
    assert agent("read:*").memory_scopes("write", "x").names == frozenset()


def test_an_agent_without_token_is_no_person() -> None:
    found = assumed("claude-code")
    assert not found.is_owner
    assert not found.allows("admin")
    caller = found.caller(bytes(32), session="ab", project="api")
    assert (caller.agent, caller.is_owner, caller.session) == ("claude-code", False, "ab")
