"""A whole daemon under attack: a real process, real sockets. It serves throughout and after.

What each part does with hostile input is tested beside the part; here is what the parts make
together. Every test ends by asking the same daemon for something.
"""

from __future__ import annotations

import json
import struct
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import trio

from daemon.client import CallFailed, LocalClient
from memory.bodies import NoteBody, ProfileBody, encode_body
from p2p.identity import PeerId
from p2p.replication.messages import FRAME_BYTES_MAX
from p2p.wire.session import Phase, Session
from tests.helpers.attackers import (
    LocalSocket,
    counters,
    joined_guest,
    knock,
    port_of,
    throw,
    vitals,
    wait_until_as_before,
)
from tests.helpers.daemons import Home, wait_until
from tests.helpers.hostile import Pen, forged
from tests.helpers.need import need
from tests.helpers.wire_kit import RawPeer, identity

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator

    from daemon.json_types import Json

pytestmark = pytest.mark.attack

# As between machines, but for loopback: limits by address hold, and a stranger's time is short.
FORTRESS = """\
[node]
name = "fortress"
[log]
level = "debug"
[p2p]
listen = ["/ip4/127.0.0.1/tcp/0"]
draw_port = false
limit_loopback = true
private_is_public = true
upgrade_deadline_s = 1.0
"""


@pytest.fixture(scope="module")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One daemon for all attacks of this module: what one leaves behind, the next would meet."""
    made = Home(tmp_path_factory.mktemp("fortress") / "h", "fortress")
    (made.folder / "config.toml").write_text(FORTRESS)
    made.up()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def port(fortress: Home) -> int:
    need("linux")  # every address of 127.0.0.0/8 is there, so that attackers have some of their own
    wait_until("the daemon listens", lambda: _listens(fortress))
    return port_of(fortress)


def _listens(home: Home) -> bool:
    status = home.json("rpc", "net.status")
    assert isinstance(status, dict)
    return bool(status["listen"])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A daemon of the test's own."""
    made = Home(tmp_path / "h", "victim")
    yield made
    made.stop()


def still_serves(home: Home, pid: int) -> None:
    """The same process answers, stores and finds, and counted no fault of its own."""
    assert home.pid == pid
    with LocalSocket(home) as local:
        assert "result" in local.greet()
        stored = local.call("memory.remember", {"text": "the daemon still serves"})
        assert "result" in stored
        found = local.call("memory.recall", {"query": "daemon still serves"})
        assert "the daemon still serves" in json.dumps(found)
        status = local.call("net.status")["result"]
    assert isinstance(status, dict)
    assert cast("dict[str, int]", status["counters"]).get("bug", 0) == 0
    bad = [line for line in home.log() if line["level"] in {"error", "critical"}]
    assert not bad, bad


def pid_of(home: Home) -> int:
    assert home.pid is not None
    return home.pid


# --- bytes at the port -----------------------------------------------------------------------


def line(text: str) -> bytes:
    """A line of multistream-select."""
    data = text.encode() + b"\n"
    assert len(data) < 128
    return bytes([len(data)]) + data


GREETING = line("/multistream/1.0.0")
NOISE = GREETING + line("/noise")

PORT_GARBAGE = {
    "random": bytes(range(256)) * 40,
    "http": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "tls": bytes.fromhex("160301020001000301fc0303") + bytes(600),
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "truncated greeting": GREETING[:7],
    "oversize line": b"\xff\xff\xff\xff\x07" + b"a" * 5000,
    "endless varint": b"\xff" * 4096,
    "truncated noise frame": NOISE + b"\x00\x20" + bytes(7),
    "oversize noise frame": NOISE + b"\xff\xff" + bytes(70_000),
    "zero noise frame": NOISE + b"\x00\x00",
    "low-order point 0": NOISE + b"\x00\x20" + bytes(32),
    "low-order point 1": NOISE + b"\x00\x20" + b"\x01" + bytes(31),
    "low-order point p": NOISE + b"\x00\x20" + b"\xed" + b"\xff" * 30 + b"\x7f",
    "message 3 that does not open": NOISE + b"\x00\x20" + b"\x09" + bytes(31)
    + b"\x00\xc8" + bytes(200),
}  # fmt: skip


