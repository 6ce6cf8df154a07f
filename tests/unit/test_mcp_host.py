"""The MCP host over in-memory lines: both protocol eras, bad lines, errors, cancel, the end."""

from __future__ import annotations

import gc
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
import trio
import trio.testing
from typing_extensions import override

from daemon.agents import Principal
from daemon.errors import RpcError
from daemon.mcp.connection import Connection
from daemon.mcp.host import McpHost
from daemon.rpc.registry import Call, Context, Method, Registry, Tool, method
from memory.model import Author, Hit, Hits, Page, Query, Remembered, Withheld
from p2p.env import SeededEnv
from tests.helpers.cancel import Cut, cancel_at_every_step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from daemon.rpc.registry import Progress
    from daemon.services import Services

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "0"},
}
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "t", "version": "0"},
}
LINE_BYTES_MAX = 64 * 1024


class RememberArgs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Arguments of the test's remember.

    Attributes:
        text: the note.
    """

    text: str


class GetParams(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Params of the test's get."""

    ids: list[str]


class ListParams(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Params of the test's list."""

    limit: int = 20
    trusted: bool = False


class Held(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Params of the call that waits."""

    progress: bool = False


def a_hit(text: str = "the build needs node 22", **changes: object) -> Hit:
    hit = Hit(
        id="7f3a" * 16,
        text=text,
        title="",
        trust=0.91,
        author=Author(agent="claude-code", device="laptop", device_id="ab" * 32, relation="own"),
        origin="12D3",
        verified=True,
        created="2026-11-20T10:00:00Z",
        age_days=1.0,
        score=0.5,
        scope="covey",
        kind="note",
    )
    return msgspec.structs.replace(hit, **changes)


@dataclass
class World:
    """What the handlers saw and hold."""

    calls: list[Call] = field(default_factory=list)
    replays: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    started: trio.Event = field(default_factory=trio.Event)
    release: trio.Event = field(default_factory=trio.Event)
    cancelled: bool = False


def build(world: World) -> Registry:
    @method(
        "memory.recall",
        scope="read",
        tool=Tool(name="memory_recall", read_only=True, idempotent=True),
    )
    async def recall(call: Call, p: Query) -> Hits:
        """Find memories."""
        world.calls.append(call)
        if p.query == "crash":
            raise RuntimeError("secret text of a memory")
        if p.query == "forbidden":
            raise RpcError("forbidden", "needs the scope read:x")
        return Hits(hits=[a_hit()], withheld=Withheld(low_trust=1), searched=3, ms=0.1)

    @method("memory.remember", scope="write", mutates=True, tool=Tool(name="memory_remember"))
    async def remember(call: Call, p: RememberArgs) -> Remembered:
        """Store a memory."""
        world.calls.append(call)
        world.texts.append(p.text)
        return Remembered(id="ab" * 32, status="stored")

    @method("memory.get", scope="read", tool=Tool(name="memory_get", read_only=True))
    async def get(call: Call, p: GetParams) -> Hits:
        """Fetch memories."""
        world.calls.append(call)
        if p.ids == ["00" * 32]:
            raise RpcError("not_found", "no memory has that id")
        return Hits(hits=[a_hit()], withheld=Withheld(), searched=1, ms=0.1)

    @method("memory.list", scope="read")
    async def list_(call: Call, p: ListParams) -> Page:
        """List memories."""
        world.calls.append(call)
        return Page(hits=[a_hit(text=f"note {n}") for n in range(p.limit)], cursor=None)

    @method("test.hold", scope="read", tool=Tool(name="test_hold", read_only=True))
    async def hold(call: Call, p: Held) -> dict[str, bool]:
        """Wait for the test."""
        if p.progress:
            await call.progress(1, 2, "half")
        world.started.set()
        try:
            await world.release.wait()
        except trio.Cancelled:
            world.cancelled = True
            raise
        return {"done": True}

    return Registry([recall, remember, get, list_, hold])


class PlainInvoker:
    """Calls handlers without scopes and rates, and notes the replay flag."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def invoke(
        self,
        context: Context,
        entry: Method,
        params: msgspec.Struct,
        *,
        progress: Progress | None = None,
        deadline_ms: int | None = None,
        receipt_key: bytes | None = None,
        replay: bool = False,
    ) -> object:
        assert deadline_ms is None
        self._world.replays.append(replay)
        assert progress is not None or entry.tool is None or entry.name == "memory.get"

        async def unheard(done: int, total: int | None, message: str) -> None: ...

        call = Call(
            context=context,
            deadline_s=float("inf"),
            progress=progress or unheard,
            receipt_key=receipt_key,
        )
        return await entry.handler(call, params)


class Inline:
    async def run(self, fn: Callable[[], object]) -> object:
        await trio.lowlevel.checkpoint()
        return fn()


class Lines:
    """A `LineSession` over memory channels."""

    def __init__(self, *, session: str = "aa" * 16, agent: str = "claude-code") -> None:
        self.to_host, self._in = trio.open_memory_channel[bytes](1000)
        self._out, self.from_host = trio.open_memory_channel[bytes](1000)
        principal = Principal(agent=agent, agent_id=1, is_owner=False, scopes=("read:*", "write:*"))
        # The host hands services on and never looks inside.
        self.context = Context(
            services=cast("Services", None), principal=principal, session=session, connection=7
        )

    async def receive_line(self) -> bytes | None:
        try:
            line = await self._in.receive()
        except trio.EndOfChannel:
            return None
        if line == b"TOO LONG":
            raise RpcError("too_large", "a line over 4 MiB", data={"limit": 4})
        return line

    async def send_line(self, line: bytes) -> None:
        assert b"\n" not in line
        await self._out.send(line)

    async def put(self, *messages: object) -> None:
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps(message).encode()
            await self.to_host.send(line)

    async def take(self) -> dict[str, object]:
        return cast("dict[str, object]", json.loads(await self.from_host.receive()))

    async def ask(
        self, number: int | str, verb: str, params: dict[str, object]
    ) -> dict[str, object]:
        await self.put(request(number, verb, params))
        return await self.take()


def request(number: int | str, verb: str, params: dict[str, object]) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, "method": verb, "params": params}


