"""`make lint`: every checker on the whole tree, each with its time, even if one fails."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDERS: Final = (
    "daemon",
    "p2p",
    "memory",
    "federated",
    "tests",
    "tools",
    "benchmarks",
    "examples",
)
PYTHON: Final = sys.executable
BIN: Final = Path(sys.executable).parent
ASYNC_RULES: Final = "ASYNC101,ASYNC102,ASYNC103,ASYNC104,ASYNC119"
"""What ruff misses: yield in a scope, unshielded cleanup, swallowed cancellation."""

TIMEOUT_S: Final = 300


@dataclass(frozen=True)
class Result:
    """What a checker said."""

    name: str
    ok: bool
    output: str


def python_files(root: Path = ROOT) -> list[Path]:
    """All Python files of the tree."""
    return sorted(
        path
        for folder in FOLDERS
        for path in (root / folder).rglob("*.py")
        if "node_modules" not in path.parts
    )


def _run(name: str, command: Sequence[str], root: Path) -> Result:
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    return Result(name, done.returncode == 0, done.stdout + done.stderr)


def ruff_check(root: Path = ROOT) -> Result:
    """Style, likely bugs, banned calls."""
    return _run("ruff check", [str(BIN / "ruff"), "check", "."], root)


def ruff_format(root: Path = ROOT) -> Result:
    """Layout."""
    return _run("ruff format", [str(BIN / "ruff"), "format", "--check", "."], root)


def mypy(root: Path = ROOT) -> Result:
    """Types, strictly."""
    return _run("mypy", [PYTHON, "-m", "mypy"], root)


def imports(root: Path = ROOT) -> Result:
    """The contracts between packages in pyproject.toml."""
    command = [str(BIN / "lint-imports"), "--cache-dir", "build/import-linter", "--no-logo"]
    return _run("import-linter", command, root)


def flake8_async(root: Path = ROOT) -> Result:
    """Misuse of cancellation.

    It takes files, no folders, and a sixth of a second for each. So files that cannot break a rule
    are left out, clean ones are remembered by their hash, and the rest is shared by all cores.
    """
    memory = root / "build" / "flake8-async.clean"
    clean = set(memory.read_text().split()) if memory.exists() else set()
    hashes = {
        str(path.relative_to(root)): hashlib.sha256(
            ASYNC_RULES.encode() + path.read_bytes()
        ).hexdigest()
        for path in python_files(root)
        if _may_misuse_async(path.read_text("utf-8"))
    }
    todo = [name for name, digest in hashes.items() if digest not in clean]
    cores = os.cpu_count() or 1
    command = [str(BIN / "flake8-async"), "--enable", ASYNC_RULES]
    with ThreadPoolExecutor(cores) as pool:
        shares = [todo[share::cores] for share in range(cores) if todo[share::cores]]
        results = list(
            pool.map(lambda share: _run("flake8-async", [*command, *share], root), shares)
        )
    output = "".join(result.output for result in results)
    if all(result.ok or result.output for result in results):
        kept = [digest for name, digest in hashes.items() if f"{name}:" not in output]
        memory.parent.mkdir(exist_ok=True)
        memory.write_text("\n".join(sorted(kept)) + "\n")
    return Result("flake8-async", all(result.ok for result in results), output)


_SCOPES: Final = ("nursery", "Scope", "move_on_", "fail_", "task_group")
_CRITICAL: Final = ("BaseException", "Cancelled")
_AWAITING: Final = (ast.Await, ast.AsyncWith, ast.AsyncFor)


def _may_misuse_async(text: str) -> bool:
    """Whether a file has anything that the rules are about; the checker itself then decides."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Try() | ast.TryStar():
                caught = [
                    ast.unparse(clause.type) if clause.type else "" for clause in node.handlers
                ]
                if any(not what or any(word in what for word in _CRITICAL) for what in caught):
                    return True
                if _has(node.finalbody, _AWAITING):
                    return True
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if _yields_inside_with(node):
                    return True
            case _:
                continue
    return False


def _yields_inside_with(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a generator yields in a scope, or an async one in anything it entered."""
    if any("contextmanager" in ast.unparse(decorator) for decorator in function.decorator_list):
        return False  # both rules let these pass
    for node in ast.walk(function):
        if isinstance(node, ast.With | ast.AsyncWith) and _has(node.body, (ast.Yield,)):
            entered = " ".join(ast.unparse(item.context_expr) for item in node.items)
            is_async = isinstance(function, ast.AsyncFunctionDef)
            if is_async or any(word in entered for word in _SCOPES):
                return True
    return False


def _has(body: Sequence[ast.stmt], kinds: tuple[type[ast.AST], ...]) -> bool:
    return any(isinstance(node, kinds) for statement in body for node in ast.walk(statement))


def all_checks(root: Path = ROOT) -> Iterator[Result]:
    """Run every checker, the fastest first."""
    for check in (ruff_check, ruff_format, imports, mypy, flake8_async):
        yield check(root)


def main() -> int:
    """Run all checkers; 1 if any found something."""
    failed = []
    started = time.perf_counter()
    for result in all_checks():
        seconds = time.perf_counter() - started
        started += seconds
        print(f"{result.name:14} {'ok' if result.ok else 'FAILED':6} {seconds:5.1f} s", flush=True)
        if not result.ok:
            failed.append(result.name)
            print(result.output, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