@pytest.mark.parametrize("name", PORT_GARBAGE)
def test_bytes_that_prove_nothing_are_dropped(fortress: Home, port: int, name: str) -> None:
    pid, before = pid_of(fortress), counters(fortress).get("handshakes_failed", 0)
    source = f"127.1.{list(PORT_GARBAGE).index(name)}.1"
    got = throw(port, PORT_GARBAGE[name], source)
    # At most the two lines of the selection and the daemon's half of a handshake.
    assert got.startswith(GREETING[: len(got)])
    assert len(got) <= len(NOISE) + 2 + 4096
    wait_until(
        "the failure is counted",
        lambda: counters(fortress).get("handshakes_failed", 0) == before + 1,
    )
    still_serves(fortress, pid)


@pytest.mark.parametrize(
    "offer", ["/plaintext/2.0.0", "/tls/1.0.0", "/secio/1.0.0", "/mplex/6.7.0"]
)
def test_no_other_security_than_noise_is_agreed_on(fortress: Home, port: int, offer: str) -> None:
    pid, before = pid_of(fortress), counters(fortress).get("peers_up", 0)
    source = f"127.2.{len(offer)}.1"
    assert throw(port, GREETING + line(offer), source) == GREETING + line("na")
    # py-libp2p takes plaintext under any claimed id by default: the claim must not be read at all.
    claim = bytes([38, 8, 1, 18, 32]) + Liar.id
    got = throw(port, GREETING + line(offer) + bytes([len(claim)]) + claim, source)
    assert got in {b"", GREETING, GREETING + line("na")}
    assert counters(fortress).get("peers_up", 0) == before
    still_serves(fortress, pid)


class Liar:
    """Claims the identity of another and signs with its own key."""

    id = identity(41).id

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Not the signature of `id`."""
        return identity(42).sign(domain, body)


class SmallOrder:
    """Claims a key under which one signature verifies for every message."""

    id = (1).to_bytes(32, "little")

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Verifies wherever small-order keys are let through."""
        del domain, body
        return (1).to_bytes(32, "little") + bytes(32)


def shake_hands(port: int, source: str, liar: object) -> bytes:
    """Play the dialler's side of the handshake as `liar`; what came after its last message."""
    session = Session(liar, initiator=True, static=b"s" * 32, ephemeral=b"e" * 32)  # type: ignore[arg-type]
    after = b""
    with knock(port, source) as remote:
        remote.settimeout(10)
        remote.sendall(session.to_send(1 << 20))
        try:
            while data := remote.recv(65536):
                if session.phase is Phase.MUXER:
                    after += data
                    continue
                session.receive(data, 0.0)
                if out := session.to_send(1 << 20):
                    remote.sendall(out)
        except ConnectionResetError:
            pass
    return after


@pytest.mark.parametrize("liar", [Liar(), SmallOrder()], ids=["another's id", "small-order id"])
def test_an_identity_without_its_key_gets_nowhere(fortress: Home, port: int, liar: object) -> None:
    pid, before = pid_of(fortress), counters(fortress)
    assert shake_hands(port, f"127.3.{type(liar).__name__.count('a')}.1", liar) == b""
    after = counters(fortress)
    assert after.get("peers_up", 0) == before.get("peers_up", 0)
    assert after["handshakes_failed"] == before.get("handshakes_failed", 0) + 1
    still_serves(fortress, pid)


YAMUX_GARBAGE = {
    "1 GiB frame": struct.pack("!BBHII", 0, 0, 1, 1, 1 << 30) + bytes(1000),
    "unknown version": struct.pack("!BBHII", 9, 0, 0, 1, 0),
    "data on stream 0": struct.pack("!BBHII", 0, 0, 0, 0, 4) + bytes(4),
    "overrun": struct.pack("!BBHII", 0, 0, 1, 1, 0)
    + struct.pack("!BBHII", 0, 0, 0, 1, 262_145) + bytes(262_145),
}  # fmt: skip


