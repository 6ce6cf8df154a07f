"""What a new node needs before it serves: its two groups, its name, its recovery file."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.paths import Paths
    from p2p.replication.service import Replication

log = logging.getLogger("covey.daemon")

HOME: Final = "home"
PRIVATE: Final = "private"


async def ensure_groups(replication: Replication, paths: Paths) -> list[str]:
    """Create the groups `home` (shared with your other machines) and `private` (this one alone).

    Safe to repeat: a start that died between the two makes the missing one.

    Returns:
        Names of those it made.
    """
    here = {group.name for group in replication.groups()}
    made: list[str] = []
    for name in (HOME, PRIVATE):
        if name in here:
            continue
        created = await replication.create_group(
            name, home=name == HOME, keep_seed=recovery_keeper(paths, name)
        )
        made.append(name)
        log.info("group_created", extra={"f": {"name": name, "group": created.group.hex()}})
    return made


def recovery_keeper(paths: Paths, name: str) -> Callable[[bytes, bytes], None]:
    """What `Replication.create_group` calls with the seed of the group `name`."""
    return lambda group, seed: save_recovery(paths.recovery, group, name, seed)


def save_recovery(path: str, group: bytes, name: str, seed: bytes) -> None:
    """Append a recovery seed to the side file, durably and for our eyes only.

    The seed answers a stolen founder device; whoever has it can take the group over, so it never
    goes into the database, whose copies travel.
    """
    line = json.dumps({"group": group.hex(), "name": name, "seed": seed.hex()}) + "\n"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
