"""What a member believes: plans, votes and decisions, each judged by signatures alone.

Source: docs/specs/rounds.md s.4 and s.5.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from federated.rounds.numeric.payload import merged_bytes
from federated.rounds.numeric.tensors import next_root
from federated.rounds.protocol.mask_checks import masked_roster
from federated.rounds.protocol.policy import (
    coordinators,
    is_quorum,
    newcomers_max,
    quorum_of,
)
from federated.rounds.protocol.wire import (
    Apply,
    Confirm,
    Join,
    Plan,
    Result,
    Results,
    ViewState,
    hash_of,
    open_signed,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.rounds.privacy.roster import Roster
    from federated.rounds.protocol.policy import Policy
    from federated.rounds.protocol.wire import AnyMessage, Message, Signed, Signer

_M = TypeVar("_M")

TICK_S: Final = 3.0
PATIENCE_S: Final = 10.0
VIEW_MAX: Final = 2**31
"""Views below; a view lasts seconds, so that an honest member never comes near."""


@dataclass(frozen=True)
class Setting:
    """What is fixed before a round begins, equal at all its members but for `me` and `signer`."""

    me: bytes
    signer: Signer
    federation: bytes
    number: int
    """Rounds applied + 1."""
    circle: tuple[bytes, ...]
    """Who may decide: the roster of the last applied round; in the first, those who met."""
    newcomers: tuple[bytes, ...]
    """Others who are asked in where we coordinate."""
    owners: Mapping[bytes, bytes]
    base_root: bytes
    policy: Policy
    schema: bytes
    """SHA-256 of the schema, or of the question."""
    elements: int
    rule: str
    """The policy's, resolved."""
    clip: float = 0.0
    """C as the last round left it; 0: none yet."""
    deadline_s: float = 600.0
    payload_bytes: int = 0
    patience_s: float = PATIENCE_S
    backoff_s: float = 60.0
    candidates: frozenset[bytes] = frozenset()
    """Whom another coordinator may ask in, beside `newcomers`."""
    reference_square: float | None = None
    """Squared norm of the last applied update, row 0 of the rules; None: it is not here."""
    banned: frozenset[bytes] = frozenset()
    """Who signed two contradicting messages in an earlier round."""

    @property
    def order(self) -> list[bytes]:
        """Coordinators, view by view."""
        return coordinators(self.federation, self.number, self.circle)

    def coordinator(self, view: int) -> bytes:
        """Who coordinates `view`."""
        order = self.order
        return order[view % len(order)]

    @property
    def masked(self) -> bool:
        """Whether members hide what they bring under masks; see docs/specs/masks.md."""
        return self.policy.codec == "mfix64"

    def may_join(self, peer: bytes) -> bool:
        """Whether a peer that is not of the circle may be in a roster."""
        return peer in self.newcomers or peer in self.candidates

    def quorum(self) -> int:
        """Members of the circle that must take part."""
        return quorum_of(len(self.circle), self.policy.quorum)


@dataclass(frozen=True)
class MadePlan:
    """A plan that was found right."""

    plan: Plan
    signed: Signed
    hash: bytes
    roster: tuple[bytes, ...]
    joins: Mapping[bytes, Join]
    masks: Roster | None = None
    """The members' keys, in a masked round."""


@dataclass(frozen=True)
class MadeResults:
    """Results that were found right; `hashes` and `sizes` in the order of the parts."""

    results: Results
    signed: Signed
    headers: tuple[Result, ...]
    reducers: tuple[bytes, ...]
    root: bytes

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """SHA-256 of each merged part."""
        return tuple(header.sha256 for header in self.headers)


def belongs(setting: Setting, message: Message) -> None:
    """Refuse a message of another round.

    Raises:
        DecodeError: it is of another one.
    """
    if message.federation != setting.federation or message.round != setting.number:
        raise DecodeError("a message of another round")


def check_plan(setting: Setting, signed: Signed) -> MadePlan:
    """Judge a plan of any view.

    Raises:
        DecodeError: what is wrong with it.
    """
    plan = _of(open_signed(signed, setting.signer), Plan)
    belongs(setting, plan)
    if signed.signer != setting.coordinator(plan.view):
        raise DecodeError("a plan by somebody who does not coordinate its view")
    if set(plan.circle) != set(setting.circle):
        raise DecodeError("a plan for another circle")
    if (plan.base_root, plan.policy, plan.schema, plan.elements, plan.rule, plan.codec) != (
        setting.base_root, setting.policy.digest(), setting.schema, setting.elements, setting.rule,
        setting.policy.codec,
    ):  # fmt: skip
        raise DecodeError("a plan with another base, policy or schema than ours")
    joins = {one.signer: _join(setting, one, plan) for one in plan.joins}
    roster = tuple(one.signer for one in plan.joins)
    _check_roster(setting, roster, set(joins))
    _check_parts(plan, set(joins))
    masks = masked_roster(plan, signed, roster, setting)
    return MadePlan(plan, signed, hash_of(signed), roster, joins, masks)


def _join(setting: Setting, signed: Signed, plan: Plan) -> Join:
    join = _of(open_signed(signed, setting.signer), Join)
    belongs(setting, join)
    if join.view != plan.view or join.base_root != plan.base_root:
        raise DecodeError("a plan with a join of another view or base")
    return join