@pytest.mark.parametrize("name", YAMUX_GARBAGE)
async def test_a_proven_stranger_with_broken_frames_loses_its_connection(
    fortress: Home, port: int, name: str
) -> None:
    pid = pid_of(fortress)
    before = await trio.to_thread.run_sync(counters, fortress)
    raw = RawPeer(60 + list(YAMUX_GARBAGE).index(name))
    await raw.connect(f"/ip4/127.0.0.1/tcp/{port}")
    with trio.fail_after(10):
        # It may hang up in the middle: better still.
        with suppress(trio.BrokenResourceError):
            await raw.send_frames(YAMUX_GARBAGE[name])
        await raw.read_until_closed()
    await raw.aclose()
    after = await trio.to_thread.run_sync(counters, fortress)
    assert after.get("violations", 0) == before.get("violations", 0) + 1
    still_serves(fortress, pid)


# --- many at once ----------------------------------------------------------------------------


async def test_300_silent_connections_take_no_service_from_anybody(
    fortress: Home, port: int
) -> None:
    pid = pid_of(fortress)
    made = fortress.json("invite", "--no-wait")
    assert isinstance(made, dict)
    me = PeerId(bytes.fromhex(str(cast("dict[str, Json]", fortress.json("status"))["node_id"])))
    async with joined_guest(str(made["ticket"])) as bystander:
        assert await _is_served(bystander.replication, me)
        before = await trio.to_thread.run_sync(vitals, fortress)
        silent: list[socket.socket] = []
        try:
            for number in range(300):
                silent.append(knock(port, f"127.66.0.{number % 7 + 1}"))
                if number % 50 == 0:
                    assert await _is_served(bystander.replication, me)
            # A peer that comes from elsewhere gets in at once, past all who wait.
            newcomer = RawPeer(77)
            with trio.fail_after(5):
                await newcomer.connect(f"/ip4/127.0.0.1/tcp/{port}")
            await newcomer.aclose()
            async with watching(fortress) as client:
                with trio.fail_after(5):
                    await client.call("memory.recall", {"query": "anything"})
                    status = cast("dict[str, dict[str, int]]", await client.call("net.status"))
            turned_away = {k: n for k, n in status["counters"].items() if k.startswith("refused_")}
            assert sum(turned_away.values()) >= 300 - 64, turned_away
            assert await _is_served(bystander.replication, me)
            # The daemon hangs up on every one of them, without a word.
            await trio.to_thread.run_sync(_all_closed, silent)
        finally:
            for one in silent:
                one.close()
        await trio.to_thread.run_sync(wait_until_as_before, fortress, before)
    still_serves(fortress, pid)


async def _is_served(replication: object, peer: PeerId) -> bool:
    sync_now = getattr(replication, "sync_now")  # noqa: B009 - typed where it is made
    with trio.fail_after(5):
        results = await sync_now(None, peer)
    return bool(results)


