"""A remedy that names a command names one that exists."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {name for group in COMMANDS.values() for name in group} | {"mcp"}

_NAMED = re.compile(r"`covey ([a-z]+)")


def unknown(name: str, text: str) -> list[str]:
    """Places of `text` that name a command we do not have."""
    return [
        f"{name}:{number}: covey {command}"
        for number, line in enumerate(text.splitlines(), 1)
        for command in _NAMED.findall(line)
        if command not in KNOWN
    ]


def test_every_command_that_the_code_names_exists() -> None:
    found = [
        fault
        for package in ("daemon", "memory", "p2p", "federated")
        for path in sorted((ROOT / package).rglob("*.py"))
        for fault in unknown(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    ]
    assert not found, found


def test_control_an_unknown_command_is_found() -> None:
    assert unknown("f", "x\nrun `covey nonsense --now`") == ["f:2: covey nonsense"]
    assert not unknown("f", "run `covey status`")
