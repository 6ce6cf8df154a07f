"""Entering a group with a ticket: `/covey/join/1`, both sides.

The joiner asks with the invite's public key, gets the group's authority operations, checks them
against its ticket (genesis hash, the invite, its author and role), and answers with a *join* signed
by itself and by the invite key. The member checks the time by its own clock, admits, shares the
epoch keys, and sends all control records. What the joiner must not lose (its exchange key, its
join) is on disk before the join is sent, so that a cut connection is repaired by asking again.

A hostile joiner may ask for groups it knows by name (it learns nothing without an open invite's
key), replay a used ticket, backdate (our clock decides), or ask without end (five refusals, then
silence). A hostile member may send another group's records (hash), a wrong role (compared), or
stall (the caller's time limit). Source: docs/specs/join.md.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

from p2p.errors import AuthError, PeerError, ProtocolError, UsageError
from p2p.replication.authority import Authority
from p2p.replication.events import GroupError
from p2p.replication.groups import (
    SECRET_EXCHANGE,
    STATE_MEMBER,
    STATE_PENDING,
    STATE_REFUSED,
    Group,
    choose_incarnations,
    control_payload,
    held_beside,
)
from p2p.replication.hlc import too_far_ahead
from p2p.replication.invites import find_invite, invite_identity, make_admit, make_join, refuse_join
from p2p.replication.keys import exchange_public, generate_exchange
from p2p.replication.messages import (
    ERROR_BUSY,
    ERROR_FULL,
    ERROR_INVITE_CLOSED,
    ERROR_NOT_PERMITTED,
    ERROR_REFUSED,
    ERROR_TICKET_EXPIRED,
    ERROR_TICKET_USED,
    ERROR_UNKNOWN_GROUP,
    VERSION,
    Ask,
    Counts,
    Done,
    Error,
    Message,
    Records,
)
from p2p.replication.ops import Join, Kind, Role
from p2p.replication.record import (
    Record,
    RecordWire,
    decode_header_untrusted,
    is_authority,
    verify_record,
)
from p2p.replication.wires import records_frames, wire_of

if TYPE_CHECKING:
    from p2p.replication.core import Core
    from p2p.replication.ops import Payload
    from p2p.replication.standing import InviteView, PendingJoin, Standing
    from p2p.replication.store import LocalRow
    from p2p.replication.ticket import Ticket

PROTOCOL: Final = "/covey/join/1"

CONTROL_RECORDS_MAX: Final = 65_536
"""Control records a joiner takes before the exchange must be over. Source: a guess, far above the
4,096 operations a group may have."""

NO_ROOT: Final = bytes(32)
"""The join door's *Done* carries no root: its count says whether we were admitted."""

_ERROR_OF: Final = {
    "invite_closed": ERROR_INVITE_CLOSED,
    "ticket_used": ERROR_TICKET_USED,
    "ticket_expired": ERROR_TICKET_EXPIRED,
    "not_permitted": ERROR_NOT_PERMITTED,
}

_WHY: Final = {
    ERROR_UNKNOWN_GROUP: ("unknown_group", "the other device is not in that group any more"),
    ERROR_INVITE_CLOSED: ("invite_closed", "the invite was closed: ask for a new ticket"),
    ERROR_TICKET_USED: ("ticket_used", "this ticket was used already: ask for a new one"),
    ERROR_TICKET_EXPIRED: ("ticket_expired", "the ticket is too old: ask for a new one"),
    ERROR_NOT_PERMITTED: ("not_permitted", "the other device may not admit: reach another member"),
    ERROR_FULL: ("over_quota", "the group has as many members as it may have"),
    ERROR_BUSY: ("over_quota", "the other device is busy: try again in a minute"),
}


class Talk(Protocol):
    """Messages to and from one proven peer."""

    @property
    def peer(self) -> bytes:
        """Who it is."""
        ...

    async def send(self, message: Message) -> None:
        """Send one message."""

    async def receive(self) -> Message | None:
        """The next message; None at the end of the stream.

        Raises:
            DecodeError: bytes that are no message.
        """
        ...


# --- the joiner -------------------------------------------------------------------------------


