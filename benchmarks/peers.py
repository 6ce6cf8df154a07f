"""Peers to measure against, each in a virtual environment of its own, pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT

LATTICA = "lattica==1.0.21"


class PeerMissing(Exception):
    """A peer could not be installed here; its rows are reported as not measured."""


def py_libp2p() -> str:
    """The Python of py-libp2p 0.8.1's environment, which the interoperation tests share.

    Raises:
        PeerMissing: it could not be installed: it needs a C compiler and libgmp.
    """
    _run("bash", "tests/interop/install.sh", "py")
    return str(ROOT / "build" / "interop" / "py" / "venv" / "bin" / "python")


def lattica() -> str:
    """The Python of Lattica's environment.

    Raises:
        PeerMissing: it could not be installed.
    """
    folder = ROOT / "build" / "peers" / LATTICA.replace("==", "-")
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", LATTICA)
        stamp.touch()
    return str(python)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise PeerMissing(f"{' '.join(argv)}: {said}")


def subject(name: str) -> str:
    """Path of a subject script."""
    return str(Path(__file__).parent / "subjects" / f"{name}.py")
