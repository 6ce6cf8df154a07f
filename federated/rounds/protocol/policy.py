"""What the members of a federation agree on before a round, and who makes a quorum.

Source: docs/specs/rounds.md s.2 and s.5.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, get_args

import msgspec

from federated.errors import UsageError
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

Peer: TypeAlias = bytes
"""A device by its key."""

RuleName: TypeAlias = Literal[
    "sum", "auto", "mean", "norm_bounded", "median", "trimmed", "multi_krum", "rfa",
    "centred_clipping", "fltrust", "bucketing_rfa",
]  # fmt: skip
"""`sum` adds float64 vectors and is what statistics use; the others merge updates of models."""
ModelRule: TypeAlias = Literal[
    "auto", "mean", "norm_bounded", "median", "trimmed", "multi_krum", "rfa",
    "centred_clipping", "fltrust", "bucketing_rfa",
]  # fmt: skip
CodecName: TypeAlias = Literal["f64", "f32", "int8", "e3m0", "mfix64"]
"""`mfix64`: whole numbers modulo 2^64 under masks, which only a round of sums has."""
ModelCodec: TypeAlias = Literal["f32", "int8", "e3m0"]
"""What an update of a model travels in: `f64` and `mfix64` are of sums."""
Share: TypeAlias = tuple[
    Annotated[int, msgspec.Meta(ge=1, lt=2**16)], Annotated[int, msgspec.Meta(ge=1, lt=2**16)]
]

MEMBERS_MAX: Final = 64
"""Of a roster: the butterfly is not made for more. Source: federated rounds, limits."""
OWNERS_COUNT_FROM: Final = 4
"""From so many owners on a quorum is asked of the owners, too: one person's many devices are one
voice."""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a federation's rounds are run; equal for all its members.

    `quorum` is a fraction (numerator, denominator) above one half.
    """

    quorum: Share = (2, 3)
    min_peers: Annotated[int, msgspec.Meta(ge=1, le=MEMBERS_MAX)] = 2
    rule: RuleName = "auto"
    codec: CodecName = "f32"
    clip: Annotated[float, msgspec.Meta(gt=0)] | None = None
    weight_cap: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    """Times the median weight."""
    first_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 600.0
    transfer_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 15.0
    """What a phase of transfers may take before those who are late are left out."""
    grace_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    """After so long half of the members' updates will do: who is missing hands in more in the next
    round. None: a round waits for the quorum until the deadline."""
    stale_rounds: Annotated[int, msgspec.Meta(ge=0, le=16)] = 2
    allow_plain: bool = False
    """Whether members of several owners may see each other's updates."""
    root_data: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] | None = None
    """The device whose data all trust: its update says where the others' must point (FLTrust)."""

    def __post_init__(self) -> None:
        up, down = self.quorum
        if not 2 * up > down >= up:
            raise UsageError(
                f"quorum {up}/{down}: give a fraction above 1/2 and at most 1, such as 2/3;"
                " with half of the members or less two halves could each decide"
            )
        if self.rule == "fltrust" and self.root_data is None:
            raise UsageError("fltrust needs `root_data`: the device whose data all trust")
        if self.root_data is not None and self.rule not in {"auto", "fltrust"}:
            raise UsageError(f"`root_data` is what fltrust goes by; {self.rule} has no use for it")

    def digest(self) -> bytes:
        """SHA-256 of the canonical form: equal policies, equal digests."""
        return sha256(msgspec.msgpack.encode(self, order="deterministic")).digest()


def check_for_models(policy: Policy) -> None:
    """Refuse what only rounds of sums can be run by.

    Raises:
        UsageError: its rule or codec merges no updates of models.
    """
    for what, value, allowed in (
        ("rule", policy.rule, get_args(ModelRule)), ("codec", policy.codec, get_args(ModelCodec)),
    ):  # fmt: skip
        if value not in allowed:
            raise UsageError(
                f"{what} {value!r} is of sums, not of models: give one of {', '.join(allowed)}"
            )


def decode_policy_untrusted(data: bytes) -> Policy:
    """A policy as another member wrote it.

    Raises:
        DecodeError: not a policy.
    """
    try:
        return msgspec.msgpack.decode(data, type=Policy)
    except (msgspec.DecodeError, UsageError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(f"a policy: {error}") from None


def quorum_of(count: int, share: Share) -> int:
    """ceil(share * count), at least 1."""
    return max(1, -(-count * share[0] // share[1]))


def newcomers_max(count: int, share: Share) -> int:
    """How many of a roster of `count` may be new: their loss alone must not stop it."""
    return count - quorum_of(count, share)


def moves_on(count: int, share: Share) -> int:
    """How many members in a later view show that the earlier one cannot end."""
    return newcomers_max(count, share) + 1


def is_quorum(
    voters: Collection[Peer], members: Sequence[Peer], owners: Mapping[Peer, bytes], share: Share
) -> bool:
    """Whether `voters` are a quorum of `members`: of the devices, and from four owners on of them.

    Args:
        voters: who voted; others than members count nothing.
        members: devices that may vote.
        owners: each device's owner; one that is missing owns itself.
        share: the policy's.
    """
    known = set(members)
    if len(known & set(voters)) < quorum_of(len(known), share):
        return False
    all_owners = {owners.get(member, member) for member in known}
    if len(all_owners) < OWNERS_COUNT_FROM:
        return True
    voting = {owners.get(member, member) for member in known & set(voters)}
    return len(voting) >= quorum_of(len(all_owners), share)


def voters_of(members: Sequence[Peer], owners: Mapping[Peer, bytes]) -> list[bytes]:
    """Whose vote each member's update is in a robust rule: its owner's, from four owners on.

    With fewer there is no majority of owners that could stand a liar, and a person's own machines
    shall stand one of them: then each device votes for itself.
    """
    found = [owners.get(member, member) for member in members]
    return found if len(set(found)) >= OWNERS_COUNT_FROM else list(members)


def coordinators(federation: bytes, number: int, members: Sequence[Peer]) -> list[Peer]:
    """Members in the order in which they coordinate: view v belongs to the v-th, round and round.

    Source: docs/specs/rounds.md s.4: by descending SHA-256(federation, round u64, peer).
    """
    head = federation + number.to_bytes(8, "big")
    return sorted(members, key=lambda peer: sha256(head + peer).digest(), reverse=True)


def federation_id(group: bytes, name: str, lineage: str = "") -> bytes:
    """The 32 bytes a federation goes by.

    Args:
        group: the group's id.
        name: the federation's.
        lineage: empty, `outer/FRAGMENT` or `stat/CALL`.
    """
    text = name.encode("utf-8") + b"\0" + lineage.encode("utf-8")
    return sha256(b"covey/fed/id/1\0" + group + text).digest()
