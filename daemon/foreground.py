"""Being the daemon in this process: locks, settings, the run, and what its end means.

The exit codes are those of docs/specs/local-rpc.md s.1; a service manager restarts on 70 alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

import daemon
from daemon import config as settings
from daemon.errors import ConfigError
from daemon.instance import AlreadyRunning, InstanceLock, RunningMarker, check_file_system
from daemon.logging_setup import setup
from daemon.paths import PathsError, make_private
from daemon.process import Daemon, first_leaf
from daemon.restore import finish_restore
from daemon.wiring import ProcessEnv
from memory.errors import StoreError
from p2p.identity import KeyFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.config import Config
    from daemon.paths import Paths
    from p2p.env import Env

log = logging.getLogger("covey.daemon")

EXIT_OK: Final = 0
EXIT_ALREADY: Final = 6
EXIT_INTERNAL: Final = 70
EXIT_KEY: Final = 77
EXIT_CONFIG: Final = 78


def run_foreground(paths: Paths, flags: Sequence[str] = ()) -> int:
    """Be the daemon, in this process, until it is stopped.

    Args:
        paths: where the files are.
        flags: `section.key=value`.

    Returns:
        The exit code.
    """
    if not __debug__:
        return _complain("refusing to run under python -O: assertions guard the data", EXIT_CONFIG)
    # Files that we make are ours alone, whatever makes them.
    os.umask(0o077)
    try:
        for folder in (paths.state, paths.runtime, os.path.dirname(paths.socket), paths.logs):
            make_private(folder)
        config = settings.load(paths.config_file, flags=flags)
        check_file_system(paths.state)
        env = ProcessEnv(os.environ)
        lock = InstanceLock(paths)
        lock.acquire(version=daemon.__version__, now_ms=env.wall_ms())
    except AlreadyRunning as error:
        return _complain(str(error), EXIT_ALREADY)
    except (ConfigError, PathsError) as error:
        return _complain(str(error), EXIT_CONFIG)
    try:
        return _run_locked(config, paths, env, flags)
    finally:
        lock.release()


M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


def _share_one_heap() -> None:
    """Have all threads allocate from one heap, where the C library can; before any is started.

    glibc gives each thread a heap of its own, and what one of them has freed serves no other: 13 MB
    of a daemon with the embedder. SQLite and the embedder allocate little and seldom at once.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def _run_locked(config: Config, paths: Paths, env: Env, flags: Sequence[str]) -> int:
    _share_one_heap()
    setup(config.log, paths.logs, env.now)
    try:
        finished = finish_restore(Path(paths.state))
    except StoreError as error:
        return _complain(str(error), EXIT_CONFIG)
    if finished:
        log.info("restore_finished")
    marker = RunningMarker(paths.running)
    unclean = marker.set()
    log.info("starting", extra={"f": {"version": daemon.__version__, "unclean": unclean}})

    async def main() -> None:
        await Daemon(config, paths, env, flags).run(unclean=unclean)

    try:
        trio.run(main)
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:  # noqa: BLE001 - the process's last line: name what ended it
        return _explain(error, paths, marker)
    marker.clear()
    return EXIT_OK


def _explain(error: BaseException, paths: Paths, marker: RunningMarker) -> int:
    """Say what ended the daemon and choose the exit code."""
    error = first_leaf(error)
    if isinstance(error, KeyboardInterrupt):
        marker.clear()
        return EXIT_OK
    if isinstance(error, KeyFileError):
        marker.clear()
        return _complain(f"{error}. {error.remedy}", EXIT_KEY)
    too_new = isinstance(error, StoreError) and error.reason == "too_new"
    if too_new or isinstance(error, ConfigError):
        marker.clear()
        return _complain(str(error), EXIT_CONFIG)
    log.critical("crashed", exc_info=error)
    text = str(error) if isinstance(error, StoreError) else type(error).__name__
    return _complain(f"stopped by a fault: {text}; details: {paths.log_file}", EXIT_INTERNAL)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"covey: {message}\n")
    return code
