"""What programs of an operator's try in the sandbox of Landlock and seccomp, and do not reach.

Each probe runs as a handler's function in a real runner process and says what the kernel told it.
The same probes without the sandbox succeed, so that they prove something.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from daemon.doctor import check_sandbox
from daemon.paths import resolve
from federated.errors import HandlerError
from federated.jobs.config import HandlerConfig
from federated.jobs.handlers import confine, proc, sandbox
from federated.jobs.handlers.proc import CommandHandler, FunctionHandler
from tests.helpers.job_handlers import gone, make_batch, make_ctx, until_gone
from tests.helpers.need import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.attack

GENEROUS_S = 40.0
MODULE = '''
import ctypes, errno, os, resource, signal, socket, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)

def told(fn):
    try:
        found = fn()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    if isinstance(found, int) and found < 0:
        return errno.errorcode.get(ctypes.get_errno(), "?")
    return "done"

def call(number, *arguments):
    return lambda: libc.syscall(ctypes.c_long(number), *arguments)

def reach(rows, task):
    """Everything that should be out of reach, by name."""
    row = rows[0]["row"]
    pid, port, path, secret = row["pid"], row["port"], row["socket"], row["secret"]
    def connect():
        with socket.create_connection(("127.0.0.1", port), 5):
            return 0
    def unix():
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(path)
        return 0
    def datagram():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", ("127.0.0.1", port))
        return 0
    def link():
        os.symlink(secret, row["folder"] + "/link")
    def limit():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.prlimit(pid, resource.RLIMIT_NOFILE))
    return [{
        "read": told(lambda: os.close(os.open(secret, os.O_RDONLY))),
        "root": told(lambda: os.close(os.open("/proc/self/root/" + secret, os.O_RDONLY))),
        "list": told(lambda: len(os.listdir(row["folder"]))),
        "write": told(lambda: os.close(os.open(row["folder"] + "/p", os.O_CREAT | os.O_WRONLY))),
        "truncate": told(lambda: os.truncate(secret, 0)),
        "unlink": told(lambda: os.unlink(row["victim"])),
        "rename": told(lambda: os.rename(secret, row["folder"] + "/renamed")),
        "link": told(link),
        "environment": told(lambda: os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY))),
        "memory": told(lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))),
        "connect": told(connect),
        "unix": told(unix),
        "datagram": told(datagram),
        "raw": told(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "signal": told(lambda: os.kill(pid, 0)),
        "limit": told(limit),
        "setsid": told(os.setsid),
        "setpgid": told(lambda: os.setpgid(0, 0)),
        "ptrace": told(call(row["ptrace"], 16, pid, 0, 0)),
        "unshare": told(lambda: libc.unshare(0x10000000)),
        "mount": told(lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
        "io_uring": told(call(425, 8, ctypes.create_string_buffer(120))),
        "memfd": told(lambda: os.close(os.memfd_create("x"))),
        "bpf": told(call(row["bpf"], 0, 0, 0)),
        "clone3": told(call(435, ctypes.create_string_buffer(88), 88)),
        "x32": told(call(0x40000000 + 39)) if row["x86"] else "ENOSYS",
    }]

def works(rows, task):
    """Everything that programs may do."""
    import json, random, threading, tempfile, zoneinfo
    thread = threading.Thread(target=lambda: None)
    thread.start(); thread.join()
    child = subprocess.run([sys.executable, "-I", "-S", "-c", "print(6 * 7)"],
                           capture_output=True, text=True, check=True)
    one, other = socket.socketpair()
    one.send(b"x")
    with open("/dev/null", "w") as null:
        null.write("x")
    os.urandom(8)
    shell = subprocess.run(["sh", "-c", "echo a | cat"], capture_output=True, text=True, check=True)
    os.kill(os.getpid(), 0)
    stuck = subprocess.Popen(["sleep", "100"])
    stuck.kill()
    return [{"child": child.stdout, "pair": other.recv(1).decode(), "shell": shell.stdout,
             "status": "VmHWM" in open("/proc/self/status").read(), "killed": stuck.wait()}]

def bomb(rows, task):
    """Two hundred processes that spin, each trying to leave the group first."""
    def leave():
        try:
            os.setsid()
        except OSError:
            pass
    pids = []
    for _ in range(50):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            for _ in range(2):
                try:
                    os.fork()
                except OSError:
                    break
            leave()
            while True:
                time.sleep(0.05)
        pids.append(pid)
    print("forked", *pids, file=sys.stderr, flush=True)
    print("begun", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.05)

def sleeps(rows, task):
    print("begun", file=sys.stderr, flush=True)
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass
'''


@pytest.fixture
async def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., FunctionHandler]]:
    folder = tmp_path / "operator"
    folder.mkdir()
    (folder / "probes.py").write_text(MODULE)
    made: list[FunctionHandler] = []

    def build(name: str, kind: str = "landlock", **config: object) -> FunctionHandler:
        need("landlock")
        monkeypatch.setattr(proc, "sandbox_kind", lambda: kind)
        values = {"run": f"probes:{name}", "read": (str(folder),), **config}
        made.append(FunctionHandler(f"{name}@1", HandlerConfig(**values)))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for handler in made:
        await handler.aclose()


async def answered(handler: FunctionHandler, row: dict[str, object]) -> dict[str, object]:
    with trio.fail_after(GENEROUS_S):
        [(_, found, reason)] = await handler.run(make_batch(row), make_ctx())
    assert found is not None, reason
    return found


class Target:
    """What probes aim at: files, sockets, and a process that is not theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "target"
        self.folder.mkdir()
        self.secret = self.folder / "secret"
        self.secret.write_text("topsecret")
        (self.folder / "victim").write_text("x")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.folder / "s"))
        self.unix.listen()
        self.process = subprocess.Popen(["sleep", "1000"])
        for listener in (self.server, self.unix):
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    @staticmethod
    def _accept(listener: socket.socket) -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return

    def row(self) -> dict[str, object]:
        x86 = os.uname().machine == "x86_64"
        return {
            "pid": self.process.pid, "port": self.server.getsockname()[1],
            "socket": str(self.folder / "s"), "secret": str(self.secret),
            "folder": str(self.folder), "victim": str(self.folder / "victim"),
            "ptrace": 101 if x86 else 117, "bpf": 321 if x86 else 280, "x86": x86,
        }  # fmt: skip

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for listener in (self.server, self.unix):
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    found = Target(tmp_path)
    yield found
    found.close()


