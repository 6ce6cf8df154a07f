"""What must hold, whatever happened. Each check has a name, and stands outside the product.

Source of the names: the invariants of replication's specification in docs/specs; `ALWAYS` are
looked at after every step, `AT_THE_END` once faults have stopped and the members agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.identity import verify
from p2p.replication.ops import Role
from p2p.replication.record import DOMAIN_RECORD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.replication.memstore import Row
    from tests.sim.parts import SimPeer
    from tests.sim.world import World

SKEW_MS = 600_000
STANDING_STATES = ("live", "stub", "sealed")


class BrokenError(AssertionError):
    """An invariant does not hold.

    Args:
        invariant: its name.
        what: where, and how.
    """

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


def demand(condition: object, invariant: str, what: str) -> None:
    """Raise unless the condition holds."""
    if not condition:
        raise BrokenError(invariant, what)


def rows_of(world: World, peer: SimPeer) -> list[Row]:
    """Records of the group on a node's disk."""
    return [row for row in peer.disk.rows.values() if row.record.group == world.group]


# --- always ---------------------------------------------------------------------------------------


def clocks_stay_bounded(world: World) -> None:
    """Nobody moves an honest clock more than ten minutes past the latest it ever showed itself."""
    for peer in world.running_honest():
        peer.look_at_clock()
        demand(
            peer.sealer.hlc >> 16 <= peer.wall_ms_max + SKEW_MS + 1,
            "clocks_stay_bounded",
            f"{peer.name} is {(peer.sealer.hlc >> 16) - peer.wall_ms_max} ms ahead",
        )


def queues_stay_bounded(world: World) -> None:
    """Whatever waits has a limit."""
    for peer in world.running_honest():
        config, group = peer.config, peer.group_of(world.group)
        waiting = {
            "waiting": (len(group.waiting), config.pending_records_max + 256),
            "held": (len(group.quarantine or ()), config.quarantine_records_max),
            "evidence": (len(group.evidence), 1000),
            "sessions": (len(peer.replication._driver._running), len(world.peers)),
        }
        boxes = peer.replication._driver._pusher.peers.values()
        longest = max((len(box.outbox) for box in boxes), default=0)
        waiting["outbox"] = (longest, config.push_queue_records_max)
        for name, (count, limit) in waiting.items():
            demand(count <= limit, "queues_stay_bounded", f"{peer.name} {name}: {count} > {limit}")
        for status in peer.replication.status():
            demand(status.rounds <= 64, "queues_stay_bounded", f"{status.rounds} rounds")


def erased_bodies_are_gone(world: World) -> None:
    """What a device erased, it does not hold in any form."""
    for peer in world.honest:
        for ident in sorted(peer.disk.erased):
            row = peer.disk.rows.get(ident)
            demand(
                row is None or (row.envelope is None and row.plain is None),
                "erased_bodies_are_gone",
                f"{peer.name} still has a body that it erased",
            )


def nothing_is_sent_in_clear(world: World) -> None:
    """No text on the wire, nothing for who is in no group."""
    for peer in world.peers:
        demand(not peer.leaks, "nothing_is_sent_in_clear", f"{peer.name} on {peer.leaks[:1]}")
    demand(not world.stranger.disk.rows, "nothing_is_sent_in_clear", "a stranger was given records")


# --- at the end -----------------------------------------------------------------------------------


def sets_are_equal(world: World) -> None:
    """Equal sets, equal authority, equal texts."""
    views: dict[object, str] = {}
    for peer in world.core():
        group = peer.group_of(world.group)
        view = (
            peer.roots(world.group),
            tuple(sorted(group.standing.members().items())),
            group.standing.void_ops(),
            world.texts_of(peer),
        )
        views.setdefault(view, peer.name)
    demand(len(views) == 1, "sets_are_equal", f"{sorted(views.values())} differ")


async def values_fold_alike(world: World) -> None:
    """Every shared value is the same everywhere; a counter counted what was acknowledged."""
    folded: dict[object, str] = {}
    for peer in world.core():
        cells = peer.replication.cells
        view = []
        for name in await cells.names(world.group):
            value = await cells.get(world.group, name.type, name.path)
            view.append((name.type, name.path, repr(value.value)))
        folded.setdefault(tuple(view), peer.name)
    demand(len(folded) == 1, "values_fold_alike", f"{sorted(folded.values())} differ")
    if world.book.limits or world.book.restored:
        return
    for name, total in sorted(world.book.increments.items()):
        if world.cells_begun[name] != world.cells_done.get(name, 0):
            continue  # a change was cut: it may have been done
        value = await world.founder.replication.cells.get(world.group, "counter", (name,))
        demand(value.value == total, "values_fold_alike", f"counter {name}: {value.value} {total}")
        world.sometimes("counter_exact")


def live_records_have_authority(world: World) -> None:
    """No record counts whose author had no right to write it."""
    for peer in world.core():
        standing = peer.group_of(world.group).standing
        for row in rows_of(world, peer):
            if row.record.lane == 1 and row.state in STANDING_STATES:
                demand(
                    standing.live(row.record.head, row.id),
                    "live_records_have_authority",
                    f"{peer.name} counts a record of {world.name_of(row.record.author)}",
                )


def acknowledged_records_survive(world: World) -> None:
    """What a caller was told is on disk is everywhere."""
    for peer in world.core():
        here = set(peer.texts(world.group))
        for ident, text in world.book.texts.items():
            if ident in world.book.erasing or not world.must_survive(ident):
                continue
            if text not in here and world.in_own_fork(ident):
                world.sometimes("forked_by_image")
                continue
            demand(text in here, "acknowledged_records_survive", f"{text} is not at {peer.name}")