def _check_roster(setting: Setting, roster: tuple[bytes, ...], distinct: set[bytes]) -> None:
    if len(distinct) != len(roster):
        raise DecodeError("a plan that names a member twice")
    known = distinct & set(setting.circle)
    fresh = distinct - known
    if len(known) < setting.quorum() or len(distinct) < setting.policy.min_peers:
        raise DecodeError("a plan with too few of the last roster")
    if not all(setting.may_join(peer) for peer in fresh) or len(fresh) > newcomers_max(
        len(distinct), setting.policy.quorum
    ):
        raise DecodeError("a plan with strangers, or with too many newcomers")


def _check_parts(plan: Plan, roster: set[bytes]) -> None:
    at = 0
    for part in plan.parts:
        if part.start != at or part.count < 1 or not {part.reducer, part.standby} <= roster:
            raise DecodeError("a plan whose parts do not fit together")
        at += part.count
    if at != plan.elements:
        raise DecodeError("a plan whose parts do not cover the update")


def check_results(setting: Setting, signed: Signed, made: MadePlan) -> MadeResults:
    """Judge what a coordinator says came out of `made`.

    It signs for a view of its own: the plan's, or a later one that finishes what was voted there.
    So the view of a vote is not the voter's word alone.

    Raises:
        DecodeError: what is wrong with it.
    """
    results = _of(open_signed(signed, setting.signer), Results)
    belongs(setting, results)
    if results.plan != made.hash or results.view < made.plan.view:
        raise DecodeError("results of another plan")
    if signed.signer != setting.coordinator(results.view):
        raise DecodeError("results by somebody who does not coordinate their view")
    if len(results.headers) != len(made.plan.parts):
        raise DecodeError("results of more or fewer parts than the plan has")
    headers = []
    for number, one in enumerate(results.headers):
        header = _of(open_signed(one, setting.signer), Result)
        belongs(setting, header)
        if header.plan != made.hash or header.part != number or one.signer not in made.roster:
            raise DecodeError("a result that belongs elsewhere")
        check_size(made.plan, header)
        headers.append(header)
    return MadeResults(
        results, signed, tuple(headers), tuple(one.signer for one in results.headers),
        next_root(setting.base_root, [header.sha256 for header in headers]),
    )  # fmt: skip


def check_size(plan: Plan, header: Result) -> None:
    """Refuse a merged part of another size than its plan's.

    Raises:
        DecodeError: it is, or is of no part.
    """
    if header.part >= len(plan.parts) or header.nbytes != merged_bytes(
        plan.codec, plan.parts[header.part].count
    ):
        raise DecodeError("a merged part of another size than the plan's")


@dataclass(frozen=True)
class Chosen:
    """What the states of a quorum say about earlier views: finish `root`, or nothing (None)."""

    root: bytes | None
    view: int


def choose(setting: Setting, states: Mapping[bytes, ViewState]) -> Chosen | None:
    """What may be done in a new view; None: more states are needed.

    As in single-decree Paxos the vote of the highest view is taken up. An honest coordinator has
    one value a view; where a lying one had two, the one that can have a quorum is taken, and while
    both can, nothing is.

    Args:
        setting: the round's.
        states: of distinct members of the circle, for the same view.
    """
    if len(states) < setting.quorum():
        return None
    highest = max(state.vote_view for state in states.values())
    if highest < 0:
        return Chosen(None, -1)
    votes = Counter(state.vote_root for state in states.values() if state.vote_view == highest)
    unseen = len(setting.circle) - len(states)
    possible = [root for root, count in votes.items() if count + unseen >= setting.quorum()]
    if len(votes) > 1 and len(possible) > 1:
        return None
    best = possible or sorted(votes, key=lambda root: (-votes[root], root))
    return Chosen(best[0], highest)


def check_state(setting: Setting, signed: Signed, view: int) -> ViewState:
    """Judge a member's word that it is in `view`.

    Raises:
        DecodeError: what is wrong with it.
    """
    state = _of(open_signed(signed, setting.signer), ViewState)
    belongs(setting, state)
    if not view < VIEW_MAX:
        raise DecodeError("a view that no round comes to")
    if state.view != view or signed.signer not in setting.circle or state.vote_view >= view:
        raise DecodeError("a view state that belongs elsewhere")
    return state


def check_apply(setting: Setting, apply: Apply) -> tuple[MadePlan, MadeResults]:
    """Judge a decision: the votes of a quorum of the circle.

    Raises:
        DecodeError: it decides nothing.
    """
    belongs(setting, apply)
    made = check_plan(setting, apply.made)
    results = check_results(setting, apply.results, made)
    voters: set[bytes] = set()
    for one in apply.confirms:
        confirm = _of(open_signed(one, setting.signer), Confirm)
        belongs(setting, confirm)
        if confirm.view != apply.view or confirm.root != results.root:
            raise DecodeError("a decision with a vote for something else")
        voters.add(one.signer)
    if apply.view != results.results.view or not decides(setting, voters):
        raise DecodeError("a decision without a quorum")
    return made, results


def decides(setting: Setting, voters: set[bytes]) -> bool:
    """Whether votes decide: a quorum of the circle, of its devices and from four owners on of them.

    Not also of the roster that made the result: a result that may have been decided must be
    finished, and a roster that lost members after its first vote could not finish it.
    """
    return is_quorum(voters, setting.circle, setting.owners, setting.policy.quorum)


def _of(message: AnyMessage, kind: type[_M]) -> _M:
    if not isinstance(message, kind):
        raise DecodeError(f"a {type(message).__name__.lower()} where a {kind.__name__} belongs")
    return message
