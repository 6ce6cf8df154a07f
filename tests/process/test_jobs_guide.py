"""The guide to jobs does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.tour import check_document

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "jobs.md"


@pytest.fixture
def tour() -> Iterator[dict[str, str]]:
    """A shell's environment with two short homes; both daemons are ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="jg-") as folder:
        yield {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": folder,
            "TOUR": folder,
            "COVEY_P2P__PRESET": "test",
            "COVEY_P2P__LISTEN": '["/ip4/127.0.0.1/tcp/0"]',
            "COVEY_P2P__DRAW_PORT": "true",
            "COVEY_MEMORY__EMBEDDER": "none",
        }
        for home in ("laptop", "desktop"):
            subprocess.run(
                [sys.executable, "-m", "daemon", "down", "--now"],
                env={"COVEY_HOME": f"{folder}/{home}", "HOME": folder},
                capture_output=True,
                check=False,
            )


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_guide_to_jobs_does_what_it_says(tour: dict[str, str]) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    check_document(text, folder=Path(tour["HOME"]), env=tour, timeout_s=150)