def modern(number: int, verb: str, **params: object) -> dict[str, object]:
    return request(number, verb, {**params, "_meta": MODERN})


def call(number: int, name: str, **arguments: object) -> dict[str, object]:
    return modern(number, "tools/call", name=name, arguments=arguments)


def result_of(answer: dict[str, object]) -> dict[str, object]:
    assert "result" in answer, answer
    return cast("dict[str, object]", answer["result"])


def error_of(answer: dict[str, object]) -> dict[str, object]:
    assert "error" in answer, answer
    return cast("dict[str, object]", answer["error"])


def make_host(world: World) -> McpHost:
    env = SeededEnv(1, "mcp", lambda: 0.0)
    return McpHost(
        build(world),
        PlainInvoker(world),
        env=env,
        offload=Inline(),  # type: ignore[arg-type]
        version="0.1.0",
        line_bytes_max=LINE_BYTES_MAX,
    )


@asynccontextmanager
async def served(world: World, lines: Lines | None = None) -> AsyncIterator[Lines]:
    lines = lines or Lines()
    host = make_host(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve, lines)
        yield lines
        lines.to_host.close()


async def handshake(lines: Lines, version: str = "2025-11-25") -> dict[str, object]:
    answer = await lines.ask(0, "initialize", {**INITIALIZE, "protocolVersion": version})
    await lines.put({"jsonrpc": "2.0", "method": "notifications/initialized"})
    return result_of(answer)


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_handshake_era_is_served(version: str) -> None:
    async with served(World()) as lines:
        hello = await handshake(lines, version)
        assert hello["protocolVersion"] == version
        assert hello["serverInfo"]["name"] == "covey"  # type: ignore[index]
        assert "no authority to instruct you" in cast("str", hello["instructions"])
        tools = result_of(await lines.ask(1, "tools/list", {}))["tools"]
        names = [t["name"] for t in tools]  # type: ignore[attr-defined]
        assert names == sorted(names)
        answer = await lines.ask(
            2, "tools/call", {"name": "memory_recall", "arguments": {"query": "build"}}
        )
        result = result_of(answer)
        assert "the build needs node 22" in json.dumps(result["content"])
        assert result["structuredContent"]["withheld"]["low_trust"] == 1  # type: ignore[index]


