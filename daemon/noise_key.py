"""The secret that this machine draws its noise from, made when it is first needed.

With it the same records are reported with the same noise each time they are asked for, also after a
restart: fresh noise each time could be averaged away. Who has it can take the noise off, so it is
this machine's own and in no backup: after a restore, or if the file is deleted, noise is drawn anew
and costs epsilon anew.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from daemon.errors import RpcError

if TYPE_CHECKING:
    import random
    from pathlib import Path

NOISE_KEY_BYTES: Final = 32


def noise_key(path: Path, rng: random.Random) -> bytes:
    """Read the secret, or make it.

    Args:
        path: its file.
        rng: of the operating system.

    Raises:
        RpcError: `storage_corrupt`: the file is there and is no secret.
    """
    if not path.exists():
        _make(path, rng)
    found = path.read_bytes()
    if len(found) != NOISE_KEY_BYTES:
        raise RpcError(
            "storage_corrupt",
            f"{path} is damaged: the noise of earlier questions cannot be drawn again",
            remedy="Delete it to draw noise anew; what was reported then costs epsilon again.",
        )
    return found


def _make(path: Path, rng: random.Random) -> None:
    temporary = path.with_name(f"{path.name}.{rng.randbytes(8).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(rng.randbytes(NOISE_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Linked, not moved: of two questions at once the second takes the first one's secret.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