def _all_closed(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.settimeout(10)
        try:
            assert one.recv(64) in {b"", GREETING}
        except ConnectionResetError:
            continue


@pytest.mark.slow
async def test_200_strangers_that_come_and_go_leave_nothing(home: Home) -> None:
    home.up()
    await trio.to_thread.run_sync(wait_until, "it listens", lambda: _listens(home))
    pid, addr = pid_of(home), f"/ip4/127.0.0.1/tcp/{port_of(home)}"

    async def visit(number: int) -> None:
        raw = RawPeer(number % 200 + 1)
        await raw.connect(addr)
        await raw.aclose()

    for number in range(20):  # caches and pools fill
        await visit(number)
    before = await trio.to_thread.run_sync(vitals, home)
    for number in range(200):
        await visit(number)
    await trio.to_thread.run_sync(wait_until_as_before, home, before)
    closed = [entry for entry in home.log() if entry["event"] == "connection_closed"]
    assert 1 <= len(closed) <= 20, "ten lines a minute, whatever strangers do"
    still_serves(home, pid)


# --- lines at the local socket ---------------------------------------------------------------

FIRST_LINES = {
    "http": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\r\n"
    b'{"jsonrpc":"2.0","id":1,"method":"memory.list","params":{}}\n',
    "garbage": bytes(b for b in range(256) if b != 10) * 4 + b"\n",
    "no hello": b'{"jsonrpc":"2.0","id":1,"method":"memory.list","params":{}}\n',
    "a batch": b'[{"jsonrpc":"2.0","id":1,"method":"rpc.hello","params":{}}]\n',
    "deep": b'{"jsonrpc":"2.0","id":1,"method":"rpc.hello","params":' + b"[" * 4000 + b"\n",
    "oversize": b'{"jsonrpc":"2.0","id":1,"method":"rpc.hello","params":{"client":"'
    + b"a" * 9_000,
    "other major": b'{"jsonrpc":"2.0","id":1,"method":"rpc.hello","params":{"api":[9,0]}}\n',
    "wrong token": b'{"jsonrpc":"2.0","id":1,"method":"rpc.hello","params":{"token":"cvy_'
    + b"a" * 52 + b'"}}\n',
    "token for mcp": b'{"jsonrpc":"2.0","id":1,"method":"rpc.hello",'
    b'"params":{"dialect":"mcp","token":"cvy_x"}}\n',
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_LINES)
def test_a_client_that_does_not_greet_is_told_once_and_closed(fortress: Home, name: str) -> None:
    pid = pid_of(fortress)
    with LocalSocket(fortress) as local:
        local.put(FIRST_LINES[name])
        answer = local.take()
        assert answer is not None, "it is closed, but not without a word"
        assert "result" not in answer
        error = answer["error"]
        assert isinstance(error, dict)
        assert error["code"] != 0
        assert local.take() is None
    still_serves(fortress, pid)


MCP_LINES = [
    (b"\x00\xff\xfe\n", -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 100_000 + b"\n", -32700),
    (b"[" * 100_000 + b"\n", -32600),
    (b"[]\n", -32600),
    (b'{"id":1,"method":"ping"}\n', -32600),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}\n', -32600),
    (b'{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}\n', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}\n', -32602),
    (b'{"jsonrpc":"2.0","method":"covey/replay","params":{"ids":7}}\n', -32602),
]


