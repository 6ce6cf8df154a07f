"""What a federation must not forget: rows in `jobs.db`, states and merged parts as files.

A state file is there before the row that names it; merged parts of a vote are there before the
vote. Files that no row names are swept away after the next round is kept.
"""

from __future__ import annotations

import logging
import math
import os
import re
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from federated.errors import UsageError
from federated.rounds.numeric.tensors import Schema, decode_schema_untrusted
from federated.rounds.protocol.orders import Vote
from federated.rounds.protocol.policy import MEMBERS_MAX, Policy
from federated.rounds.protocol.wire import Hash, Peer, Signed
from federated.rounds.statefile import map_state, write_state
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import apsw

    from federated.rounds.numeric.dtypes import Array
    from federated.rounds.protocol.orders import Persist
    from federated.rounds.workshop import Workshop
    from federated.seams import Db
    from p2p.env import Offload

log = logging.getLogger("covey.rounds")

OWN_FILE: Final = re.compile(
    r"round-\d+\.safetensors|\.round-\d+\.safetensors\..+|[0-9a-f]{64}\.(part|new)"
)
"""Names of what lies in a model's folder, unfinished ones among them."""
FILES_NAMED: Final = 8
"""In the log, of those that cannot be removed."""
KEPT_STATES: Final = 3
"""Rounds whose state stays: a late update is a difference to one of them."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A federation's last applied round, as a member has it.

    `root` stands for the chain of results, `state_sha` for the bytes of the state.
    """

    group: bytes
    name: str
    policy: Policy
    schema: bytes
    round: Annotated[int, msgspec.Meta(ge=0)]
    root: Hash
    state_sha: Hash
    circle: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    """Empty only while a federation is being joined: it is not kept so."""
    rule: str
    clip: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    offsets: tuple[float, ...] = ()
    """Arrival offsets for the deadline."""
    proof: bytes = b""
    """The last round's `Apply`; empty before the first."""
    parts: tuple[Hash, ...] = ()
    """Hashes of the last round's merged parts."""
    codec: str = ""
    counts: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = ()
    """Elements of each of these parts."""
    banned: tuple[Hash, ...] = ()
    """Who signed two contradicting messages; until the model is left here."""


class Kept(msgspec.Struct, frozen=True):
    """A row of a federation that this machine is a member of.

    `fault` says what is wrong with it; `standing` is then a blank one of its group and name.
    """

    ident: bytes
    standing: Standing
    fault: str = ""


class _KeptVote(msgspec.Struct, frozen=True, array_like=True):
    view: int
    root: bytes
    plan: Signed
    results: Signed


