"""A hanging test fails, says where it waited, and leaves the tests after it unharmed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HANGING = """
import pytest
import trio


async def waits_for_ever():
    await trio.sleep_forever()


@pytest.mark.timeout(0.5)
async def test_hangs():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits_for_ever)


@pytest.mark.timeout(0.5)
async def test_swallows_the_cancellation():
    with trio.CancelScope():
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise RuntimeError("something else") from None


async def test_after_it():
    await trio.sleep(0)


@pytest.mark.timeout(0.2)
def test_without_trio():
    while True:
        pass


def test_last():
    pass
"""


def test_a_hang_is_a_failure_with_the_task_tree_and_the_run_goes_on(tmp_path: Path) -> None:
    module = tmp_path / "test_hanging.py"
    module.write_text(HANGING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), str(module)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert "3 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "Tasks of trio when the time limit fired" in done.stdout
    waiting = [line for line in done.stdout.splitlines() if "waits_for_ever at" in line]
    assert waiting
    assert "test_hanging.py:" in waiting[0]
