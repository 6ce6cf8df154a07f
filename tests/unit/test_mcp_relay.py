"""The relay against a small socket server: copying, restart, replay, refusal, the end."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from typing import TYPE_CHECKING, BinaryIO, cast

import pytest

from daemon.mcp import relay as relay_module
from daemon.mcp.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HELLO = b'{"jsonrpc":"2.0","id":0,"method":"rpc.hello","params":{"session":"aa"}}'
WELCOME = b'{"jsonrpc":"2.0","id":0,"result":{"server":"covey"}}\n'
INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def encoded(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def call(number: int | str, text: str = "x") -> dict[str, object]:
    params = {"name": "memory_remember", "arguments": {"text": text}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def answer(number: int | str) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, "result": {"n": number}}


class Daemon:
    """One accepted connection after another at a socket path, driven by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen(8)
        self._listener.settimeout(10)
        self.hellos: list[dict[str, object]] = []
        self._peers: list[Peer] = []

    def accept(self, greeting: bytes = WELCOME) -> Peer:
        sock, _ = self._listener.accept()
        sock.settimeout(10)
        peer = Peer(sock)
        self._peers.append(peer)
        self.hellos.append(peer.take())
        if greeting:
            peer.write(greeting)
        return peer

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def end(self) -> None:
        """Close everything."""
        self.close()
        for peer in self._peers:
            peer.kill()


class Peer:
    """The daemon's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")

    def line(self) -> bytes:
        return self._file.readline()

    def take(self) -> dict[str, object]:
        line = self.line()
        assert line, "the relay closed"
        return cast("dict[str, object]", json.loads(line))

    def put(self, *messages: object) -> None:
        for message in messages:
            self.write(encoded(message))

    def write(self, data: bytes) -> None:
        self._sock.sendall(data)

    def kill(self) -> None:
        self._file.close()
        self._sock.close()


class Agent:
    """The agent's end: pipes to and from a relay in a thread."""

    def __init__(
        self, sockets: list[Path], start: Callable[[], None] | None = None, hello: bytes = HELLO
    ) -> None:
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        self._to = os.fdopen(in_write, "wb", buffering=0)
        self._from: BinaryIO = os.fdopen(out_read, "rb")
        self._ends = (os.fdopen(in_read, "rb"), os.fdopen(out_write, "wb"))
        self.relay = Relay(
            *self._ends,
            lambda: [os.fspath(path) for path in sockets],
            hello,
            "state/logs/covey.log",
            start,
        )
        self.thread = threading.Thread(target=self.relay.run, daemon=True)
        self.thread.start()

    def put(self, *messages: object) -> None:
        for message in messages:
            self._to.write(message if isinstance(message, bytes) else encoded(message))

    def take(self) -> dict[str, object]:
        return cast("dict[str, object]", json.loads(self._from.readline()))

    def eof(self) -> None:
        self._to.close()

    def close(self) -> None:
        if not self._to.closed:
            self._to.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        for file in (*self._ends, self._from):
            file.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    served = Daemon(tmp_path / "d.sock")
    yield served
    served.end()


@pytest.fixture
def agent(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setattr(relay_module, "EOF_GRACE_S", 0.2)
    monkeypatch.setattr(relay_module, "FIRST_ANSWER_S", 0.2)
    started = Agent([daemon.path])
    yield started
    started.close()


def test_lines_are_copied_both_ways_and_the_hello_is_swallowed(
    daemon: Daemon, agent: Agent
) -> None:
    peer = daemon.accept()
    assert daemon.hellos == [json.loads(HELLO)]
    agent.put(INITIALIZE)
    assert peer.take() == INITIALIZE
    peer.put(answer(0))
    assert agent.take() == answer(0)
    peer.put({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}})
    assert agent.take()["method"] == "notifications/progress"