def test_broken_mcp_lines_are_answered_and_the_connection_goes_on(fortress: Home) -> None:
    pid = pid_of(fortress)
    with LocalSocket(fortress) as local:
        assert "result" in local.greet(dialect="mcp")
        for data, code in MCP_LINES:
            local.put(data)
            answer = local.take()
            assert answer is not None, data[:60]
            error = answer["error"]
            assert isinstance(error, dict)
            assert error["code"] == code, data[:60]
        opened = local.ask({
            "jsonrpc": "2.0", "id": 1, "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25", "capabilities": {},
                "clientInfo": {"name": "attacker", "version": "0"},
            },
        })  # fmt: skip
        assert "result" in opened
        local.put(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        called = local.ask({
            "jsonrpc": "2.0", "id": 2, "method": "tools/call",
            "params": {"name": "memory_remember", "arguments": {"text": 5, "nope": [[[]]]}},
        })  # fmt: skip
        assert cast("dict[str, Json]", called["result"])["isError"] is True
        unknown = local.ask({
            "jsonrpc": "2.0", "id": 3, "method": "tools/call",
            "params": {"name": "../../bin/sh", "arguments": {}},
        })  # fmt: skip
        assert cast("dict[str, Json]", unknown["error"])["code"] == -32602
    still_serves(fortress, pid)


def test_local_attackers_leave_nothing_behind(fortress: Home) -> None:
    pid, before = pid_of(fortress), vitals(fortress)
    for data in FIRST_LINES.values():
        for _ in range(10):
            with LocalSocket(fortress) as local:
                local.put(data)
    wait_until_as_before(fortress, before)
    still_serves(fortress, pid)


# --- records of a member who lies ------------------------------------------------------------

POISON = "poison-of-the-guest"


def note(text: str) -> bytes:
    """The body of a note, as the author's own daemon would write it."""
    return encode_body(
        NoteBody(
            "", "main", "note", "agent", None, text, None, None, 0, 1_700_000_000_000,
            None, None, [], None, None, [], None, None,
        )
    )  # fmt: skip


@asynccontextmanager
async def watching(home: Home) -> AsyncIterator[LocalClient]:
    """A client of the local socket."""
    async with aclosing(
        await LocalClient.connect(str(home.folder / "run" / "daemon.sock"))
    ) as client:
        yield client


async def _event(watcher: LocalClient, name: str) -> dict[str, Json]:
    """The data of the next event of that name."""
    with trio.fail_after(20):
        while True:
            event = await watcher.notification()
            if event.get("name") == name:
                return cast("dict[str, Json]", event["data"])


async def _arrives(watcher: LocalClient, text: str) -> dict[str, Json]:
    """The hit, once a recall finds it."""
    with trio.fail_after(20):
        while True:
            found = await watcher.call("memory.recall", {"query": text, "trust_min": 0})
            for hit in cast("dict[str, list[dict[str, Json]]]", found)["hits"]:
                if text in str(hit["text"]):
                    return hit
            await trio.sleep(0.02)


async def test_records_that_lie_are_refused_counted_and_logged_without_their_text(
    home: Home,
) -> None:
    home.up(COVEY_LOG__LEVEL="debug")
    pid = pid_of(home)
    made = home.json("invite", "--no-wait")
    me = PeerId(bytes.fromhex(str(cast("dict[str, Json]", home.json("status"))["node_id"])))
    async with (
        watching(home) as watcher,
        joined_guest(str(cast("dict[str, Json]", made)["ticket"])) as guest,
    ):
        await watcher.call("events.subscribe", {"topics": ["sync"]})
        await guest.replication.sync_now(guest.group, me)
        pen = Pen(guest, guest.group)
        honest = pen.write(body=note("an honest note of the guest"))
        await guest.push(me, [honest.wire()])
        hit = await _arrives(watcher, "an honest note of the guest")
        assert hit["id"] == honest.id.hex()

        # Said again, it is the same record: no second one, no offence.
        await guest.push(me, [honest.wire(), honest.wire()])
        # From the future it waits apart, and moves no clock.
        ahead = (guest.env.wall_ms() + 86_400_000) << 16
        late = Pen(guest, guest.group, incarnation=78).write(
            body=note(f"{POISON} of tomorrow"), hlc=ahead
        )
        await guest.push(me, [late.wire()])
        assert (await _event(watcher, "clock.skew"))["id"] == late.id.hex()
        # Signed with a wrong key, in another's name, by somebody nobody let in.
        liar = Pen(guest, guest.group, incarnation=79).write(body=note(POISON))
        await guest.push(me, [forged(liar)])
        assert (await _event(watcher, "record.refused"))["reason"] == "signature"
        nobody = RawPeer(90).identity
        strange = Pen(guest, guest.group, identity=nobody).write(body=note(POISON))
        await guest.push(me, [strange.wire()])
        assert (await _event(watcher, "record.refused"))["reason"] == "stranger"
        # Bytes that are no record end their stream.
        await guest.push_bytes(me, FRAME_BYTES_MAX.to_bytes(4, "big") + POISON.encode() * 3000)
        await guest.push_bytes(me, b"\xff\xff\xff\xff" + POISON.encode())
        # The third lie ends the acquaintance for a while.
        await guest.push(me, [forged(liar)])
        assert (await _event(watcher, "record.refused"))["reason"] == "signature"

        for record in (late, liar, strange):
            with pytest.raises(CallFailed):
                await watcher.call("memory.get", {"ids": [record.id.hex()]})
        found = await watcher.call("memory.recall", {"query": POISON, "trust_min": 0})
        assert POISON not in json.dumps(found)
        status = cast("dict[str, dict[str, int]]", await watcher.call("net.status"))
        assert status["counters"]["records_refused"] == 3
    refused = [entry for entry in home.log() if entry["event"] == "record_refused"]
    assert [entry["reason"] for entry in refused] == ["signature", "stranger", "signature"]
    assert all(entry["peer"] == guest.id.hex()[:16] for entry in refused)
    assert POISON not in (home.folder / "state" / "logs" / "covey.log").read_text()
    still_serves(home, pid)


async def test_a_backdated_record_gives_nobody_a_right(home: Home) -> None:
    """A guest invites an accomplice with a date at which, it says, it was allowed to."""
    from p2p.replication.ops import Grant, Kind, Role, encode_payload

    home.up()
    pid = pid_of(home)
    made = home.json("invite", "--no-wait", "--role", "write")
    me = PeerId(bytes.fromhex(str(cast("dict[str, Json]", home.json("status"))["node_id"])))
    async with (
        watching(home) as watcher,
        joined_guest(str(cast("dict[str, Json]", made)["ticket"])) as guest,
    ):
        members = await watcher.call("group.members", {"group": "home"})
        accomplice = RawPeer(91).identity
        grant = encode_payload(Grant(accomplice.id, Role.ADMIN))
        early = Pen(guest, guest.group).write(
            Kind.GRANT, grant, auth=(guest.group,), hlc=(1 << 16) * 1_700_000_000_001
        )
        late = Pen(guest, guest.group, incarnation=78).write(Kind.GRANT, grant)
        for record in (early, late):
            await guest.push(me, [record.wire()])
        # What the accomplice says on the strength of that grant.
        said = Pen(guest, guest.group, identity=accomplice).write(
            body=note(POISON), auth=(early.id,)
        )
        await guest.push(me, [said.wire()])
        assert await watcher.call("group.members", {"group": "home"}) == members
        found = await watcher.call("memory.recall", {"query": POISON, "trust_min": 0})
        assert POISON not in json.dumps(found)
    still_serves(home, pid)


# --- secrets ---------------------------------------------------------------------------------

TOPICS: list[Json] = [
    "memory", "peer", "group", "sync", "trust", "job", "round", "health", "config", "agent",
    "audit",
]  # fmt: skip


def test_texts_tokens_and_tickets_reach_no_log_event_error_or_process_list(home: Home) -> None:
    text, query, title = "marker-of-a-text", "marker-of-a-query", "marker-of-a-title"
    key = "marker-of-a-model-key"
    # An agent starts the daemon, with a token and its model's key in the environment.
    stale = "cvy_" + "b" * 52
    started = home.run(
        "up",
        env={
            "COVEY_LOG__LEVEL": "debug", "MODEL_API_KEY": key,
            "COVEY_GRANT": stale, "COVEY_AGENT": "x",
        },
    )  # fmt: skip
    assert started.returncode == 5, "the daemon is up, and takes no unknown token"
    pid = pid_of(home)
    token = str(cast("dict[str, Json]", home.json("agents", "add", "helper"))["token"])
    made = cast("dict[str, Json]", home.json("invite", "--no-wait"))
    ticket = str(made["ticket"])
    secrets = [text, query, title, token, token[4:20], ticket, ticket[6:40], key, stale]
    errors: list[str] = []
    with LocalSocket(home) as events:
        events.greet()
        events.call("events.subscribe", {"topics": TOPICS})
        with LocalSocket(home) as agent:
            assert "result" in agent.greet(token=token)
            for method, params in [
                ("memory.remember", {"text": text, "title": title, "scope": "main"}),
                ("memory.remember", {"text": text, "title": title, "scope": "No Such Scope"}),
                ("memory.remember", {"text": text, "tags": 5}),
                ("memory.recall", {"query": query}),
                ("memory.recall", {"query": query, "since": "no date"}),
                ("memory.recall", {"query": query, "nope": query}),
                ("memory.get", {"ids": [text]}),
                (text, {query: title}),
                ("invite.join", {"ticket": ticket}),
                ("invite.show", {"ticket": ticket[:-3]}),
                ("agents.revoke", {"name": token}),
                ("config.set", {"key": token, "value": ticket}),
            ]:
                answer = agent.call(method, cast("Json", params))
                if "error" in answer:
                    errors.append(json.dumps(answer["error"]))
        with LocalSocket(home) as person:
            person.greet()
            person.call("memory.remember", {"text": text, "title": title})
            person.call("invite.create", {})
        with LocalSocket(home) as wrong:
            errors.append(json.dumps(wrong.greet(token=token[:-4] + "aaaa")))
        told = [json.dumps(one) for one in _drain(events)]
    assert len(errors) >= 8
    assert told, "the writes are told as events"
    places = {
        "errors": "\n".join(errors),
        "events": "\n".join(told),
        "logs": _read_all(home.folder / "state" / "logs"),
        "arguments of the daemon": Path(f"/proc/{pid}/cmdline").read_text(),
        "environment of the daemon": Path(f"/proc/{pid}/environ").read_text(),
    }
    for place, content in places.items():
        assert content, place
        assert not [secret for secret in secrets if secret in content], place
    # Nor in any file but the database: the token is kept as a hash, the ticket not at all.
    for path in (home.folder / "state").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert token.encode() not in data, path
            assert ticket.encode() not in data, path
            assert text.encode() not in data or path.name.startswith("covey.db"), path
    still_serves(home, pid)


def _drain(events: LocalSocket) -> list[dict[str, Json]]:
    """All events so far: those before the answer to a ping."""
    events.put(json.dumps({"jsonrpc": "2.0", "id": 99, "method": "rpc.ping"}).encode() + b"\n")
    seen = []
    while (message := events.take()) is not None and message.get("id") != 99:
        seen.append(message)
    return seen


def _read_all(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.iterdir()))


