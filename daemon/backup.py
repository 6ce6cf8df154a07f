"""Backups: made while the daemon serves, whole or not there, and without plain text.

A backup is a folder `<date>` with `manifest.json`, the copy of the database, the keys to its bodies
and a few small files. It is made beside its place under a name that begins with `.making-`, is
checked, put on disk, and renamed: what a crash leaves behind is never taken for a backup, and goes
with the next one. A connection of its own reads it in one transaction, so the writer goes on.

An erasure during the copy is caught by looking, when the backup has its name, at what is erased
now; one that commits later finds the backup by itself (`daemon.shred`). Each start looks again.
Source: docs/guides/backup.md.
"""

from __future__ import annotations

import errno
import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import apsw
import msgspec
import trio

import daemon
from daemon.database_files import check_copy, erased_ids, read_copy, size_of, vacuum_into
from daemon.erased_since import GroupErased, erased_since
from daemon.errors import RpcError
from daemon.health import Check
from daemon.keyseal import seal_key
from daemon.manifest import (
    BEHAVIOUR,
    BOOK,
    CONFIG,
    DATABASE,
    FORMAT,
    KEYS,
    SEALED_KEY,
    Manifest,
    check_files,
    entry_of,
    read_manifest,
    sync_file,
    sync_folder,
    write_manifest,
)
from daemon.paths import PathsError, make_private
from daemon.shred import BACKUPS, MAKING, shred_backups
from memory.errors import StoreError
from memory.storage.connect import translate
from memory.transfer.portable import write_copy

if TYPE_CHECKING:
    from daemon.config import BackupConfig
    from daemon.paths import Paths
    from memory.seams import Offload
    from p2p.env import Env

__all__ = ["BackupInfo", "Backups", "shred_backups"]

log = logging.getLogger("covey.daemon.backup")

FIRST_AFTER_S: Final = 600.0
"""A node without a backup makes its first after this: a daemon only tried out makes none."""
RETRY_S: Final = 3600.0
"""After a failed automatic backup. Guess: a full disk takes a person that long."""
SPARE_BYTES: Final = 64 * 2**20
"""Must stay free beside the backup, so that it never takes the last of the disk."""
SHOW_EVERY_S: Final = 0.2


class Tell(Protocol):
    """Where a long work says how far it is (shape of `daemon.rpc.registry.Progress`)."""

    async def __call__(self, done: int, total: int | None, message: str) -> None:
        """`done` of `total` rows."""
        ...


class BackupInfo(msgspec.Struct, kw_only=True):
    """A backup.

    Attributes:
        name: its folder's name.
        path: where it lies.
        created_ms: Unix milliseconds.
        bytes: its size.
        memories, records: how many are in it.
        version: of Covey that made it.
        with_key: whether the device key is in it, sealed.
        outside: whether it lies outside of the state folder, out of an erasure's reach.
        erased_since: records in it that were erased here since it was made.
        erased_in: the same by group, and how many of them can still be read from it: none, if it
            lies in the state folder.
        problem: why it cannot be used; empty for a good one.
    """

    name: str
    path: str
    created_ms: int
    bytes: int
    memories: int
    records: int
    version: str
    with_key: bool
    outside: bool
    erased_since: int = 0
    erased_in: list[GroupErased] = []
    problem: str = ""


