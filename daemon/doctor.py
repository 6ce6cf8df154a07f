"""What `covey doctor` looks at, with and without a running daemon.

Local checks read files and never change them; what only the daemon can tell is asked over the
socket. Each finding that is not ok has a remedy.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import daemon
from daemon.cli.client import CliError, NotRunning, open_client, socket_candidates
from daemon.cli.out import mapping, number, rows, text
from daemon.config import load
from daemon.errors import ConfigError
from daemon.health import Check, disk_check
from daemon.instance import NETWORK_FILE_SYSTEMS, file_system_of, read_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.json_types import Json
    from daemon.paths import Paths

Part = Literal["net", "store", "clients"]

# 3.51.3 mended a bug by which a reset of the write-ahead log could corrupt the database.
SQLITE_MIN: Final = (3, 51, 3)
_RESTORE: Final = (
    "`covey down`, then `covey restore latest`: the state as it is goes aside, not away."
)
_LOW_BYTES: Final = 500 * 2**20


def _ok(name: str, message: str) -> Check:
    return Check(name=name, status="ok", message=message)


def _bad(name: str, message: str, remedy: str) -> Check:
    return Check(name=name, status="failed", message=message, remedy=remedy)


def _warn(name: str, message: str, remedy: str) -> Check:
    return Check(name=name, status="degraded", message=message, remedy=remedy)


def check_package() -> Check:
    """Whether `daemon` is ours: PyPI's python-daemon installs a package of that name too."""
    folder = Path(daemon.__file__ or "").parent
    if (folder / "wiring.py").exists():
        return _ok("package", f"covey {daemon.__version__}")
    return _bad(
        "package",
        f"another package named daemon is installed at {folder}",
        "Install Covey in an environment of its own: uv tool install covey, or pipx.",
    )


def check_sqlite() -> Check:
    """Whether SQLite is new enough and has what we need."""
    import apsw

    version = apsw.sqlite_lib_version()
    parts = tuple(int(part) for part in version.split("."))
    if parts < SQLITE_MIN:
        return _bad(
            "store.sqlite",
            f"SQLite {version} can corrupt its write-ahead log",
            "Reinstall Covey; something else put an old apsw over apsw-sqlite3mc.",
        )
    return _ok("store.sqlite", f"SQLite {version}")


def check_config(paths: Paths) -> Check:
    """Whether the settings can be read."""
    try:
        load(paths.config_file)
    except ConfigError as error:
        return _bad("config", str(error), "Correct the file; the daemon does not start so.")
    there = "defaults alone" if not os.path.exists(paths.config_file) else paths.config_file
    return _ok("config", there)


def check_sandbox(paths: Paths) -> Check:
    """What programs of `[jobs.handlers]` run in."""
    from federated.jobs.handlers.sandbox import sandbox_kind

    try:
        programs = load(paths.config_file).jobs.handlers
    except ConfigError:
        programs = {}
    if not programs:
        return _ok("jobs.sandbox", "no programs are offered as handlers")
    kind = sandbox_kind()
    if kind != "limits":
        return _ok("jobs.sandbox", f"programs of handlers run in {kind}")
    return _warn(
        "jobs.sandbox",
        "programs of handlers reach files and the network: only limits hold them",
        "Install bubblewrap, or a kernel with Landlock; or offer only programs that you would run"
        " on any peer's rows.",
    )


def check_modes(paths: Paths) -> list[Check]:
    """Whether nobody else can read what is ours alone."""
    found: list[Check] = []
    for name, path in (("state", paths.state), ("key", paths.key), ("runtime", paths.runtime)):
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue
        if info.st_uid != os.getuid():
            found.append(_bad(f"modes.{name}", f"{path} belongs to another user", "Take it back."))
        elif info.st_mode & 0o077 and not stat.S_ISLNK(info.st_mode):
            mode = "700" if stat.S_ISDIR(info.st_mode) else "600"
            found.append(_bad(f"modes.{name}", f"{path} is open to others", f"chmod {mode} {path}"))
    return found or [_ok("modes", "only you can read the key and the memory")]


