"""What honest users do in the simulation: write, share values, erase, let in, take out.

Each is a call of its own: it may be cut by a crash, refused, or wait for a slow disk, and only what
returned is in the book as acknowledged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.replication.ops import Role
from p2p.replication.state import Change
from tests.sim.parts import MARKER

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.replication.state import CellType, Json, Op
    from p2p.replication.views import PendingView
    from tests.sim.parts import SimPeer
    from tests.sim.world import World

HERE = bytes(32)
"""Erased by word to this device."""

CELLS: tuple[tuple[CellType, Op, Op], ...] = (
    ("lww", "set", "delete"),
    ("mv", "set", "delete"),
    ("set", "add", "remove"),
    ("counter", "incr", "incr"),
    ("map", "put", "delete"),
)


def write(world: World, count: int = 1) -> None:
    """A member writes entries."""
    peer = world.some_member()
    if peer is not None:
        write_as(world, peer, count)


def write_as(world: World, peer: SimPeer, count: int) -> None:
    """A certain member writes entries."""

    async def work() -> None:
        for _ in range(count):
            if not may_write(world, peer):
                return
            world.written += 1
            text = f"{MARKER}{peer.name}-{world.written}"
            ident = await peer.write(world.group, text)
            world.book.texts[ident] = text
            world.book.authors[ident] = peer.id

    peer.call(work)


def may_write(world: World, peer: SimPeer) -> bool:
    """What the daemon asks before it takes an entry."""
    role = peer.group_of(world.group).role(peer.id)
    return role is not None and role >= Role.WRITE


def burst(world: World) -> None:
    """A member writes several at once."""
    write(world, world.rng.choice([4, 4, 12]))


def cell(world: World) -> None:
    """A member changes a shared value."""
    peer = world.some_member()
    if peer is None:
        return
    kind, adding, removing = world.rng.choice(CELLS)
    op = adding if world.rng.random() < 0.75 else removing
    name = world.rng.choice(["a", "b"])
    number = world.rng.randint(1, 3)
    value: Json = f"{MARKER}{number}"
    if kind == "counter":
        value = number
    elif op == removing and kind != "set":
        value = None

    async def work() -> None:
        world.book.unsure_cells.add(name)
        written = await peer.replication.cells.change(
            world.group, Change(kind, (name,), op, value, "agent")
        )
        if kind == "counter":
            world.book.increments[name] = world.book.increments.get(name, 0) + number
        for ident in written.ids:
            world.book.authors[ident] = peer.id
        world.sometimes(f"cell_{kind}")
        world.cells_done[name] = world.cells_done.get(name, 0) + 1

    world.cells_begun[name] = world.cells_begun.get(name, 0) + 1
    peer.call(work)


def erase(world: World) -> None:
    """A member has one of its entries erased, by word to everybody."""
    peer = world.some_member()
    if peer is None:
        return
    own = [
        ident
        for ident in world.book.texts
        if world.book.authors[ident] == peer.id
        and ident not in world.book.erasing
        and is_seen(peer, ident)
    ]
    if not own:
        return
    ident = world.rng.choice(own)
    world.book.erasing.add(ident)

    async def work() -> None:
        if not is_seen(peer, ident):
            return
        await peer.store.settle(world.group, erase=[(ident, HERE, 0)])
        await peer.replication.publish_erasures(world.group)
        world.book.erased.add(ident)
        world.sometimes("erased")

    peer.call(work)


def is_seen(peer: SimPeer, ident: bytes) -> bool:
    """Whether its author still sees an entry: what a fork voided was signed anew, as another."""
    row = peer.disk.rows.get(ident)
    return row is not None and row.state == "live"


def invite(world: World) -> None:
    """An admin lets somebody in who is out: new, or taken out before."""
    admin = world.some_admin()
    if admin is None:
        return
    role_of = admin.group_of(world.group).role
    out = [p for p in world.honest if p.up and role_of(p.id) is None]
    if not out:
        return
    newcomer = world.rng.choice(out)
    role = world.rng.choice([Role.WRITE, Role.WRITE, Role.ADMIN, Role.READ])
    confirm = world.rng.random() < 0.5

    async def ask() -> None:
        ticket = await admin.replication.create_invite(world.group, role=role, confirm=confirm)

        async def enter() -> None:
            again = newcomer.id in world.book.limits
            joined = await newcomer.replication.join(ticket.ticket)
            if joined.state != "member":
                world.sometimes("join_waits")
                return
            world.book.note_join(newcomer.id, {admin.id}, role)
            world.sometimes("readmitted" if again else "joined")

        newcomer.call(enter)

    admin.call(ask)


def accept(world: World) -> None:
    """An admin lets in whoever waits, or turns it away."""
    for admin in world.rng.sample(world.honest, len(world.honest)):
        waiting = admin.replication.pending() if admin.is_member(world.group) else []
        if waiting:
            answer(world, admin, world.rng.choice(waiting))
            return


def answer(world: World, admin: SimPeer, one: PendingView) -> None:
    """An admin says yes, or no."""
    turned_away = world.rng.random() < 0.3
    joins = admin.group_of(world.group).standing.pending_joins()
    (invite_id,) = (found.invite_id for found in joins if found.join_id == one.join_id)
    rows = admin.replication.membership.invites(world.group)
    vouchers = {admin.id, *(row.author for row in rows if row.id == invite_id)}

    async def work() -> None:
        if turned_away:
            await admin.replication.reject(one.join_id)
            world.sometimes("turned_away")
        else:
            await admin.replication.accept(one.join_id)
            world.book.note_join(one.member, vouchers, one.role)
            world.sometimes("accepted")

    admin.call(work)


def remove(world: World) -> None:
    """An admin takes somebody out; the founder a hostile member, with all it did."""
    hostile = [p for p in world.villains if p.id not in world.book.expelled]
    if hostile and world.rng.random() < 0.5:
        expel(world, world.rng.choice(hostile))
        return
    admin = world.some_admin()
    if admin is None:
        return
    others = [p for p in world.honest if p not in {admin, world.founder}]
    roles = admin.group_of(world.group)
    inside = [p for p in others if roles.role(p.id) is not None]
    if not inside:
        return
    target = world.rng.choice(inside)

    async def work() -> None:
        world.book.note_limit(target.id, admin, world.honest)
        await admin.replication.membership.remove(world.group, target.id)
        world.sometimes("removed")

    admin.call(work)


def expel(world: World, villain: SimPeer) -> None:
    """The founder takes a hostile member out and keeps nothing of it."""
    founder = world.founder
    if not founder.is_member(world.group):
        return

    async def work() -> None:
        await founder.replication.membership.remove(world.group, villain.id, 0)
        world.book.expelled.add(villain.id)
        world.sometimes("expelled")

    founder.call(work)


def leave(world: World) -> None:
    """A member goes; not the founder."""
    inside = [p for p in world.honest if p is not world.founder and p.is_member(world.group)]
    if not inside:
        return
    peer = world.rng.choice(inside)

    async def work() -> None:
        world.book.note_limit(peer.id, peer, world.honest)
        await peer.replication.membership.leave(world.group)
        world.sometimes("left")

    peer.call(work)


def role(world: World) -> None:
    """An admin gives a member another role."""
    admin = world.some_admin()
    if admin is None:
        return
    target = world.rng.choice(world.honest)
    wanted = world.rng.choice([Role.READ, Role.WRITE, Role.ADMIN])
    before = admin.group_of(world.group).role(target.id)
    if target in {admin, world.founder} or before is None or before == wanted:
        return

    async def work() -> None:
        world.book.note_limit(target.id, admin, world.honest)
        await admin.replication.membership.set_role(world.group, target.id, wanted)
        world.sometimes("promoted" if wanted > before else "demoted")

    admin.call(work)


def rotate(world: World) -> None:
    """An admin gives everybody a new key."""
    admin = world.some_admin()
    if admin is None:
        return

    async def work() -> None:
        await admin.replication.membership.rotate(world.group)
        world.sometimes("rotated")

    admin.call(work)


def close(world: World) -> None:
    """An admin closes an invite of its own."""
    admin = world.some_admin()
    if admin is None:
        return
    rows = admin.replication.membership.invites(world.group)
    own = [row for row in rows if row.open and row.author == admin.id]
    if not own:
        return
    ident = world.rng.choice(own).id

    async def work() -> None:
        await admin.replication.membership.close_invite(world.group, ident)
        world.sometimes("closed")

    admin.call(work)


TABLE: dict[str, Callable[[World], None]] = {
    "write": write,
    "burst": burst,
    "cell": cell,
    "erase": erase,
    "invite": invite,
    "accept": accept,
    "remove": remove,
    "leave": leave,
    "role": role,
    "rotate": rotate,
    "close": close,
}
