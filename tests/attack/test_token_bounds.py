"""What a token does not give: events of other scopes, anything after its end, a better token."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio

from daemon.client import CallFailed, LocalClient
from tests.helpers.daemons import Home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

pytestmark = pytest.mark.attack


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    made.up()
    yield made
    made.stop()


async def test_an_agent_hears_of_its_scopes_only_and_not_after_its_token_ends(home: Home) -> None:
    path = str(home.folder / "run" / "daemon.sock")
    owner = await LocalClient.connect(path)
    added = await owner.call("agents.add", {"name": "bot", "scopes": ["read:main"]})
    token = cast("dict[str, Json]", added)["token"]
    agent = await LocalClient.connect(path, agent="bot", token=token)
    await agent.call("events.subscribe", {"topics": ["memory"]})
    await owner.call("memory.remember", {"text": "for nobody else", "scope": "private/diary"})
    await owner.call("memory.remember", {"text": "for all", "scope": "main"})
    with trio.fail_after(10):
        heard = await agent.notification()
    assert cast("dict[str, Json]", heard["data"])["scope"] == "main"
    await owner.call("agents.revoke", {"name": "bot"})
    await owner.call("memory.remember", {"text": "after the end", "scope": "main"})
    with trio.move_on_after(0.5):
        pytest.fail(f"heard {await agent.notification()}")
    await agent.aclose()
    await owner.aclose()


async def test_a_token_cannot_make_one_that_may_do_more(home: Home) -> None:
    path = str(home.folder / "run" / "daemon.sock")
    owner = await LocalClient.connect(path)
    scopes: list[Json] = ["admin", "read:main", "write:*"]
    added = await owner.call("agents.add", {"name": "boss", "scopes": scopes})
    boss = await LocalClient.connect(
        path, agent="boss", token=cast("dict[str, Json]", added)["token"]
    )
    for beyond in (["read:*"], ["read"], ["read:other"], ["erase"], []):
        with pytest.raises(CallFailed) as refused:
            await boss.call("agents.add", {"name": "worker", "scopes": cast("Json", beyond)})
        assert refused.value.code == 1001
    await boss.call("agents.add", {"name": "worker", "scopes": ["read:main", "write:x"]})
    await boss.aclose()
    await owner.aclose()
