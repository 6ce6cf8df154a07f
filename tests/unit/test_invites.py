"""From ticket to member, with real keys."""

from __future__ import annotations

import pytest

from p2p.errors import AuthError
from p2p.replication import invites, ops
from p2p.replication.invites import Refusal
from p2p.replication.ops import Kind, Role
from p2p.replication.ticket import decode_ticket_untrusted, encode_ticket
from tests.helpers.sealed_group import Member, SealedGroup

LATER_S = 600


def open_invite(group: SealedGroup, **changes):
    """The founder's ticket as the joiner reads it, and the invite's record."""
    settings = {
        "role": Role.WRITE,
        "uses": 1,
        "not_after_s": group.env.wall // 1000 + LATER_S,
        "confirm": False,
        "addrs": [b"\x04\x7f\x00\x00\x01\x06\x0f\xa1"] * 9,
        "name": "the group",
    } | changes
    ticket, invite = invites.make_invite(
        group.group, group.founder.id, rng=group.env.rng, **settings
    )
    record = group.founder.control(Kind.INVITE, invite)
    return decode_ticket_untrusted(encode_ticket(ticket)), record


def ask(group: SealedGroup, ticket, invite_id: bytes) -> tuple[Member, ops.Join]:
    """A new device with its join, not yet written."""
    joiner = Member(group.env, group.authority)
    joiner.sealer.observe(group.founder.sealer.hlc)
    return joiner, invites.make_join(
        group.group, joiner.id, invite_id, ticket.seed, joiner.exchange_public
    )


def refusal(group: SealedGroup, member: bytes, wall_ms: int | None = None):
    standing = group.authority.standing()
    (pending,) = standing.pending_joins()
    return invites.refuse_join(
        standing, member, pending, group.env.wall if wall_ms is None else wall_ms
    )


def test_a_ticket_makes_a_member():
    group = SealedGroup()
    ticket, invite = open_invite(group)
    assert len(ticket.addrs) == 6
    key = invites.invite_identity(ticket.seed, ticket.group).id
    assert invites.find_invite(group.authority.standing(), key) == invite.id
    joiner, join = ask(group, ticket, invite.id)
    record = joiner.control(Kind.JOIN, join)
    assert refusal(group, group.founder.id) is None
    group.founder.sealer.observe(record.hlc)
    group.founder.control(Kind.ADMIT, invites.make_admit(record.id))
    standing = group.authority.standing()
    assert standing.role(joiner.id) == Role.WRITE
    assert standing.invited_by(joiner.id) == group.founder.id
    assert standing.exchange_key(joiner.id) == joiner.exchange_public


def test_an_invite_used_up_or_expired_is_closed_by_its_inviter():
    group = SealedGroup()
    ticket, invite = open_invite(group)
    standing = group.authority.standing()
    assert invites.invites_to_close(standing, group.founder.id, group.env.wall) == []
    late = group.env.wall + LATER_S * 1000 + 1_000
    assert invites.invites_to_close(standing, group.founder.id, late) == [invite.id]
    joiner, join = ask(group, ticket, invite.id)
    record = joiner.control(Kind.JOIN, join)
    group.founder.sealer.observe(record.hlc)
    group.founder.control(Kind.ADMIT, invites.make_admit(record.id))
    standing = group.authority.standing()
    assert invites.invites_to_close(standing, group.founder.id, 0) == [invite.id]
    assert invites.invites_to_close(standing, joiner.id, 0) == []
    group.founder.control(Kind.INVITE_CLOSE, invites.make_close(invite.id))
    standing = group.authority.standing()
    assert invites.invites_to_close(standing, group.founder.id, late) == []
    assert standing.role(joiner.id) == Role.WRITE