def test_lines_that_are_no_json_reach_the_daemon_unread(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    for line in (b"garbage\n", b"[1]\n", b'"x"\n', b"[" * 5000 + b"\n", b"\xff\xfe\n"):
        agent.put(line)
        assert peer.line() == line


def test_restart_repeats_handshake_and_unanswered_requests(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    agent.put(INITIALIZE)
    peer.take()
    peer.put(answer(0))
    agent.take()
    agent.put(INITIALIZED, call(1, "answered"), call(2, "lost"), call("three", "lost too"))
    for _ in range(4):
        peer.take()
    peer.put(answer(1))
    assert agent.take() == answer(1)
    peer.kill()
    again = daemon.accept()
    assert daemon.hellos[0] == daemon.hellos[1]
    got = [again.take() for _ in range(5)]
    replay = {"jsonrpc": "2.0", "method": "covey/replay", "params": {"ids": [2, "three"]}}
    assert got == [INITIALIZE, INITIALIZED, replay, call(2, "lost"), call("three", "lost too")]
    again.put(answer(0), answer("three"), answer(2))
    # The second answer to the handshake is not the agent's.
    assert agent.take() == answer("three")
    assert agent.take() == answer(2)


def test_unanswered_handshake_is_repeated_and_answered(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    agent.put(INITIALIZE)
    peer.take()
    peer.kill()
    again = daemon.accept()
    assert again.take()["method"] == "covey/replay"
    assert again.take() == INITIALIZE
    again.put(answer(0))
    assert agent.take() == answer(0)


def test_half_a_line_of_a_killed_daemon_is_not_passed_on(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    agent.put(call(1))
    peer.take()
    peer.write(encoded(answer(1))[:-5])
    peer.kill()
    again = daemon.accept()
    assert again.take()["params"] == {"ids": [1]}
    assert again.take() == call(1)
    again.put(answer(1))
    assert agent.take() == answer(1)


def test_cancelled_request_is_not_repeated(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    cancel = {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 1},
    }
    agent.put(call(1), call(2), cancel)
    for _ in range(3):
        peer.take()
    peer.kill()
    again = daemon.accept()
    assert again.take()["params"] == {"ids": [2]}
    assert again.take() == call(2)
    again.put(answer(2))
    agent.take()


def test_idle_relay_does_not_call_back_a_stopped_daemon(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    agent.put(call(1))
    peer.take()
    peer.put(answer(1))
    agent.take()
    peer.kill()
    daemon._listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        daemon.accept()
    daemon._listener.settimeout(10)
    agent.put(call(2))
    again = daemon.accept()
    assert again.take() == call(2)
    again.put(answer(2))
    assert agent.take() == answer(2)


def test_absent_daemon_is_started_once_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "EOF_GRACE_S", 0.2)
    started: list[Daemon] = []
    ready = threading.Event()

    def start() -> None:
        started.append(Daemon(tmp_path / "late.sock"))
        ready.set()

    agent = Agent([tmp_path / "nobody.sock", tmp_path / "late.sock"], start)
    agent.put(call(1))
    assert ready.wait(10)
    peer = started[0].accept()
    assert peer.take() == call(1)
    peer.put(answer(1))
    assert agent.take() == answer(1)
    assert len(started) == 1
    agent.close()
    started[0].end()


def test_without_a_daemon_each_request_is_answered_with_the_log_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "CONNECT_TRIES", 3)
    agent = Agent([tmp_path / "nobody.sock"])
    agent.put(call(1), INITIALIZED, call(2))
    for number in (1, 2):
        got = agent.take()
        assert got["id"] == number
        error = cast("dict[str, object]", got["error"])
        assert error["code"] == -32603
        assert "state/logs/covey.log" in cast("str", error["message"])
        assert "covey up" in cast("str", error["message"])
    agent.close()


def test_daemon_that_never_comes_back_fails_what_waits(
    daemon: Daemon, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "CONNECT_TRIES", 3)
    peer = daemon.accept()
    agent.put(call(1), call(2))
    peer.take()
    peer.take()
    daemon.close()
    peer.kill()
    assert [agent.take()["id"] for _ in range(2)] == [1, 2]


def test_refusal_reaches_the_agent_with_its_remedy(daemon: Daemon, agent: Agent) -> None:
    refusal = {
        "jsonrpc": "2.0",
        "id": 0,
        "error": {
            "code": 1000,
            "message": "the token is unknown or was revoked",
            "data": {"remedy": "Use a token that `covey agents add NAME` printed."},
        },
    }
    # The first request is answered with the refusal of the connection made before it came.
    daemon.accept(encoded(refusal))
    agent.put(call(1))
    first = cast("dict[str, object]", agent.take()["error"])
    assert "unknown or was revoked" in cast("str", first["message"])
    assert "covey agents add" in cast("str", first["message"])
    agent.put(call(2))
    daemon.accept(encoded(refusal))
    assert agent.take()["error"] == first
    # And a daemon that takes us is taken.
    agent.put(call(3))
    peer = daemon.accept()
    assert peer.take() == call(3)
    peer.put(answer(3))
    assert agent.take() == answer(3)


def test_draining_daemon_is_not_taken_for_the_next_one(daemon: Daemon, agent: Agent) -> None:
    daemon.accept(encoded({"jsonrpc": "2.0", "id": 0, "error": {"code": 1010, "message": "x"}}))
    peer = daemon.accept()
    agent.put(call(1))
    assert peer.take() == call(1)
    peer.put(answer(1))
    assert agent.take() == answer(1)


@pytest.mark.attack
def test_daemon_that_never_greets_is_not_waited_for_twice(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "HELLO_S", 0.1)
    agent = Agent([daemon.path])
    agent.put(call(1))
    error = cast("dict[str, object]", agent.take()["error"])
    assert "hangs" in cast("str", error["message"])
    agent.close()


@pytest.mark.attack
def test_daemon_that_stops_reading_costs_an_answer_and_no_hang(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "HELLO_S", 0.1)
    monkeypatch.setattr(relay_module, "SEND_S", 0.2)
    agent = Agent([daemon.path])
    daemon.accept()  # and reads no more, as a daemon under SIGSTOP
    agent.put(call(1, "x" * 4_000_000))
    told = agent.take()
    assert told["id"] == 1
    assert "hangs" in cast("str", cast("dict[str, object]", told["error"])["message"])
    agent.put(call(2))
    assert agent.take()["id"] == 2
    agent.close()


class Mortal:
    """Daemons that die at random moments, and one store of writes that outlives them.

    Each call is a write. A receipt is kept with it, as the real daemon does, and a request that
    `covey/replay` names is answered from there.
    """

    def __init__(self, daemon: Daemon, rng: random.Random, count: int) -> None:
        self.writes: list[object] = []
        self.lives = 0
        self._daemon = daemon
        self._rng = rng
        self._count = count

    def serve(self) -> None:
        """Live and die until all is written; then live on."""
        while True:
            self.lives += 1
            try:
                self._live(self._rng.randrange(1, 12))
            except AssertionError:
                return  # the relay closed
            except OSError:
                continue

    def _live(self, steps: int) -> None:
        peer = self._daemon.accept()
        replayed: set[object] = set()
        try:
            while steps or len(self.writes) == self._count:
                message = peer.take()
                if message["method"] == "covey/replay":
                    replayed = set(cast("dict[str, list[object]]", message["params"])["ids"])
                    continue
                steps = max(0, steps - 1)
                number = message["id"]
                if not (number in replayed and number in self.writes):
                    self.writes.append(number)
                if len(self.writes) < self._count and self._rng.random() < 0.3:
                    return  # written, not answered
                peer.put(answer(cast("int", number)))
        finally:
            peer.kill()


@pytest.mark.parametrize("seed", range(4))
def test_every_request_is_answered_and_written_once_over_dying_daemons(
    daemon: Daemon, agent: Agent, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(relay_module, "ATTEMPTS_MAX", 1000)
    count = 150
    mortal = Mortal(daemon, random.Random(seed), count)
    threading.Thread(target=mortal.serve, daemon=True).start()
    answers: list[int] = []
    sent = 0
    while len(answers) < count:
        while sent < count and sent - len(answers) < 8:
            agent.put(call(sent))
            sent += 1
        answers.append(cast("int", agent.take()["id"]))
    assert sorted(answers) == list(range(count))
    assert sorted(cast("list[int]", mortal.writes)) == list(range(count))
    assert mortal.lives > 10


@pytest.mark.attack
def test_request_that_kills_each_daemon_is_given_up(daemon: Daemon, agent: Agent) -> None:
    agent.put(call(1))
    peer = daemon.accept()
    peer.take()
    peer.kill()
    for _ in range(relay_module.ATTEMPTS_MAX):
        peer = daemon.accept()
        peer.take()
        assert peer.take() == call(1)
        peer.kill()
    error = cast("dict[str, object]", agent.take()["error"])
    assert "ended 5 times over this" in cast("str", error["message"])
    agent.put(call(2))
    peer = daemon.accept()
    assert peer.take() == call(2)
    peer.put(answer(2))
    assert agent.take() == answer(2)


@pytest.mark.attack
def test_more_than_is_kept_is_answered_with_an_error_after_a_restart(
    daemon: Daemon, agent: Agent
) -> None:
    peer = daemon.accept()
    for number in range(relay_module.KEPT_MAX + 2):
        agent.put(call(number))
        peer.take()
    peer.kill()
    again = daemon.accept()
    assert again.take()["params"] == {"ids": list(range(relay_module.KEPT_MAX))}
    lost = [agent.take() for _ in range(2)]
    assert [m["id"] for m in lost] == [64, 65]
    assert all("too much to repeat" in json.dumps(m) for m in lost)
    for number in range(relay_module.KEPT_MAX):
        assert again.take() == call(number)
        again.put(answer(number))
        assert agent.take() == answer(number)


@pytest.mark.attack
def test_kept_bytes_are_bounded(
    daemon: Daemon, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "KEPT_BYTES_MAX", 1000)
    peer = daemon.accept()
    agent.put(call(1, "x" * 700), call(2, "y" * 700))
    peer.take()
    peer.take()
    peer.kill()
    again = daemon.accept()
    assert again.take()["params"] == {"ids": [1]}
    again.take()
    assert agent.take()["id"] == 2
    again.put(answer(1))
    agent.take()


@pytest.mark.attack
def test_line_without_end_does_not_fill_the_memory(
    daemon: Daemon, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LINE_BYTES_MAX", 1024)
    peer = daemon.accept()
    agent.put(b"x" * 5000 + b"\n", call(1))
    # The first read may have begun under the old limit; then the line went to the daemon whole.
    first = peer.line()
    if first.startswith(b"x"):
        first = peer.line()
    assert json.loads(first) == call(1)
    agent.put(b"y" * 5000 + b"\n", call(2))
    assert json.loads(peer.line()) == call(2)
    refused = agent.take()
    if "error" in refused and refused["id"] is None:
        assert cast("dict[str, object]", refused["error"])["code"] == -32600
    peer.put(answer(1), answer(2))


def test_end_of_input_half_closes_and_waits_for_answers(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    agent.put(call(1))
    peer.take()
    agent.eof()
    assert peer.line() == b""
    peer.put(answer(1))
    peer.kill()
    assert agent.take() == answer(1)
    agent.thread.join(5)
    assert not agent.thread.is_alive()


def test_last_line_without_newline_is_sent(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    agent.put(encoded(call(1)).rstrip())
    agent.eof()
    assert peer.take() == call(1)
    peer.put(answer(1))
    peer.kill()
    assert agent.take() == answer(1)


def test_write_owed_at_the_end_survives_a_restart(daemon: Daemon, agent: Agent) -> None:
    peer = daemon.accept()
    agent.put(call(1))
    peer.take()
    agent.eof()
    assert peer.line() == b""
    peer.kill()
    again = daemon.accept()
    again.take()
    assert again.take() == call(1)
    again.put(answer(1))
    assert agent.take() == answer(1)
    assert again.line() == b""
    again.kill()
