"""Peers to measure against, each in a virtual environment of its own, pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT

LATTICA = "lattica==1.0.21"
SUPERLOCALMEMORY = "superlocalmemory==4.1.18"
WORDFREQ = ("wordfreq==3.1.1",)
FLOWER = ("flwr==1.41.0", "numpy==2.4.6", "scipy==1.17.1", "numba==0.68.1", "scikit-learn==1.9.0")
"""Flower, what our own kernels take where it is installed, and a data set of digits."""

RAY = "ray==2.60.0"
DASK = "distributed==2026.8.0"
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


def ray() -> str:
    """The Python of Ray's environment.

    Raises:
        PeerMissing: it could not be installed.
    """
    return _environment(RAY)


def dask() -> str:
    """The Python of Dask's environment.

    Raises:
        PeerMissing: it could not be installed.
    """
    return _environment(DASK)


def flower() -> str:
    """The Python of Flower's environment, where our kernels run beside Flower's in one process.

    Raises:
        PeerMissing: it could not be installed.
    """
    return _environment(*FLOWER)


def grpc() -> str:
    """The Python of gRPC's environment.

    Raises:
        PeerMissing: it could not be installed.
    """
    return _environment(*GRPC)


def wordfreq() -> str:
    """The Python of an environment with word frequencies of many languages.

    Raises:
        PeerMissing: it could not be installed.
    """
    return _environment(*WORDFREQ)


def _environment(*requirements: str) -> str:
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
