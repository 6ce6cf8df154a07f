r"""What members of a round say to each other: one struct a message, signed where needed.

A message travels as a `Packet`: its kind, its MessagePack bytes and, for the signed kinds, an
Ed25519 signature over `covey/fed/<kind>/1\0` and exactly these bytes. Every message begins with
federation, round, view and plan (zeros before there is one). Arrays are decoded strictly.

Source: docs/specs/rounds.md s.3.
"""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Annotated, Final, Literal, Protocol, TypeAlias

import msgspec

from federated.rounds.numeric.limits import WEIGHT_MAX
from federated.rounds.privacy.roster import MESSAGE_BYTES_MAX
from p2p.errors import DecodeError

CONTROL_BYTES_MAX: Final = 262_144
"""Of one message; bulk travels by `fed.fetch`."""
PARTS_MAX: Final = 64
NO_PLAN: Final = bytes(32)

Hash: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Peer: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=64)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U63: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=200)]
Peers: TypeAlias = Annotated[tuple[Peer, ...], msgspec.Meta(max_length=64)]
Status: TypeAlias = Literal["included", "late", "lost", "rejected"]


class _Array(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    pass


class Signed(_Array, frozen=True):
    """A signed message as it was received, for handing on.

    Who verifies it takes `body` as it is: it is never encoded again.
    """

    signer: Peer
    kind: U32
    body: bytes
    signature: Signature


class Message(_Array, frozen=True):
    """The head of every message."""

    federation: Hash
    round: U63
    view: U32
    plan: Hash


class PartOf(_Array, frozen=True):
    """One contiguous piece of the update and who merges it."""

    start: U63
    count: U63
    reducer: Peer
    standby: Peer


class Propose(Message, tag=1, frozen=True):
    """Coordinator to members: a view begins.

    `states` are the signed `ViewState`s of a quorum that let it begin; none in view 0. If one of
    them holds a vote, `plan_of_vote` and `results_of_vote` are those of the highest one, and what
    was voted is finished.
    """

    base_root: Hash
    policy: Hash
    schema: Hash
    invited: Peers
    states: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=64)]
    plan_of_vote: Signed | None
    results_of_vote: Signed | None


class Join(Message, tag=2, frozen=True):
    """Member to coordinator, signed: I take part."""

    base_root: Hash
    dialable: bool
    up: float
    """Bytes a second."""
    down: float


class Plan(Message, tag=3, frozen=True):
    """Coordinator to all, signed: who takes part and how it is done."""

    joins: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1, max_length=64)]
    circle: Peers
    """Roster of the last applied round; in the first, those who met."""
    base_root: Hash
    policy: Hash
    schema: Hash
    elements: U63
    parts: Annotated[tuple[PartOf, ...], msgspec.Meta(min_length=1, max_length=PARTS_MAX)]
    rule: Text
    codec: Text
    clip: float
    """C; 0 while there is none yet."""
    deadline_s: float


class Commit(Message, tag=4, frozen=True):
    """Member to coordinator and reducers, signed: what I shall send, by hash, one a part."""

    hashes: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=PARTS_MAX)]
    norm: float
    weight: float
    metrics: Annotated[dict[Text, float], msgspec.Meta(max_length=32)]


class Have(Message, tag=5, frozen=True):
    """Reducer to coordinator: whose bytes of a part are here and whole, and whose are not fit."""

    part: U32
    senders: Peers
    unfit: Annotated[tuple[tuple[Peer, Text], ...], msgspec.Meta(max_length=64)]


class MemberStatus(_Array, frozen=True):
    """How one member of the roster fared."""

    peer: Peer
    status: Status
    reason: Text
    arrival_s: float
    """Commit after plan; -1 if none came."""
    norm: float
    weight: float
    """As claimed."""


class Close(Message, tag=6, frozen=True):
    """Coordinator to all, signed: the one included set, in this order, with capped weights."""

    included: Annotated[tuple[Peer, ...], msgspec.Meta(min_length=1, max_length=64)]
    weights: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=64)]
    members: Annotated[tuple[MemberStatus, ...], msgspec.Meta(max_length=64)]


class Move(Message, tag=7, frozen=True):
    """Coordinator to all, signed: who merges a part; results of lower counters are void."""

    part: U32
    reducer: Peer
    counter: U32


class Gram(Message, tag=8, frozen=True):
    """Reducer to coordinator: products of the part's rows, row 0 the reference.

    `values` is the lower triangle by rows, float64 little-endian; with a diagonal rule the diagonal
    alone.
    """

    part: U32
    diagonal: bool
    values: Annotated[bytes, msgspec.Meta(max_length=8 * 65 * 33)]


