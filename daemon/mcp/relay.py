"""`covey mcp`: carries an agent's MCP lines to the daemon and back.

Theory of operation. An agent starts one of these per session and speaks MCP over its standard input
and output. The relay connects to the daemon's socket, says hello for the agent, then copies lines.
It understands two things of a line: its id and its method. That is enough to outlive the daemon:

    stdin --main thread--> socket --> daemon          unanswered requests are kept, as raw lines
    stdout <-reader thread-- socket <-- daemon        an answer takes its request off the list

When the daemon goes away (upgrade, crash, kill -9), the reader connects again, starting a daemon if
none is there, and repeats what the new one must know: the hello with the same session id, the
handshake of a legacy client (whose second answer is swallowed), `covey/replay` with the ids of the
unanswered requests, and those requests. The daemon keeps the results of writes by session and id,
so a write that was committed before the crash is answered from there and not done twice.

Standard library only, and little of it: an agent waits for this process to start, and twenty of
them may run. The clocks of `Env` are for the daemon; here is none, only counted waits.

What a hostile party may try: the agent can send anything (the daemon checks it); the socket's other
end is of the same user, whose folder nobody else may enter. Source: docs/specs/mcp.md s.2.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from time import sleep

from daemon.cli.client import CliError, socket_candidates
from daemon.mcp.envelope import is_id, read_envelope, read_refusal
from daemon.mcp.greeting import make_hello
from daemon.paths import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

CONNECT_WAIT_S = 0.02
CONNECT_TRIES = 400
"""Eight seconds: Codex gives a server ten to start (daemon.md 6)."""

AGAIN_TRIES = 50
"""One second, after a first search found none: what waits behind it should not wait as long."""

EOF_GRACE_S = 2.0
"""How long answers are waited for after the agent closed its side (daemon.md 6)."""

FIRST_ANSWER_S = 8.0
"""The same while the daemon has not answered anything yet: it may be starting."""

KEPT_MAX = 64
KEPT_BYTES_MAX = 8 * 1024 * 1024
"""Requests kept for a replay (daemon.md 6); beyond, a lost one is answered with an error."""

LINE_BYTES_MAX = 16 * 1024 * 1024
"""A longer line is not read to its end; the daemon refuses from 4 MiB on and says so."""

AGENT_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
SESSION_CHARS = frozenset("0123456789abcdef-")

# Environment variables by which agents mark the processes they start.
MARKS = (("CLAUDECODE", "claude-code"), ("GEMINI_CLI", "gemini"), ("CODEX_HOME", "codex"))

HELLO_S = 8.0
"""A daemon that takes longer to greet hangs."""

SEND_S = 8.0
"""A daemon that takes none of our bytes for so long is stopped or hangs."""

CLOSE_S = 1.0
"""For the reader to end; the process ends anyway."""

ATTEMPTS_MAX = 5
"""A request that was repeated so often without any answer is given up: it may be what kills."""

TOO_MUCH = (
    "the Covey daemon restarted, and this was too much to repeat: look what is there, send again"
)

INTERNAL_ERROR = -32603
INVALID_REQUEST = -32600


class Refused(Exception):
    """The daemon does not take us; the message says why and what to do."""


class Lost(Exception):
    """No daemon answers, and none could be started; the message says where its log is."""


class Relay:
    """Copies lines between an agent and the daemon, over as many daemons as it takes.

    Two threads: the caller of `run` reads the agent, another one the socket. Whoever sends on the
    socket or replaces it holds `_sending`; `_state` guards the rest and is never held while
    something blocks.

    Args:
        agent_in: the agent's lines.
        agent_out: where answers go.
        sockets: where the daemon may listen.
        hello: first line of each connection, without newline.
        log_file: the daemon's log, for messages.
        start: starts a daemon and waits for it, or raises `Lost`; None when that is not wanted.
    """

    def __init__(
        self,
        agent_in: BinaryIO,
        agent_out: BinaryIO,
        sockets: Callable[[], Sequence[str]],
        hello: bytes,
        log_file: str,
        start: Callable[[], None] | None,
    ) -> None:
        self._in = agent_in
        self._out = agent_out
        self._sockets = sockets
        self._hello = hello
        self._log_file = log_file
        self._start = start
        self._sending = threading.Lock()
        self._writing = threading.Lock()
        self._state = threading.Condition()
        self._done = threading.Event()
        self._socket: socket.socket | None = None
        self._answers: BinaryIO | None = None
        self._kept: dict[int | str, bytes | None] = {}
        self._kept_bytes = 0
        self._initialize: tuple[int | str, bytes] | None = None
        self._initialized: bytes | None = None
        self._swallow: int | str | None = None
        self._answered = False
        self._attempts = 0
        self._tries = CONNECT_TRIES
        self._first_failure = ""
        self._start_failed = ""
        self._ended = False
        self._over = False

    def run(self) -> None:
        """Relay until the agent closes its side and its last answers came, or the time is up."""
        reader = threading.Thread(target=self._read_daemon, daemon=True)
        reader.start()
        # Connecting before the first line comes hides the daemon's start behind the agent's own.
        with self._sending:
            self._first_failure = self._attach_or_say_why()
        while True:
            line = self._in.readline(LINE_BYTES_MAX)
            if not line:
                break
            if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
                self._skip_line()
                continue
            line = line.strip()
            if line:
                self._forward(line)
        self._finish()
        self._close()
        reader.join(CLOSE_S)

    def _skip_line(self) -> None:
        """Drop the rest of a line that is too long to hold."""
        while True:
            rest = self._in.readline(LINE_BYTES_MAX)
            if not rest or rest.endswith(b"\n"):
                break
        self._say_error(None, INVALID_REQUEST, f"a line may hold {LINE_BYTES_MAX} bytes")

    def _forward(self, line: bytes) -> None:
        method, request_id, cancelled = read_envelope(line)
        with self._sending:
            # First the daemon, then the notes: attaching repeats what was noted before this line.
            # The line that waited while we searched in vain is answered with that search.
            why, self._first_failure = self._first_failure, ""
            if self._socket is None and not why:
                why = self._attach_or_say_why()
            if why or self._socket is None:
                if request_id is not None:
                    self._say_error(request_id, INTERNAL_ERROR, why)
                return
            if request_id is not None:
                self._keep(request_id, line)
            if method == "initialize" and request_id is not None:
                self._initialize = (request_id, line)
            elif method == "notifications/initialized":
                self._initialized = line
            self._forget(cancelled)
            self._send(self._socket, line)

    def _send(self, sock: socket.socket, line: bytes) -> None:
        try:
            sock.sendall(line + b"\n")
        except OSError:
            # Half a line may be out, so the connection is of no more use: the reader sees its end
            # and repeats what is kept, or answers it when the daemon does not even greet.
            _shut(sock, socket.SHUT_RDWR)

    def _keep(self, request_id: int | str, line: bytes) -> None:
        with self._state:
            room = len(self._kept) < KEPT_MAX and self._kept_bytes + len(line) <= KEPT_BYTES_MAX
            self._kept[request_id] = line if room else None
            self._kept_bytes += len(line) if room else 0

    def _forget(self, request_id: object) -> None:
        """Take an answered or cancelled request off the list."""
        with self._state:
            if is_id(request_id) and request_id in self._kept:
                self._kept_bytes -= len(self._kept.pop(request_id) or b"")

    def _attach_or_say_why(self) -> str:
        """Connect; on failure answer all that waits and return why. Called with `_sending` held."""
        try:
            self._attach()
        except (Lost, Refused) as error:
            why = str(error)
            with self._state:
                waiting = list(self._kept)
                self._kept.clear()
                self._kept_bytes = 0
            for request_id in waiting:
                self._say_error(request_id, INTERNAL_ERROR, why)
            return why
        return ""

    def _attach(self) -> None:
        """Connect, greet, and repeat what a daemon must know that may never have seen us."""
        sock, answers = self._connect()
        with self._state:
            kept = dict(self._kept)
        repeat: list[bytes] = []
        self._swallow = None
        if self._initialize is not None and kept.get(self._initialize[0]) != self._initialize[1]:
            # The agent has its answer; the daemon needs the question.
            self._swallow = self._initialize[0]
            repeat.append(self._initialize[1])
            if self._initialized is not None:
                repeat.append(self._initialized)
        lines = [line for line in kept.values() if line is not None]
        if lines:
            ids = [request_id for request_id, line in kept.items() if line is not None]
            replay = {"jsonrpc": "2.0", "method": "covey/replay", "params": {"ids": ids}}
            repeat.append(json.dumps(replay).encode())
            repeat.extend(lines)
        for request_id, line in kept.items():
            if line is None:
                self._forget(request_id)
                self._say_error(request_id, INTERNAL_ERROR, TOO_MUCH)
        for line in repeat:
            self._send(sock, line)
        self._tries = CONNECT_TRIES
        with self._state:
            self._socket, self._answers = sock, answers
            self._state.notify_all()

    def _connect(self) -> tuple[socket.socket, BinaryIO]:
        """A greeted connection.

        Raises:
            Lost: no daemon within eight seconds, one second when the last search failed too.
            Refused: the daemon does not take us.
        """
        tries, self._tries = self._tries, AGAIN_TRIES
        for attempt in range(tries):
            if self._over:
                break
            for path in self._sockets():
                found = self._greet(path)
                if found is not None:
                    return found
            if attempt == 0 and self._start is not None:
                self._start_failed = ""
                threading.Thread(target=self._run_start, daemon=True).start()
            if self._start_failed:
                raise Lost(self._start_failed)
            sleep(CONNECT_WAIT_S)
        raise Lost(f"the Covey daemon does not answer: see {self._log_file}, start it: covey up")

    def _run_start(self) -> None:
        """In a thread of its own: a start may take longer than an agent waits."""
        assert self._start is not None
        try:
            self._start()
        except Lost as error:
            self._start_failed = str(error)

    def _greet(self, path: str) -> tuple[socket.socket, BinaryIO] | None:
        """Connect to one path and say hello; None when nobody is there, or not yet."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        answer = b""
        try:
            sock.settimeout(HELLO_S)
            sock.connect(path)
            sock.sendall(self._hello + b"\n")
            answers = sock.makefile("rb")
            answer = answers.readline(LINE_BYTES_MAX)
            sock.settimeout(None)
            # Of sending alone: an answer may take as long as the agent waits for it.
            limit = struct.pack("ll", int(SEND_S), int(SEND_S % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        except TimeoutError:
            sock.close()
            raise Lost(
                f"the Covey daemon hangs: see {self._log_file}, end it: covey down"
            ) from None
        except PermissionError:
            sock.close()
            raise Refused(f"the socket {path} belongs to somebody else: set COVEY_HOME") from None
        except OSError:
            sock.close()
            return None
        refusal = read_refusal(answer)
        if refusal is None:
            return sock, answers
        answers.close()
        sock.close()
        if refusal:
            raise Refused(refusal)
        return None

    def _read_daemon(self) -> None:
        """The second thread: copy answers, and find a new daemon when one is lost."""
        while True:
            with self._state:
                while self._answers is None and not self._over:
                    self._state.wait()
                answers = self._answers
            if answers is None:
                return
            self._copy(answers)
            if not self._lost(answers):
                self._done.set()
                return

    def _copy(self, answers: BinaryIO) -> None:
        while True:
            try:
                line = answers.readline()
            except OSError:
                return
            if not line.endswith(b"\n"):
                # The end, or half a line of a daemon that was killed while it wrote.
                return
            method, request_id, _ = read_envelope(line, answer=True)
            if request_id is not None and not method:
                if request_id == self._swallow:
                    self._swallow = None
                    continue
                self._forget(request_id)
                self._answered = True
                self._attempts = 0
            self._say(line)

    def _lost(self, answers: BinaryIO) -> bool:
        """Put the connection away; connect again if an answer is owed. False: nothing is left."""
        with self._sending:
            with self._state:
                sock, self._socket, self._answers = self._socket, None, None
                owed = bool(self._kept)
            answers.close()
            if sock is not None:
                sock.close()
            if not owed or self._over:
                # Nobody waits: a daemon that was stopped on purpose stays stopped until then.
                return not self._ended
            self._attempts += 1
            if self._attempts > ATTEMPTS_MAX:
                self._give_up()
                return not self._ended
            if self._attach_or_say_why():
                return not self._ended
            if self._ended:
                self._half_close()
            return True

    def _give_up(self) -> None:
        """Answer what waits: each daemon we gave it to died over it, or so it looks."""
        self._attempts = 0
        with self._state:
            waiting = list(self._kept)
            self._kept.clear()
            self._kept_bytes = 0
        for request_id in waiting:
            self._say_error(
                request_id,
                INTERNAL_ERROR,
                f"the Covey daemon ended {ATTEMPTS_MAX} times over this: see {self._log_file}",
            )

    def _finish(self) -> None:
        """The agent closed its side: tell the daemon, wait for the last answers."""
        with self._sending:
            self._ended = True
            if self._socket is None:
                return
            self._half_close()
        self._done.wait(EOF_GRACE_S if self._answered else FIRST_ANSWER_S)

    def _close(self) -> None:
        """End the reader, whatever it waits for."""
        with self._state:
            self._over = True
            self._kept.clear()
            if self._socket is not None:
                _shut(self._socket, socket.SHUT_RDWR)
            self._state.notify_all()

    def _half_close(self) -> None:
        if self._socket is not None:
            _shut(self._socket, socket.SHUT_WR)

    def _say(self, line: bytes) -> None:
        with self._writing:
            try:
                self._out.write(line)
                self._out.flush()
            except (OSError, ValueError):
                # The agent reads no more; its closing of our input ends us.
                self._done.set()

    def _say_error(self, request_id: int | str | None, code: int, message: str) -> None:
        error = {"code": code, "message": message}
        answer = {"jsonrpc": "2.0", "id": request_id, "error": error}
        self._say(json.dumps(answer).encode() + b"\n")


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # the daemon went first; the reader knows


def main(argv: list[str]) -> int:
    """Run the relay on standard input and output.

    Args:
        argv: arguments after `mcp`: `--socket PATH`, `--no-autostart`.

    Returns:
        Exit code: 0 at the end of input, 2 for unknown arguments.
    """
    where = resolve()
    given: str | None = None

    def start_here() -> None:
        from daemon.cli.start import start_daemon

        try:
            start_daemon(where)
        except CliError as error:
            raise Lost(f"{error.message}. {error.remedy}".strip()) from None

    # Whoever names a socket runs its daemon too.
    start = None if os.environ.get("COVEY_SOCKET") else start_here
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--no-autostart":
            start = None
        elif word == "--socket" and rest:
            given, start = rest.pop(0), None
        else:
            sys.stderr.write("usage: covey mcp [--socket PATH] [--no-autostart]\n")
            return 2
    hello = make_hello(os.environ, where, current_folder())

    def sockets() -> list[str]:
        return socket_candidates(where, os.environ, given)

    relay = Relay(sys.stdin.buffer, sys.stdout.buffer, sockets, hello, where.log_file, start)
    if sys.stdin.isatty():
        sys.stderr.write("covey mcp is for agents, see: covey connect. It waits for JSON lines.\n")
    try:
        relay.run()
    except KeyboardInterrupt:
        os._exit(130)
    # The reader may be blocked in a read that nothing will end; there is nothing left to lose.
    os._exit(0)


def current_folder() -> str:
    """Where the agent works; the root if that folder was removed under it."""
    try:
        return os.getcwd()
    except OSError:
        return "/"
