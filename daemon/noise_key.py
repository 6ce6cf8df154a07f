"""The secret that this machine draws its noise from, made when it is first needed.

With it the same records are reported with the same noise each time they are asked for, also after a
restart: fresh noise each time could be averaged away. Who has it can take the noise off, so it is
this machine's own and in no backup: after a restore, or if the file is deleted, noise is drawn anew
and costs epsilon anew. For the same reasons it is on the disk before anything is reported with it,
and a copy that a crash left beside it is taken away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING, Final

from daemon.errors import RpcError
from daemon.manifest import sync_folder

if TYPE_CHECKING:
    import random
    from pathlib import Path

NOISE_KEY_BYTES: Final = 32
SUFFIX_BYTES: Final = 8
"""Of a file that is to become the secret."""
_SUFFIX: Final = re.compile(rf"\.[0-9a-f]{{{2 * SUFFIX_BYTES}}}")


def noise_key(path: Path, rng: random.Random) -> bytes:
    """Read the secret, or make it.

    Args:
        path: its file.
        rng: of the operating system.

    Raises:
        RpcError: `storage_corrupt`: the file is there and is no secret; `storage_full`,
            `invalid_state`: it cannot be read or made.
    """
    try:
        if not path.exists():
            _make(path, rng)
        _sweep(path)
        found = path.read_bytes()
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise RpcError("storage_full", f"the disk is full: {path} cannot be made") from None
        raise RpcError(
            "invalid_state",
            f"{path} cannot be read or made: {error.strerror}",
            remedy="Let this user read and write it and its folder, then ask again.",
        ) from None
    if len(found) != NOISE_KEY_BYTES:
        raise RpcError(
            "storage_corrupt",
            f"{path} is damaged: the noise of earlier questions cannot be drawn again",
            remedy="Delete it to draw noise anew; what was reported then costs epsilon again.",
        )
    return found


def _make(path: Path, rng: random.Random) -> None:
    temporary = path.with_name(f"{path.name}.{rng.randbytes(SUFFIX_BYTES).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with contextlib.ExitStack() as failed:
        failed.callback(temporary.unlink, missing_ok=True)
        with os.fdopen(fd, "wb") as file:
            file.write(rng.randbytes(NOISE_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Linked, not moved: of two questions at once the second takes the first one's secret, which
        # may have swept ours away already.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            path.hardlink_to(temporary)
        failed.pop_all()
    # While this name is there, the other one may not be on the disk: if the folder cannot be
    # written now, who asks next is told so by it.
    sync_folder(path.parent)
    temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Take away what a crash or an error left while the secret was made; only once it is there."""
    left = [
        one
        for one in path.parent.glob(f"{path.name}.*")
        if _SUFFIX.fullmatch(one.name.removeprefix(path.name))
    ]
    if left:
        sync_folder(path.parent)  # it may have come before that
    for one in left:
        one.unlink(missing_ok=True)