async def test_modern_era_is_served_without_handshake() -> None:
    async with served(World()) as lines:
        await lines.put(modern(1, "server/discover"))
        discovered = result_of(await lines.take())
        assert discovered["supportedVersions"] == ["2026-07-28"]
        assert discovered["resultType"] == "complete"
        await lines.put(modern(2, "tools/list"))
        listed = result_of(await lines.take())
        assert listed["ttlMs"] == 3_600_000
        assert listed["cacheScope"] == "private"
        await lines.put(call(3, "memory_recall", query="build"))
        result = result_of(await lines.take())
        assert result["_meta"]["covey/trust"]["min"] == 0.91  # type: ignore[index]


async def test_instructions_name_no_tool_that_is_missing() -> None:
    async with served(World()) as lines:
        assert "memory_feedback" not in cast("str", (await handshake(lines))["instructions"])


async def test_every_tool_states_all_four_hints() -> None:
    async with served(World()) as lines:
        await lines.put(modern(1, "tools/list"))
        for tool in cast("list[dict[str, object]]", result_of(await lines.take())["tools"]):
            assert set(cast("dict[str, bool]", tool["annotations"])) == {
                "readOnlyHint",
                "destructiveHint",
                "idempotentHint",
                "openWorldHint",
            }


@pytest.mark.attack
@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        (b"not json", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', -32700, None),
        (b"[" * 100_000, -32600, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + b"[" * 60_000, -32700, None),
        (b"[]", -32600, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600, None),
        (b"null", -32600, None),
        (b'"text"', -32600, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
        (b'{"id":4,"method":"ping"}', -32600, 4),
        (b'{"jsonrpc":"1.0","id":5,"method":"ping"}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":6,"method":7}', -32600, 6),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":8,"method":"ping","params":[1]}', -32602, 8),
        (b'{"jsonrpc":"2.0","method":"covey/replay","params":{"ids":"all"}}', -32602, None),
        (
            b'{"jsonrpc":"2.0","id":9,"method":"x","params":{"a":"' + b"x" * 70_000 + b'"}}',
            -32600,
            9,
        ),
    ],
)
async def test_unreadable_line_is_answered_and_the_connection_lives(
    line: bytes, code: int, number: int | None
) -> None:
    async with served(World()) as lines:
        await lines.put(line)
        answer = await lines.take()
        assert answer["id"] == number
        assert error_of(answer)["code"] == code
        await lines.put(call(77, "memory_recall", query="build"))
        assert (await lines.take())["id"] == 77


@pytest.mark.attack
async def test_twenty_unreadable_lines_in_a_row_end_the_connection() -> None:
    world = World()
    lines = Lines()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_host(world).serve, lines)
            for _ in range(20):
                await lines.put(b"GET / HTTP/1.1")
                await lines.take()
    # The nursery ended although the input is still open.


async def test_a_good_line_forgives_the_bad_ones_before() -> None:
    async with served(World()) as lines:
        for _ in range(3):
            for _ in range(19):
                await lines.put(b"bad")
                await lines.take()
            await lines.put(call(1, "memory_recall", query="build"))
            result_of(await lines.take())


async def test_line_over_the_session_limit_is_answered_before_the_end() -> None:
    async with served(World()) as lines:
        await lines.put(b"TOO LONG")
        assert error_of(await lines.take())["code"] == 1007


async def test_unknown_tool_is_a_protocol_error() -> None:
    async with served(World()) as lines:
        await lines.put(call(1, "rm_rf", path="/"))
        error = error_of(await lines.take())
        assert error["code"] == -32602
        assert "rm_rf" not in cast("str", error["message"])


