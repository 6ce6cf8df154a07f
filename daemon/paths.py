"""Where the files of a node are.

Light on purpose: the command line imports it on every call, so only `os` and `sys` here.
Source: docs/guides/configuration.md.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# sun_path holds 108 bytes on Linux and 104 on macOS, the final zero included; 100 leaves room.
SOCKET_PATH_BYTES_MAX = 100


class PathsError(Exception):
    """The folders cannot be used; the message says why and what to do."""


class Paths:
    """The files of one node. Nothing is created here.

    Attributes:
        config_file: requested settings (TOML), may be absent.
        state: durable files.
        runtime: sockets and locks of the running daemon, gone after a reboot.
        socket: the local RPC socket.
    """

    __slots__ = ("config_file", "runtime", "socket", "state")

    def __init__(self, config_file: str, state: str, runtime: str, socket: str) -> None:
        self.config_file = config_file
        self.state = state
        self.runtime = runtime
        self.socket = socket

    def _state(self, name: str) -> str:
        return os.path.join(self.state, name)

    @property
    def key(self) -> str:
        """The device key."""
        return self._state("key")

    @property
    def db(self) -> str:
        """Records, memory, agents, receipts."""
        return self._state("covey.db")

    @property
    def book(self) -> str:
        """Address cache of the mesh."""
        return self._state("peers.msgpack")

    @property
    def logs(self) -> str:
        """Folder of the log files."""
        return self._state("logs")

    @property
    def log_file(self) -> str:
        """The log being written."""
        return self._state("logs/covey.log")

    @property
    def start_log(self) -> str:
        """What the last start in the background wrote to its standard error."""
        return self._state("logs/start.log")

    @property
    def state_lock(self) -> str:
        """Lock of the state folder; holds pid, start, version and socket of its daemon."""
        return self._state("lock")

    @property
    def runtime_lock(self) -> str:
        """Lock of the runtime folder."""
        return os.path.join(self.runtime, "daemon.lock")

    @property
    def pool_socket(self) -> str:
        """Socket of the host pool: descriptors of shared memory cannot ride on the JSON one."""
        return os.path.join(os.path.dirname(self.socket), "pool.sock")

    @property
    def running(self) -> str:
        """Marker that is there while a daemon runs, and after one died."""
        return self._state("running")

    @property
    def noise_key(self) -> str:
        """The secret that reports of local privacy draw their noise from."""
        return self._state("noise.key")

    @property
    def recovery(self) -> str:
        """Recovery seeds of the groups made here."""
        return self._state("recovery")

    def agent_token(self, name: str) -> str:
        """Token file of an agent."""
        return self._state(f"agents/{name}.token")

    @property
    def connections(self) -> str:
        """Folder of what `covey connect` wrote, and what was there before."""
        return self._state("connect")

    def as_dict(self) -> dict[str, str]:
        """All of it, for `covey paths`."""
        return {
            "config": self.config_file,
            "state": self.state,
            "runtime": self.runtime,
            "socket": self.socket,
            "database": self.db,
            "key": self.key,
            "peers": self.book,
            "log": self.log_file,
            "recovery": self.recovery,
        }


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    # Started with an empty environment (cron, some MCP hosts): ask the user database.
    import pwd

    return pwd.getpwuid(os.getuid()).pw_dir


def _absolute(environ: Mapping[str, str], name: str) -> str | None:
    """An XDG variable; relative values are to be ignored (XDG Base Directory, 0.8)."""
    value = environ.get(name, "")
    return value if os.path.isabs(value) else None


def _own_folder(path: str) -> bool:
    """Whether `path` is a folder of ours, or a link that we made to one.

    A link of somebody else's in a folder that all may write to could lead us anywhere.
    """
    try:
        here, there = os.lstat(path), os.stat(path)
    except OSError:
        return False
    is_folder = (there.st_mode & 0o170000) == 0o040000
    return is_folder and here.st_uid == os.getuid() and there.st_uid == os.getuid()


def _runtime_fallback(environ: Mapping[str, str]) -> str:
    uid = os.getuid()
    run_user = f"/run/user/{uid}"
    if _own_folder(run_user):
        return f"{run_user}/covey"
    return os.path.join(_absolute(environ, "TMPDIR") or "/tmp", f"covey-{uid}")  # noqa: S108 - 0700, owner checked


def _socket_in(runtime: str) -> str:
    path = os.path.join(runtime, "daemon.sock")
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    import hashlib

    tag = hashlib.sha256(os.fsencode(runtime)).hexdigest()[:8]
    return f"/tmp/covey-{os.getuid()}-{tag}/daemon.sock"  # noqa: S108 - 0700, owner checked


def resolve(environ: Mapping[str, str] | None = None, *, home: str | None = None) -> Paths:
    """Find the files of this user's node.

    Args:
        environ: the environment, default the process's.
        home: overrides `COVEY_HOME`: one folder with `config.toml`, `state` and `run`.

    Returns:
        The paths; nothing is created.
    """
    env = os.environ if environ is None else environ
    one = home or env.get("COVEY_HOME")
    if one:
        one = os.path.abspath(one)
        config_file = os.path.join(one, "config.toml")
        state, runtime = os.path.join(one, "state"), os.path.join(one, "run")
    elif sys.platform == "darwin":
        base = os.path.join(_home(env), "Library/Application Support/covey")
        config_file = os.path.join(base, "config.toml")
        state = os.path.join(base, "state")
        runtime = os.path.join(_absolute(env, "TMPDIR") or "/tmp", "covey")  # noqa: S108 - owner checked
    else:
        user = _home(env)
        config = _absolute(env, "XDG_CONFIG_HOME") or os.path.join(user, ".config")
        config_file = os.path.join(config, "covey/config.toml")
        state = os.path.join(
            _absolute(env, "XDG_STATE_HOME") or os.path.join(user, ".local/state"), "covey"
        )
        xdg_runtime = _absolute(env, "XDG_RUNTIME_DIR")
        runtime = os.path.join(xdg_runtime, "covey") if xdg_runtime else _runtime_fallback(env)
    return Paths(config_file, state, runtime, _socket_in(runtime))


def make_private(path: str) -> None:
    """Create a folder that only we can enter, or check that an existing one is.

    Raises:
        PathsError: it belongs to someone else, or is not a folder. Wrong modes of a folder of ours
            are corrected.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise PathsError(
            f"cannot create {path}: {error.strerror}; check its parent folder"
        ) from None
    if not _own_folder(path):
        raise PathsError(
            f"{path} is no folder of yours; remove it or set COVEY_HOME to one that is"
        )
    if os.stat(path).st_mode & 0o077:
        os.chmod(path, 0o700)
