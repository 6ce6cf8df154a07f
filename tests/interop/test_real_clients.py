"""The real Claude Code, Codex and Gemini CLI list Covey after `covey connect`, without an account.

Opt-in, since three large packages change weekly: COVEY_TEST_CLIENTS=1 installs the newest of each
into `build/clients` and runs them with an empty environment.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.daemons import Home
from tests.helpers.need import need

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "clients"
PACKAGES = ("node@22", "@anthropic-ai/claude-code", "@google/gemini-cli", "@openai/codex")
OPT_IN = "COVEY_TEST_CLIENTS"

# name: (its program, what `PROGRAM mcp list` prints, the file it wrote, environment it needs)
CLIENTS = {
    "claude-code": ("claude", "✔ Connected", ".claude.json", {}),
    "codex": ("codex", "enabled", ".codex/config.toml", {}),
    # User servers run in trusted folders only.
    "gemini": (
        "gemini",
        "- Connected",
        ".gemini/settings.json",
        {"GEMINI_CLI_TRUST_WORKSPACE": "true"},
    ),
}


@pytest.fixture(scope="module")
def programs() -> Path:
    if not os.environ.get(OPT_IN):
        pytest.skip(f"set {OPT_IN}=1 to install and run the real clients")
    need("npm")
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = FOLDER / "node_modules" / ".bin"
    if not all((found / program).exists() for program, *_ in CLIENTS.values()):
        (FOLDER / "package.json").write_text('{"private": true}')
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--no-progress", *PACKAGES],
            cwd=FOLDER,
            check=True,
            timeout=500,
            stdin=subprocess.DEVNULL,
        )
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Home]:
    del programs  # first, so that a skip starts no daemon
    made = Home(tmp_path_factory.mktemp("clients") / "h")
    made.up()
    yield made
    made.stop()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_real_client_lists_covey_and_loses_it_again(
    name: str, home: Home, programs: Path, tmp_path: Path
) -> None:
    program, listed, file, extra = CLIENTS[name]
    env = {"HOME": str(tmp_path), "PATH": f"{programs}:/usr/bin:/bin"}
    work = tmp_path / "work"
    work.mkdir()
    home.ok("connect", name, "--yes", "--timeout", "60", env=env)
    assert '"covey"' in (text := (tmp_path / file).read_text()) or ".covey]" in text
    done = subprocess.run(
        [programs / program, "mcp", "list"],
        env={**env, **extra},
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown = done.stdout + done.stderr
    print(f"{program} mcp list:\n{shown}")
    assert done.returncode == 0, shown
    (line,) = [line for line in shown.splitlines() if "covey" in line and " mcp" in line]
    assert listed in line
    token = (home.folder / "state" / "agents" / f"{name}.token").read_text().strip()
    assert token not in shown
    home.ok("disconnect", name, "--yes", env=env)
    left = (tmp_path / file).read_text() if (tmp_path / file).exists() else ""
    assert "covey" not in left.replace(str(tmp_path), "").replace(str(home.folder), "")
    agents = json.loads(home.ok("agents", "--json"))
    assert all(agent["revoked_ms"] for agent in agents if agent["name"] == name)
