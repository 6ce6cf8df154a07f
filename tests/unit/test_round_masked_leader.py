"""The coordinator of a masked view: whose keys it takes, whose boxes, and when."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from federated.rounds.privacy import boxes, masks, messages
from federated.rounds.protocol.masked_leader import MaskedLeader
from federated.rounds.protocol.orders import Send
from federated.rounds.protocol.wire import (
    Join,
    Keys,
    MaskedPlan,
    MaskMembers,
    MaskShares,
    decode_untrusted,
    sign,
)
from p2p.errors import DecodeError
from tests.helpers.masked_world import masked_settings
from tests.helpers.rounds_kit import FakeSigner

if TYPE_CHECKING:
    from federated.rounds.protocol.orders import Order
    from federated.rounds.protocol.wire import Message, Signed

STRANGER = b"x" * 32
OTHER = b"o" * 32


def by(peer: bytes, message: Message) -> Signed:
    return sign(FakeSigner(peer), peer, message)


class Stage:
    """A coordinator of six that nobody has answered yet."""

    def __init__(self) -> None:
        settings = masked_settings(6)
        setting = next(one for one in settings if one.coordinator(0) == one.me)
        self.setting = setting
        self.names = setting.circle
        self.orders: list[Order] = []
        self.leader = MaskedLeader(setting, 0, self.orders.append)
        self.leader.begin(0.0)
        self.head = (setting.federation, setting.number, 0)

    def keys(self, peer: bytes, *, draw: int = 0) -> Keys:
        mask, share = (
            masks.public_of(sha256(peer + bytes([draw, one])).digest()) for one in (0, 1)
        )
        return Keys(*self.head, bytes(32), mask, share, bytes(32))

    def say_keys(self, peer: bytes, keys: Keys) -> None:
        self.leader.keys(0.0, by(peer, keys), keys)

    def all_join(self) -> None:
        for peer in self.names:
            self.say_keys(peer, self.keys(peer))
            join = Join(*self.head, bytes(32), self.setting.base_root, True, 1e6, 1e6)
            self.leader.join(0.0, by(peer, join))

    def shares(self, peer: bytes, plan: bytes = b"") -> None:
        """Boxes of a member, in a message that says that it is of `plan`."""
        made = self.plan
        sealed = tuple(b"" if one == peer else bytes(boxes.BOX_BYTES) for one in self.names)
        body = messages.encode(messages.Shares(made, sealed))
        self.leader.shares(0.0, peer, MaskShares(*self.head, plan or made, body))

    @property
    def plan(self) -> bytes:
        assert self.leader._made is not None
        return self.leader._made.hash

    def said(self, kind: type[Message]) -> list[Message]:
        found = [decode_untrusted(one.packet.body) for one in self.orders if isinstance(one, Send)]
        return [one for one in found if isinstance(one, kind)]

    def keys_of_plan(self) -> list[bytes]:
        """The mask keys that its plan names."""
        plan = self.said(MaskedPlan)[0]
        assert isinstance(plan, MaskedPlan)
        found = [decode_untrusted(one.body) for one in plan.keys]
        return [one.mask_key for one in found if isinstance(one, Keys)]


def test_control_a_plan_and_a_maskset_of_all() -> None:
    stage = Stage()
    stage.all_join()
    assert stage.keys_of_plan() == [stage.keys(peer).mask_key for peer in stage.names]
    for peer in stage.names:
        assert not stage.said(MaskMembers)
        stage.shares(peer)
    assert len(stage.said(MaskMembers)) == 6


def test_one_key_for_masks_and_shares_is_refused() -> None:
    stage = Stage()
    keys = stage.keys(stage.names[1])
    both = Keys(*stage.head, bytes(32), keys.mask_key, keys.mask_key, bytes(32))
    with pytest.raises(DecodeError, match="twice"):
        stage.say_keys(stage.names[1], both)


def test_the_first_keys_of_a_member_count() -> None:
    """Others that come later would be in the plan beside boxes for the first ones."""
    stage = Stage()
    stage.say_keys(stage.names[1], stage.keys(stage.names[1], draw=7))
    stage.all_join()
    assert stage.keys_of_plan()[1] == stage.keys(stage.names[1], draw=7).mask_key


def test_keys_of_strangers_and_after_the_plan_change_nothing() -> None:
    stage = Stage()
    stage.say_keys(STRANGER, stage.keys(STRANGER))
    assert STRANGER not in stage.leader._keys
    stage.all_join()
    # A key twice is refused while keys are taken; now nobody looks at them any more.
    stage.say_keys(stage.names[1], stage.keys(stage.names[2]))
    assert len(stage.leader._keys) == 6


def test_boxes_of_another_plan_are_not_carried() -> None:
    stage = Stage()
    stage.all_join()
    for peer in stage.names:
        stage.shares(peer, OTHER)
    assert not stage.said(MaskMembers)


def test_boxes_said_again_do_not_begin_the_commits_anew() -> None:
    stage = Stage()
    stage.all_join()
    for peer in stage.names:
        stage.shares(peer)
    before = len(stage.orders)
    stage.shares(stage.names[1])
    assert len(stage.orders) == before
