"""The command line's side of the local socket: blocking, standard library, quick to import.

`covey recall` runs on every prompt of some agents, so this imports json, os and socket and nothing
else. A connection that breaks under a request is made anew and the request repeated with the same
session and id: the daemon answers a write that was done from its receipt.
"""

from __future__ import annotations

import json
import os
import socket
import time

from daemon.paths import resolve
from daemon.project import project_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from daemon.json_types import Json
    from daemon.paths import Paths

CONNECT_TRIES = 80
CONNECT_WAIT_S = 0.1
"""Eight seconds in all for a daemon that is being started by someone else."""

CALL_TRIES = 3
"""How often a request is sent when its connection breaks."""

# Marks that agents leave in the environment of what they start, and the name we know them by.
AGENT_MARKS = (("CLAUDECODE", "claude-code"), ("GEMINI_CLI", "gemini"))


class CliError(Exception):
    """A failure to show to the person.

    Args:
        message: what is wrong.
        exit_code: see `daemon.errors`.
        name: name in the error table.
        code: RPC code, 0 when it is none of the daemon's.
        remedy: what to do.
        data: more fields, for --json.
    """

    def __init__(
        self,
        message: str,
        exit_code: int = 1,
        *,
        name: str = "error",
        code: int = 0,
        remedy: str = "",
        data: dict[str, Json] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.name = name
        self.code = code
        self.remedy = remedy
        self.data = data or {}

    def as_json(self) -> dict[str, Json]:
        """The object that --json prints."""
        return {
            "code": self.code,
            "name": self.name,
            "message": self.message,
            "remedy": self.remedy,
            "data": self.data,
        }


class NotRunning(CliError):
    """No daemon answers."""

    def __init__(self, message: str = "the daemon is not running") -> None:
        super().__init__(message, 3, name="not_running", remedy="Start it with `covey up`.")


class ConnectionLost(Exception):
    """The daemon went away while we waited for its answer."""


def socket_candidates(
    paths: Paths, environ: Mapping[str, str], given: str | None = None
) -> list[str]:
    """Where the daemon may listen: what was given, else our path, else what its lock says.

    An MCP host or cron may run us with a bare environment whose runtime folder is another one.
    """
    chosen = given or environ.get("COVEY_SOCKET")
    if chosen:
        return [chosen]
    found = [paths.socket]
    try:
        with open(paths.state_lock, encoding="utf-8") as file:
            locked = json.loads(file.read(4096)).get("socket")
    except (OSError, ValueError, AttributeError):
        return found
    if isinstance(locked, str) and locked not in found:
        found.append(locked)
    return found


def acting_agent(environ: Mapping[str, str]) -> str:
    """In whose hands this process is: an agent's name, empty for the person."""
    named = environ.get("COVEY_AGENT", "")
    if named:
        return named
    return next((name for mark, name in AGENT_MARKS if environ.get(mark)), "")


def working_project() -> str:
    """The project of the current folder, empty when that folder is gone."""
    try:
        return project_of(os.getcwd())
    except OSError:
        return ""


def try_connect(candidates: list[str]) -> socket.socket | None:
    """A connection to the first socket that answers, None if none does.

    Raises:
        CliError: one exists and does not let us in.
    """
    for path in candidates:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            sock.close()
        except OSError as error:
            sock.close()
            raise CliError(
                f"cannot connect to {path}: {error.strerror}",
                5,
                name="forbidden",
                remedy="See that the socket is yours, or name another with --socket.",
            ) from None
        else:
            return sock
    return None


def wait_for_socket(candidates: list[str]) -> socket.socket | None:
    """A connection as soon as a socket answers, None if none does in eight seconds."""
    for _ in range(CONNECT_TRIES):
        sock = try_connect(candidates)
        if sock is not None:
            return sock
        time.sleep(CONNECT_WAIT_S)
    return None


class Client:
    """One connection to the daemon.

    Args:
        candidates: socket paths to try.
        start: starts a daemon and waits until it is ready; None: do not.
        timeout_s: longest wait for an answer; None for as long as it takes.
    """

    def __init__(
        self,
        candidates: list[str],
        *,
        start: Callable[[], None] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._candidates = candidates
        self._start = start
        self._timeout_s = timeout_s
        # No Env in this process: it lives for one command.
        self._session = os.urandom(16).hex()  # noqa: TID251
        self._next_id = 1
        self._sock: socket.socket | None = None
        self._buffer = b""
        self.hello: dict[str, Json] = {}

    def connect(self) -> None:
        """Connect and say hello, starting a daemon if allowed.

        Raises:
            NotRunning: there is none.
            CliError: it refused us.
            ConnectionLost: it closed the connection at once: full, stopping or dying.
        """
        sock = try_connect(self._candidates)
        if sock is None and self._start is not None:
            self._start()
            sock = wait_for_socket(self._candidates)
        if sock is None:
            raise NotRunning
        sock.settimeout(self._timeout_s)
        self._sock = sock
        self._buffer = b""
        params: dict[str, Json] = {
            "client": "covey cli",
            "api": [1, 0],
            "session": self._session,
        }
        project = working_project()
        if project:
            params["project"] = project
        agent = acting_agent(os.environ)
        if agent:
            params["agent"] = agent
        token = os.environ.get("COVEY_GRANT", "")
        if token:
            params["token"] = token
        self._send({"jsonrpc": "2.0", "id": 0, "method": "rpc.hello", "params": params})
        answer = self._answer(0, None)
        self.hello = answer if isinstance(answer, dict) else {}

    def close(self) -> None:
        """Close the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def call(
        self,
        method: str,
        params: Mapping[str, Json] | None = None,
        *,
        progress: Callable[[int, int | None, str], None] | None = None,
    ) -> Json:
        """Call a method and wait for its result.

        Raises:
            CliError: the daemon's error, or none answers.
        """
        number = self._next_id
        self._next_id += 1
        for attempt in range(CALL_TRIES):
            meta: dict[str, Json] = {}
            if progress is not None:
                meta["progress"] = True
            if self._timeout_s is not None:
                meta["deadline_ms"] = int(self._timeout_s * 1000)
            if attempt:
                meta["replay"] = True
            body = dict(params or {})
            if meta:
                body["_meta"] = meta
            try:
                if self._sock is None:
                    self.connect()
                self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": body})
                return self._answer(number, progress)
            except ConnectionLost:
                self.close()
        raise CliError(
            "the daemon closed the connection each time",
            75,
            name="draining",
            remedy="It may be full, stopping or dying: look at `covey logs`, then repeat.",
        )

    def notifications(self) -> Iterator[dict[str, Json]]:
        """Notifications as they come, until the daemon ends."""
        while True:
            try:
                message = self._receive()
            except ConnectionLost:
                return
            if "method" in message:
                yield message

    def _send(self, message: dict[str, Json]) -> None:
        assert self._sock is not None
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon may have said why before it closed: the read that follows finds it.
            return

    def _receive(self) -> dict[str, Json]:
        assert self._sock is not None
        while b"\n" not in self._buffer:
            try:
                data = self._sock.recv(65536)
            except ConnectionResetError:
                data = b""
            except TimeoutError:
                raise CliError(
                    "the daemon did not answer in time",
                    75,
                    name="deadline",
                    remedy="Repeat with a longer --timeout, or look at `covey logs`.",
                ) from None
            if not data:
                raise ConnectionLost
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}

    def _answer(self, number: int, progress: Callable[[int, int | None, str], None] | None) -> Json:
        while True:
            message = self._receive()
            if message.get("method") == "rpc.progress" and progress is not None:
                params = message.get("params")
                if isinstance(params, dict):
                    done, total = params.get("done"), params.get("total")
                    progress(
                        done if isinstance(done, int) else 0,
                        total if isinstance(total, int) else None,
                        str(params.get("message", "")),
                    )
                continue
            if "method" in message or message.get("id") not in {number, None}:
                continue
            error = message.get("error")
            if isinstance(error, dict):
                raise _to_cli_error(error)
            return message.get("result")


def _to_cli_error(error: dict[str, Json]) -> CliError:
    from daemon.errors import BY_CODE

    code = error.get("code")
    number = code if isinstance(code, int) else 0
    data = error.get("data")
    fields = dict(data) if isinstance(data, dict) else {}
    kind = BY_CODE.get(number)
    return CliError(
        str(error.get("message", "the daemon failed")),
        kind.exit_code if kind else 1,
        name=str(fields.pop("name", kind.name if kind else "error")),
        code=number,
        remedy=str(fields.pop("remedy", kind.remedy if kind else "")),
        data=fields,
    )


def open_client(
    *,
    socket_path: str | None = None,
    autostart: bool = True,
    timeout_s: float | None = None,
) -> Client:
    """A client for this user's daemon; it connects at its first call."""
    paths = resolve()

    def start() -> None:
        from daemon.cli.start import start_daemon

        start_daemon(paths)

    return Client(
        socket_candidates(paths, os.environ, socket_path),
        start=start if autostart and socket_path is None else None,
        timeout_s=timeout_s,
    )
