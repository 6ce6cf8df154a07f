"""Peers to measure against, each in a virtual environment of its own, pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT

LATTICA = "lattica==1.0.21"
SUPERLOCALMEMORY = "superlocalmemory==4.1.18"


class PeerMissing(Exception):
    """A peer could not be installed here; its rows are reported as not measured."""


def py_libp2p() -> str:
    """The Python of py-libp2p 0.8.1's environment, which the interoperation tests share.

    Raises:
        PeerMissing: it could not be installed: it needs a C compiler and libgmp.
    """
    _run("env", f"PYTHON={sys.executable}", "bash", "tests/interop/install.sh", "py")
    return str(ROOT / "build" / "interop" / "py" / "venv" / "bin" / "python")


def lattica() -> str:
    """The Python of Lattica's environment.

    Raises:
        PeerMissing: it could not be installed.
    """
    return _environment(LATTICA)


def superlocalmemory() -> str:
    """The Python of SuperLocalMemory's environment: 2 GB, two minutes the first time.

    Raises:
        PeerMissing: it could not be installed.
    """
    return _environment(SUPERLOCALMEMORY)


def _environment(requirement: str) -> str:
    folder = ROOT / "build" / "peers" / requirement.replace("==", "-")
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", requirement)
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
