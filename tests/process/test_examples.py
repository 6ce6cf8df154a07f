"""Every example runs against a daemon and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "examples"

PROMISES = {
    "shared_state.py": "to do: write the changelog",
    "notes.py": "1.00  you@",
    "mcp_agent.py": "The staging database is reset every night at 02:00.",
    "read_export_asyncio.py": "  Exports open with any SQLite.",
    "character_model.py": " times fewer bytes",
    "digits.py": "with eve lying in each",
}
WORDS = {
    "digits.py": ["--rounds", "3"],
    "character_model.py": ["--steps", "100", "--workers", "3", "--missing", "0.2"],
}

# What starts machines of its own is run by test_job_examples.py; the rest is what those share.
ELSEWHERE = {
    "ask_peers.py",
    "engines.py",
    "expr_map.py",
    "liars.py",
    "sentiment_llm.py",
    "top_words.py",
    "wide_search.py",
    "wordcount_files.py",
}
SHARED = {"machines.py", "programs.py"}


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """The environment of a person whose daemon runs."""
    with tempfile.TemporaryDirectory(prefix="ex-") as folder:
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": folder,
            "COVEY_HOME": folder,
        }
        subprocess.run(["covey", "up"], env=env, check=True, capture_output=True)
        yield env
        subprocess.run(["covey", "down", "--now"], env=env, check=False, capture_output=True)


def test_every_example_is_known_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == (set(PROMISES) | ELSEWHERE | SHARED)
    there = Path(__file__).with_name("test_job_examples.py").read_text("utf-8")
    assert not [name for name in ELSEWHERE if f'"{name}"' not in there]


@pytest.mark.parametrize("name", sorted(PROMISES))
def test_example_prints_what_it_promises(name: str, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *WORDS.get(name, [])],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert PROMISES[name] in done.stdout
