"""Programs that run away, rows that want to become arguments, runners that lie on their pipe.

The operator chose the program, a peer chose the rows: whatever these make of it ends within the
limits, takes every process with it, and the next task is answered.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from federated.errors import HandlerError
from federated.jobs.config import HandlerConfig
from federated.jobs.handlers import proc
from federated.jobs.handlers.base import TaskLimits
from federated.jobs.handlers.child import STDERR_BYTES_MAX, Child
from federated.jobs.handlers.proc import CommandHandler, FunctionHandler, _Runner
from tests.helpers.job_handlers import gone, make_batch, make_ctx, until_gone
from tests.helpers.need import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from federated.jobs.handlers.sandbox import SandboxKind

pytestmark = pytest.mark.attack

GENEROUS_S = 40.0
MODULE = """
import os, signal, subprocess, sys, time, socket, resource

def calm(rows, task):
    return [{"ok": True} for _ in rows]

def spin(rows, task):
    print("begun", file=sys.stderr, flush=True)
    while True:
        pass

def deaf(rows, task):
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    return spin(rows, task)

def parent(rows, task):
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    print("child", child.pid, file=sys.stderr, flush=True)
    return spin(rows, task)

def hog(rows, task):
    found = []
    while True:
        found.append(bytearray(1 << 20))

def leaves(rows, task):
    os._exit(0)

def dies(rows, task):
    os.kill(os.getpid(), signal.SIGSEGV)

def long(rows, task):
    return [{"x": "x" * (100 << 20)} for _ in rows]

def longer(rows, task):
    return [{"x": "x" * (3 << 20)} for _ in rows]

def deep(rows, task):
    found = []
    for _ in range(100000):
        found = [found]
    return [{"x": found} for _ in rows]

def odd(rows, task):
    return [object() for _ in rows]

def few(rows, task):
    return []

def no_list(rows, task):
    return {"answers": []}

def chatty(rows, task):
    for _ in range(2000):
        sys.stderr.write("x" * 10000)
        sys.stdout.write("y" * 10000)
    return calm(rows, task)

def asks(rows, task):
    return [{"environment": sorted(os.environ), "argv": sys.argv[:1], "cwd": os.getcwd()}]

def limits(rows, task):
    return [{name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))[0]
             for name in ("CORE", "FSIZE", "NOFILE", "AS")}]

def reads(rows, task):
    return [{"text": open(rows[0]["row"]["path"]).read()}]

def writes(rows, task):
    open(rows[0]["row"]["path"], "w").write("x")
    return calm(rows, task)

def connects(rows, task):
    with socket.create_connection(("127.0.0.1", rows[0]["row"]["port"]), 5):
        return calm(rows, task)

def sees(rows, task):
    return [{"processes": len([name for name in os.listdir("/proc") if name.isdigit()])}]

def large_file(rows, task):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open(rows[0]["row"]["path"], "wb") as file:
        file.write(bytes(17 << 20))
    return calm(rows, task)
