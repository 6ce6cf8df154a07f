"""Where members of a federation are, and who wants in: the question and its answer."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from federated.rounds.protocol.policy import MEMBERS_MAX
from p2p.rpc_types import Method


class Knock(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Where is this federation, and may I take part from the next round on?"""

    federation: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Where(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A member's last applied round; `round` -1: it is no member."""

    round: Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
    root: Annotated[bytes, msgspec.Meta(max_length=32)]
    state_sha: Annotated[bytes, msgspec.Meta(max_length=32)]
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=2**33)]
    circle: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    clip: float
    policy: Annotated[bytes, msgspec.Meta(max_length=32)]
    schema: Annotated[bytes, msgspec.Meta(max_length=32)]


KNOCK: Final = Method("fed.knock", request=Knock, reply=Where, idempotent=True)
NOWHERE: Final = Where(-1, b"", b"", 0, (), 0.0, b"", b"")