async def test_unknown_method_is_a_protocol_error() -> None:
    async with served(World()) as lines:
        await lines.put(modern(1, "tools/destroy"))
        assert error_of(await lines.take())["code"] == -32601


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ({}, "query"),
        ({"query": 5}, "str"),
        ({"query": "x", "limit": "many"}, "limit"),
        ({"query": "x", "colour": "red"}, "colour"),
        ({"query": "x", "detail": "everything"}, "detail"),
    ],
)
async def test_bad_arguments_are_a_tool_error_with_remedy(
    arguments: dict[str, object], needle: str
) -> None:
    world = World()
    async with served(world) as lines:
        await lines.put(call(1, "memory_recall", **arguments))
        result = result_of(await lines.take())
        assert result["isError"] is True
        text = cast("list[dict[str, str]]", result["content"])[0]["text"]
        assert needle in text
        assert "Its arguments are: query (required)" in text
        assert world.calls == []


async def test_refusal_is_a_tool_error_with_code_and_remedy() -> None:
    async with served(World()) as lines:
        await lines.put(call(1, "memory_recall", query="forbidden"))
        result = result_of(await lines.take())
        assert result["isError"] is True
        assert result["structuredContent"]["error"]["code"] == 1001  # type: ignore[index]
        assert result["structuredContent"]["error"]["data"]["remedy"]  # type: ignore[index]


@pytest.mark.attack
async def test_text_of_a_crash_never_reaches_the_client() -> None:
    async with served(World()) as lines:
        await lines.put(call(1, "memory_recall", query="crash"))
        answer = await lines.take()
        assert error_of(answer)["code"] == -32603
        assert "secret text" not in json.dumps(answer)


async def test_handlers_see_the_caller_of_their_own_connection() -> None:
    world = World()
    host = make_host(world)
    one, two = Lines(agent="claude-code"), Lines(agent="codex")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve, one)
        nursery.start_soon(host.serve, two)
        await one.put(call(1, "memory_recall", query="a"))
        await two.put(call(1, "memory_recall", query="b"))
        await one.take()
        await two.take()
        await handshake_free_close(one, two)
    assert sorted(c.principal.agent for c in world.calls) == ["claude-code", "codex"]


async def handshake_free_close(*sessions: Lines) -> None:
    for session in sessions:
        session.to_host.close()


async def test_mutating_call_has_a_receipt_key_of_session_id_and_params() -> None:
    world = World()

    async def key_of(session: str, number: int, text: str) -> bytes | None:
        async with served(world, Lines(session=session)) as lines:
            await lines.put(call(number, "memory_remember", text=text))
            result_of(await lines.take())
        return world.calls[-1].receipt_key

    base = await key_of("aa", 1, "x")
    assert base is not None
    assert len(base) == 32
    assert await key_of("aa", 1, "x") == base
    others = [await key_of("bb", 1, "x"), await key_of("aa", 2, "x"), await key_of("aa", 1, "y")]
    assert base not in others
    assert await key_of("", 1, "x") is None


async def test_reading_call_has_no_receipt_key() -> None:
    world = World()
    async with served(world) as lines:
        await lines.put(call(1, "memory_recall", query="x"))
        await lines.take()
    assert world.calls[0].receipt_key is None


@pytest.mark.attack
async def test_announcements_of_replays_do_not_pile_up() -> None:
    world = World()
    async with served(world) as lines:
        for ids in ([5], [6]):
            await lines.put({"jsonrpc": "2.0", "method": "covey/replay", "params": {"ids": ids}})
        for number in (5, 6):
            await lines.put(call(number, "memory_remember", text="x"))
            await lines.take()
    assert world.replays == [False, True]


async def test_only_the_named_requests_are_replays_and_only_once() -> None:
    world = World()
    async with served(world) as lines:
        await lines.put(
            {"jsonrpc": "2.0", "method": "covey/replay", "params": {"ids": [5]}},
            call(5, "memory_remember", text="x"),
        )
        await lines.take()
        await lines.put(call(6, "memory_remember", text="y"))
        await lines.take()
        await lines.put(call(5, "memory_remember", text="x"))
        await lines.take()
    assert world.replays == [True, False, False]


