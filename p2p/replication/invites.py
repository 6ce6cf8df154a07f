"""Invite, join, admit: how a stranger with a ticket becomes a member.

The inviter draws a seed, writes an invite with the public key made from it, and hands the seed over
in a ticket. The joiner writes a join, signed by itself and by the invite key. Any member that may
admit checks the time by its own clock, writes an admit and shares the epoch keys; the inviter need
not be there. Source: docs/specs/ticket.md, docs/specs/authority.md s.4.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p.identity import Identity
from p2p.replication.ops import DOMAIN_JOIN, Admit, Invite, InviteClose, Join, Role, verify_join
from p2p.replication.ticket import NAME_CHARACTERS_MAX, Ticket

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from p2p.replication.standing import PendingJoin, Standing

__all__ = [
    "Refusal",
    "can_admit",
    "find_invite",
    "invite_identity",
    "invites_to_close",
    "make_admit",
    "make_close",
    "make_invite",
    "make_join",
    "refuse_join",
    "verify_join",
]

INVITE_INFO: Final = b"covey/invite/1\0"
SEED_BYTES: Final = 32


class Refusal(enum.Enum):
    """Why a join is not admitted; the values are RPC reasons."""

    CLOSED = "invite_closed"
    USED = "ticket_used"
    EXPIRED = "ticket_expired"
    NOT_PERMITTED = "not_permitted"


def invite_identity(seed: bytes, group: bytes) -> Identity:
    """The invite key that a ticket's seed stands for in its group."""
    kdf = HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=INVITE_INFO + group)
    return Identity.from_seed(kdf.derive(seed))


def make_invite(
    group: bytes,
    inviter: bytes,
    *,
    role: Role,
    uses: int,
    not_after_s: int,
    confirm: bool,
    addrs: Sequence[bytes],
    name: str,
    rng: random.Random,
) -> tuple[Ticket, Invite]:
    """A ticket and the invite to write for it.

    Args:
        group: the group.
        inviter: our device key.
        role: of who joins.
        uses: how many may join; more than one always waits for an admin's word.
        not_after_s: Unix seconds.
        confirm: whether a person accepts each join.
        addrs: our binary multiaddrs, global first; at most 6 are put into the ticket.
        name: what we call the group; cut to what a ticket holds.
        rng: source of the seed.
    """
    seed = rng.randbytes(SEED_BYTES)
    manual = confirm or uses > 1
    invite = Invite(
        invite_identity(seed, group).id, role, uses, not_after_s, accept=1 if manual else 0
    )
    shown = "".join(c if c.isprintable() else " " for c in name)[:NAME_CHARACTERS_MAX]
    ticket = Ticket(1, group, role, inviter, seed, not_after_s, uses, tuple(addrs)[:6], shown)
    return ticket, invite


def make_join(
    group: bytes, joiner: bytes, invite_id: bytes, seed: bytes, exchange_key: bytes
) -> Join:
    """The join a ticket entitles to.

    Args:
        group: the group.
        joiner: our device key.
        invite_id: record id of the invite whose key is `invite_identity(seed, group).id`.
        seed: from the ticket.
        exchange_key: our X25519 public key; epoch keys will be sealed to it.
    """
    proof = invite_identity(seed, group).sign(DOMAIN_JOIN, group + joiner + exchange_key)
    return Join(invite_id, exchange_key, proof)


def make_admit(join_id: bytes) -> Admit:
    """The admit of a join."""
    return Admit(join_id)


def make_close(invite_id: bytes) -> InviteClose:
    """The end of an invite, so that no late or backdated admit counts."""
    return InviteClose(invite_id)


def find_invite(standing: Standing, invite_key: bytes) -> bytes | None:
    """Record id of the open invite with this key; of any with it if none is open; None without."""
    found = [v for v in standing.invites().values() if v.invite.invite_key == invite_key]
    ranked = sorted(found, key=lambda v: (not v.open, v.id))
    return ranked[0].id if ranked else None


def can_admit(standing: Standing, member: bytes, invite: Invite) -> bool:
    """Whether a member's admit would count for joins of this invite."""
    role = standing.role(member)
    manual = invite.accept == 1 or invite.role == Role.ADMIN
    return role is not None and role >= (Role.ADMIN if manual else Role.WRITE)


def refuse_join(
    standing: Standing, member: bytes, join: PendingJoin, wall_ms: int
) -> Refusal | None:
    """Whether a member must not admit a join, and why; None if it may.

    Args:
        standing: of the group now.
        member: who would admit: this device.
        join: the join.
        wall_ms: the member's **own** clock; the joiner's says nothing.
    """
    view = standing.invites().get(join.invite_id)
    if view is None or not view.stands or view.closed:
        return Refusal.CLOSED
    if view.used >= view.invite.uses:
        return Refusal.USED
    if wall_ms > view.invite.not_after_s * 1000:
        return Refusal.EXPIRED
    if not can_admit(standing, member, view.invite):
        return Refusal.NOT_PERMITTED
    return None


def invites_to_close(standing: Standing, inviter: bytes, wall_ms: int) -> list[bytes]:
    """Ids of an inviter's own invites that are used up or expired and still lack a close."""
    return [
        view.id
        for view in standing.invites().values()
        if view.author == inviter
        and view.stands
        and not view.closed
        and (view.used >= view.invite.uses or wall_ms > view.invite.not_after_s * 1000)
    ]
