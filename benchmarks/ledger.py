"""A ledger outside of all daemons: handlers on peers write into it, and it counts what came twice.

    with Ledger() as ledger:
        home.write(ledger.config(folder, effect=True))   # a daemon then offers `book@1`
        ...
        ledger.counts["token or row"]

It stands for the world on which an effect acts: no crash of a daemon takes a line of it back. Each
line is on the way to its file before the handler is answered.
"""

from __future__ import annotations

import socketserver
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

HANDLER: Final = "book@1"
MODULE: Final = "ledger_book"
PROGRAM: Final = '''
import json
import socket

lines = {}


def book(rows, task):
    """Write a line a row into the ledger, then answer."""
    port = task["params"]["port"]
    if port not in lines:
        lines[port] = socket.create_connection(("127.0.0.1", port)).makefile("rwb")
    for row in rows:
        name = row.get("token") or "row-%d" % row["k"]
        if isinstance(name, bytes):
            name = name.hex()
        lines[port].write(json.dumps(name).encode() + b"\\n")
    lines[port].flush()
    for _ in rows:
        if lines[port].readline() != b"ok\\n":
            raise RuntimeError("the ledger is closed")
    return [{"booked": row["k"]} for row in rows]
'''


class Ledger:
    """Takes lines on loopback.

    Attributes:
        counts: how often each name came.
        times: monotonic seconds at which each line came, in order.
        port: where it listens.
    """

    def __init__(self, file: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.times: list[float] = []
        self._file = file.open("ab")
        self._lock = threading.Lock()
        ledger = self

        class Book(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    ledger._write(line)
                    self.wfile.write(b"ok\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Book)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _write(self, line: bytes) -> None:
        with self._lock:
            self._file.write(line)
            self._file.flush()
            self.counts[line.decode().strip()] += 1
            self.times.append(time.perf_counter())

    @property
    def lines(self) -> int:
        """How many came."""
        return len(self.times)

    @property
    def doubled(self) -> int:
        """How many names came more than once."""
        return sum(count > 1 for count in self.counts.values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._file.close()


def config(folder: Path, *, effect: bool, slots: int = 2) -> str:
    """What a daemon's configuration says to offer `book@1`; writes its program into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{MODULE}.py").write_text(PROGRAM)
    return (
        f'\n[jobs]\nslots = {slots}\n\n[jobs.handlers."{HANDLER}"]\nrun = "{MODULE}:book"\n'
        f'read = ["{folder}"]\nsandbox = "network"\nslots = {slots}\n'
        f"effect = {str(effect).lower()}\n"
    )
