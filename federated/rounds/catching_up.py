"""Going on where the others are: asking them, whom to believe, fetching the state they name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from federated.errors import UsageError
from federated.rounds.knocking import KNOCK, Knock, believed
from federated.rounds.numeric import safetensors, tensors
from federated.rounds.protocol.policy import MEMBERS_MAX, moves_on
from p2p.errors import DecodeError, P2pError
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from federated.rounds.federation_store import Standing
    from federated.rounds.knocking import Where
    from federated.rounds.numeric.dtypes import Array
    from federated.rounds.post import Post
    from federated.seams import GroupId, Mesh
    from p2p.env import Offload

log = logging.getLogger("covey.rounds")

KNOCK_S: Final = 10.0


def file_bytes_max(schema: tensors.Schema) -> int:
    """What a state's file can weigh: its tensors, and the header before them."""
    return schema.nbytes + safetensors.HEADER_BYTES_MAX + 8


async def ask_where(mesh: Mesh, federation: bytes, peers: Iterable[bytes]) -> dict[bytes, Where]:
    """Where members say they are; who is none, or cannot be reached, is left out."""
    found: dict[bytes, Where] = {}

    async def ask(peer: bytes) -> None:
        try:
            answer = await mesh.rpc.call(PeerId(peer), KNOCK, Knock(federation), timeout_s=KNOCK_S)
        except P2pError:
            return
        if answer.where is not None:
            found[peer] = answer.where

    async with trio.open_nursery() as nursery:
        for peer in peers:
            if peer != bytes(mesh.id):
                nursery.start_soon(ask, peer)
    return found


async def further(
    mesh: Mesh, federation: bytes, standing: Standing, admits: Callable[[bytes], bool]
) -> tuple[Where, tuple[bytes, ...]] | None:
    """Where the others are, if they have applied more than the round under way; and who said so.

    Our own circle may have changed while we were away, so whom its members name is asked, too. But
    a member's word about its own circle is not enough to leave ours: as many of ours must have
    gone on as our round cannot end without, and more of them than have not. Else one member with
    some more machines would carry everybody to a state of its own.

    Args:
        mesh: calls, and whose a device is.
        federation: its id.
        standing: our last applied round.
        admits: whether a peer may take part.
    """
    circle, policy, number = standing.circle, standing.policy, standing.round + 1
    ours = await ask_where(mesh, federation, filter(admits, circle))
    beyond = [peer for peer, where in ours.items() if where.round > number]
    needed = moves_on(len(circle), policy.quorum)
    if len(beyond) < needed or 2 * len(beyond) <= len(ours):
        return None
    named = {peer for where in ours.values() for peer in where.circle} - set(circle)
    fresh = [peer for peer in sorted(named) if admits(peer)][:MEMBERS_MAX]
    answers = ours | await ask_where(mesh, federation, fresh)
    found = believed(
        answers, bytes(mesh.id), policy, owner_in(mesh, standing.group or None),
        known=circle, needed=needed,
    )  # fmt: skip
    if found is None or found[0].round <= number or not all(map(admits, found[0].circle)):
        return None
    return found


def owner_in(mesh: Mesh, group: GroupId | None) -> Callable[[bytes], bytes]:
    """Whose a device is, in a group."""
    return lambda peer: bytes(mesh.owner(PeerId(peer), group))


async def fetch_state(
    post: Post, offload: Offload, federation: bytes, schema: tensors.Schema, where: Where,
    holders: Iterable[bytes],
) -> dict[str, Array] | None:  # fmt: skip
    """The state that `where` names, from one of `holders`; None: nobody gives it now."""
    if where.nbytes > file_bytes_max(schema):
        log.warning("round_state_too_large", extra={"f": {"bytes": where.nbytes}})
        return None
    for holder in holders:
        data = await post.fetch_state(holder, federation, where.nbytes)
        if data is None:
            continue

        def read(data: bytes = data) -> dict[str, Array] | None:
            try:
                state = safetensors.view(data, safetensors.read_header_untrusted(data))
                right = tensors.genesis_root(schema, state) == where.state_sha
            except (DecodeError, UsageError):
                return None
            return state if right else None

        state = await offload.run(read)
        if state is not None:
            return state
        log.warning("round_state_wrong", extra={"f": {"from": holder[:4].hex()}})
    return None
