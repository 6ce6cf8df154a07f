"""Peers to measure against, each in a virtual environment of its own, pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT

LATTICA = ("lattica==1.0.21",)
SUPERLOCALMEMORY = ("superlocalmemory==4.1.18",)
"""2 GB, two minutes the first time."""
WORDFREQ = ("wordfreq==3.1.1",)
"""Word frequencies of many languages."""
FLOWER = ("flwr==1.41.0", "numpy==2.4.6", "scipy==1.17.1", "numba==0.68.1", "scikit-learn==1.9.0")
"""Flower, what our own kernels take where it is installed, and a data set of digits: ours and
Flower's run in one process."""
RAY = ("ray==2.60.0",)
DASK = ("distributed==2026.8.0",)
GRPC = ("grpcio==1.85.3", "numpy==2.4.6")


class PeerMissing(Exception):
    """A peer could not be installed here; its rows are reported as not measured."""


def py_libp2p() -> str:
    """The Python of py-libp2p 0.8.1's environment, which the interoperation tests share.

    Raises:
        PeerMissing: it could not be installed: it needs a C compiler and libgmp.
    """
    _run("env", f"PYTHON={sys.executable}", "bash", "tests/interop/install.sh", "py")
    return str(ROOT / "build" / "interop" / "py" / "venv" / "bin" / "python")


def python_of(*requirements: str) -> str:
    """The Python of an environment with these, made where it is not there: LATTICA, RAY, ...

    Args:
        requirements: pinned; the first one names the environment's folder.

    Raises:
        PeerMissing: they could not be installed.
    """
    folder = ROOT / "build" / "peers" / requirements[0].replace("==", "-")
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", *requirements)
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
