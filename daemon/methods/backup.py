"""`backup.*`: copies of this machine's state."""

from __future__ import annotations

import msgspec

from daemon.backup import BackupInfo
from daemon.errors import RpcError
from daemon.rpc.registry import Call, Empty, method


class CreateParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How to make a backup.

    Attributes:
        with_key: put the device key into it, sealed under the passphrase.
        passphrase: at least 8 characters; only with with_key.
    """

    with_key: bool = False
    passphrase: str = ""


class NameParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A backup by its name, as `backup.list` shows it."""

    name: str


class PruneParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How many of the newest backups stay; default the setting [backup] keep."""

    keep: int | None = None


class Pruned(msgspec.Struct, kw_only=True):
    """Names of the backups that were removed."""

    removed: list[str]


@method("backup.create", scope="admin")
async def create(call: Call, p: CreateParams) -> BackupInfo:
    """Make a backup; when this answers it is whole and on disk."""
    if p.with_key != bool(p.passphrase):
        raise RpcError("invalid_params", "with_key needs a passphrase, and a passphrase with_key")
    return await call.services.backups.create(passphrase=p.passphrase, tell=call.progress)


@method("backup.list", scope="admin")
async def list_backups(call: Call, p: Empty) -> list[BackupInfo]:
    """List the backups, newest first, and what was erased since each."""
    del p
    return await call.services.backups.listed()


@method("backup.verify", scope="admin")
async def verify(call: Call, p: NameParams) -> BackupInfo:
    """Compare a backup's files with its manifest, and check its databases."""
    return await call.services.backups.verify(p.name)


@method("backup.prune", scope="admin")
async def prune(call: Call, p: PruneParams) -> Pruned:
    """Remove all but the newest backups; at least one stays."""
    if p.keep is not None and not 1 <= p.keep <= 10_000:
        raise RpcError("invalid_params", "keep is 1 to 10000")
    return Pruned(removed=await call.services.backups.prune(p.keep))
