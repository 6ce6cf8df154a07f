"""A group as the store knows it, after a start of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.replication.groups import (
    HOLD_JUDGE,
    HOLD_REJECTED,
    SECRET_EXCHANGE,
    Group,
    choose_incarnations,
    load_authority,
)
from p2p.replication.hlc import too_far_ahead
from p2p.replication.shares import record_of

if TYPE_CHECKING:
    from p2p.replication.core import Core
    from p2p.replication.store import LogKey


async def load_group(core: Core, group: Group) -> None:
    """Fill a group from the store: authority, keys, incarnations, what waits."""
    group.erase_index.me = core.me
    await load_authority(group, core.store, core.verify)
    for _, columns in await core.store.local("secret", group.id):
        purpose, public, private = columns[1:4]
        if purpose == SECRET_EXCHANGE and isinstance(public, bytes):
            assert isinstance(private, bytes), "we wrote it"
            group.exchange[public] = private
    logs = await core.store.logs(group.id)
    wall_ms = core.env.wall_ms()
    marks = await _marks(core, group.id)
    group.incarnations = list(choose_incarnations(core.me, logs, wall_ms, marks))
    group.note_stored(await core.store.counts(group.id))
    for log in logs:
        if not too_far_ahead(log.head_hlc, wall_ms):
            core.sealer.observe(log.head_hlc)
    if group.founded:
        group.void_ops = group.standing.void_ops()
        group.known_members = dict(group.standing.members())
        group.control_confirmed = len(group.known_members) <= 1 and _never_left(group)
    for _, columns in await core.store.local("hold", group.id):
        if columns[2] == HOLD_REJECTED and isinstance(columns[0], bytes):
            group.rejected.add(columns[0])
        group.unjudged |= columns[2] == HOLD_JUDGE
    await _load_epochs(core, group)
    core.keeper.load_sealer(group)
    core.sealer.advance(group.id)
    await core.keeper.shares.open_waiting(group)


async def _marks(core: Core, group: bytes) -> dict[LogKey, int]:
    """How far our own logs of the group had come, by the file that no old image brings back."""
    marks: dict[LogKey, int] = {}
    for _, (_, author, incarnation, lane, seq) in await core.store.local("mark", group):
        assert isinstance(author, bytes), "we wrote it"
        assert isinstance(incarnation, int), "we wrote it"
        assert isinstance(lane, int), "we wrote it"
        assert isinstance(seq, int), "we wrote it"
        marks[group, author, incarnation, lane] = seq
    return marks


def _never_left(group: Group) -> bool:
    """Whether nobody else can hold an older copy of our logs: a fork needs a second holder."""
    return not any(view.stands for view in group.standing.invites().values())


async def _load_epochs(core: Core, group: Group) -> None:
    """Secrets from their rows; what was sealed to us and never opened is tried again."""
    secrets = {columns[1]: columns[2] for _, columns in await core.store.local("epoch", group.id)}
    if not group.founded:
        return
    for record in group.standing.epochs():
        secret = secrets.get(record.id[:16])
        if isinstance(secret, bytes):
            group.epochs[record.id] = secret
    for row in await core.store.control(group.id):
        core.keeper.shares.note(group, record_of(row))
