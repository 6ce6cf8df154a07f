"""Masked rounds in which some lie: what they say is changed on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.rounds.protocol.masked_member import MaskedMember
from federated.rounds.protocol.orders import Send
from federated.rounds.protocol.wire import (
    decode_untrusted,
    packet_of,
    unsigned,
)
from tests.helpers.rounds_kit import by

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.protocol.wire import Message
    from tests.helpers.masked_world import MaskedWorld


def lying(world: MaskedWorld, lie: Callable[[bytes, bytes, Message], Message]) -> None:
    """What is sent in this world is what `lie` makes of it, signed by its sender."""
    send = world._send

    def change(sender: bytes, order: Send) -> None:
        message = decode_untrusted(order.packet.body)
        changed = lie(sender, order.to, message)
        if changed is not message:
            packet = packet_of(by(sender, changed)) if order.packet.signature else unsigned(changed)
            order = Send(order.to, packet)
        send(sender, order)

    world._send = change  # type: ignore[method-assign]


def member_of(world: MaskedWorld, peer: bytes) -> MaskedMember:
    """The member's side at one of them."""
    member = world.nodes[peer].machine.member
    assert isinstance(member, MaskedMember)
    return member