def test_the_admitting_members_own_clock_decides_whether_a_ticket_is_over():
    group = SealedGroup()
    ticket, invite = open_invite(group)
    joiner, join = ask(group, ticket, invite.id)
    joiner.control(Kind.JOIN, join)
    end_ms = ticket.not_after_s * 1000
    assert refusal(group, group.founder.id, end_ms) is None
    assert refusal(group, group.founder.id, end_ms + 1) is Refusal.EXPIRED
    assert not ticket.expired(end_ms)
    assert ticket.expired(end_ms + 1)


def test_who_may_admit():
    group = SealedGroup()
    ticket, invite = open_invite(group, confirm=True)
    writer, admin, reader = (group.member(r) for r in (Role.WRITE, Role.ADMIN, Role.READ))
    joiner, join = ask(group, ticket, invite.id)
    joiner.control(Kind.JOIN, join)
    assert refusal(group, admin.id) is None
    assert refusal(group, writer.id) is Refusal.NOT_PERMITTED
    assert refusal(group, reader.id) is Refusal.NOT_PERMITTED
    assert refusal(group, joiner.id) is Refusal.NOT_PERMITTED


def test_several_uses_wait_for_an_admin():
    group = SealedGroup()
    _, invite = open_invite(group, uses=2)
    view = group.authority.standing().invites()[invite.id]
    assert view.invite.accept == 1


def test_a_closed_or_spent_invite_is_refused():
    group = SealedGroup()
    ticket, invite = open_invite(group)
    joiner, join = ask(group, ticket, invite.id)
    record = joiner.control(Kind.JOIN, join)
    (pending,) = group.authority.standing().pending_joins()
    other, other_join = ask(group, ticket, invite.id)
    other.sealer.observe(record.hlc)
    second = other.control(Kind.JOIN, other_join)
    group.founder.sealer.observe(second.hlc)
    group.founder.control(Kind.ADMIT, invites.make_admit(second.id))
    wall = group.env.wall
    standing = group.authority.standing()
    assert invites.refuse_join(standing, group.founder.id, pending, wall) is Refusal.USED
    group.founder.control(Kind.INVITE_CLOSE, invites.make_close(invite.id))
    standing = group.authority.standing()
    assert invites.refuse_join(standing, group.founder.id, pending, wall) is Refusal.CLOSED


@pytest.mark.attack
def test_a_join_without_the_seed_is_refused():
    group = SealedGroup()
    ticket, invite = open_invite(group)
    joiner, join = ask(group, ticket, invite.id)
    guess = invites.make_join(group.group, joiner.id, invite.id, bytes(32), joiner.exchange_public)
    with pytest.raises(AuthError, match="invite's key"):
        joiner.control(Kind.JOIN, guess)
    assert group.authority.standing().pending_joins() == []
    assert joiner.control(Kind.JOIN, join).kind == Kind.JOIN


@pytest.mark.attack
def test_a_join_seen_on_the_wire_serves_nobody_else():
    group = SealedGroup()
    ticket, invite = open_invite(group)
    _, join = ask(group, ticket, invite.id)
    thief = Member(group.env, group.authority)
    thief.sealer.observe(group.founder.sealer.hlc)
    with pytest.raises(AuthError, match="invite's key"):
        thief.control(Kind.JOIN, join)
    swapped = ops.Join(join.invite_id, thief.exchange_public, join.invite_signature)
    victim = Member(group.env, group.authority)
    victim.sealer.observe(group.founder.sealer.hlc)
    with pytest.raises(AuthError, match="invite's key"):
        victim.control(Kind.JOIN, swapped)


def test_the_seed_means_another_key_in_another_group():
    a, b = (
        invites.invite_identity(bytes(32), bytes(32)),
        invites.invite_identity(bytes(32), bytes([1] * 32)),
    )
    assert a.id != b.id


def test_a_groups_name_is_made_fit_for_a_ticket():
    group = SealedGroup()
    ticket, _ = open_invite(group, name="a\x1b[2J" + "n" * 40)
    assert ticket.name == "a [2J" + "n" * 27
