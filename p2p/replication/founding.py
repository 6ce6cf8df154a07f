"""Founding a group: its genesis, first epoch and local rows, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.replication.authority import Authority
from p2p.replication.epoch import epoch_id, make_epoch, new_secret, tag_commit
from p2p.replication.groups import (
    SECRET_EXCHANGE,
    STATE_MEMBER,
    Group,
)
from p2p.replication.hlc import next_incarnation, pack
from p2p.replication.keys import exchange_public, generate_exchange
from p2p.replication.ops import Genesis, Kind, encode_payload
from p2p.replication.record import LANE_CONTROL, Envelope, Record
from p2p.replication.sealing import ControlDraft, Place, sign_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.identity import Identity
    from p2p.replication.core import Core
    from p2p.replication.store import LocalRow


async def found_group(
    core: Core,
    name: str,
    *,
    home: bool,
    recovery: Identity | None,
    before_commit: Callable[[bytes], None],
) -> Group:
    """Make a group of which we are the founder.

    Args:
        core: our parts.
        name: local name.
        home: whether it is one person's devices.
        recovery: the key that outranks us, or None.
        before_commit: given the group's id while nothing of it is stored yet, to put the recovery
            seed in a safe place: a genesis never changes, so a seed lost here is lost for ever.
    """
    rng = core.env.rng
    private, secret = generate_exchange(rng), new_secret(rng)
    genesis = Genesis(
        exchange_key=exchange_public(private),
        recovery_key=None if recovery is None else recovery.id,
        home=int(home),
        tag_commit=tag_commit(secret),
        policy=None,
        random=rng.randbytes(16),
    )
    incarnation = next_incarnation(0, core.env.wall_ms())
    first = _sign_genesis(core, genesis, incarnation)
    authority = Authority(first.id, core.verify)
    authority.add(first.id, first.head, genesis)
    group = Group(first.id, name, home, STATE_MEMBER, authority, core.new_lock())
    group.incarnations = [incarnation, incarnation]
    group.control_confirmed = True
    group.synced_once = True
    group.exchange[genesis.exchange_key] = private
    core.keeper.load_sealer(group)
    epoch = make_epoch(group.id, secret, {core.me: genesis.exchange_key}, rng)
    draft = ControlDraft(Kind.EPOCH, encode_payload(epoch))
    (second,) = core.sealer.seal_batch(group.id, [draft], 2, first.id, first.hlc)
    local: list[LocalRow] = [
        ("grp", (group.id, name, int(home), group.state)),
        ("secret", (group.id, SECRET_EXCHANGE, genesis.exchange_key, private)),
        ("epoch", (group.id, epoch_id(second.id), secret)),
    ]
    before_commit(group.id)
    # Known before the commit is told, so that nothing of it is taken for a stranger's.
    core.groups.add(group)
    try:
        await core.store.admit(group.id, [first, second], local)
    except BaseException:
        core.groups.remove(group.id)
        core.sealer.drop_group(group.id)
        raise
    group.authority.add(second.id, second.head, epoch)
    group.epochs[second.id] = secret
    group.note_stored({core.me: 2})
    core.keeper.load_sealer(group)
    core.sealer.advance(group.id)
    async with core.keeper.turn(group):
        await core.keeper.after(group, [first, second])
    return group


def _sign_genesis(core: Core, genesis: Genesis, incarnation: int) -> Record:
    draft = ControlDraft(Kind.GENESIS, encode_payload(genesis))
    envelope = Envelope(core.env.rng.randbytes(16), None, None, draft.body)
    hlc = max(pack(core.env.wall_ms()), core.sealer.hlc + 1)
    core.sealer.observe(hlc)
    # Its id is not known before it is signed; of the place only numbers count.
    place = Place((bytes(32), core.me, incarnation, LANE_CONTROL), 1, None, 0)
    return sign_record(core.signer, None, draft, place, hlc, (), envelope)