async def enter_group(core: Core, talk: Talk, ticket: Ticket) -> Group:
    """Ask a member to let us in; the group, in state member or pending.

    Raises:
        GroupError: the member refused, or the group is not what the ticket says.
        PeerError: the member broke the protocol.
    """
    invite_key = invite_identity(ticket.seed, ticket.group).id
    await talk.send(Ask(ticket.group, invite_key))
    offered = await _receive_control(talk, ticket.group)
    async with core.groups.door(ticket.group, core.new_lock):
        group = core.groups.get(ticket.group)
        fresh = group is None or group.state == STATE_REFUSED
        was_member = (
            group is not None and group.state == STATE_MEMBER and group.role(core.me) is not None
        )
        if group is None or fresh:
            group = await _prepare(core, ticket, offered, invite_key)
        else:
            async with core.keeper.turn(group):
                _, admitted = await core.admission.admit(group, offered, talk.peer)
                await core.keeper.heard(group, admitted)
    if was_member and group.role(core.me) is not None:
        raise GroupError("already_member", f"this device is in {group.name} already")
    join = await _own_join(core, group, ticket, invite_key)
    await talk.send(Records(group.id, (join,)))
    try:
        await _take_answer(core, talk, group)
    except GroupError as refused:
        why = refused
    else:
        return group
    if fresh:  # Otherwise an earlier join of ours may still be waiting for somebody's word.
        await _set_state(core, group, STATE_REFUSED)
    raise why


async def _receive_control(talk: Talk, group: bytes) -> list[RecordWire]:
    """Records up to the empty message that ends them."""
    wires: list[RecordWire] = []
    while True:
        message = await talk.receive()
        if isinstance(message, Error):
            raise refusal_of(message)
        if not isinstance(message, Records) or message.group != group:
            raise ProtocolError("expected the group's control records")
        if not message.wires:
            return wires
        wires.extend(message.wires)
        if len(wires) > CONTROL_RECORDS_MAX:
            raise ProtocolError("more control records than a group may have")


def refusal_of(message: Error) -> GroupError:
    """What a refusal of the join door means to the person who joins."""
    reason, text = _WHY.get(message.code, ("not_permitted", "the other device refused the ticket"))
    return GroupError(reason, text)


async def _prepare(
    core: Core, ticket: Ticket, offered: list[RecordWire], invite_key: bytes
) -> Group:
    """Check what the member showed against the ticket, and make the group ready to be joined."""
    authority, records = await _fold_offered(core, ticket.group, offered)
    standing = authority.standing()
    _check_invite(standing, find_invite(standing, invite_key), ticket)
    name = core.groups.free_name(ticket.name or "group")
    group = Group(ticket.group, name, standing.home, STATE_PENDING, authority, core.new_lock())
    private = generate_exchange(core.env.rng)
    group.exchange[exchange_public(private)] = private
    # A former, refused join may have left records of ours: go on behind them.
    control, data = choose_incarnations(
        core.me, await core.store.logs(group.id), core.env.wall_ms()
    )
    group.incarnations = [control, data]
    group.control_confirmed = True
    group.void_ops = standing.void_ops()
    local: list[LocalRow] = [
        ("grp", (group.id, name, int(group.home), group.state)),
        ("secret", (group.id, SECRET_EXCHANGE, exchange_public(private), private)),
    ]
    # Known before the commit is told; forgotten if it is not known to have happened, since what was
    # written is found again or written again by the next try.
    core.groups.add(group)
    try:
        await core.store.admit(group.id, records, local)
    except BaseException:
        core.groups.remove(group.id)
        raise
    for record in records:
        core.sealer.observe(record.hlc)
    group.note_stored(Counter(record.author for record in records))
    core.keeper.load_sealer(group)
    core.sealer.advance(group.id)
    return group


async def _fold_offered(
    core: Core, group: bytes, offered: list[RecordWire]
) -> tuple[Authority, list[Record]]:
    authority = Authority(group, core.verify)
    records: list[Record] = []
    try:
        for count, wire in enumerate(offered, 1):
            record = verify_record(wire, core.verify)
            if record.group != group or not is_authority(record.kind):
                raise ProtocolError("a record that is no authority operation of the group")
            if too_far_ahead(record.hlc, core.env.wall_ms()):
                # Taken in, it would carry our own clock along with it.
                raise GroupError(
                    "bad_ticket",
                    "the group's records are dated after this machine's clock: set the clock, or"
                    " ask another member for a ticket",
                )
            payload = control_payload(record.head, wire.envelope)
            if authority.add(record.id, record.head, payload):
                records.append(record)
            if count % 16 == 0:
                await core.checkpoint()
    except UsageError:
        raise ProtocolError("the group's control records are not complete") from None
    if not records or records[0].kind != Kind.GENESIS or records[0].id != group:
        raise ProtocolError("the records are not those of the ticket's group")
    return authority, records


