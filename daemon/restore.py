"""Putting a backup in the place of the state, so that a kill at any moment leaves one of the two.

Theory of operation. Everything is prepared in a folder of its own inside the state folder: the copy
gets its keys back, what was erased since the backup loses its bodies, every signature is checked,
the rest is projected anew, judgements made on this machine stand again, and SQLite checks the
result. Until then the state is as it was. A small file, `restore.json`, then names what is to be
swapped; from its sync on the swap only goes forward: old files are renamed into
`before-restore-<date>` and new ones into their place, the database last, each step recognisable by
what lies where. Whoever takes the state's lock next, a start or another restore, finishes it.

The old logs are never continued: this device may have signed more than the backup knows, and a
place signed twice is a fork. `high.mark` says so to the next start, which opens new incarnations.
Source: docs/guides/backup.md.
"""

from __future__ import annotations

import json
import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, cast

import apsw
import msgspec
import trio

from daemon.backup import check_backup
from daemon.erased_since import GroupErased, still_held
from daemon.errors import RpcError
from daemon.keyseal import open_sealed
from daemon.manifest import (
    BEHAVIOUR,
    BOOK,
    DATABASE,
    KEYS,
    SEALED_KEY,
    sync_file,
    sync_folder,
)
from daemon.paths import make_private
from daemon.shred import ASIDE
from daemon.verify import StoreCheck
from memory.errors import StoreError
from memory.records.replica import Replica
from memory.storage.behaviour import erase_in_copy
from memory.storage.connect import translate
from memory.storage.db import Db
from memory.storage.marks import HighMark
from memory.storage.sql import blobs, number
from memory.transfer.portable import (
    erase_again,
    give_authors_their_device,
    keyless,
    put_judgements_back,
    refuse_strange_schema,
    shred_database,
    stash_judgements,
    take_keys_back,
    unprojected,
)
from p2p.identity import load_or_create, verify
from p2p.replication.record import BodyError, Envelope
from p2p.replication.sealing import aead_context, open_body

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.manifest import Manifest
    from daemon.paths import Paths
    from memory.seams import Draft, LogKey, Position, Scanner, Verified
    from p2p.env import Env

log = logging.getLogger("covey.daemon.restore")

JOURNAL: Final = "restore.json"
STAGE: Final = ".restoring-"
"""Beginning of the name of the folder in which a restore prepares."""
ERASED_IDS: Final = "erased.ids"
_ID_BYTES: Final = 32
MARK: Final = "high.mark"
KEY: Final = "key"
RECOVERY: Final = "recovery"
SWAPPED: Final = (BEHAVIOUR, BOOK, MARK, KEY, RECOVERY, DATABASE)
"""What a restore may put in place, in this order; the database last."""
_SIDE_FILES: Final = ("-wal", "-shm")
PROJECTED_AT_ONCE: Final = 200
"""Bodies opened and projected in one transaction: about a tenth of a second."""


class Tell(Protocol):
    """Where a restore says how far it is."""

    def __call__(self, done: int, total: int | None, message: str) -> None:
        """`done` of `total` (None: unknown)."""
        ...


class Restored(msgspec.Struct, kw_only=True):
    """What a restore did.

    Attributes:
        backup: its name.
        created_ms: Unix milliseconds of the backup.
        records, memories: how many are here now.
        erased_again: records whose bodies were left out because they were erased since.
        erased_in: the same by group.
        sealed: bodies whose group key is not in the backup; they open when it comes.
        aside: folder with the state as it was; empty if there was none.
        key: whether the device key was put in place.
    """

    backup: str
    created_ms: int
    records: int
    memories: int
    erased_again: int
    erased_in: list[GroupErased]
    sealed: int
    aside: str
    key: bool


class _NoSealer:
    """A restore signs nothing."""

    def log(self, group: bytes, lane: int) -> LogKey:
        """Never asked."""
        raise KeyError(group, lane)

    def seal(self, draft: Draft, at: Position) -> Verified:
        """Never asked."""
        raise KeyError(draft, at)


def find_backup(folder: Path, written: str) -> Path:
    """The backup that a person names: `latest`, a name in the backup folder, or a path.

    Raises:
        RpcError: `not_found`.
    """
    if written == "latest":
        names = sorted(path.name for path in folder.glob("[0-9]*") if path.is_dir())
        if not names:
            _fail("not_found", f"there is no backup in {folder}")
        return folder / names[-1]
    plain = Path(written).name == written
    for candidate in (folder / written if plain else None, Path(written)):
        if candidate is not None and candidate.exists():
            return candidate
    return _fail("not_found", f"there is no backup {written}")