class _Work:
    """What the thread that copies tells the loop, and the loop's word to end."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.stop = False

    def report(self, done: int, total: int) -> None:
        """In the thread, between two slices."""
        self.done, self.total = done, total
        if self.stop:
            raise apsw.InterruptError("the backup was cancelled")

    async def show(self, tell: Tell | None) -> None:
        """In the loop, until cancelled: a thread cannot be, it is asked to end."""
        try:
            while True:
                await trio.sleep(SHOW_EVERY_S)
                if tell is not None:
                    await tell(self.done, self.total or None, "copying records")
        finally:
            self.stop = True


class Backups:
    """Makes, lists, checks and removes backups.

    Args:
        paths: of the node.
        config: `[backup]`.
        env: clocks, random numbers, fault points.
        offload: where the copying runs.
        device: this node's key.
    """

    def __init__(
        self, paths: Paths, config: BackupConfig, env: Env, offload: Offload, device: bytes
    ) -> None:
        self._paths = paths
        self._config = config
        self._env = env
        self._offload = offload
        self._device = device
        self._making = trio.Lock()
        self._failed = ""
        self._started_ms = env.wall_ms()
        self.folder: Path = Path(config.dir) if config.dir else Path(paths.state) / BACKUPS
        """Where backups lie."""

    # ---- by hand

    async def create(self, *, passphrase: str = "", tell: Tell | None = None) -> BackupInfo:
        """Make a backup; when this returns it is on disk.

        Args:
            passphrase: seals the device key into it; empty: it goes without.
            tell: told a few times a second.

        Raises:
            RpcError: `invalid_state` if one is being made; `invalid_params` for the passphrase.
            StoreError: `full`, `io` or `corrupt`; no backup was made.
        """
        try:
            self._making.acquire_nowait()
        except trio.WouldBlock:
            raise RpcError(
                "invalid_state", "a backup is being made", remedy="Wait until it is done."
            ) from None
        try:
            name = await self._in_thread(passphrase, tell)
        finally:
            self._making.release()
        made = await self._offload.run(lambda: self._info(name))
        log.info("backup_made", extra={"f": {"name": name, "bytes": made.bytes}})
        return made

    async def _in_thread(self, passphrase: str, tell: Tell | None) -> str:
        work = _Work()
        name = ""
        error: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.show, tell)
            try:
                name = await self._offload.run(lambda: self._make(work, passphrase))
            except (apsw.Error, OSError, RpcError, StoreError, PathsError) as exc:
                error = exc  # raised outside, where no group is made of it
            nursery.cancel_scope.cancel()
        if error is not None:
            raise self._named(error) from error
        return name

    def _named(self, error: Exception) -> Exception:
        if isinstance(error, apsw.Error):
            return translate(error, Path(self._paths.db))
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "full" if full else "io"
            return StoreError(
                reason,
                f"no backup was made in {self.folder}: {error.strerror}; free space there, or set"
                " [backup] dir to another disk",
            )
        return error

    async def listed(self) -> list[BackupInfo]:
        """All backups, newest first; what is no whole one is shown with its problem."""
        return await self._offload.run(self._list)

    async def verify(self, name: str) -> BackupInfo:
        """Compare a backup's files with its manifest, and check its databases.

        Raises:
            RpcError: `not_found`, or `storage_corrupt` with what is wrong.
        """
        folder = self._find(name)

        def check() -> BackupInfo:
            check_backup(folder)
            return self._info(folder.name)

        return await self._offload.run(check)

    async def prune(self, keep: int | None = None) -> list[str]:
        """Remove all but the newest `keep` (default `[backup] keep`); names of those removed."""
        wanted = self._config.keep if keep is None else keep
        return await self._offload.run(lambda: self._prune(wanted))

    def _find(self, name: str) -> Path:
        """A backup's folder by its name.

        Raises:
            RpcError: `not_found`: none, or the name leads elsewhere.
        """
        folder = self.folder / name
        if not name or Path(name).name != name or name.startswith(".") or not folder.is_dir():
            raise RpcError(
                "not_found",
                "there is no backup of that name",
                remedy="`covey backup list` shows those there are.",
            )
        return folder

    # ---- by itself

    async def run(self) -> None:
        """Make one whenever it is due, and look again for erased records in those there are."""
        await self._sweep()
        if not self._config.every_s:
            return
        while True:
            await trio.sleep(self._due_in_s())
            try:
                await self.create()
                gone = await self.prune()
            except (StoreError, RpcError, PathsError) as error:
                self._failed = str(error)
                log.warning("backup_failed", extra={"f": {"error": self._failed}})
                await trio.sleep(RETRY_S)
            else:
                self._failed = ""
                log.info("backups_pruned", extra={"f": {"gone": len(gone)}})

    def _due_in_s(self) -> float:
        newest = max((info.created_ms for info in self._list() if not info.problem), default=0)
        now_ms = self._env.wall_ms()
        if newest:
            return max(0.0, newest / 1000 + self._config.every_s - now_ms / 1000)
        return max(0.0, self._started_ms / 1000 + FIRST_AFTER_S - now_ms / 1000)

    async def _sweep(self) -> None:
        """A kill between an erasure and its shredding leaves keys: they go now."""
        state = Path(self._paths.state)
        if not self._making.locked():
            # Here in the loop: nobody begins one meanwhile.
            clear_unfinished(self.folder)

        def sweep() -> int:
            return shred_backups(state, erased_ids(Path(self._paths.db)))

        try:
            changed = await self._offload.run(sweep)
        except (apsw.Error, OSError) as error:
            log.warning("sweep_failed", extra={"f": {"error": type(error).__name__}})
        else:
            if changed:
                log.info("backups_shredded", extra={"f": {"copies": changed}})

    async def check(self) -> Check:
        """`backup.age`: whether there is a backup that is not too old."""
        if not self._config.every_s:
            return Check(name="backup.age", status="ok", message="automatic backups are off")
        found = await self._offload.run(self._list)
        if self._failed:
            return Check(
                name="backup.age",
                status="degraded",
                message=self._failed,
                remedy="Mend that, then run `covey backup`.",
            )
        newest = max((info.created_ms for info in found if not info.problem), default=0)
        age_s = (self._env.wall_ms() - newest) / 1000
        if newest and age_s > 3 * self._config.every_s:
            return Check(
                name="backup.age",
                status="degraded",
                message=f"the newest backup is {age_s / 86400:.1f} days old",
                remedy="Run `covey backup`; `covey logs` says why none was made.",
            )
        told = f"{len(found)} backups" if newest else "none yet; the first follows by itself"
        return Check(name="backup.age", status="ok", message=told)

    # ---- in a thread

    def _make(self, work: _Work, passphrase: str) -> str:
        make_private(str(self.folder))
        clear_unfinished(self.folder)
        self._check_space()
        created_ms = self._env.wall_ms()
        name = self._free_name(created_ms)
        making = self.folder / f"{MAKING}{name}"
        making.mkdir(mode=0o700)
        try:
            self._fill(making, work, created_ms, passphrase)
            self._env.fault("backup.filled")
            making.rename(self.folder / name)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        sync_folder(self.folder)
        self._env.fault("backup.renamed")
        # What was erased while we read an older moment; a later erasure sees the backup itself.
        erased = erased_ids(Path(self._paths.db))
        shred_backups(Path(self._paths.state), erased)
        shred_backups(self.folder / name, erased)
        return name

    def _check_space(self) -> None:
        size = sum(size_of(f"{self._paths.db}{end}") for end in ("", "-wal"))
        free = shutil.disk_usage(self.folder).free
        needed = size + SPARE_BYTES
        if free < needed:
            raise StoreError(
                "full",
                f"a backup needs up to {needed >> 20:,} MiB, {self.folder} has {free >> 20:,} MiB"
                " free: free space there, or set [backup] dir to another disk",
            )

    def _free_name(self, created_ms: int) -> str:
        stamp = datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y-%m-%dT%H-%M-%S")
        name, number = f"{stamp}Z", 1
        while (self.folder / name).exists():
            number += 1
            name = f"{stamp}Z-{number}"
        return name

    def _fill(self, making: Path, work: _Work, created_ms: int, passphrase: str) -> None:
        paths = self._paths
        counts = write_copy(
            Path(paths.db), making / DATABASE, making / KEYS, self._env, work.report
        )
        self._env.fault("backup.copied")
        behaviour = Path(paths.state) / BEHAVIOUR
        if behaviour.exists():
            vacuum_into(behaviour, making / BEHAVIOUR)
        for source, target in ((paths.book, BOOK), (paths.config_file, CONFIG)):
            if Path(source).is_file():
                shutil.copyfile(source, making / target)
        if passphrase:
            sealed = seal_key(self._private_files(), passphrase, self._env.rng)
            (making / SEALED_KEY).write_bytes(sealed)
        heads, schema = read_copy(making / DATABASE, self._device)
        check_copy(making / KEYS)
        files = {}
        for path in sorted(making.iterdir()):
            sync_file(path)
            files[path.name] = entry_of(path)
        write_manifest(
            making,
            Manifest(
                format=FORMAT,
                covey=daemon.__version__,
                sqlite=apsw.sqlite_lib_version(),
                schema=schema,
                created_ms=created_ms,
                node=self._device.hex(),
                records=counts["records"],
                bodies=counts["bodies"],
                memories=counts["memories"],
                with_key=bool(passphrase),
                files=files,
                heads=heads,
            ),
        )

    def _private_files(self) -> dict[str, bytes]:
        """What is worth a passphrase: the device key and the groups' recovery seeds."""
        found = {"key": Path(self._paths.key).read_bytes()}
        recovery = Path(self._paths.recovery)
        if recovery.exists():
            found["recovery"] = recovery.read_bytes()
        return found

    def _list(self) -> list[BackupInfo]:
        if not self.folder.is_dir():
            return []
        names = [
            path.name
            for path in self.folder.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        ]
        found = [self._info(name) for name in names]
        return sorted(found, key=lambda info: (info.created_ms, info.name), reverse=True)

    def _info(self, name: str) -> BackupInfo:
        folder = self.folder / name
        state = Path(self._paths.state).resolve()
        outside = not folder.resolve().is_relative_to(state)
        try:
            manifest = read_manifest(folder)
        except RpcError as error:
            return BackupInfo(
                name=name, path=str(folder), created_ms=0, bytes=0, memories=0, records=0,
                version="", with_key=False, outside=outside, problem=error.message,
            )  # fmt: skip
        since = erased_since(Path(self._paths.db), folder)
        return BackupInfo(
            name=name,
            path=str(folder),
            created_ms=manifest.created_ms,
            bytes=sum(entry.bytes for entry in manifest.files.values()),
            memories=manifest.memories,
            records=manifest.records,
            version=manifest.covey,
            with_key=manifest.with_key,
            outside=outside,
            erased_since=sum(one.records for one in since),
            erased_in=since,
        )

    def _prune(self, keep: int) -> list[str]:
        whole = [info for info in self._list() if not info.problem]
        gone = [info.name for info in whole[max(1, keep) :]]
        for name in gone:
            # First out of sight, then gone: half a backup must not look like one.
            doomed = self.folder / f"{MAKING}{name}"
            (self.folder / name).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        return gone


def clear_unfinished(folder: Path) -> None:
    """Remove what a crash left of a backup that was being made, or removed."""
    for path in folder.glob(f"{MAKING}*"):
        shutil.rmtree(path, ignore_errors=True)


def check_backup(folder: Path) -> Manifest:
    """Everything that can be told of a backup without restoring it.

    Raises:
        RpcError: `not_found` or `storage_corrupt`.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    for name in (DATABASE, KEYS):
        check_copy(folder / name)
    return manifest
