"""`covey restore` in this process: settings, locks, and errors in the command line's form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import daemon
from daemon import config as settings
from daemon.cli.client import CliError
from daemon.error_map import to_rpc_error
from daemon.errors import ConfigError, RpcError
from daemon.instance import AlreadyRunning, InstanceLock, check_file_system
from daemon.paths import PathsError, make_private, resolve
from daemon.restore import find_backup, restore
from daemon.scanner import TextScanner
from daemon.shred import BACKUPS
from daemon.wiring import ProcessEnv
from memory.errors import MemoryStoreError
from p2p.errors import P2pError

if TYPE_CHECKING:
    from daemon.json_types import Json
    from daemon.restore import Tell

EXIT_ALREADY = 6
EXIT_CONFIG = 78


def restore_here(written: str, passphrase: str, tell: Tell) -> dict[str, Json]:
    """Restore the backup that a person names.

    Args:
        written: `latest`, a name, or a path.
        passphrase: opens the key in the backup; empty: the key stays as it is.
        tell: told how far it is.

    Returns:
        The fields of `daemon.restore.Restored`.

    Raises:
        CliError: nothing was changed; it says why and what to do.
    """
    paths = resolve()
    os.umask(0o077)
    try:
        for needed in (paths.state, paths.runtime, str(Path(paths.socket).parent)):
            make_private(needed)
        config = settings.load(paths.config_file)
        check_file_system(paths.state)
        env = ProcessEnv(os.environ)
        lock = InstanceLock(paths)
        lock.acquire(version=daemon.__version__, now_ms=env.wall_ms())
    except AlreadyRunning as error:
        raise CliError(
            str(error), EXIT_ALREADY, name="conflict", remedy="`covey down`, then restore."
        ) from None
    except (ConfigError, PathsError) as error:
        raise CliError(str(error), EXIT_CONFIG, name="configuration") from None
    try:
        folder = Path(config.backup.dir) if config.backup.dir else Path(paths.state) / BACKUPS
        done = restore(
            paths,
            find_backup(folder, written),
            env,
            scanner=TextScanner(config.security),
            passphrase=passphrase,
            tell=tell,
        )
    except (RpcError, MemoryStoreError, P2pError, OSError) as error:
        raise _shown(error) from error
    finally:
        lock.release()
    fields: dict[str, Json] = msgspec.to_builtins(done)
    return fields


def _shown(error: Exception) -> CliError:
    told = to_rpc_error(error)
    message = told.message
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename or 'a file'}: {error.strerror}"
    return CliError(
        message, told.kind.exit_code, name=told.name, code=told.code, remedy=told.remedy
    )
