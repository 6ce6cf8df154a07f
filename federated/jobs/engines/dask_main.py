"""The process that speaks with a Dask scheduler. Run as a file, never imported there.

    python -I dask_main.py SETUP

SETUP is JSON: address, TLS files or nothing, folders for imports, bytes of an answer. Frames of u32
length and MessagePack come on standard input ({"submit": [[ref, key, data]...]} and
{"cancel": [ref...]}) and go to standard output: first {"ready", "slots"} or {"error"}, then
{"ref", "data"} or {"ref", "error"} for each call, and {"slots"} when the cluster has changed.

Dask's client unpickles what the scheduler sends and runs an event loop of its own: both are kept
out of the daemon. It ends with the daemon, and when the scheduler is gone.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

LENGTH: Final = struct.Struct(">I")
CONNECT_S: Final = 10.0
LOOK_S: Final = 2.0
"""How often the cluster is asked for its threads."""
LOOKS_LOST_MAX: Final = 3
"""A scheduler that is not there so often is gone; the daemon begins anew with a fresh process."""
DETAIL_CHARS_MAX: Final = 300
_PR_SET_PDEATHSIG: Final = 1


class Future(Protocol):
    """What of Dask's future is used here."""

    status: str

    def result(self) -> object:
        """Its value; raises what the far side did."""
        ...

    def cancel(self) -> None:
        """Forget it."""
        ...

    def add_done_callback(self, fn: Callable[[Future], None]) -> None:
        """Have `fn` called in a thread when it ends."""
        ...


class Client(Protocol):
    """What of Dask's client is used here."""

    status: str

    def nthreads(self) -> Mapping[str, int]:
        """Threads by worker."""
        ...

    def submit(
        self, fn: Callable[[bytes], bytes], data: bytes, *, key: str, pure: bool, retries: int
    ) -> Future:
        """Compute fn(data) somewhere."""
        ...


class Helper:
    """A client and the calls it has out."""

    def __init__(self, setup: dict[str, object], out: BinaryIO) -> None:
        from federated.jobs.engines.tasks import compute

        distributed = importlib.import_module("distributed")
        self._compute = compute
        self._out = out
        self._answer_bytes = cast("int", setup["answer_bytes"])
        self._lock = threading.Lock()
        self._futures: dict[int, Future] = {}
        tls = cast("dict[str, str]", setup["tls"])
        security = None
        if tls:
            security = distributed.Security(
                require_encryption=True, tls_ca_file=tls["ca"], tls_client_cert=tls["cert"],
                tls_client_key=tls["key"],
            )  # fmt: skip
        self._client: Client = distributed.Client(
            setup["address"], timeout=CONNECT_S, set_as_default=False, direct_to_workers=False,
            security=security, name="covey",
        )  # fmt: skip

    def slots(self) -> int:
        """Threads of the cluster."""
        return max(1, sum(self._client.nthreads().values()))

    def look(self) -> None:
        """Tell of a cluster that has grown or shrunk; end this process when it is gone."""
        told = lost = 0
        while True:
            time.sleep(LOOK_S)
            try:
                slots = self.slots()
                lost = 0 if self._client.status == "running" else lost + 1
            except Exception:  # noqa: BLE001 - whatever a broken connection raises
                slots, lost = told, lost + 1
            if lost >= LOOKS_LOST_MAX:
                os._exit(1)
            if slots != told:
                told = slots
                self.say({"slots": slots})

    def submit(self, calls: list[tuple[int, str, bytes]]) -> None:
        """Hand calls to the scheduler."""
        for ref, key, data in calls:
            future = self._client.submit(self._compute, data, key=key, pure=False, retries=0)
            self._futures[ref] = future
            future.add_done_callback(functools.partial(self._done, ref))

    def cancel(self, refs: list[int]) -> None:
        """Forget calls; one that runs goes on."""
        for ref in refs:
            future = self._futures.pop(ref, None)
            if future is not None:
                future.cancel()

    def _done(self, ref: int, future: Future) -> None:
        if self._futures.pop(ref, None) is None:
            return
        status = future.status
        try:
            data = future.result()
        except Exception as error:  # noqa: BLE001 - whatever the far side raised
            word = "exception" if status == "error" else "unavailable"
            self.say({"ref": ref, "error": word, "detail": _detail(error)})
            return
        if not isinstance(data, bytes):
            self.say({"ref": ref, "error": "exception", "detail": "no bytes"})
        elif len(data) > self._answer_bytes:
            self.say({"ref": ref, "error": "output", "detail": f"{len(data)} bytes"})
        else:
            self.say({"ref": ref, "data": data})

    def say(self, message: dict[str, object]) -> None:
        """Send a frame; from any thread."""
        with self._lock:
            send(self._out, message)


def main() -> None:
    """Connect, then serve until standard input ends."""
    setup = cast("dict[str, object]", json.loads(sys.argv[1]))
    _die_with(cast("int", setup["parent"]))
    asked = os.fdopen(os.dup(0), "rb")
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.path[:0] = cast("list[str]", setup["path"])
    try:
        helper = Helper(setup, out)
        helper.say({"ready": True, "slots": helper.slots()})
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the client raises
        send(out, {"error": "unavailable", "detail": _detail(error)})
        os._exit(1)
    threading.Thread(target=helper.look, daemon=True).start()
    import msgspec

    while (frame := receive(asked)) is not None:
        message = msgspec.msgpack.decode(frame, type=dict[str, object])
        if "submit" in message:
            helper.submit(cast("list[tuple[int, str, bytes]]", message["submit"]))
        else:
            helper.cancel(cast("list[int]", message["cancel"]))
    os._exit(0)


def _die_with(parent: int) -> None:
    """Die when process `parent` does; 0: the sandbox sees to it. The end of the pipe does, too."""
    if parent and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def receive(stream: BinaryIO) -> bytes | None:
    """A frame; None at the end."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return stream.read(LENGTH.unpack(head)[0])


def send(stream: BinaryIO, message: dict[str, object]) -> None:
    """Write a frame."""
    import msgspec

    body = msgspec.msgpack.encode(message)
    left = memoryview(LENGTH.pack(len(body)) + body)
    while left:
        left = left[stream.write(left) :]


def _detail(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]


if __name__ == "__main__":
    main()
