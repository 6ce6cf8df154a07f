"""The demo holds what it shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_check_of_the_demo_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "demo"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks held" in done.stdout