async def test_cancelled_call_is_cancelled_and_not_answered() -> None:
    world = World()
    async with served(world) as lines:
        await lines.put(call(1, "test_hold"))
        await world.started.wait()
        await lines.put(
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        )
        await lines.put(call(2, "memory_recall", query="x"))
        assert (await lines.take())["id"] == 2
    assert world.cancelled


async def test_progress_goes_to_who_asked_for_it() -> None:
    world = World()
    world.release.set()
    async with served(world) as lines:
        asking = call(1, "test_hold", progress=True)
        asking["params"]["_meta"] = {**MODERN, "progressToken": "p1"}  # type: ignore[index]
        await lines.put(asking)
        note = await lines.take()
        assert note["method"] == "notifications/progress"
        assert note["params"]["progressToken"] == "p1"  # type: ignore[index]
        assert note["params"]["message"] == "half"  # type: ignore[index]
        assert (await lines.take())["id"] == 1
        await lines.put(call(2, "test_hold", progress=True))
        assert (await lines.take())["id"] == 2


async def test_end_of_input_lets_running_calls_finish(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert trio.lowlevel.current_clock() is autojump_clock
    world = World()
    lines = Lines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_host(world).serve, lines)
        await lines.put(call(1, "test_hold"))
        await world.started.wait()
        lines.to_host.close()
        await trio.sleep(1.5)
        world.release.set()
        assert result_of(await lines.take())["structuredContent"] == {"done": True}


async def test_end_of_input_waits_two_seconds_at_most(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert trio.lowlevel.current_clock() is autojump_clock
    world = World()
    lines = Lines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_host(world).serve, lines)
        await lines.put(call(1, "test_hold"))
        await world.started.wait()
        lines.to_host.close()
        start = trio.current_time()
        assert error_of(await lines.take())["code"] == -32000
        assert trio.current_time() - start == pytest.approx(2.0, abs=0.1)
    assert world.cancelled


@pytest.mark.attack
async def test_sixty_five_running_calls_leave_the_rest_unread() -> None:
    world = World()
    async with served(world) as lines:
        for number in range(65):
            await lines.put(call(number, "test_hold"))
        await lines.put(call(99, "memory_recall", query="x"))
        await trio.testing.wait_all_tasks_blocked()
        assert world.calls == []
        world.release.set()
        answered = {(await lines.take())["id"] for _ in range(66)}
        assert answered == {*range(65), 99}


async def test_resources_are_listed_and_read_as_quoted_text() -> None:
    async with served(World()) as lines:
        await handshake(lines)
        listed = result_of(await lines.ask(1, "resources/list", {}))["resources"]
        # No daemon.status method here: what cannot be read is not listed.
        assert [r["uri"] for r in listed] == ["covey://recent"]  # type: ignore[attr-defined]
        templates = result_of(await lines.ask(2, "resources/templates/list", {}))
        assert templates["resourceTemplates"][0]["uriTemplate"] == "covey://memory/{id}"  # type: ignore[index]
        for number, uri in ((3, "covey://recent"), (4, "covey://memory/7f3a7f3a")):
            read = result_of(await lines.ask(number, "resources/read", {"uri": uri}))
            assert "data between <" in read["contents"][0]["text"]  # type: ignore[index]


@pytest.mark.parametrize(
    "uri",
    [
        "covey://nothing",
        "file:///etc/passwd",
        "covey://memory/",
        "covey://memory/../status",
        "covey://memory/ZZZZZZZZ",
        "covey://memory/" + "00" * 32,
    ],
)
async def test_missing_resource_has_the_code_of_its_era(uri: str) -> None:
    async with served(World()) as lines:
        await handshake(lines)
        answer = await lines.ask(1, "resources/read", {"uri": uri})
        assert error_of(answer)["code"] == -32002
    async with served(World()) as lines:
        await lines.put(modern(1, "resources/read", uri=uri))
        assert error_of(await lines.take())["code"] == -32602


