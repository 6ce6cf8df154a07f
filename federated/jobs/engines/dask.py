"""A Dask cluster as an engine, through a helper process.

In the daemon, Dask's client would stall the loop for half a second and unpickle what the scheduler
sends. In a process of its own (`dask_main`), in the best sandbox there is, it can do neither:
frames of bytes come and go. Source: docs/specs/jobs.md s.12.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import trio

import federated
from federated.errors import HandlerError
from federated.jobs.engines.dask_main import LENGTH
from federated.jobs.engines.seam import Computed
from federated.jobs.handlers.aside import with_aside
from federated.jobs.handlers.child import Child
from federated.jobs.handlers.sandbox import python_folders, sandbox_kind, wrapped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from federated.jobs.config import JobsConfig
    from federated.jobs.engines.seam import EngineCall
    from p2p.env import Offload

log = logging.getLogger("covey.jobs.engines")

ANSWER_BYTES_MAX: Final = 64 * 2**20
READY_S: Final = 30.0
"""The client's imports take seconds on a slow machine, and it waits ten for the scheduler."""
_MAIN: Final = str(Path(__file__).with_name("dask_main.py"))
_ROOT: Final = str(Path(federated.__file__).resolve().parents[1])


class TlsFiles(msgspec.Struct, frozen=True):
    """Files for `tls://`: authority, our certificate, its key."""

    ca: str
    cert: str
    key: str


class _Said(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the helper says."""

    ready: bool = False
    slots: int = 0
    ref: int = -1
    data: bytes = b""
    error: str = ""
    detail: str = ""


_SAID: Final = msgspec.msgpack.Decoder(_Said)
_WORDS: Final = frozenset({"unavailable", "output", "exception"})


class DaskEngine:
    """One connection with a scheduler.

    Args:
        address: `dask://127.0.0.1:PORT`, or `tls://HOST:PORT`; checked by `JobsConfig`.
        tls: for the latter.
        offload: where the sandbox is looked for.
    """

    def __init__(self, address: str, tls: TlsFiles | None, offload: Offload) -> None:
        self._address = address
        self._tls = tls
        self._offload = offload
        self._child: Child | None = None
        self._writing = trio.Lock()
        self._slots = 1

    @property
    def capacity(self) -> int:
        """Threads of the cluster."""
        return self._slots

    async def start(self) -> None:
        """Start the helper and have it connect; see `Engine.start`."""
        if not installed():
            raise HandlerError("unavailable", "the extra `dask` is not installed: covey[dask]")
        kind = await self._offload.run(sandbox_kind)
        setup = json.dumps(
            {
                "address": scheduler_address(self._address),
                "tls": _tls_setup(self._address, self._tls),
                "path": [_ROOT],
                "answer_bytes": ANSWER_BYTES_MAX,
                "parent": 0 if kind == "bubblewrap" else os.getpid(),
            }
        )
        read = [*python_folders(), _ROOT, *self._files()]
        command = [sys.executable, "-I", _MAIN, setup]
        self._child = Child(wrapped(command, kind=kind, read=read, network=True))
        said = None
        with trio.move_on_after(READY_S):
            said = await self._next()
        if said is None or not said.ready:
            why = said.detail if said is not None else "it did not answer"
            await self.close()
            raise HandlerError("unavailable", f"{self._address}: {why}")
        self._slots = max(1, said.slots)

    def _files(self) -> list[str]:
        return [] if self._tls is None else [self._tls.ca, self._tls.cert, self._tls.key]

    async def submit_batch(self, calls: Sequence[EngineCall]) -> None:
        """See `Engine.submit_batch`."""
        await self._say({"submit": [tuple(call) for call in calls]})

    async def cancel(self, refs: Sequence[int]) -> None:
        """See `Engine.cancel`."""
        await self._say({"cancel": list(refs)})

    async def _say(self, message: dict[str, object]) -> None:
        assert self._child is not None, "it was started"
        body = msgspec.msgpack.encode(message)
        async with self._writing:
            await self._child.write(LENGTH.pack(len(body)) + body)

    def as_completed(self) -> AsyncIterator[Computed]:
        """See `Engine.as_completed`."""
        return _Completed(self)

    async def close(self) -> None:
        """Kill the helper."""
        if self._child is not None:
            await self._child.aclose()

    async def _next(self) -> _Said | None:
        """What the helper says next; None: it is gone or says nonsense."""
        assert self._child is not None, "it was started"
        return await with_aside(self._frame, self._child.drain)

    async def _frame(self) -> _Said | None:
        assert self._child is not None, "it was started"
        head = await self._child.read_exactly(LENGTH.size)
        if len(head) < LENGTH.size:
            return None
        size = LENGTH.unpack(head)[0]
        if size > 2 * ANSWER_BYTES_MAX:
            return None
        try:
            return _SAID.decode(await self._child.read_exactly(size))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
            return None

    async def next_computed(self) -> Computed | None:
        """The next call that ended; None: the engine is gone."""
        while (said := await self._next()) is not None:
            if said.slots:
                self._slots = said.slots
            if said.ref >= 0:
                word = said.error if not said.error or said.error in _WORDS else "exception"
                return Computed(said.ref, said.data, word, said.detail)
        return None


class _Completed:
    """Calls of an engine as they end."""

    def __init__(self, engine: DaskEngine) -> None:
        self._engine = engine

    def __aiter__(self) -> _Completed:
        return self

    async def __anext__(self) -> Computed:
        found = await self._engine.next_computed()
        if found is None:
            raise StopAsyncIteration
        return found


def dask_engines(config: JobsConfig, offload: Offload) -> dict[str, Callable[[], DaskEngine]]:
    """How to make each engine of `[jobs] engines`, by its address."""
    tls = None
    if config.engines_ca:
        tls = TlsFiles(config.engines_ca, config.engines_cert, config.engines_key)
    return {address: partial(DaskEngine, address, tls, offload) for address in config.engines}


def installed() -> bool:
    """Whether Dask's client is here."""
    return importlib.util.find_spec("distributed") is not None


def scheduler_address(address: str) -> str:
    """Dask's own way to write an address."""
    parts = urlsplit(address)
    return f"{'tls' if parts.scheme == 'tls' else 'tcp'}://{parts.netloc}"


def _tls_setup(address: str, tls: TlsFiles | None) -> dict[str, str]:
    if urlsplit(address).scheme != "tls":
        return {}
    if tls is None:
        raise HandlerError("unavailable", f"{address}: [jobs] engines_tls names no files")
    return {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