FREE = {
    "clone3",
    "x32",
    "setsid",
    "setpgid",
    "mount",
    "memory",
    "ptrace",
    "raw",
    "unshare",
    "io_uring",
    "bpf",
}
"""What the kernel may refuse or do without our sandbox, too."""


async def test_nothing_outside_is_in_reach(
    make: Callable[..., FunctionHandler], target: Target
) -> None:
    found = await answered(make("reach"), target.row())
    assert [name for name, told in found.items() if told == "done"] == []
    assert found["connect"] == found["unix"] == found["datagram"] == "EACCES"
    assert found["read"] == found["write"] == found["root"] == "EACCES"
    assert found["signal"] == found["limit"] == found["setsid"] == "EPERM"
    assert found["clone3"] == found["x32"] == "ENOSYS"
    assert target.secret.read_text() == "topsecret"
    assert target.files() == ["s", "secret", "victim"]


async def test_the_same_probes_reach_it_without(
    make: Callable[..., FunctionHandler], target: Target
) -> None:
    found = await answered(make("reach", "limits"), target.row())
    assert {name for name, told in found.items() if told != "done"} <= FREE


def as_if(abi: int, folder: Path) -> str:
    """The module that confines, acting as an earlier Landlock would have it."""
    older = folder / "operator" / "older.py"
    source = Path(confine.__file__).read_text("utf-8")
    older.write_text(source.replace("abi: int | None = None", f"abi: int | None = {abi}"))
    return str(older)


@pytest.mark.parametrize("abi", range(1, 8))
async def test_older_kernels_keep_the_same_out(
    make: Callable[..., FunctionHandler],
    target: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    abi: int,
) -> None:
    """As if Landlock were of an earlier version: seccomp covers signals and sockets."""
    monkeypatch.setattr(sandbox, "CONFINE", as_if(abi, tmp_path))
    found = await answered(make("reach"), target.row())
    # Landlock's first two versions know nothing of `truncate`.
    assert {name for name, told in found.items() if told == "done"} <= {"truncate"}
    assert abi < 3 or found["truncate"] == "EACCES"