def erased_records_stay_away(world: World) -> None:
    """What its author had erased is nowhere, also not at who slept meanwhile."""
    for peer in world.core():
        here = set(peer.texts(world.group))
        for ident in world.book.erased:
            if not world.book.must_be_erased(ident):
                continue
            row = peer.disk.rows.get(ident)
            gone = row is None or (row.envelope is None and row.plain is None)
            demand(
                gone and world.book.texts[ident] not in here,
                "erased_records_stay_away",
                f"{world.book.texts[ident]} is at {peer.name}",
            )


def stored_headers_verify(world: World) -> None:
    """Every header on a disk was signed by the author it names."""
    good: set[bytes] = set()
    for peer in world.core():
        for row in rows_of(world, peer):
            if row.id in good:
                continue
            good.add(row.id)
            demand(
                verify(row.record.author, DOMAIN_RECORD, row.header, row.signature),
                "stored_headers_verify",
                f"{peer.name} holds a forged record of {world.name_of(row.record.author)}",
            )


def chains_ascend(world: World) -> None:
    """Along a log, below its fork, each record follows the one before and is later."""
    for peer in world.core():
        for key, log in sorted(peer.disk.logs.items()):
            end = log.contiguous if log.fork_seq is None else min(log.contiguous, log.fork_seq - 1)
            for seq in range(2, end + 1):
                before, row = (peer.disk.rows[log.ids[at]].record for at in (seq - 1, seq))
                demand(
                    row.prev == before.id and row.hlc > before.hlc,
                    "chains_ascend",
                    f"{peer.name}: log of {world.name_of(key[1])} breaks at {seq}",
                )


def forks_freeze_alike(world: World) -> None:
    """A forked log ends at the same place everywhere; only who lies or was restored has one."""
    frozen: dict[object, str] = {}
    for peer in world.core():
        forks = {k: v.fork_seq for k, v in peer.disk.logs.items() if v.fork_seq is not None}
        frozen.setdefault(tuple(sorted(forks.items())), peer.name)
        for key in forks:
            honest = key[1] in {p.id for p in world.honest}
            demand(
                not honest or key[1] in world.book.restored,
                "forks_freeze_alike",
                f"{world.name_of(key[1])} is honest and was never restored, and forked a log",
            )
            world.sometimes("fork_of_image" if honest else "fork_proved")
    demand(len(frozen) == 1, "forks_freeze_alike", f"{sorted(frozen.values())} differ")


def expelled_stay_out(world: World) -> None:
    """Neither a hostile member taken out with all it did nor who it let in is a member."""
    for peer in world.core():
        members = peer.group_of(world.group).standing.members()
        for villain in world.villains:
            out = villain.id in world.book.expelled
            demand(
                not (out and villain.id in members),
                "expelled_stay_out",
                f"{villain.name} is a member again at {peer.name}",
            )
        if all(v.id in world.book.expelled for v in world.villains):
            found = world.book.accomplices & members.keys()
            demand(not found, "expelled_stay_out", f"an accomplice is a member at {peer.name}")
        powerless = [v for v in world.villains if world.book.joined[v.id][1] != Role.ADMIN]
        if len(powerless) == len(world.villains):
            found = world.book.accomplices & members.keys()
            demand(not found, "expelled_stay_out", "who never had the right let somebody in")


def honest_members_stay(world: World) -> None:
    """Who was not taken out by somebody above it is in, with its role."""
    for peer in world.core():
        members = peer.group_of(world.group).standing.members()
        demand(
            members.get(world.founder.id) == Role.ADMIN,
            "honest_members_stay",
            f"the founder is no admin any more at {peer.name}",
        )
        for one in world.honest:
            if one is not world.founder and not world.may_be_taken_out(one.id):
                demand(
                    members.get(one.id, Role.RELAY) >= world.book.joined[one.id][1],
                    "honest_members_stay",
                    f"{one.name} was lost at {peer.name}",
                )


def honest_records_count(world: World) -> None:
    """No acknowledged record of a member in good standing is void."""
    for peer in world.core():
        for row in rows_of(world, peer):
            author = row.record.author
            if row.state != "void" or author not in world.good_standing():
                continue
            demand(
                world.in_own_fork(row.id),
                "honest_records_count",
                f"a record of {world.name_of(author)} is void at {peer.name}",
            )


def removed_members_read_nothing_new(world: World) -> None:
    """Who was taken out has no key that was made after that."""
    founder = world.founder.group_of(world.group)
    members = founder.standing.members()
    for villain in world.villains:
        if villain.id in members or villain.id not in world.book.expelled:
            continue
        newest = founder.standing.epochs()[0]
        if not villain.knows(world.group):
            continue
        demand(
            newest.id not in villain.group_of(world.group).epochs,
            "removed_members_read_nothing_new",
            f"{villain.name} has the key that was made without it",
        )
        world.sometimes("key_withheld_from_expelled")


ALWAYS: tuple[Callable[[World], None], ...] = (
    clocks_stay_bounded,
    queues_stay_bounded,
    erased_bodies_are_gone,
    nothing_is_sent_in_clear,
)
AT_THE_END: tuple[Callable[[World], Awaitable[None] | None], ...] = (
    sets_are_equal,
    values_fold_alike,
    live_records_have_authority,
    acknowledged_records_survive,
    erased_records_stay_away,
    stored_headers_verify,
    chains_ascend,
    forks_freeze_alike,
    expelled_stay_out,
    honest_members_stay,
    honest_records_count,
    removed_members_read_nothing_new,
    *ALWAYS,
)