def _check_invite(standing: Standing, invite_id: bytes | None, ticket: Ticket) -> None:
    """Hold the group against the ticket: the invite stands, and is the inviter's, of that role."""
    view = None if invite_id is None else standing.invites()[invite_id]
    if view is None or not view.stands:
        raise GroupError("bad_ticket", "the group has no such invite: ask for a new ticket")
    if view.author != ticket.inviter or view.invite.role != ticket.role:
        raise GroupError(
            "bad_ticket",
            "the ticket does not say what the group says of this invite: do not trust its sender",
        )


async def _own_join(core: Core, group: Group, ticket: Ticket, invite_key: bytes) -> RecordWire:
    """Our join for this invite, written if it is not there yet."""
    async with core.keeper.turn(group):
        invite_id = find_invite(group.standing, invite_key)
        if invite_id is None:
            raise GroupError("bad_ticket", "the group has no such invite: ask for a new ticket")
        if group.standing.limits_on(core.me):
            # We were taken out: what we write counts again in new logs only, citing that.
            await core.keeper.renew(group)
        for row in await core.store.control(group.id):
            header = decode_header_untrusted(row.header)
            if header.author == core.me and header.kind == Kind.JOIN and row.envelope is not None:
                payload = control_payload(header, wire_of(row).envelope)
                if isinstance(payload, Join) and payload.invite_id == invite_id:
                    return wire_of(row)
        public = next(iter(group.exchange))
        join = make_join(group.id, core.me, invite_id, ticket.seed, public)
        (record,) = await core.keeper.write_only(group, [(Kind.JOIN, join)])
        return record.wire()


async def _take_answer(core: Core, talk: Talk, group: Group) -> None:
    """Admit what the member sends until it is done."""
    while True:
        message = await talk.receive()
        if isinstance(message, Done):
            return
        if isinstance(message, Error):
            raise refusal_of(message)
        if message is None:
            return  # Cut: our join may have arrived; the next session or ask will tell.
        if not isinstance(message, Records) or message.group != group.id:
            raise ProtocolError("expected records or the end of the join")
        if message.wires:
            async with core.keeper.turn(group):
                _, admitted = await core.admission.admit(group, message.wires, talk.peer)
                await core.keeper.heard(group, admitted)


async def _set_state(core: Core, group: Group, state: str) -> None:
    group.state = state
    await core.store.admit(group.id, [], [("grp", (group.id, group.name, int(group.home), state))])


# --- the member -------------------------------------------------------------------------------


