"""`make lint`: every checker on the whole tree, each with its time, even if one fails."""

from __future__ import annotations

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


def _may_misuse_async(text: str) -> bool:
    """Whether a file has what the rules are about: yield in a scope, cleanup, broad excepts."""
    if any(word in text for word in ("BaseException", "Cancelled", "except:")):
        return True
    return "async def" in text and ("finally:" in text or ("yield" in text and "with " in text))


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