class Weights(Message, tag=9, frozen=True):
    """Coordinator to reducers, signed: the coefficient of each row, row 0 first."""

    coefficients: Annotated[tuple[float, ...], msgspec.Meta(min_length=2, max_length=65)]
    members: Annotated[tuple[MemberStatus, ...], msgspec.Meta(max_length=64)]
    clip: float
    """C of the next round."""


class Result(Message, tag=10, frozen=True):
    """Reducer to coordinator, signed: the merged part."""

    part: U32
    counter: U32
    nbytes: U63
    sha256: Hash


class Results(Message, tag=11, frozen=True):
    """Coordinator to all, signed, one a view: every part's `Result`, in the order of the parts.

    What is voted on is one value a view because the coordinator says it, not each reducer.
    """

    headers: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1, max_length=PARTS_MAX)]


class Confirm(Message, tag=12, frozen=True):
    """Member to coordinator, signed: my one vote in this view."""

    root: Hash


class Apply(Message, tag=13, frozen=True):
    """Coordinator to all: the votes that decide the round, and what they are about.

    `made` is the signed plan that made the result, of this view or an earlier one.
    """

    made: Signed
    results: Signed
    confirms: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1, max_length=64)]


class ViewState(Message, tag=14, frozen=True):
    """Member to all, signed: I am in this view now and take part in no earlier one."""

    vote_view: int
    """View of my last vote; -1: none."""
    vote_root: Hash


class Moved(Message, tag=15, frozen=True):
    """A `ViewState` with what its vote was about, unsigned."""

    state: Signed
    plan_of_vote: Signed | None
    results_of_vote: Signed | None


class Tick(Message, tag=16, frozen=True):
    """Coordinator to members: I am here."""

    phase: Text
    seconds_left: float


class Abort(Message, tag=17, frozen=True):
    """Coordinator to all: this attempt has ended."""

    reason: Text
    members: Annotated[tuple[MemberStatus, ...], msgspec.Meta(max_length=64)]


class Applied(Message, tag=18, frozen=True):
    """Member to coordinator: I have it."""

    root: Hash


class Commits(Message, tag=20, frozen=True):
    """Coordinator to a reducer: commits whose parts it has not said to have."""

    commits: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1, max_length=64)]


class Keys(Message, tag=31, frozen=True):
    """Member to coordinator, signed, with the join of a masked round: keys of this view alone."""

    mask_key: Hash
    share_key: Hash
    seed_hash: Hash
    """SHA-256 of the member's own seed."""


class MaskedPlan(Plan, tag=32, frozen=True):
    """Coordinator to all, signed: a plan with the keys of its members, in the order of the joins.

    The keys are as their members signed them, so that the coordinator cannot swap one.
    """

    keys: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1, max_length=64)]


class _MaskBody(Message, frozen=True):
    """A message of docs/specs/masks.md s.5."""

    body: Annotated[bytes, msgspec.Meta(max_length=MESSAGE_BYTES_MAX)]


class MaskShares(_MaskBody, tag=33, frozen=True):
    """Member to coordinator, signed: a box for each other member."""


class MaskMembers(_MaskBody, tag=34, frozen=True):
    """Coordinator to a member, signed: who has shared, and their boxes."""


class MaskAgree(_MaskBody, tag=35, frozen=True):
    """Member to all, signed, after the decision: the one set that the sum is over."""


class MaskReveal(_MaskBody, tag=36, frozen=True):
    """Member to all, after the decision: a share of each member's secret, of one of its two."""


class MaskRead(Message, tag=37, frozen=True):
    """Member to all: I can read the sum by these secrets, tell me no more."""

    secrets: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=64)]
    """Of each member of the maskset, ascending: its seed if it is included, else its mask key."""


class Evidence(Message, tag=19, frozen=True):
    """Any to all: two signed messages of one member that contradict each other."""

    first: Signed
    second: Signed


AnyMessage: TypeAlias = (
    Propose | Join | Plan | Commit | Have | Close | Move | Gram | Weights | Result | Results
    | Confirm | Apply | ViewState | Moved | Tick | Abort | Applied | Commits | Evidence
    | Keys | MaskedPlan | MaskShares | MaskMembers | MaskAgree | MaskReveal | MaskRead
)  # fmt: skip