class FederationStore:
    """Rows and files of one federation.

    Args:
        db: jobs.db.
        folder: for the files; made if it is not there.
        federation: its id.
        offload: where files are written.
    """

    def __init__(self, db: Db, folder: Path, federation: bytes, offload: Offload) -> None:
        self._db = db
        self._folder = folder / federation.hex()[:32]
        self._federation = federation
        self._offload = offload

    # ---- standing

    def state_path(self, number: int) -> Path:
        """Where the state after round `number` lies."""
        return self._folder / f"round-{number}.safetensors"

    async def save(
        self, standing: Standing, schema: Schema, state: Mapping[str, Array],
        merged: Mapping[bytes, bytes],
    ) -> None:  # fmt: skip
        """Keep an applied round: files first, then the row; promises of the round go with it.

        What it replaces stays until `sweep`.

        Raises:
            OSError: the disk is full or refuses; all is as it was.
        """

        def files() -> None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_state(self.state_path(standing.round), schema, state)
            for digest, data in merged.items():
                self._write_part(digest, data)

        await self._offload.run(files)
        body = msgspec.msgpack.encode(standing)

        def write(db: apsw.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO fed_state (federation, grp, name, body)"
                " VALUES (?, ?, ?, ?)",
                (self._federation, standing.group, standing.name, body),
            )
            db.execute(
                "DELETE FROM fed_vote WHERE federation = ? AND number <= ?",
                (self._federation, standing.round),
            )

        await self._db.write(write)

    def load_state(self, number: int) -> dict[str, Array]:
        """The state after a round, mapped.

        Raises:
            OSError: it is not kept any more.
        """
        return map_state(self.state_path(number))

    async def sweep(self, standing: Standing) -> None:
        """Remove states and parts that a kept round does not need.

        What cannot be removed stays, and is logged.
        """
        kept = {self.state_path(standing.round - back).name for back in range(KEPT_STATES)}
        kept |= {f"{digest.hex()}.part" for digest in standing.parts}

        self._say_refused(await self._offload.run(lambda: remove_own(self._folder, kept)))

    async def forget(self) -> None:
        """Leave: the row and our files go; what cannot be removed stays, and is logged.

        Promises and votes stay: who comes back into the same round is bound by what it said.
        """

        def write(db: apsw.Connection) -> None:
            db.execute("DELETE FROM fed_state WHERE federation = ?", (self._federation,))

        await self._db.write(write)

        def files() -> dict[str, str]:
            refused = remove_own(self._folder)
            with suppress(OSError):
                self._folder.rmdir()  # stays while something of somebody else lies in it
            return refused

        self._say_refused(await self._offload.run(files))

    _refused: Mapping[str, str] = MappingProxyType({})

    def _say_refused(self, refused: dict[str, str]) -> None:
        """Once, not after each round."""
        if refused != self._refused:
            self._refused = refused
            told = dict(sorted(refused.items())[:FILES_NAMED])
            log.error("round_files_not_removed", extra={"f": {"files": told}})

    # ---- promises and votes

    async def persist(self, promised: Persist, workshop: Workshop) -> None:
        """Keep a promise or vote, and before a vote the merged parts it is about."""
        vote = promised.vote
        if vote is not None and vote.view == promised.promised:
            parts = dict(workshop.merged)
            await self._offload.run(lambda: self._write_parts(parts))
        body = None
        if vote is not None:
            kept = _KeptVote(vote.view, vote.root, vote.plan, vote.results)
            body = msgspec.msgpack.encode(kept)
        number = self._number

        def write(db: apsw.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO fed_vote (federation, number, promised, vote)"
                " VALUES (?, ?, ?, ?)",
                (self._federation, number, promised.promised, body),
            )

        await self._db.write(write)

    _number = 1

    def begin(self, number: int) -> None:
        """Promises from now on are for this round."""
        self._number = number

    async def promised(self, number: int) -> tuple[int, Vote | None]:
        """What was promised and voted for a round before a restart; (-1, None) if nothing was."""

        def read(db: apsw.Connection) -> tuple[int, bytes | None] | None:
            row = db.execute(
                "SELECT promised, vote FROM fed_vote WHERE federation = ? AND number = ?",
                (self._federation, number),
            ).fetchone()
            return None if row is None else (int(row[0]), row[1])

        found = await self._db.read(read)
        if found is None:
            return -1, None
        view, body = found
        if body is None:
            return view, None
        kept = msgspec.msgpack.decode(body, type=_KeptVote)
        return view, Vote(kept.view, kept.root, kept.plan, kept.results)

    def parts_kept(self) -> dict[bytes, bytes]:
        """Merged parts on disk, by hash."""
        if not self._folder.is_dir():
            return {}
        return {bytes.fromhex(path.stem): path.read_bytes() for path in self._folder.glob("*.part")}

    def _write_parts(self, parts: Mapping[bytes, bytes]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for digest, data in parts.items():
            self._write_part(digest, data)

    def _write_part(self, digest: bytes, data: bytes) -> None:
        path = self._folder / f"{digest.hex()}.part"
        if path.exists():
            return
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_own(folder: Path, kept: Collection[str] = ()) -> dict[str, str]:
    """Remove files of ours, each for itself; whatever else lies there is not touched. Blocks.

    Args:
        folder: may be missing, or a link to one.
        kept: names that stay.

    Returns:
        Why it could not be removed, by name.
    """
    refused: dict[str, str] = {}
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return refused
    except OSError as error:
        return {folder.name: str(error.strerror)}
    for name in names:
        if OWN_FILE.fullmatch(name) and name not in kept:
            try:
                (folder / name).unlink(missing_ok=True)
            except OSError as error:
                refused[name] = str(error.strerror)
    return refused


async def load_all(db: Db) -> list[Kept]:
    """Every federation that this machine is a member of, with what is wrong with its row."""

    def read(connection: apsw.Connection) -> list[tuple[object, ...]]:
        rows = connection.execute("SELECT federation, grp, name, body FROM fed_state ORDER BY name")
        return list(rows)

    return [_kept(*row) for row in await db.read(read)]


def _kept(ident: object, group: object, name: object, body: object) -> Kept:
    known = ident if isinstance(ident, bytes) else b""
    try:
        return Kept(known, read_standing(body if isinstance(body, bytes) else b""))
    except DecodeError as error:
        blank = Standing(
            group=group if isinstance(group, bytes) else b"", name=str(name), policy=Policy(),
            schema=b"", round=0, root=bytes(32), state_sha=bytes(32), circle=(), rule="",
        )  # fmt: skip
        return Kept(known, blank, str(error))


def read_standing(body: bytes) -> Standing:
    """A standing as it was kept: a disk may lie, and an earlier version may have believed a peer.

    Raises:
        DecodeError: what is wrong with it.
    """
    try:
        standing = msgspec.msgpack.decode(body, type=Standing)
    except (msgspec.DecodeError, UsageError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(f"a kept model: {error}") from None
    decode_schema_untrusted(standing.schema)
    if not standing.circle or len(set(standing.circle)) != len(standing.circle):
        raise DecodeError("a kept model: a circle without members, or with one of them twice")
    if len(standing.counts) != len(standing.parts):
        raise DecodeError("a kept model: parts without their sizes")
    if not math.isfinite(standing.clip):
        raise DecodeError("a kept model: a clip that is not finite")
    return standing