def check_disk(paths: Paths) -> Check:
    """Free space, and a file system on which locks hold."""
    folder = paths.state if os.path.isdir(paths.state) else os.path.expanduser("~")
    kind = file_system_of(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        return _bad(
            "store.disk",
            f"{folder} is on {kind}",
            "Set XDG_STATE_HOME or COVEY_HOME to a local disk.",
        )
    return disk_check(folder, _LOW_BYTES)


def check_database(paths: Paths) -> Check:
    """SQLite's quick check of the file, read only."""
    import apsw

    if not os.path.exists(paths.db):
        return _ok("store.check", "no database yet")
    try:
        connection = apsw.Connection(paths.db, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(2000)
            row = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except apsw.Error as error:
        return _bad(
            "store.check",
            f"the database cannot be read: {type(error).__name__}",
            _RESTORE,
        )
    if row and row[0] == "ok":
        return _ok("store.check", "the database is sound")
    return _bad(
        "store.check",
        "the database is damaged",
        _RESTORE,
    )


def check_embedder(paths: Paths) -> Check:
    """Whether the embedder's file is the published one; reads its 23 MB."""
    from memory.embedding.embedder import EXTRA, check_model

    name = "store.embedder"
    try:
        wanted = load(paths.config_file).memory.embedder
    except ConfigError:
        return _ok(name, "not looked at: the settings cannot be read")
    if wanted == "none":
        return _ok(name, "none, as [memory] embedder says")
    found = check_model()
    if found.state == "ok":
        return _ok(name, found.message)
    if found.state == "extra_missing" and wanted == "auto":
        return _ok(name, f"none; install {EXTRA} to find memories by meaning")
    return _bad(name, found.message, "Recall goes on by words alone until then.")


def check_last_run(paths: Paths, *, running: bool) -> Check:
    """Whether the last run ended cleanly."""
    if not running and os.path.exists(paths.running):
        return _warn(
            "last_run",
            "the last run did not end cleanly",
            f"`covey up` checks the database; {paths.log_file} may say why.",
        )
    return _ok("last_run", "running" if running else "ended cleanly, or never ran")


def check_agents(agents: list[dict[str, Json]]) -> Check:
    """Agents with a token."""
    active = [text(agent.get("name")) for agent in agents if not agent.get("revoked_ms")]
    if active:
        return _ok("clients", ", ".join(active))
    # An agent works without a token too: nothing is wrong.
    return _ok("clients", "no agent has a token; `covey connect` lists those that are here")


def _ask_daemon(paths: Paths, socket_path: str | None) -> tuple[list[Check], bool]:
    """What a running daemon says of itself, and whether one runs."""
    client = open_client(socket_path=socket_path, autostart=False, timeout_s=10.0)
    try:
        health = mapping(client.call("daemon.health"))
        found = [_from_health(row) for row in rows(health.get("checks"))]
        status = mapping(client.call("daemon.status"))
        version = text(status.get("version"))
        if version != daemon.__version__:
            found.append(
                _warn(
                    "daemon",
                    f"the daemon is version {version}, this command {daemon.__version__}",
                    "Restart it: covey down, covey up.",
                )
            )
        else:
            found.append(_ok("daemon", f"running, process {int(number(status.get('pid')))}"))
        found.append(check_agents(rows(client.call("agents.list"))))
        found += _peers(rows(status.get("peers")))
        found += [_from_health(row) for row in rows(client.call("net.report"))]
    except NotRunning:
        pid = read_lock(paths.state_lock).get("pid")
        return [_warn("daemon", f"not running (last process {pid or 'none'})", "covey up")], False
    except CliError as error:
        return [_bad("daemon", error.message, error.remedy or "Look at `covey logs`.")], True
    finally:
        client.close()
    return found, True


def _from_health(row: dict[str, Json]) -> Check:
    status = text(row.get("status"))
    return Check(
        name=text(row.get("name")),
        status="ok" if status == "ok" else "failed" if status == "failed" else "degraded",
        message=text(row.get("message")),
        remedy=text(row.get("remedy")),
    )


def _peers(peers: list[dict[str, Json]]) -> list[Check]:
    if not peers:
        return []
    live = sum(bool(peer.get("connected")) for peer in peers)
    message = f"{live} of {len(peers)} other machines connected"
    if live:
        return [_ok("mesh.peers", message)]
    return [
        _warn("mesh.peers", message, "See that Covey runs there and the machines reach each other.")
    ]


def examine(
    paths: Paths, *, part: Part | None = None, socket_path: str | None = None
) -> list[Check]:
    """Make all checks.

    Args:
        paths: of the node.
        part: only those of this part.
        socket_path: of the daemon to ask, when it is not the usual one.

    Returns:
        Problems first: failed, degraded, then ok.
    """
    asked, running = _ask_daemon(paths, socket_path)
    local: list[Callable[[], Check]] = [
        check_package,
        check_sqlite,
        lambda: check_config(paths),
        lambda: check_disk(paths),
        lambda: check_database(paths),
        lambda: check_embedder(paths),
        lambda: check_sandbox(paths),
        lambda: check_last_run(paths, running=running),
    ]
    # What the daemon and the files both tell is said once; a name may stand for several rows.
    seen = {check.name for check in asked}
    checks = [*asked, *(c for c in (make() for make in local) if c.name not in seen)]
    checks += check_modes(paths)
    if part in {None, "clients"}:
        from daemon.connect.inspect import check_clients

        sockets = socket_candidates(paths, os.environ, socket_path) if running else []
        checks += check_clients(paths, sockets, os.environ)
    if part is not None:
        prefix = {"net": ("mesh", "sync", "peers"), "store": ("store", "modes", "last_run"),
                  "clients": ("clients", "daemon")}[part]  # fmt: skip
        # Only the daemon knows of the mesh: if it does not answer, that is what is wrong.
        silent = [check for check in asked if part == "net" and check.name == "daemon"]
        checks = [check for check in checks if check.name.startswith(prefix)]
        checks += [check for check in silent if check.status != "ok"]
    order = {"failed": 0, "degraded": 1, "ok": 2}
    return sorted(checks, key=lambda check: (order[check.status], check.name))
