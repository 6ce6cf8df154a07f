"""What people install: a wheel that stands alone, with its data files and nothing else.

An editable install puts the whole tree on the path and hides a file that was left out; so this one
installs the wheel into an empty environment elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from tools import lint

if TYPE_CHECKING:
    from pathlib import Path

ROOT = lint.ROOT
PACKAGES = {"daemon", "p2p", "memory", "federated"}


def run(*command: str | Path, cwd: Path, ends_with: tuple[int, ...] = (0,), **env: str) -> str:
    """Run a command that must end with one of these statuses; what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode in ends_with, f"{command}: {done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT),
        cwd=folder,
    )
    (built,) = folder.glob("covey-*.whl")
    return built


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_wheel_holds_every_tracked_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    tracked = set(
        run("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, cwd=ROOT)
        .strip()
        .splitlines()
    )
    assert inside == tracked
    assert {name.split("/")[0] for name in inside} == PACKAGES
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    for package in PACKAGES:
        assert f"{package}/py.typed" in inside


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_works_in_an_empty_environment_elsewhere(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    home.mkdir()
    env = {"COVEY_HOME": str(tmp_path / "covey"), "PYTHONPATH": "", "VIRTUAL_ENV": ""}
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=home)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    # The lock's versions without the developer's tools: pip takes what the wheel asks for.
    constraints = tmp_path / "constraints.txt"
    lock = (ROOT / "requirements" / "dev.lock").read_text("utf-8")
    # With its marker: of some packages there is a pin a Python version.
    pins = [line.rstrip(" \\") for line in lock.splitlines() if "==" in line and line[0] != " "]
    constraints.write_text("\n".join(pins))
    run(*pip, "--constraint", constraints, wheel, cwd=home, **env)
    top_level = run(
        python,
        "-c",
        "import importlib.metadata as m; names = {f.parts[0] for f in m.files('covey')};"
        "print(sorted(n for n in names if n[0] != '.' and not n.endswith('.dist-info')))",
        cwd=home,
        **env,
    )
    assert top_level.strip() == str(sorted(PACKAGES))
    installed = run(python, "-c", "import p2p; print(p2p.__file__)", cwd=home, **env)
    assert str(tmp_path / "venv") in installed
    covey = tmp_path / "venv" / "bin" / "covey"
    assert "covey" in run(covey, "--version", cwd=home, **env).lower()
    try:
        # The data files too: migrations, word lists, defaults.
        run(covey, "up", cwd=home, **env)
        run(covey, "remember", "the wheel stands alone", cwd=home, **env)
        assert "stands alone" in run(covey, "recall", "wheel", cwd=home, **env)
        doctor = run(covey, "doctor", cwd=home, **env)
    finally:
        run(covey, "down", "--now", cwd=home, **env)
    assert "checks are fine" in doctor
    lines = [line.split()[:2] for line in doctor.splitlines()]
    assert ["ok", "package"] in lines