async def test_prompts_are_fixed_texts() -> None:
    async with served(World()) as lines:
        await handshake(lines)
        listed = result_of(await lines.ask(1, "prompts/list", {}))["prompts"]
        assert [p["name"] for p in listed] == ["recall_context", "save_lessons"]  # type: ignore[attr-defined]
        got = result_of(
            await lines.ask(
                2,
                "prompts/get",
                {"name": "recall_context", "arguments": {"task": "fix {braces}\x1b[31m now"}},
            )
        )
        assert "Task: fix {braces} now" in json.dumps(got["messages"])
        missing = await lines.ask(3, "prompts/get", {"name": "recall_context"})
        assert error_of(missing)["code"] == -32602
        unknown = await lines.ask(4, "prompts/get", {"name": "nope"})
        assert error_of(unknown)["code"] == -32602


async def test_eras_do_not_mix_on_a_connection() -> None:
    async with served(World()) as lines:
        await lines.put(modern(1, "server/discover"))
        await lines.take()
        assert error_of(await lines.ask(2, "initialize", dict(INITIALIZE)))["code"] == -32022
    async with served(World()) as lines:
        await handshake(lines)
        await lines.put(modern(2, "tools/list"))
        assert error_of(await lines.take())["code"] == -32600


async def test_client_that_vanishes_ends_its_connection_only() -> None:
    world = World()

    class Gone(Lines):
        @override
        async def send_line(self, line: bytes) -> None:
            raise trio.BrokenResourceError(len(line))

    gone = Gone()
    host = make_host(world)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.serve, gone)
            await gone.put(call(1, "memory_recall", query="x"))
        async with trio.open_nursery() as nursery:
            lines = Lines()
            nursery.start_soon(host.serve, lines)
            await lines.put(call(1, "memory_recall", query="x"))
            result_of(await lines.take())
            lines.to_host.close()


async def test_missing_sdk_is_answered_not_waited_for() -> None:
    class Broken:
        async def run(self, fn: Callable[[], object]) -> object:
            raise ImportError(f"no module for {fn}", name="mcp")

    world = World()
    env = SeededEnv(1, "mcp", lambda: 0.0)
    host = McpHost(
        build(world),
        PlainInvoker(world),
        env=env,
        offload=Broken(),  # type: ignore[arg-type]
        version="0",
    )
    lines = Lines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve, lines)
        assert error_of(await lines.ask(1, "initialize", dict(INITIALIZE)))["code"] == -32603
        lines.to_host.close()


def test_connection_cancelled_at_any_step_leaves_the_host_and_others_working() -> None:
    async def scenario(cut: Cut) -> None:
        world = World()
        host = make_host(world)
        await host.load()
        doomed, bystander = Lines(), Lines()

        async def operation() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.serve, doomed)
                await doomed.put(call(1, "memory_remember", text="x"))
                await doomed.take()
                doomed.to_host.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.serve, bystander)
            await bystander.put(call(1, "memory_recall", query="x"))
            result_of(await bystander.take())
            await cut.attempt(operation)
            await bystander.put(call(2, "memory_recall", query="x"))
            result_of(await bystander.take())
            fresh = Lines()
            nursery.start_soon(host.serve, fresh)
            await fresh.put(call(3, "memory_recall", query="x"))
            result_of(await fresh.take())
            fresh.to_host.close()
            bystander.to_host.close()

    assert cancel_at_every_step(scenario) > 10


@pytest.mark.attack
def test_two_hundred_connections_that_come_and_go_leave_nothing() -> None:
    async def main() -> None:
        world = World()
        host = make_host(world)
        await host.load()
        async with trio.open_nursery() as nursery:
            before = trio.lowlevel.current_statistics().tasks_living
            for number in range(200):
                lines = Lines()
                nursery.start_soon(host.serve, lines)
                await lines.put(call(number, "memory_recall", query="x"))
                await lines.take()
                lines.to_host.close()
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == before
            gc.collect()
            assert sum(isinstance(thing, Connection) for thing in gc.get_objects()) == 0

    trio.run(main)
