"""The checkers of `make lint` are part of the tests, and each is seen to find what it is for."""

from __future__ import annotations

import ast
import shutil
import tomllib
from typing import TYPE_CHECKING

import pytest

from tools import lint

if TYPE_CHECKING:
    from pathlib import Path

ROOT = lint.ROOT


def test_ruff_finds_nothing() -> None:
    result = lint.ruff_check()
    assert result.ok, result.output


def test_the_code_is_formatted() -> None:
    result = lint.ruff_format()
    assert result.ok, result.output


@pytest.mark.timeout(300)
def test_mypy_finds_nothing() -> None:
    result = lint.mypy()
    assert result.ok, result.output


@pytest.mark.timeout(300)
def test_flake8_async_finds_nothing() -> None:
    result = lint.flake8_async()
    assert result.ok, result.output


def test_the_import_contracts_hold() -> None:
    result = lint.imports()
    assert result.ok, result.output


@pytest.fixture
def empty_tree(tmp_path: Path) -> Path:
    """A tree with this project's settings and one empty module."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "p2p").mkdir()
    (tmp_path / "p2p" / "__init__.py").write_text('"""Package."""\n')
    return tmp_path


BANNED = {
    "time.time": "import time\n\nX = time.time()\n",
    "time.monotonic": "import time\n\nX = time.monotonic()\n",
    "datetime.datetime.now": "import datetime\n\nX = datetime.datetime.now(datetime.UTC)\n",
    "uuid.uuid4": "import uuid\n\nX = uuid.uuid4()\n",
    "os.urandom": "import os\n\nX = os.urandom(8)\n",
    "secrets": "import secrets\n\nX = secrets.token_hex()\n",
    "asyncio": "import asyncio\n\nX = asyncio\n",
    "pickle": "import pickle\n\nX = pickle\n",
    "marshal": "import marshal\n\nX = marshal\n",
    "trio.to_thread": "import trio\n\nX = trio.to_thread.run_sync\n",
    **{
        f"random.{name}": f"import random\n\nX = random.{name}\n"
        for name in (
            "random",
            "randint",
            "choice",
            "shuffle",
            "sample",
            "randbytes",
            "getrandbits",
            "randrange",
            "uniform",
            "seed",
        )
    },
}


def test_control_every_banned_call_is_found(empty_tree: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    banned = settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(BANNED) == set(banned), "each banned call has an example here"
    for number, source in enumerate(BANNED.values()):
        (empty_tree / "p2p" / f"m{number}.py").write_text(f'"""Module."""\n\n{source}')
    result = lint.ruff_check(empty_tree)
    for number, name in enumerate(BANNED):
        found = [line for line in result.output.splitlines() if "TID251" in line]
        assert f"m{number}.py" in result.output, name
        assert len(found) >= len(BANNED)


def test_control_mypy_refuses_any_and_untyped_code(empty_tree: Path) -> None:
    settings = (empty_tree / "pyproject.toml").read_text("utf-8")
    start = settings.index("packages = [", settings.index("[tool.mypy]"))
    end = settings.index("\n", start)
    (empty_tree / "pyproject.toml").write_text(
        settings[:start] + 'packages = ["p2p"]' + settings[end:]
    )
    (empty_tree / "p2p" / "loose.py").write_text(
        "from typing import Any\n\n\ndef f(x: Any) -> int:\n    return 1\n\n\n"
        "def g(x):\n    return x\n"
    )
    result = lint.mypy(empty_tree)
    assert not result.ok
    assert "explicit-any" in result.output
    assert "no-untyped-def" in result.output


MISUSED_ASYNC = {
    "ASYNC101": "async def f():\n    async with trio.open_nursery() as n:\n        yield n\n",
    "ASYNC102": "async def f():\n    try:\n        pass\n    finally:\n"
    "        await trio.sleep(1)\n",
    "ASYNC103": "async def f():\n    try:\n        pass\n    except BaseException:\n        pass\n",
    "ASYNC104": "async def f():\n    try:\n        pass\n    except trio.Cancelled:\n"
    "        raise ValueError from None\n",
    "ASYNC119": "async def f():\n    with open('x') as x:\n        yield x\n",
}


@pytest.mark.parametrize("rule", MISUSED_ASYNC)
def test_control_flake8_async_finds_each_misuse(empty_tree: Path, rule: str) -> None:
    # Also a control of the filter that spares files without anything to find.
    assert set(MISUSED_ASYNC) == set(lint.ASYNC_RULES.split(","))
    (empty_tree / "p2p" / "misuse.py").write_text(f"import trio\n\n\n{MISUSED_ASYNC[rule]}")
    result = lint.flake8_async(empty_tree)
    assert not result.ok
    assert rule in result.output


def test_control_a_clean_file_that_changes_is_looked_at_again(empty_tree: Path) -> None:
    module = empty_tree / "p2p" / "changing.py"
    module.write_text("import trio\n\n\nasync def f() -> None:\n    await trio.sleep(1)\n")
    assert lint.flake8_async(empty_tree).ok
    module.write_text(
        "import trio\n\n\nasync def f() -> None:\n    try:\n        await trio.sleep(1)\n"
        "    except trio.Cancelled:\n        pass\n"
    )
    assert not lint.flake8_async(empty_tree).ok


def test_clocks_and_random_numbers_are_let_in_at_named_doors_only() -> None:
    # The command line, an agent's relay and its hooks are processes of their own, without an Env:
    # they wait for the daemon by the real clock and name their connection.
    doors = {
        "p2p/env.py",
        "daemon/wiring.py",
        "daemon/mcp/greeting.py",
        "daemon/hooks/client.py",
    }
    exceptions = {
        str(path.relative_to(ROOT))
        for path in lint.python_files()
        if "TID251" in path.read_text("utf-8")
        and path.parts[len(ROOT.parts)] != "tests"
        and path.parent != ROOT / "daemon" / "cli"
    }
    assert exceptions <= doors, exceptions - doors


def test_every_noqa_and_type_ignore_names_its_rule() -> None:
    # ruff (PGH003, PGH004) and mypy (ignore-without-code) say so too; this also covers the tests.
    bare = []
    for path in lint.python_files():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            comment = line.partition("#")[2].strip()
            if comment in {"no" + "qa", "type: " + "ignore"}:
                bare.append(f"{path.relative_to(ROOT)}:{number}")
    assert not bare, bare


def test_no_test_patches_another_module_by_name_or_is_marked_flaky() -> None:
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(name.startswith(("unittest.mock", "mock")) for name in names):
                found.append(f"{path.relative_to(ROOT)}: imports mock")
            if isinstance(node, ast.Attribute) and node.attr in {"flaky", "rerun"}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}")
    assert not found, found
