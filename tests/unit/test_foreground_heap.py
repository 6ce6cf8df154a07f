"""One heap for all threads of a daemon, as the C library itself reports it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

COUNT = """
import ctypes, sys, threading
from daemon.foreground import _share_one_heap
_share_one_heap()
libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info"):
    sys.exit("no glibc")
gate = threading.Barrier(5)
def allocate():
    bytearray(10_000)
    gate.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
gate.wait()
libc.fopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_threads_of_a_daemon_share_one_heap(tmp_path: Path) -> None:
    report = tmp_path / "heaps"
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(report)], capture_output=True, text=True, check=False
    )
    if "no glibc" in done.stderr:
        pytest.skip("another C library")
    assert not done.returncode, done.stderr
    assert report.read_text().count("<heap nr=") == 1
