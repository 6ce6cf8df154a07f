"""The process in which an operator's program computes rows. Run as a file, never imported there.

    python -I runner_main.py SETUP

SETUP is JSON: limits, and either `exec` (a command: this process becomes it) or `run`
(`module:function`). For a function, frames of u32 length and MessagePack come on standard input and
go to standard output: first {ready}, then one answer for each task. What the function prints goes
to standard error, so that it cannot be taken for an answer.

It dies with the daemon: on Linux the kernel sees to it, elsewhere a thread looks each second.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO, Protocol, TypeAlias

    class Confine(Protocol):
        """`confine.confine`, with what came as JSON."""

        def __call__(self, read: object, *, network: object) -> None:
            """See there."""
            ...

    Function: TypeAlias = Callable[[object, object], object]

LENGTH: Final = struct.Struct(">I")
DETAIL_CHARS_MAX: Final = 500
_PR_SET_PDEATHSIG: Final = 1

# tasks.md s.6.
PROCESSES_MAX: Final = 64
OPEN_FILES_MAX: Final = 64
FILE_BYTES_MAX: Final = 16 * 2**20
# Work for others waits for what this machine does itself, the daemon's loop above all.
NICER: Final = 10


def main() -> NoReturn:
    """Set the limits, then become the command or serve the function."""
    setup = cast("dict[str, object]", json.loads(sys.argv[1]))
    _die_with(cast("int", setup["parent"]))
    _give_way()
    _limit(cast("int", setup["mem_bytes"]))
    _confine(cast("dict[str, object] | None", setup.get("confine")))
    if "exec" in setup:
        allow_cpu(cast("float", setup["cpu_s"]))
        command = cast("list[str]", setup["exec"])
        os.execv(command[0], command)  # noqa: S606 - the operator's own command
    _serve(setup)


def _die_with(parent: int) -> None:
    """Die when process `parent` does; 0: the sandbox sees to it."""
    if parent == 0:
        return
    if _linux():
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _confine(given: dict[str, object] | None) -> None:
    """Give up what `confine` says; this process ends if it cannot."""
    if given is None:
        return
    import runpy

    # Alone and by its path: nothing of ours can be imported here.
    module = cast("dict[str, object]", runpy.run_path(cast("str", given["module"])))
    cast("Confine", module["confine"])(given["read"], network=given["network"])


def _linux() -> bool:
    return sys.platform == "linux"


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _give_way() -> None:
    """Let other work of this machine go first.

    Linux may share processors among sessions before it looks at their processes' niceness; then a
    session of its own has one, too.
    """
    os.nice(NICER)
    if os.getsid(0) == os.getpid():
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as group:  # noqa: PTH123
                group.write(str(NICER))
        except OSError:
            pass  # not Linux, or it does not do so


def _limit(mem_bytes: int) -> None:
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_FSIZE, FILE_BYTES_MAX)
    _set(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    _set(resource.RLIMIT_NPROC, _processes() + PROCESSES_MAX)
    if _linux():  # elsewhere it is not kept
        _set(resource.RLIMIT_AS, mem_bytes)


def _set(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


def _processes() -> int:
    """Processes and threads that this user has: the limit counts them all, not ours alone."""
    count = 0
    try:
        for name in os.listdir("/proc"):  # noqa: PTH208 - names are all that is wanted
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():  # noqa: PTH116
                count += len(os.listdir(f"/proc/{name}/task"))  # noqa: PTH208
    except OSError:
        return max(count, 1024)  # one ended while we looked, or there is no /proc
    return count


def allow_cpu(seconds: float) -> None:
    """Let this process use so much more processor time; the kernel ends it beyond."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 2
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _serve(setup: dict[str, object]) -> NoReturn:
    asked = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.path[:0] = cast("list[str]", setup["path"])
    try:
        function = _load(cast("str", setup["run"]))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever importing it raises
        _send(answers, {"error": "unavailable", "detail": _detail(error)})
        os._exit(1)
    _send(answers, {"ready": True})
    most = cast("int", setup["answer_bytes"])
    while (frame := _receive(asked)) is not None:
        _send(answers, _computed(function, frame), most)
    os._exit(0)


def _load(run: str) -> Function:
    module, _, name = run.partition(":")
    function: object = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{run} is no function")
    return cast("Function", function)


def _computed(function: Function, frame: bytes) -> dict[str, object]:
    import msgspec

    request = msgspec.msgpack.decode(frame, type=dict[str, object])
    allow_cpu(cast("float", request["cpu_s"]))
    rows = cast("list[object]", request["rows"])
    try:
        answers: object = function(rows, request["task"])
    except MemoryError as error:
        return {"error": "memory", "detail": _detail(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the function raises
        return {"error": "exception", "detail": _detail(error)}
    if not isinstance(answers, list | tuple) or len(answers) != len(rows):
        return {"error": "bad_output", "detail": "it must return one answer a row, in their order"}
    return {"answers": list(answers), "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    """Most memory this process has held.

    Linux carries `ru_maxrss` over from the process that started this one, which may be a large
    daemon; its own peak begins anew and stands in /proc.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - few imports
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # no /proc: macOS, or a sandbox without it
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _receive(stream: BinaryIO) -> bytes | None:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return stream.read(LENGTH.unpack(head)[0])


def _send(stream: BinaryIO, message: dict[str, object], most: int = 1 << 16) -> None:
    import msgspec

    try:
        body = msgspec.msgpack.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        body = msgspec.msgpack.encode({"error": "bad_output", "detail": _detail(error)})
    if len(body) > most:
        body = msgspec.msgpack.encode({"error": "output", "detail": f"{len(body)} bytes"})
    left = memoryview(LENGTH.pack(len(body)) + body)
    while left:
        left = left[stream.write(left) :]


def _detail(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]


if __name__ == "__main__":
    main()
