"""Setting up: an unusable Python is named, a missing system package is named with its command."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tools import lint

if TYPE_CHECKING:
    from pathlib import Path

ROOT = lint.ROOT


def bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script at the root of the tree."""
    return subprocess.run(
        ["bash", "-euc", script],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_a_python_that_is_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    done = bash("tools/venv.sh", VENV=str(venv), PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python 3.11 to 3.14" in done.stderr
    assert not venv.exists()


def test_a_finished_setup_is_skipped_and_another_folder_or_lock_is_not(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/bin/true")
    wanted = bash("cat requirements/dev.lock pyproject.toml tools/venv.sh | cksum").stdout.strip()
    (venv / ".covey-setup").write_text(f"{wanted} {ROOT}\n")
    skipped = bash("tools/venv.sh", VENV=str(venv), PYTHON="/bin/false")
    assert (skipped.returncode, skipped.stdout, skipped.stderr) == (0, "", "")
    for stamp in (f"{wanted} /elsewhere\n", f"1 2 {ROOT}\n"):
        (venv / ".covey-setup").write_text(stamp)
        assert bash("tools/venv.sh", VENV=str(venv), PYTHON="/bin/false").returncode == 1


NOT_ROOT = "id() { echo 1000; }; sudo() { return 1; }; "


def test_without_root_the_command_to_type_is_printed() -> None:
    for manager in ("apt-get", "dnf"):
        only = f'command() {{ [ "$2" = {manager} ] || [ "$2" = sudo ]; }}; '
        done = bash(f". tools/system.sh; {NOT_ROOT}{only}system_package libfoo-dev bar || exit 3")
        assert done.returncode == 3
        assert f"sudo {manager} install libfoo-dev bar" in done.stderr


def test_an_unknown_package_manager_is_named_as_such() -> None:
    done = bash(
        f". tools/system.sh; {NOT_ROOT}command() {{ false; }}; system_package foo || exit 3"
    )
    assert done.returncode == 3
    assert "your system's package manager: foo" in done.stderr


def test_scripts_are_executable_and_strict() -> None:
    for script in ("tools/venv.sh", "tools/lock.sh", "tests/interop/install.sh", ".ci/run"):
        path = ROOT / script
        assert os.access(path, os.X_OK), script
        assert "\nset -eu\n" in path.read_text("utf-8"), script
    for script in sorted(ROOT.glob("tools/*.sh")):
        assert bash(f"bash -n {script}").returncode == 0
