"""The local socket: what it serves, and every cap attacked."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from daemon.rpc import server as server_module
from daemon.rpc.connection import UNSENT_BYTES_MAX
from daemon.rpc.dispatch import receipt_key
from daemon.rpc.jsonrpc import BAD_LINES_MAX, DEPTH_MAX
from daemon.rpc.limits import Bucket
from tests.helpers.rpc_kit import RawClient, Refused, config_with, running_kit

if TYPE_CHECKING:
    from daemon.rpc.session import LineSession


async def test_hello_says_who_the_client_is(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = RawClient(await kit.raw())
        answer = await client.call("rpc.hello", {"client": "test", "api": [1, 0]})
        assert isinstance(answer, dict)
        assert answer["server"] == "covey"
        assert answer["agent"] == ""
        assert answer["pid"] == os.getpid()
        assert answer["node_id"] == bytes(range(32)).hex()


async def test_a_request_is_answered_by_its_id(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        first = await client.request("test.echo", {"text": "a"}, id="x")
        second = await client.request("test.echo", {"text": "b"}, id=7)
        assert await client.answer(first) == {"text": "a", "agent": ""}
        assert await client.answer(second) == {"text": "b", "agent": ""}


async def test_many_lines_in_one_write_are_all_answered(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        lines = [
            json.dumps(
                {"jsonrpc": "2.0", "id": i, "method": "test.echo", "params": {"text": str(i)}}
            )
            for i in range(300)
        ]
        await client.stream.send_all(("\n".join(lines) + "\n").encode())
        seen = set()
        while len(seen) < 300:
            message = await client.line()
            assert message is not None
            seen.add(message["id"])
        assert seen == set(range(300))


async def test_a_line_cut_anywhere_is_read_whole(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        line = b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":{"text":"\xc3\xa4"}}\n'
        for cut in (1, 20, len(line) - 6, len(line) - 1):
            await client.stream.send_all(line[:cut])
            await trio.testing.wait_all_tasks_blocked(0.001)
            await client.stream.send_all(line[cut:])
            assert await client.answer(1) == {"text": "ä", "agent": ""}


async def test_discover_describes_every_method(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        document = await client.call("rpc.discover")
        assert isinstance(document, dict)
        assert document["openrpc"] == "1.3.2"
        names = [entry["name"] for entry in document["methods"]]
        assert names == sorted(entry.name for entry in kit.services.registry)
        echo = next(entry for entry in document["methods"] if entry["name"] == "test.echo")
        assert [(p["name"], p["required"]) for p in echo["params"]] == [
            ("text", True),
            ("times", False),
        ]


async def test_a_notification_gets_no_answer(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        await client.send(b'{"jsonrpc":"2.0","method":"test.echo","params":{"text":"x"}}')
        await client.send(b'{"jsonrpc":"2.0","method":"test.nothing"}')
        assert await client.call("test.echo", {"text": "after"}) == {"text": "after", "agent": ""}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"not json", -32700),
        (b"\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping"', -32700),
        (b"[]", -32600),
        (b"[1]", -32600),
        (b"null", -32600),
        (b"3", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"rpc.ping"}', -32600),
        (b'{"id":1,"method":"rpc.ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"rpc.ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"rpc.ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":[1],"method":"rpc.ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"no.such"}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":[1]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":{}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":{"text":1}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":{"text":"a","b":1}}', -32602),
        (
            (
                b'{"jsonrpc":"2.0","id":1,"method":"test.echo",'
                b'"params":{"text":"a","_meta":{"deadline_ms":-1}}}'
            ),
            -32602,
        ),
        (b'{"jsonrpc":"2.0","id":1,"method":"rpc.hello","params":{}}', 1005),
        (b'{"jsonrpc":"2.0","id":"' + b"x" * 200 + b'","method":"rpc.ping"}', -32600),
    ],
)
@pytest.mark.attack
async def test_a_bad_line_is_refused_and_the_next_is_served(
    tmp_path: Path, line: bytes, code: int
) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        await client.send(line)
        message = await client.line()
        assert message is not None
        error = message["error"]
        assert isinstance(error, dict)
        assert error["code"] == code
        assert error["data"]["remedy"]
        assert await client.call("test.echo", {"text": "still"}) == {"text": "still", "agent": ""}


@pytest.mark.attack
async def test_deep_nesting_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        deep = b"[" * 100_000 + b"]" * 100_000
        await client.send(
            b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":{"text":' + deep + b"}}"
        )
        message = await client.line()
        assert message is not None
        assert message["error"]["code"] == -32600  # type: ignore[index]
        fine = "[" * (DEPTH_MAX * 2)
        assert await client.call("test.echo", {"text": fine}) == {"text": fine, "agent": ""}


@pytest.mark.attack
async def test_twenty_bad_lines_in_a_row_end_the_connection(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        for _ in range(BAD_LINES_MAX - 1):
            await client.send(b"GET / HTTP/1.1")
        assert await client.call("test.echo", {"text": "a"})
        for _ in range(BAD_LINES_MAX):
            await client.send(b"GET / HTTP/1.1")
        assert await client.ended()


@pytest.mark.attack
async def test_an_endless_line_ends_the_connection_within_its_cap(tmp_path: Path) -> None:
    async with running_kit(tmp_path, config_with(line_bytes_max=8192)) as kit:
        client = await kit.client()
        bystander = await kit.client()
        try:
            for _ in range(100):
                await client.stream.send_all(b"x" * 4096)
        except trio.BrokenResourceError:
            pass
        message = await client.line()
        if message is not None:
            assert message["error"]["code"] == 1007  # type: ignore[index]
            assert message["error"]["data"]["limit"] == 8192  # type: ignore[index]
        assert await client.ended()
        assert await bystander.call("test.echo", {"text": "b"})


@pytest.mark.attack
async def test_the_first_line_must_be_a_hello(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        for line in (
            b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":{"text":"a"}}',
            b"GET / HTTP/1.1",
            b'{"jsonrpc":"2.0","method":"rpc.hello","params":{}}',
            b"x" * 9000,
        ):
            client = RawClient(await kit.raw())
            await client.send(line)
            message = await client.line()
            assert message is not None
            assert "error" in message
            assert await client.ended()


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"api": [2, 0]}, 1002),
        ({"dialect": "smtp"}, -32602),
        ({"token": "cvy_wrong"}, 1000),
        ({"agent": "../etc"}, -32602),
        ({"session": "zz"}, -32602),
        ({"session": "a" * 65}, -32602),
        ({"client": "a\x1b[31m"}, -32602),
        ({"project": "a b"}, -32602),
        ({"surprise": 1}, -32602),
    ],
)
@pytest.mark.attack
async def test_a_bad_hello_is_refused_with_its_reason(
    tmp_path: Path, params: dict[str, object], code: int
) -> None:
    async with running_kit(tmp_path) as kit:
        client = RawClient(await kit.raw())
        with pytest.raises(Refused) as refused:
            await client.call("rpc.hello", params)  # type: ignore[arg-type]
        assert refused.value.code == code
        assert await client.ended()


@pytest.mark.attack
async def test_who_says_nothing_is_closed_after_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HELLO_S", 0.05)
    async with running_kit(tmp_path) as kit:
        silent = RawClient(await kit.raw())
        half = RawClient(await kit.raw())
        await half.stream.send_all(b'{"jsonrpc":')
        assert await silent.ended()
        assert await half.ended()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert kit.server.connections == 0


@pytest.mark.attack
async def test_connections_over_the_cap_are_closed_and_others_served(tmp_path: Path) -> None:
    async with running_kit(tmp_path, config_with(connections_max=3)) as kit:
        clients = [await kit.client() for _ in range(3)]
        extra = RawClient(await kit.raw())
        assert await extra.ended()
        assert await clients[0].call("test.echo", {"text": "a"})
        await clients[1].stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        again = await kit.client()
        assert await again.call("test.echo", {"text": "b"})


@pytest.mark.attack
async def test_requests_over_the_cap_are_left_unread(tmp_path: Path) -> None:
    async with running_kit(tmp_path, config_with(in_flight_max=4)) as kit:
        client = await kit.client()
        for i in range(4):
            await client.request("test.hang", {"_meta": {"progress": True}}, id=f"h{i}")
        for _ in range(4):
            message = await client.line()
            assert message is not None
            assert message["method"] == "rpc.progress"
        await client.request("test.echo", {"text": "late"}, id="late")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert kit.dispatcher.in_flight == 4
        bystander = await kit.client()
        assert await bystander.call("test.echo", {"text": "b"})


@pytest.mark.attack
async def test_a_client_that_does_not_read_is_cut_off_and_others_are_served(
    tmp_path: Path,
) -> None:
    async with running_kit(tmp_path) as kit:
        lazy = await kit.client()
        bystander = await kit.client()
        megabyte = {"text": "x" * 1024, "times": 1024}
        for _ in range(64):
            try:
                await lazy.request("test.echo", megabyte)
            except trio.BrokenResourceError:
                break
            assert await bystander.call("test.echo", {"text": "b"})
        with trio.fail_after(5):
            while kit.server.connections > 1:
                assert await bystander.call("test.echo", {"text": "b"})


async def test_a_large_answer_arrives_whole_however_the_kernel_cuts_it(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        for size in (1, 4096, 200_000, 1_000_000):
            wanted = {"text": "abcde" * size, "agent": ""}
            assert await client.call("test.echo", {"text": "abcde", "times": size}) == wanted
        both = [
            await client.request("test.echo", {"text": letter, "times": 500_000}) for letter in "xy"
        ]
        answers: dict[object, object] = {}
        while len(answers) < len(both):
            message = await client.line()
            assert message is not None
            answers[message["id"]] = message["result"]
        texts = [str(answers[request]["text"]) for request in both]  # type: ignore[index]
        assert texts == ["x" * 500_000, "y" * 500_000]


async def test_an_answer_too_large_to_send_is_an_error_instead(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        with pytest.raises(Refused) as refused:
            await client.call("test.echo", {"text": "x" * 1024, "times": UNSENT_BYTES_MAX // 1000})
        assert refused.value.code == 1007


async def test_a_request_is_cancelled_by_its_id(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        await client.request("test.hang", {"_meta": {"progress": True}}, id="h")
        assert await client.line() is not None
        assert await client.call("rpc.cancel", {"id": "nobody"}) == {"cancelled": False}
        cancel = await client.request("rpc.cancel", {"id": "h"})
        answers = [await client.line(), await client.line()]
        by_id = {message["id"]: message for message in answers if message}
        assert by_id[cancel]["result"] == {"cancelled": True}
        assert by_id["h"]["error"]["code"] == 1009  # type: ignore[index]


async def test_a_deadline_ends_the_request(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        with pytest.raises(Refused) as refused:
            await client.call("test.hang", {"_meta": {"deadline_ms": 20}})
        assert refused.value.code == 1008


async def test_a_closed_client_ends_its_requests_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.rpc.jsonrpc.EOF_GRACE_S", 0.05)
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        await client.request("test.hang", {"_meta": {"progress": True}})
        assert await client.line() is not None
        await client.stream.aclose()
        with trio.fail_after(5):
            await kit.dispatcher.wait_idle()


async def test_a_half_closed_client_still_gets_its_answers(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        request = await client.request("test.echo", {"text": "last"})
        await client.stream.send_eof()
        assert await client.answer(request) == {"text": "last", "agent": ""}
        assert await client.ended()


async def test_an_id_at_work_cannot_be_used_again(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        await client.request("test.hang", {"_meta": {"progress": True}}, id="h")
        assert await client.line() is not None
        await client.request("test.echo", {"text": "a"}, id="h")
        message = await client.line()
        assert message is not None
        assert message["error"]["code"] == -32600  # type: ignore[index]


@pytest.mark.attack
async def test_a_fault_inside_reaches_the_client_without_its_text(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        with pytest.raises(Refused) as refused:
            await client.call("test.boom")
        assert refused.value.code == -32603
        assert "sentinel" not in str(refused.value)
        assert kit.dispatcher.bugs == 1
        with pytest.raises(Refused) as refused:
            await client.call("test.refuse")
        assert refused.value.code == 1003


def names_in(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


async def test_the_socket_and_its_folder_are_ours_alone(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        assert stat.S_IMODE(os.lstat(kit.socket).st_mode) == 0o600
        assert stat.S_IMODE(os.lstat(kit.services.paths.runtime).st_mode) == 0o700
        assert names_in(kit.services.paths.runtime) == ["daemon.sock"]
    assert names_in(kit.services.paths.runtime) == []


async def test_a_socket_left_by_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    import socket

    folder = tmp_path / "h" / "run"
    folder.mkdir(parents=True, mode=0o700)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(folder / "daemon.sock"))
    dead.close()
    async with running_kit(tmp_path) as kit:
        assert await (await kit.client()).call("rpc.ping")


@pytest.mark.attack
async def test_a_token_confines_its_agent(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        token = await kit.services.agents.add("helper", ["read:*"])
        client = await kit.client(token=token)
        assert await client.call("test.echo", {"text": "a"}) == {"text": "a", "agent": "helper"}
        for name, scope in (("test.write", "write"), ("test.admin", "admin")):
            with pytest.raises(Refused) as refused:
                await client.call(name, {"text": "x"} if name == "test.write" else None)
            assert refused.value.code == 1001
            assert refused.value.error["data"]["scope"] == scope  # type: ignore[index]
        with pytest.raises(Refused) as refused:
            await client.call("test.person")
        assert refused.value.code == 1001
        owner = await kit.client()
        assert await owner.call("test.person") == {}


@pytest.mark.attack
async def test_a_revoked_token_ends_at_once_also_on_open_connections(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        token = await kit.services.agents.add("helper", [])
        client = await kit.client(token=token)
        await kit.services.agents.revoke("helper")
        with pytest.raises(Refused) as refused:
            await client.call("test.echo", {"text": "a"})
        assert refused.value.code == 1000
        with pytest.raises(Refused) as refused:
            await kit.client(token=token)
        assert refused.value.code == 1000


@pytest.mark.attack
async def test_an_agent_that_writes_too_fast_is_told_to_wait(tmp_path: Path) -> None:
    slow = config_with(write_rate_per_s=0.001, write_burst=3)
    async with running_kit(tmp_path, slow) as kit:
        client = await kit.client(agent="busy")
        for _ in range(3):
            await client.call("test.write", {"text": "x"})
        with pytest.raises(Refused) as refused:
            await client.call("test.write", {"text": "x"})
        assert refused.value.code == 1006
        assert refused.value.error["data"]["retry_ms"] > 0  # type: ignore[index]
        owner = await kit.client()
        for _ in range(5):
            await owner.call("test.write", {"text": "x"})


def test_a_bucket_refills_and_lets_one_large_batch_through() -> None:
    now = [0.0]
    bucket = Bucket(10, 20, lambda: now[0])
    assert bucket.take(20) == 0
    assert bucket.take() == 100
    now[0] = 2.0
    assert bucket.take(256) == 0
    assert bucket.take() > 20_000


async def test_a_replayed_write_answers_from_its_receipt(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client(session="ab")
        first = await client.answer(await client.request("test.write", {"text": "x"}, id=5))
        again = await kit.client(session="ab")
        replay = {"text": "x", "_meta": {"replay": True}}
        assert await again.answer(await again.request("test.write", replay, id=5)) == first
        other = {"text": "y", "_meta": {"replay": True}}
        assert await again.answer(await again.request("test.write", other, id=5)) == {"count": 2}
        stranger = await kit.client(session="cd")
        assert await stranger.answer(await stranger.request("test.write", replay, id=5)) == {
            "count": 3
        }


def test_receipt_keys_tell_ids_and_sessions_apart() -> None:
    keys = {
        receipt_key("a", "1", b"{}"),
        receipt_key("a", "'1'", b"{}"),
        receipt_key("b", "1", b"{}"),
        receipt_key("a", "1", b"{ }"),
        receipt_key("a1", "", b"{}"),
    }
    assert len(keys) == 5
    assert receipt_key("", "1", b"{}") is None


async def test_draining_refuses_new_calls_and_finishes_old_ones(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        await client.request("test.hang", {"_meta": {"progress": True}}, id="h")
        assert await client.line() is not None
        kit.dispatcher.drain()
        with pytest.raises(Refused) as refused:
            await client.call("test.echo", {"text": "a"})
        assert refused.value.code == 1010
        assert kit.dispatcher.in_flight == 1
        assert await client.call("rpc.ping")


async def test_events_reach_their_subscribers(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        hub = kit.services.events
        hub.publish("memory.stored", {"ids": [b"\x01"]})
        subscribed = await client.call(
            "events.subscribe", {"topics": ["memory"], "since": {"epoch": "boot", "seq": 0}}
        )
        assert subscribed == {"sub": 1, "epoch": "boot", "seq": 1, "reset": False}
        hub.publish("peer.up", {"peer": b"\x02"})
        hub.publish("memory.forgotten", {"ids": ["ab"]})
        names = []
        for _ in range(2):
            message = await client.line()
            assert message is not None
            assert message["method"] == "event"
            names.append((message["params"]["name"], message["params"]["data"]))  # type: ignore[index]
        assert names == [
            ("memory.stored", {"ids": ["01"]}),
            ("memory.forgotten", {"ids": ["ab"]}),
        ]
        assert await client.call("events.unsubscribe", {"sub": 1}) == {"ended": True}
        assert await client.call("events.unsubscribe", {"sub": 1}) == {"ended": False}


async def test_another_boot_or_a_gap_resets_a_subscription(tmp_path: Path) -> None:
    async with running_kit(tmp_path) as kit:
        client = await kit.client()
        for since in ({"epoch": "older", "seq": 0}, {"epoch": "boot", "seq": 99}):
            answer = await client.call("events.subscribe", {"topics": ["memory"], "since": since})  # type: ignore[dict-item]
            assert isinstance(answer, dict)
            assert answer["reset"] is True
        with pytest.raises(Refused) as refused:
            await client.call("events.subscribe", {"topics": ["gossip"]})
        assert refused.value.code == -32602
        agent = await kit.client(agent="helper")
        with pytest.raises(Refused) as refused:
            await agent.call("events.subscribe", {"topics": ["agent"]})
        assert refused.value.code == 1001


class _Upper:
    """A dialect that answers lines in upper case."""

    async def serve(self, session: LineSession) -> None:
        while (line := await session.receive_line()) is not None:
            await session.send_line(line.upper() + session.context.principal.agent.encode())


async def test_the_mcp_dialect_gets_the_lines(tmp_path: Path) -> None:
    async with running_kit(tmp_path, mcp=_Upper()) as kit:
        client = await kit.client(dialect="mcp", agent="claude")
        await client.send(b'"abc"')
        data = b""
        while not data.endswith(b"\n"):
            data += await client.stream.receive_some(100)
        assert data == b'"ABC"claude\n'
