"""Crash at every write: record what SQLite asks of the disk, then open what a crash would leave.

Theory of operation. A `Recorder` registers an APSW VFS. Every connection opened with that VFS name
(several at once, from any thread) works on real files, and each write, truncate, sync and delete is
also noted, in order. The test notes an acknowledgement (`ack`) at the moment the product tells its
caller that a unit is safe. Afterwards `images` yields, for each prefix of that history, the files
that a machine may find after losing power there:

* `whole`: everything asked for so far is on disk;
* `torn`: the same, plus the first half of the next write;
* `unsynced`: of the writes that no later sync of their file covers, each survived with p = 1/2.
  Truncations and deletions are kept: file systems order metadata in a journal of their own.

Each image is opened with the ordinary VFS, and must hold every unit acknowledged before it and no
part of any other. Shared memory (the `-shm` file) passes through unrecorded, as after a power loss.
With `synchronous=NORMAL` the `unsynced` images must lose acknowledged units: that is the control
which shows that the harness can see a loss. Not modelled: reordering inside one sync, bit rot.
"""

from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

import apsw
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

ImageKind: TypeAlias = Literal["whole", "torn", "unsynced"]
KINDS: Final[tuple[ImageKind, ...]] = ("whole", "torn", "unsynced")

_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file cut to a size."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Everything written to the file before this survives."""

    file: str


@dataclass(frozen=True, slots=True)
class Delete:
    """A directory entry removed."""

    file: str


Op: TypeAlias = Write | Truncate | Sync | Delete