"""


@pytest.fixture(params=["limits", "landlock", "bubblewrap"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SandboxKind:
    found: SandboxKind = request.param
    if found != "limits":
        need(found)
    monkeypatch.setattr(proc, "sandbox_kind", lambda: found)
    return found


@pytest.fixture
async def make(
    kind: SandboxKind,  # noqa: ARG001 - decides where programs run
    tmp_path: Path,
) -> AsyncIterator[Callable[..., FunctionHandler]]:
    folder = tmp_path / "operator"
    folder.mkdir()
    (folder / "hostile_rows.py").write_text(MODULE)
    made: list[FunctionHandler] = []

    def build(name: str, **config: object) -> FunctionHandler:
        values = {"run": f"hostile_rows:{name}", "read": (str(folder),), **config}
        made.append(FunctionHandler(f"{name}@1", HandlerConfig(**values)))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for handler in made:
        await handler.aclose()


async def reason_of(handler: FunctionHandler | CommandHandler, *rows: dict[str, object]) -> str:
    with pytest.raises(HandlerError) as caught, trio.fail_after(GENEROUS_S):
        await handler.run(make_batch(*(rows or ({},))), make_ctx())
    return caught.value.reason


async def cancelled_when(handler: FunctionHandler | CommandHandler, word: str) -> tuple[Child, str]:
    """Run a task, cancel it once the program has said `word`; its process and what it said."""
    started: list[Child] = []
    start = handler._start

    async def watched(*args: object) -> Child:
        started.append(await start(*args))  # type: ignore[arg-type]
        return started[-1]

    handler._start = watched  # type: ignore[method-assign]
    with trio.fail_after(GENEROUS_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.run, make_batch({}), make_ctx())
            # What it writes to standard error wakes nobody.
            while not started or word not in started[0].complaint():  # noqa: ASYNC110
                await trio.sleep(0.01)
            said = started[0].complaint()
            nursery.cancel_scope.cancel()
    handler._start = start  # type: ignore[method-assign]
    return started[0], said


@pytest.mark.parametrize("name", ["spin", "deaf"])
async def test_a_cancelled_program_is_gone_whatever_it_ignores(
    make: Callable[..., FunctionHandler], name: str
) -> None:
    handler = make(name)
    child, _ = await cancelled_when(handler, "begun")
    assert gone(child.pid)
    assert handler._idle == []


async def test_what_a_program_started_goes_with_it(
    make: Callable[..., FunctionHandler], kind: SandboxKind
) -> None:
    child, said = await cancelled_when(make("parent"), "begun")
    assert gone(child.pid)
    if kind == "limits":  # in a sandbox it has another number there
        with trio.fail_after(GENEROUS_S):
            await until_gone(int(said.split()[1]))


@pytest.mark.usefixtures("kind")
async def test_a_cancelled_command_is_gone() -> None:
    script = "import sys\nprint('begun', file=sys.stderr, flush=True)\nwhile True: pass"
    handler = CommandHandler("c@1", HandlerConfig(run=(sys.executable, "-I", "-S", "-c", script)))
    child, _ = await cancelled_when(handler, "begun")
    assert gone(child.pid)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("hog", {"memory", "exception"}),
        ("leaves", {"exception"}),
        ("dies", {"exception"}),
        ("long", {"output"}),
        ("longer", {"output"}),
        ("deep", {"bad_output", "exception"}),
        ("odd", {"bad_output"}),
        ("few", {"bad_output"}),
        ("no_list", {"bad_output"}),
    ],
)
async def test_a_program_that_does_too_much_fails_and_the_next_task_works(
    make: Callable[..., FunctionHandler], name: str, reasons: set[str]
) -> None:
    handler = make(name, mem_bytes=300 << 20)
    assert await reason_of(handler) in reasons
    assert await reason_of(handler) in reasons
    assert await make("calm").run(make_batch({}), make_ctx()) == [(0, {"ok": True}, "")]


async def test_what_it_prints_is_neither_answer_nor_memory_of_ours(
    make: Callable[..., FunctionHandler],
) -> None:
    handler = make("chatty")
    with trio.fail_after(GENEROUS_S):
        assert await handler.run(make_batch({}), make_ctx()) == [(0, {"ok": True}, "")]
    child = handler._idle[0].child
    assert 0 < len(child.complaint()) <= STDERR_BYTES_MAX
    assert child._ring_bytes <= STDERR_BYTES_MAX + 65_536


@pytest.mark.usefixtures("kind")
async def test_a_hundred_megabytes_of_output_end_at_the_cap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = "import sys\nfor _ in range(1600):\n    sys.stdout.write('x' * 65536)"
    handler = CommandHandler("c@1", HandlerConfig(run=(sys.executable, "-I", "-S", "-c", script)))
    received: list[int] = []
    read = Child.read_exactly

    async def watched(self: Child, count: int) -> bytes:
        found = await read(self, count)
        received.append(len(found))
        return found

    monkeypatch.setattr(Child, "read_exactly", watched)
    assert await reason_of(handler) == "output"
    assert 2**20 < sum(received) <= 2 * 2**20 + 65_536 + 1


@pytest.mark.usefixtures("kind")
async def test_a_command_that_reads_nothing_and_one_that_stays_silent_end() -> None:
    large = {"x": "y" * 60_000}
    deaf = CommandHandler("c@1", HandlerConfig(run=("true",)))
    with trio.fail_after(GENEROUS_S):
        assert await deaf.run(make_batch(*[large] * 4), make_ctx()) == []
    silent = CommandHandler("c@1", HandlerConfig(run=("sleep", "1000")))
    with trio.move_on_after(0.5) as scope:
        await silent.run(make_batch(*[large] * 4), make_ctx())
    assert scope.cancelled_caught


HOSTILE_CELLS = [
    "; touch pwned", "$(touch pwned)", "`touch pwned`", "| touch pwned", "--help", "-c", "\n--help",
    "{{template}}", "%s%n", "a\x00b", "\x1b[2J", "'\"\\", "../../etc/passwd", "${PATH}",
]  # fmt: skip


@pytest.mark.usefixtures("kind")
async def test_no_cell_template_or_param_becomes_an_argument() -> None:
    script = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    row = json.loads(line)\n"
        "    seen = {'argv': sys.argv[1:], 'env': sorted(os.environ), 'in': row['row']['x']}\n"
        "    print(json.dumps({'k': row['k'], 'row': seen}))\n"
    )
    handler = CommandHandler(
        "c@1", HandlerConfig(run=(sys.executable, "-I", "-S", "-c", script, "fixed", "--flag"))
    )
    batch = make_batch(
        *({"x": cell, cell: "name"} for cell in HOSTILE_CELLS),
        params={cell: cell for cell in HOSTILE_CELLS},
        texts=HOSTILE_CELLS,
    )
    answers = await handler.run(batch, make_ctx())
    assert len(answers) == len(HOSTILE_CELLS)
    for (_, row, _), cell in zip(answers, HOSTILE_CELLS, strict=True):
        assert row is not None
        assert row["argv"] == ["fixed", "--flag"]
        assert row["in"] == cell
        assert set(row["env"]) <= {"PATH", "LANG", "HOME", "PWD", "LC_CTYPE"}  # type: ignore[call-overload]


async def test_no_secret_of_ours_is_in_its_environment(
    make: Callable[..., FunctionHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVEY_SECRET", "topsecret")
    [(_, row, _)] = await make("asks").run(make_batch({}), make_ctx())
    assert row is not None
    assert set(row["environment"]) <= {"PATH", "LANG", "HOME", "PWD", "LC_CTYPE"}  # type: ignore[call-overload]
    assert row["cwd"] == "/"


async def test_its_limits_hold_for_whatever_it_starts(make: Callable[..., FunctionHandler]) -> None:
    [(_, row, _)] = await make("limits", mem_bytes=300 << 20).run(make_batch({}), make_ctx())
    assert row == {"CORE": 0, "FSIZE": 16 << 20, "NOFILE": 64, "AS": 300 << 20}


async def test_a_large_file_is_not_written(
    make: Callable[..., FunctionHandler], tmp_path: Path, kind: SandboxKind
) -> None:
    path = tmp_path / "large" if kind == "limits" else Path("/dev/shm/large")
    assert await reason_of(make("large_file"), {"path": str(path)}) == "exception"
    if kind == "limits":
        assert path.stat().st_size <= 16 << 20


@pytest.mark.parametrize("kind", ["bubblewrap"], indirect=True)
async def test_in_the_sandbox_files_network_and_processes_are_out_of_reach(
    make: Callable[..., FunctionHandler], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("topsecret")
    reads, writes = make("reads"), make("writes")
    for path in (secret, Path("/etc/passwd"), Path.home() / ".profile"):
        assert await reason_of(reads, {"path": str(path)}) == "exception"
    for path in ("/usr/pwned", "/pwned", str(tmp_path / "operator" / "pwned"), "/dev/pwned"):
        assert await reason_of(writes, {"path": path}) == "exception"
    [(_, row, _)] = await make("sees").run(make_batch({}), make_ctx())
    assert row is not None
    assert row["processes"] <= 3  # type: ignore[operator]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await reason_of(make("connects"), {"port": port}) == "exception"
        answers = await make("connects", sandbox="network").run(
            make_batch({"port": port}), make_ctx()
        )
        assert answers == [(0, {"ok": True}, "")]


@pytest.mark.parametrize(
    ("script", "reasons"),
    [
        ("o.write(b'\\xff\\xff\\xff\\xff')", {"output"}),
        ("o.write(b'\\x00\\x10\\x00\\x00' + b'x' * 100)", {"exception"}),
        ("o.write(b'\\x00\\x00')", {"exception"}),
        ("pass", {"exception"}),
        ("o.write(b'\\x00\\x00\\x00\\x04junk')", {"bad_output"}),
        ("o.write(b'\\x00\\x01\\x00\\x00' + b'\\x91' * 65536)", {"bad_output"}),
        ("o.write(b'\\x00\\x00\\x00\\x00')", {"bad_output"}),
    ],
)
async def test_a_runner_that_lies_is_not_believed(script: str, reasons: set[str]) -> None:
    code = f"import sys\no = sys.stdout.buffer\n{script}\no.flush()\n"
    child = Child([sys.executable, "-I", "-S", "-c", code])
    runner = _Runner(child)
    try:
        with pytest.raises(HandlerError) as caught, trio.fail_after(GENEROUS_S):
            await runner.answers(make_batch({}), TaskLimits(out_bytes=2**20))
        assert caught.value.reason in reasons
        assert not runner.reusable
    finally:
        await child.aclose()


DAEMON = """
import sys, trio
from federated.jobs.config import HandlerConfig
from federated.jobs.handlers import proc
from tests.helpers.job_handlers import make_batch, make_ctx

proc.sandbox_kind = lambda: sys.argv[2]

async def main():
    config = HandlerConfig(run="hostile_rows:spin", read=(sys.argv[1],))
    handler = proc.FunctionHandler("spin@1", config)
    start = handler._start
    async def watched(*args):
        child = await start(*args)
        print(child.pid, flush=True)
        return child
    handler._start = watched
    await handler.run(make_batch({}), make_ctx())

trio.run(main)
"""


async def test_a_killed_daemon_leaves_no_process(kind: SandboxKind, tmp_path: Path) -> None:
    need("linux")
    (tmp_path / "hostile_rows.py").write_text(MODULE)
    root = Path(__file__).parents[2]
    daemon = subprocess.Popen(  # noqa: ASYNC220 - the loop has nothing else to do
        [sys.executable, "-c", DAEMON, str(tmp_path), kind],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        pid = int(await trio.to_thread.run_sync(daemon.stdout.readline))
    assert not gone(pid)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait(timeout=GENEROUS_S)
    with trio.fail_after(GENEROUS_S):
        await until_gone(pid)