@pytest.mark.parametrize("abi", [None, 1])
async def test_what_programs_need_works(
    make: Callable[..., FunctionHandler],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    abi: int | None,
) -> None:
    if abi is not None:
        monkeypatch.setattr(sandbox, "CONFINE", as_if(abi, tmp_path))
    expected = {"child": "42\n", "pair": "x", "shell": "a\n", "status": True, "killed": -9}
    if abi is not None:
        with pytest.raises(HandlerError) as caught:  # an older kernel: no signals to children
            await answered(make("works"), {})
        assert caught.value.reason == "exception"
        assert "Operation not permitted" in str(caught.value)
        return
    assert await answered(make("works"), {}) == expected


async def test_the_network_is_there_where_the_operator_says_so_and_files_are_not(
    make: Callable[..., FunctionHandler], target: Target
) -> None:
    found = await answered(make("reach", sandbox="network"), target.row())
    assert {name for name, told in found.items() if told == "done"} == {"connect", "datagram"}


def group_there(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("name", ["bomb", "sleeps"])
async def test_what_forks_or_sleeps_is_gone_with_all_its_children(
    make: Callable[..., FunctionHandler], name: str
) -> None:
    handler = make(name)
    pids: list[int] = []
    start = handler._start
    started = []

    async def watched(*args: object) -> object:
        started.append(await start(*args))  # type: ignore[arg-type]
        return started[-1]

    handler._start = watched  # type: ignore[method-assign,assignment]
    with trio.fail_after(GENEROUS_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.run, make_batch({}), make_ctx())
            # What it writes to standard error wakes nobody.
            while not started or "begun" not in started[0].complaint():  # noqa: ASYNC110
                await trio.sleep(0.01)
            for line in started[0].complaint().splitlines():
                if line.startswith("forked"):
                    pids = [int(pid) for pid in line.split()[1:]]
            nursery.cancel_scope.cancel()
        assert gone(started[0].pid)
        assert pids or name == "sleeps"
        for pid in pids:
            await until_gone(pid)
        while group_there(started[0].pid):  # noqa: ASYNC110 - a stranger's group tells nobody
            await trio.sleep(0.01)


async def test_a_command_is_confined_as_a_function_is(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("landlock")
    monkeypatch.setattr(proc, "sandbox_kind", lambda: "landlock")
    script = f"cat; cat {target.secret} >&2 || exit 7"
    handler = CommandHandler("c@1", HandlerConfig(run=("sh", "-c", script)))
    with pytest.raises(HandlerError) as caught, trio.fail_after(GENEROUS_S):
        await handler.run(make_batch({"x": 1}), make_ctx())
    assert "status 7" in str(caught.value)


async def test_a_runner_that_cannot_be_confined_does_not_run(
    make: Callable[..., FunctionHandler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "operator" / "broken.py"
    broken.write_text("def confine(read, *, network):\n    raise OSError(38, 'not here')\n")
    monkeypatch.setattr(sandbox, "CONFINE", str(broken))
    with pytest.raises(HandlerError), trio.fail_after(GENEROUS_S):
        await make("works").run(make_batch({}), make_ctx())


def test_what_runs_in_which_sandbox_is_tried_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    need("landlock")
    monkeypatch.setattr(sandbox.shutil, "which", lambda _name: None)
    probe = sandbox.sandbox_kind.__wrapped__
    assert probe() == "landlock"
    monkeypatch.setattr(sandbox, "CONFINE", "/nowhere/confine.py")
    assert probe() == "limits"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert probe() == "limits"
    assert confine.landlock_abi() == 0


@pytest.mark.parametrize(
    ("kind", "status"), [("bubblewrap", "ok"), ("landlock", "ok"), ("limits", "degraded")]
)
def test_the_doctor_says_what_holds_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: str
) -> None:
    monkeypatch.setattr(sandbox, "sandbox_kind", lambda: kind)
    paths = resolve({"COVEY_HOME": str(tmp_path)})
    assert check_sandbox(paths).status == "ok", "nothing is offered"
    Path(paths.config_file).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.config_file).write_text('[jobs.handlers."x@1"]\nrun = ["true"]\n', "utf-8")
    found = check_sandbox(paths)
    assert found.status == status
    assert kind in found.message
