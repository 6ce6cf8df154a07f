"""The README's tour does what the README says."""

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

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def tour() -> Iterator[dict[str, str]]:
    """A shell's environment with two short homes; both daemons are ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="tour-") as folder:
        yield {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": folder,
            "TOUR": folder,
        }
        for home in ("laptop", "desktop"):
            subprocess.run(
                [sys.executable, "-m", "daemon", "down", "--now"],
                env={"COVEY_HOME": f"{folder}/{home}", "HOME": folder},
                capture_output=True,
                check=False,
            )


def test_the_tour_of_the_readme_does_what_it_says(tour: dict[str, str]) -> None:
    check_document(README.read_text(encoding="utf-8"), folder=Path(tour["HOME"]), env=tour)
