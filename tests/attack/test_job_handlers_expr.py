"""Expressions that try to stay, to grow, to get out or to make honest peers disagree.

Each ends within its limit, its process is gone or clean, and the next task is answered. Times are
asserted with a factor that a loaded machine does not reach.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from federated.jobs.handlers import expr as expr_module
from federated.jobs.handlers.base import TaskLimits
from federated.jobs.handlers.expr import Expr
from tests.helpers.job_handlers import gone, make_batch, make_ctx, until_gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federated.jobs.types import RowOut

pytestmark = pytest.mark.attack

LIMIT_S = 0.5
GENEROUS_S = 20.0
NEXT = "def map(row):\n    return {'ok': True}"


@pytest.fixture
async def expr() -> AsyncIterator[Expr]:
    handler = Expr(slots=1)
    yield handler
    await handler.aclose()


async def ask(handler: Expr, code: str) -> list[RowOut]:
    batch = make_batch({"x": 1}, params={"code": code})
    limits = TaskLimits(wall_s=LIMIT_S)
    return list(await handler.run(batch, make_ctx(limits=limits)))


def body(*lines: str) -> str:
    return "def map(row):\n" + "\n".join(f"    {line}" for line in lines)


@pytest.mark.parametrize(
    ("code", "reasons"),
    [
        pytest.param(body("while True:", "    pass"), {"timeout"}, id="endless loop"),
        pytest.param("while True:\n    pass", {"timeout"}, id="endless before map"),
        pytest.param(body("return {'n': sum(range(10 ** 12))}"), {"timeout"}, id="endless builtin"),
        pytest.param(
            body("y = 7 ** 4000000", "for i in range(50):", "    y % (3 ** (1000000 + i))"),
            {"timeout", "memory"},
            id="native arithmetic that is not interrupted",
        ),
        pytest.param(
            body("a = []", "while True:", "    a.append('x' * 9999)"), {"memory"}, id="hog"
        ),
        pytest.param(body("return {'x': 'x' * 10 ** 9}"), {"memory"}, id="one large text"),
        pytest.param(body("return {'x': 1 << 10 ** 10}"), {"memory"}, id="one large number"),
        pytest.param(body("return {'x': list(range(10 ** 9))}"), {"memory"}, id="one large list"),
        pytest.param(body("return {'x': 'x' * 33000000}"), {"memory", "crashed"}, id="just below"),
        pytest.param(
            "def f(n):\n    return f(n + 1)\n" + body("return f(0)"), {"recursion"}, id="deep"
        ),
        pytest.param(
            body("a = []", "for i in range(100000):", "    a = [a]", "return {'x': a}"),
            {"recursion"},
            id="deep value",
        ),
        pytest.param(
            body("return " + "(" * 5000 + "1" + ")" * 5000), {"bad_code"}, id="deep source"
        ),
        pytest.param(body("return {'x': 'x' * 14000000}"), {"output", "memory"}, id="long answer"),
        pytest.param(
            body("while True:", "    print('x' * 9999)"), {"memory", "timeout"}, id="prints"
        ),
        pytest.param(
            "import time\n" + body("while True:", "    time.sleep(1000)"), {"timeout"}, id="sleeps"
        ),
    ],
)
async def test_what_takes_too_much_ends_and_the_next_task_works(
    expr: Expr, capfd: pytest.CaptureFixture[str], code: str, reasons: set[str]
) -> None:
    began = time.monotonic()
    [(_, row, reason)] = await ask(expr, code)
    assert time.monotonic() - began < GENEROUS_S
    assert row is None
    assert reason in reasons
    assert await ask(expr, NEXT) == [(0, {"ok": True}, "")]
    assert "xxxx" not in capfd.readouterr().out


async def test_sleeping_takes_no_time(expr: Expr) -> None:
    began = time.monotonic()
    code = "import time\n" + body("for i in range(100):", "    time.sleep(1000)", "return {}")
    assert await ask(expr, code) == [(0, {}, "")]
    assert time.monotonic() - began < GENEROUS_S


@pytest.mark.parametrize(
    "code",
    [
        body("return {'x': open('/etc/hostname').read()}"),
        body("open('leak', 'w').write('x')", "return {}"),
        "import pathlib\n" + body("return {'x': pathlib.Path('/etc/hostname').read_text()}"),
        "import pathlib\n" + body("return {'x': [str(p) for p in pathlib.Path('/').iterdir()]}"),
        "import os\n" + body("return {'x': os.environ}"),
        "import os\n" + body("return {'x': os.getenv('HOME')}"),
        "import os\n" + body("return {'x': os.system('id')}"),
        "import socket\n" + body("return {}"),
        "import subprocess\n" + body("return {}"),
        "import ctypes\n" + body("return {}"),
        "import sys\n" + body("return {'x': list(sys.modules)}"),
        body('return {"x": eval("open(\'/etc/hostname\').read()")}'),
        body("return {'x': ().__class__.__base__.__subclasses__()}"),
        body("return {'x': map.__globals__}"),
        body("return {'x': __import__('os').getpid()}"),
        body("return {'x': fetch('http://127.0.0.1')}"),
    ],
)
async def test_the_host_is_out_of_reach(expr: Expr, code: str) -> None:
    [(_, row, reason)] = await ask(expr, code)
    assert row is None
    assert reason in {"exception", "bad_code"}
    assert await ask(expr, NEXT) == [(0, {"ok": True}, "")]


@pytest.mark.parametrize(
    "code",
    [
        "import json\njson.dumps = lambda *a: 'x' * 9000000\n" + NEXT,
        "_json = None\n_row = '{}'\n" + NEXT,
        "def len(x):\n    return 0\ndef str(x):\n    return ''\n"
        + body("return {'x': 'y' * 9000000}"),
        NEXT + "\n'x' * 20000000\\",
        NEXT + "\nif True:\n    'x'\n    #",
    ],
)
async def test_nothing_large_crosses_whatever_the_code_redefines(
    expr: Expr, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossed: list[object] = []
    feed = expr_module._Program._feed

    def watched(self: object, session: object, row: bytes) -> object:
        crossed.append(feed(self, session, row))  # type: ignore[arg-type]
        return crossed[-1]

    monkeypatch.setattr(expr_module._Program, "_feed", watched)
    [(_, row, _)] = await ask(expr, code)
    assert row in (None, {"ok": True})
    assert all(isinstance(text, str) and len(text) <= 2**20 + 1 for text in crossed)


async def test_cancelling_kills_the_guest_and_the_next_task_works(
    expr: Expr, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = trio.Event()
    token = trio.lowlevel.current_trio_token()
    pids: list[int] = []
    enter = expr_module._Guest.enter

    def watched(self: expr_module._Guest, pid: int | None) -> None:
        enter(self, pid)
        assert pid is not None
        pids.append(pid)
        token.run_sync_soon(fed.set)

    monkeypatch.setattr(expr_module._Guest, "enter", watched)
    # Without the kill the guest would go on for an hour, and so would the test.
    monkeypatch.setattr(expr_module, "ROW_WALL_S", 3600.0)
    batch = make_batch({}, {}, params={"code": body("while True:", "    pass")})
    with trio.fail_after(GENEROUS_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expr.run, batch, make_ctx(limits=TaskLimits(wall_s=3600.0)))
            await fed.wait()
            nursery.cancel_scope.cancel()
    assert len(pids) == 1
    assert gone(pids[0])
    monkeypatch.undo()
    assert await ask(expr, NEXT) == [(0, {"ok": True}, "")]


def test_a_guest_that_has_left_is_not_killed_and_none_begins_after() -> None:
    guest = expr_module._Guest()
    guest.enter(os.getpid())
    guest.leave()
    guest.kill()
    with pytest.raises(expr_module.HandlerError, match="cancelled"):
        guest.enter(os.getpid())


DAEMON = """
import trio
from federated.jobs.handlers import expr
from tests.helpers.job_handlers import make_batch, make_ctx

enter = expr._Guest.enter

def watched(self, pid):
    enter(self, pid)
    print(pid, flush=True)

expr._Guest.enter = watched
code = "def map(row):\\n    while True:\\n        pass"
trio.run(expr.Expr(slots=1).run, make_batch({}, params={"code": code}), make_ctx())
"""


async def test_a_killed_daemon_leaves_no_guest() -> None:
    """The guest ends at its limit, and its worker finds that nobody is left to tell."""
    root = Path(__file__).parents[2]
    daemon = subprocess.Popen(  # noqa: ASYNC220 - the loop has nothing else to do
        [sys.executable, "-c", DAEMON],
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