KINDS: Final[dict[int, type[Message]]] = {
    1: Propose, 2: Join, 3: Plan, 4: Commit, 5: Have, 6: Close, 7: Move, 8: Gram, 9: Weights,
    10: Result, 11: Results, 12: Confirm, 13: Apply, 14: ViewState, 15: Moved, 16: Tick, 17: Abort,
    18: Applied, 19: Evidence, 20: Commits, 31: Keys, 32: MaskedPlan, 33: MaskShares,
    34: MaskMembers, 35: MaskAgree, 36: MaskReveal, 37: MaskRead,
}  # fmt: skip
NUMBER_OF: Final = {kind: number for number, kind in KINDS.items()}
SIGNED: Final = frozenset({
    Join, Plan, Commit, Close, Move, Weights, Result, Results, Confirm, ViewState,
    Keys, MaskedPlan, MaskShares, MaskMembers, MaskAgree,
})  # fmt: skip

_DECODER: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(AnyMessage)
_ENCODER: Final = msgspec.msgpack.Encoder()


class Packet(_Array, frozen=True):
    """A message on its way: `signature` is empty for kinds that are not signed."""

    body: Annotated[bytes, msgspec.Meta(max_length=CONTROL_BYTES_MAX)]
    signature: Signature


class Signer(Protocol):
    """Signs as this device and judges others' signatures."""

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Ed25519 over domain + body."""
        ...

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `peer` signed domain + body."""
        ...


def domain_of(kind: type[Message]) -> bytes:
    """What goes before the signed bytes."""
    return b"covey/fed/" + kind.__name__.lower().encode() + b"/1\0"


def encode(message: Message) -> bytes:
    """A message's bytes."""
    return _ENCODER.encode(message)


def unsigned(message: Message) -> Packet:
    """A message of a kind that needs no signature, ready to go."""
    return Packet(encode(message), b"")


def packet_of(signed: Signed) -> Packet:
    """A signed message, ready to go from its signer."""
    return Packet(signed.body, signed.signature)


def hash_of(signed: Signed) -> bytes:
    """What a signed message goes by: SHA-256 of the bytes that were signed."""
    return sha256(signed.body).digest()


def sign(signer: Signer, me: bytes, message: Message) -> Signed:
    """Sign as this device."""
    body = encode(message)
    kind = type(message)
    return Signed(me, NUMBER_OF[kind], body, signer.sign(domain_of(kind), body))


def decode_untrusted(body: bytes) -> AnyMessage:
    """A message of a peer, unsigned or not yet verified.

    Raises:
        DecodeError: malformed, too large, or with a number that is none.
    """
    if len(body) > CONTROL_BYTES_MAX:
        raise DecodeError(f"a round's message of {len(body)} bytes: over {CONTROL_BYTES_MAX}")
    try:
        message = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise DecodeError(f"a round's message: {error}") from None
    _check_numbers(message)
    return message


def open_signed(signed: Signed, signer: Signer) -> AnyMessage:
    """A signed message, verified.

    Raises:
        DecodeError: malformed, of another kind than it says, of a kind that is not signed, or not
            signed by its signer.
    """
    message = decode_untrusted(signed.body)
    kind = type(message)
    if NUMBER_OF[kind] != signed.kind or kind not in SIGNED:
        raise DecodeError("a signed message is not of the kind it says")
    if not signer.verify(signed.signer, domain_of(kind), signed.body, signed.signature):
        raise DecodeError(f"a {kind.__name__.lower()} that its sender did not sign")
    return message


def _check_numbers(message: AnyMessage) -> None:
    """No message carries a number that is none: comparisons with it would all be false."""
    match message:
        case Join():
            ok = _finite(message.up, message.down) and min(message.up, message.down) >= 0
        case Plan():
            ok = _finite(message.clip, message.deadline_s) and message.clip >= 0
        case Commit():
            ok = (
                _finite(message.norm, message.weight, *message.metrics.values())
                and message.norm >= 0
                and 0 < message.weight <= WEIGHT_MAX
            )
        case Close():
            ok = (
                len(message.included) == len(set(message.included)) == len(message.weights)
                and _finite(*message.weights)
                and min(message.weights) >= 0
                and _plain_statuses(message.members)
            )
        case Weights():
            ok = (
                _finite(*message.coefficients, message.clip)
                and message.clip >= 0
                and _plain_statuses(message.members)
            )
        case Abort():
            ok = _plain_statuses(message.members)
        case Tick():
            ok = _finite(message.seconds_left)
        case ViewState():
            ok = -1 <= message.vote_view < 2**32
        case _:
            ok = True
    if not ok:
        raise DecodeError(f"a {type(message).__name__.lower()} with numbers that cannot be")


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def _plain_statuses(members: tuple[MemberStatus, ...]) -> bool:
    return all(_finite(one.arrival_s, one.norm, one.weight) for one in members)