def _fail(name: str, message: str, remedy: str = "") -> NoReturn:
    usual = "`covey restore latest` takes the newest; a path leads anywhere else."
    raise RpcError(name, message, remedy=remedy or usual)


def restore(
    paths: Paths,
    backup: Path,
    env: Env,
    *,
    scanner: Scanner,
    passphrase: str = "",
    tell: Tell,
) -> Restored:
    """Put a backup in the place of this node's state. The caller holds the state's lock.

    Args:
        paths: of the node.
        backup: a backup's folder, or a database that a migration or a restore put aside.
        env: clocks and fault points.
        scanner: looks through others' texts, as when they came.
        passphrase: opens the device key in the backup, which then replaces another one here.
        tell: told how far it is.

    Raises:
        RpcError: the backup is damaged, of another device, or its key does not open.
        StoreError: the disk is full, or the backup is from a newer Covey.
    """
    state = Path(paths.state)
    finish_restore(state)
    tell(0, None, "checking the backup")
    manifest = check_backup(backup) if backup.is_dir() else None
    stamp = datetime.fromtimestamp(env.wall_ms() / 1000, UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    stage = state / f"{STAGE}{stamp}"
    make_private(str(stage))
    try:
        _check_space(state, backup)
        device = _stage_key(paths, backup, manifest, stage, passphrase, env)
        _stage_files(state, backup, stage, manifest)
        done = _stage_database(state, stage, device, env, scanner, tell)
    except apsw.Error as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise translate(error, backup) from error
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    done.backup = backup.name
    done.created_ms = 0 if manifest is None else manifest.created_ms
    done.key = (stage / KEY).exists()
    tell(1, 1, "putting it in place")
    aside = _free_name(state, f"{ASIDE}{stamp}")
    had_state = (state / DATABASE).exists()
    _write_journal(state, stage.name, aside)
    env.fault("restore.journal")
    finish_restore(state, env)
    done.aside = str(state / aside) if had_state else ""
    return done


def _free_name(state: Path, name: str) -> str:
    free, number_ = name, 1
    while (state / free).exists():
        number_ += 1
        free = f"{name}-{number_}"
    return free


def _check_space(state: Path, backup: Path) -> None:
    files = backup.iterdir() if backup.is_dir() else [backup]
    needed = 3 * sum(path.stat().st_size for path in files) + (64 << 20)
    free = shutil.disk_usage(state).free
    if free < needed:
        raise StoreError(
            "full",
            f"restoring needs about {needed >> 20:,} MiB, {state} has {free >> 20:,} MiB free:"
            " free space, then repeat; nothing was changed",
        )


# ---- preparing


def _stage_key(
    paths: Paths,
    backup: Path,
    manifest: Manifest | None,
    stage: Path,
    passphrase: str,
    env: Env,
) -> bytes:
    """The device that the restored state belongs to; its key is staged if it is not here."""
    here = Path(paths.key)
    if passphrase:
        if manifest is None or SEALED_KEY not in manifest.files:
            _fail("not_found", "no device key is in this backup", "Leave --with-key away.")
        files = open_sealed((backup / SEALED_KEY).read_bytes(), passphrase)
        for name in (KEY, RECOVERY):
            target = Path(paths.state) / name
            if name in files and not (target.exists() and target.read_bytes() == files[name]):
                (stage / name).write_bytes(files[name])
                sync_file(stage / name)
    chosen = stage / KEY if (stage / KEY).exists() else here
    if not chosen.exists():
        _fail(
            "locked",
            "the device key is not here, and without it the state is of no use",
            f"Put it at {here}, or restore a backup that has it: covey restore --with-key.",
        )
    device = bytes(load_or_create(chosen, env.rng).id)
    if manifest is not None and manifest.node != device.hex():
        _fail(
            "conflict",
            "the backup is of another device: two devices with one key would fork its logs",
            "Restore a backup of this device, or the other key with it: --with-key.",
        )
    return device


def _stage_files(state: Path, backup: Path, stage: Path, manifest: Manifest | None) -> None:
    if manifest is None:
        shutil.copyfile(backup, stage / DATABASE)
        wal = backup.with_name(f"{backup.name}-wal")
        if wal.exists():
            shutil.copyfile(wal, stage / f"{DATABASE}-wal")
        return
    shutil.copyfile(backup / DATABASE, stage / DATABASE)
    if BEHAVIOUR in manifest.files:
        shutil.copyfile(backup / BEHAVIOUR, stage / BEHAVIOUR)
    # Addresses age: those here are newer than those in the backup.
    if BOOK in manifest.files and not (state / BOOK).exists():
        shutil.copyfile(backup / BOOK, stage / BOOK)
    shutil.copyfile(backup / KEYS, stage / KEYS)


def _stage_database(
    state: Path, stage: Path, device: bytes, env: Env, scanner: Scanner, tell: Tell
) -> Restored:
    """Make the staged copy whole, and say which logs may not be continued."""
    path = stage / DATABASE
    erased = _erased(state)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI)
    try:
        connection.execute("PRAGMA secure_delete=ON").fetchall()
        refuse_strange_schema(connection, path)
    finally:
        connection.close()
    if not (stage / KEYS).exists():
        # A whole database: the text of what was erased since must not come into place with it.
        shred_database(path, erased)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI)
    try:
        connection.execute("PRAGMA secure_delete=ON").fetchall()
        if (stage / KEYS).exists():
            take_keys_back(connection, stage / KEYS)
        # A body that lost its key was erased while the copy lay there.
        gone = [*erased, *keyless(connection)]
        erased_in = still_held(connection, gone)
        again = erase_again(connection, gone)
        tell(0, None, "checking signatures")
        _refuse_forged(connection)
        give_authors_their_device(connection)
        stash_judgements(connection)
    finally:
        connection.close()
    if (stage / BEHAVIOUR).exists():
        erase_in_copy(stage / BEHAVIOUR, gone)
    sealed = trio.run(_project, path, env, scanner, tell)
    env.fault("restore.projected")
    tell(0, None, "checking the result")
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        put_judgements_back(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        found = str(connection.execute("PRAGMA integrity_check(1)").get)
        if found != "ok":
            _fail("storage_corrupt", "the restored database is damaged", "Take another backup.")
        records = number(connection, "SELECT count(*) FROM record")
        memories = number(connection, "SELECT count(*) FROM memory")
        _stage_marks(connection, state, stage, device)
    finally:
        connection.close()
    for name in SWAPPED:
        if (stage / name).exists():
            sync_file(stage / name)
    sync_folder(stage)
    env.fault("restore.staged")
    return Restored(
        backup="", created_ms=0, records=records, memories=memories, erased_again=again,
        erased_in=erased_in, sealed=sealed, aside="", key=False,
    )  # fmt: skip


def _refuse_forged(connection: apsw.Connection) -> None:
    """A copy that lay elsewhere: what it says others signed, they signed, or nothing is restored.

    Raises:
        RpcError: `storage_corrupt`.
    """
    found = StoreCheck([], verify).forged(connection)
    if found:
        counts = "; ".join(f"{finding.count} {finding.message}" for finding in found)
        _fail(
            "storage_corrupt",
            f"the backup cannot be used: it holds {counts}",
            "Take another one: `covey backup list`.",
        )


def read_erased_ids(state: Path) -> list[bytes]:
    """Ids in the file beside the database, 32 bytes each; a torn one at the end is none."""
    try:
        data = (state / ERASED_IDS).read_bytes()
    except FileNotFoundError:
        return []
    whole = len(data) - len(data) % _ID_BYTES
    return [data[at : at + _ID_BYTES] for at in range(0, whole, _ID_BYTES)]


def _erased(state: Path) -> list[bytes]:
    """What was erased here, by the file beside the database and by the database, if it can say."""
    ids: dict[bytes, None] = dict.fromkeys(read_erased_ids(state))
    if (state / DATABASE).exists():
        try:
            connection = apsw.Connection(str(state / DATABASE), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                ids |= dict.fromkeys(blobs(connection, "SELECT id FROM erased"))
            finally:
                connection.close()
        except apsw.Error as error:
            # It may be why somebody restores; the file is the one that counts.
            log.warning("old_state_unreadable", extra={"f": {"error": type(error).__name__}})
    return list(ids)


_SEALED: Final = (
    "SELECT r.id, g.id, l.author, l.incarnation, r.seq, b.epoch, k.salt, k.wrap, b.ct, e.secret"
    " FROM record r JOIN grp g ON g.n = r.grp JOIN log l ON l.n = r.log JOIN body b ON b.n = r.n"
    " JOIN body_key k ON k.n = r.n LEFT JOIN epoch e ON e.grp = g.id AND e.id = b.epoch"
    " WHERE r.n = ?"
)

_SealedRow = tuple[bytes, bytes, bytes, int, int, bytes, bytes, bytes, bytes, bytes | None]


async def _project(path: Path, env: Env, scanner: Scanner, tell: Tell) -> int:
    """Open the bodies and project them, oldest first; how many have no group key here."""
    db = Db(path, env)
    replica = Replica(db, _NoSealer(), path.parent, scanner)
    sealed = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        total = await db.read(lambda c: number(c, "SELECT count(*) FROM body WHERE opened = 0"))
        done = after = 0
        while True:
            page = await db.read(lambda c, after=after: unprojected(c, after, PROJECTED_AT_ONCE))  # type: ignore[misc]
            if not page:
                break
            rows = await db.read(lambda c, page=page: _read_sealed(c, page))  # type: ignore[misc]
            opened = _open(rows)
            sealed += len(rows) - sum(len(bodies) for bodies in opened.values())
            for group, bodies in opened.items():
                await replica.unsealed(group, bodies)
            after = page[-1]
            done += len(page)
            env.fault("restore.projecting")
            tell(done, total, "reading the records again")
        nursery.cancel_scope.cancel()
    return sealed


def _read_sealed(connection: apsw.Connection, page: Sequence[int]) -> list[_SealedRow]:
    return [cast("_SealedRow", connection.execute(_SEALED, (n,)).fetchone()) for n in page]


def _open(rows: Sequence[_SealedRow]) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """(id, plain) by group, of those that open."""
    opened: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for record, group, author, incarnation, seq, epoch, salt, wrap, ct, secret in rows:
        if secret is None:
            continue
        context = aead_context(group, author, incarnation, seq)
        try:
            plain = open_body(Envelope(salt, epoch, wrap, ct), secret, context)
        except BodyError:
            # So it was when it came: an author's fault is kept as it is.
            continue
        opened.setdefault(group, []).append((record, plain))
    return opened


def _stage_marks(connection: apsw.Connection, state: Path, stage: Path, device: bytes) -> None:
    """Say that each own log went on: after the backup it may have, on another machine too."""
    before = HighMark(state / MARK)
    before.load()
    (stage / MARK).unlink(missing_ok=True)
    mark = HighMark(stage / MARK)
    mark.raise_to(before.positions)
    rows = cast(
        "list[tuple[bytes, int, int, int]]",
        connection.execute(
            "SELECT g.id, l.incarnation, l.lane, l.max_seq FROM log l JOIN grp g ON g.n = l.grp"
            " WHERE l.author = ?",
            (device,),
        ).fetchall(),
    )
    mark.raise_to({(group, device, inc, lane): seq + 1 for group, inc, lane, seq in rows})
    mark.write()
    mark.close()


# ---- the swap


def _write_journal(state: Path, stage: str, aside: str) -> None:
    fresh = state / f"{JOURNAL}.new"
    fresh.write_text(json.dumps({"stage": stage, "aside": aside}))
    sync_file(fresh)
    fresh.replace(state / JOURNAL)
    sync_folder(state)


def finish_restore(state: Path, env: Env | None = None) -> bool:
    """Finish a swap that was begun, and remove what an unfinished restore prepared.

    The caller holds the state's lock. Safe to repeat.

    Returns:
        Whether there was a swap to finish.

    Raises:
        StoreError: `io`: the folder cannot be changed.
    """
    try:
        return _finish(state, env)
    except OSError as error:
        raise StoreError(
            "io",
            f"the restore in {state} cannot be finished ({error.strerror}): check owner and mode of"
            " the folder, then repeat",
        ) from error


def _finish(state: Path, env: Env | None) -> bool:
    named = _read_journal(state)
    if named is not None:
        stage, aside = state / named[0], state / named[1]
        # The database is last: while it waits, the swap is not done.
        if (stage / DATABASE).exists():
            _swap(state, stage, aside, env)
        (state / JOURNAL).unlink()
        sync_folder(state)
    for left in state.glob(f"{STAGE}*"):
        shutil.rmtree(left)
    return named is not None


def _read_journal(state: Path) -> tuple[str, str] | None:
    try:
        found = json.loads((state / JOURNAL).read_text("utf-8"))
        stage, aside = str(found["stage"]), str(found["aside"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "corrupt", f"{state / JOURNAL} cannot be read: remove it, then restore again"
        ) from error
    for name, beginning in ((stage, STAGE), (aside, ASIDE)):
        if Path(name).name != name or not name.startswith(beginning):
            raise StoreError(
                "corrupt", f"{state / JOURNAL} names a foreign folder: remove it, restore again"
            )
    return stage, aside


def _swap(state: Path, stage: Path, aside: Path, env: Env | None) -> None:
    aside.mkdir(mode=0o700, exist_ok=True)
    for base in (DATABASE, BEHAVIOUR):
        for end in _SIDE_FILES:
            side = state / f"{base}{end}"
            if side.exists() and (stage / base).exists():
                side.rename(aside / side.name)
    for name in SWAPPED:
        if not (stage / name).exists():
            continue  # not part of this restore, or in place already
        if (state / name).exists():
            (state / name).rename(aside / name)
        if env is not None:
            env.fault("restore.aside")
        (stage / name).rename(state / name)
        if env is not None:
            env.fault("restore.swapped")
    sync_folder(aside)
    sync_folder(state)