class _File(apsw.VFSFile):
    """A file that notes what is asked of it, unless it is temporary (without a name)."""

    def __init__(
        self, recorder: Recorder, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        self._recorder = recorder
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path).name if path else None
        super().__init__("", name, flags)

    @override
    def xWrite(self, data: bytes, offset: int) -> None:
        if self._name is not None:
            self._recorder.before_write(len(data))
            self._recorder.ops.append(Write(self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    @override
    def xTruncate(self, newsize: int) -> None:
        if self._name is not None:
            self._recorder.ops.append(Truncate(self._name, newsize))
        super().xTruncate(newsize)

    @override
    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        # Noted after it is done: what was only asked for is not yet safe.
        if self._name is not None:
            self._recorder.ops.append(Sync(self._name))


class _Vfs(apsw.VFS):
    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        super().__init__(name, "")

    @override
    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:
        return _File(self._recorder, name, flags)

    @override
    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._recorder.ops.append(Delete(Path(filename).name))
        super().xDelete(filename, syncdir)


class Recorder:
    """Records the disk operations of all connections opened with `vfs=recorder.vfs_name`.

    Args:
        folder: where the databases are. Files already there are the state before the first
            operation, so that a migration of an older database can be recorded too.
    """

    def __init__(self, folder: Path) -> None:
        self.vfs_name = f"covey-crash-{next(_serial)}"
        self.folder = folder
        self.ops: list[Op] = []
        self.acks: list[tuple[int, object]] = []
        self.free_bytes: int | None = None
        """Set to make the disk full: writes beyond this many bytes fail with SQLITE_FULL."""
        self.base: dict[str, bytes] = {
            path.name: path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.endswith("-shm")
        }
        self._vfs = _Vfs(self, self.vfs_name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the VFS; connections that use it must be closed."""
        self._vfs.unregister()

    def ack(self, unit: object) -> None:
        """Note that the caller of the product was told just now that `unit` is safe."""
        self.acks.append((len(self.ops), unit))

    def before_write(self, size: int) -> None:
        """Take `size` bytes of the free space.

        Raises:
            apsw.FullError: none left; SQLite sees SQLITE_FULL.
        """
        if self.free_bytes is None:
            return
        if size > self.free_bytes:
            message = "the recorded disk is full"
            raise apsw.FullError(message)
        self.free_bytes -= size


@dataclass
class _Disk:
    """What each file holds, and what of it is safe."""

    whole: dict[str, bytearray] = field(default_factory=dict)
    safe: dict[str, bytearray] = field(default_factory=dict)
    pending: dict[str, list[Op]] = field(default_factory=dict)
    """Operations of each file since its last sync, oldest first."""

    def do(self, op: Op) -> None:
        _apply(self.whole, op)
        waiting = self.pending.setdefault(op.file, [])
        if isinstance(op, Sync):
            for earlier in waiting:
                _apply(self.safe, earlier)
            waiting.clear()
        else:
            waiting.append(op)

    def unsynced(self, rng: random.Random) -> dict[str, bytes]:
        files = {name: bytearray(data) for name, data in self.safe.items()}
        for waiting in self.pending.values():
            for op in waiting:
                if not isinstance(op, Write) or rng.random() < 0.5:
                    _apply(files, op)
        return {name: bytes(data) for name, data in files.items()}


def _apply(files: dict[str, bytearray], op: Op) -> None:
    match op:
        case Write(name, offset, data):
            content = files.setdefault(name, bytearray())
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        case Truncate(name, size):
            content = files.setdefault(name, bytearray())
            del content[size:]
        case Delete(name):
            files.pop(name, None)
        case Sync():
            pass


@dataclass(frozen=True)
class Image:
    """The files that one crash leaves."""

    point: int
    """How many operations had been asked for."""
    kind: ImageKind
    files: dict[str, bytes]
    acked: tuple[object, ...]
    """Units acknowledged before the crash, in order."""

    def lay_out(self, folder: Path) -> None:
        """Write the files into `folder`, which is emptied first."""
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            # A migration leaves a folder of backups beside the database.
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    def holds(self, needle: bytes) -> bool:
        """Whether any file contains `needle`: what was erased must not be found."""
        return any(needle in data for data in self.files.values())

    @override
    def __str__(self) -> str:
        return f"{self.kind} image at operation {self.point}, {len(self.acked)} acknowledged"


def images(
    recorder: Recorder,
    *,
    seed: int,
    kinds: Sequence[ImageKind] = KINDS,
    start: int = 0,
    stride: int = 1,
) -> Iterator[Image]:
    """What a crash may leave, for every `stride`-th prefix of the recorded operations.

    Args:
        recorder: after the product has worked.
        seed: decides which unsynced writes survive.
        kinds: which images to make of each prefix.
        start: first prefix, in operations; 0 is an empty (or the given) folder.
        stride: 1 tries every operation.
    """
    rng = random.Random(seed)
    disk = _Disk(
        {name: bytearray(data) for name, data in recorder.base.items()},
        {name: bytearray(data) for name, data in recorder.base.items()},
    )
    acked: list[object] = []
    acks = iter([*recorder.acks, (len(recorder.ops) + 1, None)])
    ack = next(acks)
    for point in range(len(recorder.ops) + 1):
        while ack[0] <= point:
            acked.append(ack[1])
            ack = next(acks)
        if point >= start and (point - start) % stride == 0:
            for kind in kinds:
                files = _files_of(disk, kind, recorder.ops[point : point + 1], rng)
                if files is not None:
                    yield Image(point, kind, files, tuple(acked))
        if point < len(recorder.ops):
            disk.do(recorder.ops[point])


def _files_of(
    disk: _Disk, kind: ImageKind, following: Sequence[Op], rng: random.Random
) -> dict[str, bytes] | None:
    """The files of one image, or None if this kind does not exist here."""
    if kind == "unsynced":
        return disk.unsynced(rng)
    if kind == "whole":
        return {name: bytes(data) for name, data in disk.whole.items()}
    torn = [op for op in following if isinstance(op, Write)]
    if not torn:
        return None
    half = Write(torn[0].file, torn[0].offset, torn[0].data[: len(torn[0].data) // 2])
    files = {name: bytearray(data) for name, data in disk.whole.items()}
    _apply(files, half)
    return {name: bytes(data) for name, data in files.items()}


def check_database(db: apsw.Connection) -> None:
    """Demand that SQLite finds its file whole, each full-text index included.

    Raises:
        AssertionError: `integrity_check` found something.
        apsw.CorruptError: a full-text index differs from its content.
    """
    found = [str(row[0]) for row in db.execute("pragma integrity_check")]
    assert found == ["ok"], found
    for table in fts5_tables(db):
        # Rank 1 also compares an index with the content it was made of.
        db.execute(f'insert into "{table}"("{table}", rank) values (\'integrity-check\', 1)')


def fts5_tables(db: apsw.Connection) -> list[str]:
    """Names of all FTS5 tables."""
    rows = db.execute(
        "select name from sqlite_schema where type = 'table' and sql like '%using fts5(%'"
        " order by name"
    )
    return [str(row[0]) for row in rows]