class _Refused(GroupError):
    """Ends an ask with an error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(_WHY.get(code, ("not_permitted", ""))[0], text)
        self.code = code
        self.text = text


async def answer_ask(core: Core, talk: Talk) -> None:
    """Serve one joiner.

    Raises:
        PeerError: the joiner broke the protocol; the stream is to be reset.
    """
    now = core.env.now()
    if core.quota.join_silent(talk.peer, now) or core.quota.banned(talk.peer, now):
        raise AuthError("asked in vain too often")
    try:
        await _serve_ask(core, talk)
    except _Refused as refused:
        core.quota.refuse_join(talk.peer, core.env.now())
        await talk.send(Error(refused.code, refused.text, VERSION, VERSION))


async def _serve_ask(core: Core, talk: Talk) -> None:
    ask = await talk.receive()
    if not isinstance(ask, Ask):
        raise ProtocolError("a join begins with an ask")
    group = core.groups.get(ask.group)
    if group is None or group.state != STATE_MEMBER or group.role(core.me) is None:
        raise _Refused(ERROR_UNKNOWN_GROUP, "not in that group")
    invite_id = find_invite(group.standing, ask.invite_key)
    if invite_id is None:
        raise _Refused(ERROR_INVITE_CLOSED, "no such invite")
    view = group.standing.invites()[invite_id]
    if group.role(talk.peer) is None:
        _check_open(core, group, view)
    await _send_records(core, talk, group, authority_only=True)
    message = await talk.receive()
    if message is None:
        return
    if not isinstance(message, Records) or message.group != group.id or len(message.wires) != 1:
        raise ProtocolError("expected the join")
    async with core.keeper.turn(group):
        admitted = await _take_join(core, talk, group, invite_id, message.wires[0])
    await _send_records(core, talk, group, authority_only=False)
    await talk.send(Done(group.id, NO_ROOT, Counts(int(admitted), 0)))


def _check_open(core: Core, group: Group, view: InviteView) -> None:
    """Refuse before anything of the group is shown."""
    if not view.stands or view.closed:
        used_up = view.used >= view.invite.uses
        if used_up:
            core.events.emit("group.ticket_reused", {"group": group.id, "invite": view.id})
        code = ERROR_TICKET_USED if used_up else ERROR_INVITE_CLOSED
        raise _Refused(code, "the invite is closed")
    if view.used >= view.invite.uses:
        # Somebody tries a ticket a second time: its owner should hear of it.
        core.events.emit("group.ticket_reused", {"group": group.id, "invite": view.id})
        raise _Refused(ERROR_TICKET_USED, "the invite is used up")
    if core.env.wall_ms() > view.invite.not_after_s * 1000:
        raise _Refused(ERROR_TICKET_EXPIRED, "the invite has expired")
    if len(group.standing.members()) >= core.config.members_max:
        raise _Refused(ERROR_FULL, "the group is full")


async def _send_records(core: Core, talk: Talk, group: Group, *, authority_only: bool) -> None:
    wires = [wire_of(row) for row in await core.store.control(group.id)]
    wires += await held_beside(core.store, group.id)
    if authority_only:
        wires = [w for w in wires if is_authority(decode_header_untrusted(w.header).kind)]
    # Whatever an operation cites has a lower hlc.
    wires.sort(key=lambda w: decode_header_untrusted(w.header).hlc)
    for message in records_frames(group.id, wires):
        await talk.send(message)
    await talk.send(Records(group.id, ()))


async def _take_join(
    core: Core, talk: Talk, group: Group, invite_id: bytes, wire: RecordWire
) -> bool:
    """Store the join and admit it if we may; whether the joiner is a member now."""
    try:
        record = verify_record(wire, core.verify)
        payload = control_payload(record.head, wire.envelope)
    except PeerError as error:
        raise _Refused(ERROR_REFUSED, "the join does not verify") from error
    if record.author != talk.peer or not isinstance(payload, Join):
        raise _Refused(ERROR_REFUSED, "the join is not the asker's own")
    if payload.invite_id != invite_id:
        raise _Refused(ERROR_REFUSED, "the join is for another invite")
    result, admitted = await core.admission.admit(group, [wire], talk.peer)
    await core.keeper.after(group, admitted)
    if group.role(talk.peer) is not None:
        return True
    if result.refused:
        raise _Refused(ERROR_REFUSED, "the join does not verify")
    pending = find_pending(group, record.id)
    if pending is None:
        raise _Refused(ERROR_INVITE_CLOSED, "the invite admits nobody any more")
    return await admit_or_ask(core, group, pending)


def find_pending(group: Group, join_id: bytes) -> PendingJoin | None:
    """The pending join of that id."""
    return next((p for p in group.standing.pending_joins() if p.join_id == join_id), None)


async def admit_or_ask(core: Core, group: Group, pending: PendingJoin) -> bool:
    """Admit an automatic join; tell the person of one that wants a word. True when admitted."""
    view = group.standing.invites()[pending.invite_id]
    refused = refuse_join(group.standing, core.me, pending, core.env.wall_ms())
    if refused is not None and refused.value != "not_permitted":
        raise _Refused(_ERROR_OF[refused.value], "the invite admits nobody any more")
    if refused is not None or view.invite.accept == 1:
        core.events.emit(
            "group.join_pending",
            {"group": group.id, "join": pending.join_id, "member": pending.member},
        )
        return False
    await admit_join(core, group, pending)
    return True


async def admit_join(core: Core, group: Group, pending: PendingJoin) -> None:
    """Write the admit and hand the newcomer the group's keys, in one transaction."""
    view = group.standing.invites()[pending.invite_id]
    payloads: list[tuple[Kind, Payload]] = [(Kind.ADMIT, make_admit(pending.join_id))]
    if view.invite.role > Role.RELAY and group.epochs:
        share = core.keeper.shares.key_share(group, pending.member, pending.join.exchange_key)
        payloads.append((Kind.KEY_SHARE, share))
    await core.keeper.write(group, payloads)