# --- text is data ----------------------------------------------------------------------------

NASTY = (
    "deploy notes\x1b[2J\x1b]0;owned\x07 \x9b31m \u202eevil\u202c zero\u200bwidth\u2060 "
    "tag\U000e0041\r\ncovey: this line is forged\x08\x7f"
)
NASTY_NAME = "desk\x1b[31m\u202e\r\n● forged …AAAAAAAA  direct"
OBEYED = {chr(c) for c in (*range(9), *range(11, 32), *range(127, 160))} | set(
    "\u061c\u200b\u200e\u200f\u2060\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def is_control(char: str) -> bool:
    """Whether it is a C0 or C1 control."""
    return char < " " or "\x7f" <= char <= "\x9f"


def obeyed(shown: str) -> set[str]:
    """Characters that a terminal obeys or a reader cannot see."""
    return {c for c in shown if c in OBEYED or "\U000e0000" <= c <= "\U000e01ef"}


async def test_a_members_text_and_name_cannot_drive_the_terminal(home: Home) -> None:
    home.up()
    pid = pid_of(home)
    made = home.json("invite", "--no-wait")
    me = PeerId(bytes.fromhex(str(cast("dict[str, Json]", home.json("status"))["node_id"])))
    async with (
        watching(home) as watcher,
        joined_guest(str(cast("dict[str, Json]", made)["ticket"])) as guest,
    ):
        await guest.replication.sync_now(guest.group, me)
        pen = Pen(guest, guest.group)
        name = pen.write(body=encode_body(ProfileBody("", NASTY_NAME[:64])))
        hostile = pen.write(body=note(NASTY))
        await guest.push(me, [name.wire(), hostile.wire()])
        hit = await _arrives(watcher, "deploy notes")
        # Programs get the stored text to the letter; only controls were taken out on the way in.
        stored = hit["text"]
        assert stored == "".join(
            c for c in NASTY.replace("\r\n", "\n") if c == "\n" or not is_control(c)
        )
        number = str(hit["id"])
        for words in (
            ("recall", "deploy", "notes", "--all"), ("get", number), ("list",), ("history", number),
            ("status",), ("peers",), ("groups", "members", "home"), ("sync", "status"), ("logs",),
        ):  # fmt: skip
            done = await trio.to_thread.run_sync(home.run, *words)
            assert done.returncode == 0, done.stderr
            shown = done.stdout + done.stderr
            assert not obeyed(shown), (words, shown)
            # A name cannot open a line of its own, so it cannot pose as one of ours.
            assert not [row for row in shown.splitlines() if row.startswith("● forged")], words
        exact = json.loads(
            (await trio.to_thread.run_sync(home.run, "get", number, "--json")).stdout
        )
        assert exact["hits"][0]["text"] == stored
    still_serves(home, pid)


# --- a damaged file --------------------------------------------------------------------------


def test_a_damaged_page_is_told_apart_from_a_bug_and_nothing_is_overwritten(home: Home) -> None:
    home.up()
    home.ok("remember", "before the damage " * 200)
    home.ok("down")
    path = home.folder / "state" / "covey.db"
    data = bytearray(path.read_bytes())
    pages = len(data) // 4096
    for page in range(2, pages):
        data[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(data)
    done = home.run("up", "--json")
    if done.returncode == 0:
        done = home.run("recall", "damage", "--json")
    assert done.returncode in {1, 70, 78}, done.stdout
    error = json.loads(done.stdout)["error"]
    assert error["name"] in {"storage_corrupt", "internal"}
    assert "database" in error["message"] or "covey.db" in error["message"], error
    home.stop()
    assert path.read_bytes()[4096 * 2 :] == bytes(data)[4096 * 2 :]
