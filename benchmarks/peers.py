"""Peers to measure against, each in a virtual environment of its own, pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT

PEERS = {
    "py-libp2p": "libp2p==0.8.1",
    "lattica": "lattica==1.0.21",
}
"""Name to pinned requirement. py-libp2p builds fastecdsa: it needs a C compiler and libgmp."""


class PeerMissing(Exception):
    """A peer could not be installed here; its rows are reported as not measured."""


def interpreter(name: str) -> str:
    """The peer's Python, installed at first use under `build/peers`.

    Raises:
        PeerMissing: the installation failed; the message says how.
    """
    folder = ROOT / "build" / "peers" / PEERS[name].replace("==", "-")
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        print(f"installing {PEERS[name]} into {folder.relative_to(ROOT)}", file=sys.stderr)
        for argv in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-q", PEERS[name]],
        ):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PeerMissing(f"{PEERS[name]}: {done.stderr.strip().splitlines()[-1:]}")
        stamp.touch()
    return str(python)


def subject(name: str) -> str:
    """Path of a subject script."""
    return str(Path(__file__).parent / "subjects" / f"{name}.py")
