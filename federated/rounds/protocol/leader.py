"""A coordinator's side of one view: ask, plan, close once, merge, count votes.

It decides nothing alone: what it says is signed and judged by each member, and a round is decided
by votes. Everything it sends may be lost; whoever has not answered is asked again at the next tick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from federated.rounds.protocol import planning, verdicts
from federated.rounds.protocol.checks import (
    TICK_S,
    MadePlan,
    check_plan,
    check_results,
    check_size,
    check_state,
    choose,
    decides,
)
from federated.rounds.protocol.deadline import Closing, closing, closing_early, next_look
from federated.rounds.protocol.doubts import Doubts
from federated.rounds.protocol.holdings import Holdings
from federated.rounds.protocol.orders import Send, Tell
from federated.rounds.protocol.policy import newcomers_max, quorum_of
from federated.rounds.protocol.reducer import DIAGONAL_RULES
from federated.rounds.protocol.wire import (
    Abort,
    Apply,
    Close,
    Commit,
    Commits,
    Confirm,
    Join,
    MemberStatus,
    Move,
    Plan,
    Propose,
    Result,
    Results,
    Tick,
    Weights,
    open_signed,
    packet_of,
    sign,
    unsigned,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from federated.rounds.numeric.engines import F64
    from federated.rounds.protocol.checks import Chosen, MadeResults, Setting
    from federated.rounds.protocol.orders import Order
    from federated.rounds.protocol.verdicts import Verdict
    from federated.rounds.protocol.wire import (
        Applied,
        Gram,
        Have,
        Message,
        Moved,
        PartOf,
        Signed,
        Status,
        ViewState,
    )

JOIN_S: Final = 3.0
"""How long the coordinator waits for those who have not joined once enough have."""
CONFIRM_TRANSFERS: Final = 3
"""The last phase may take so many times a transfer's limit: everybody fetches everything."""
APPLY_TICKS: Final = 20
"""How often a decision is said again to who has not confirmed that it has it; who comes later asks
any member."""


class Leader:
    """The coordinator of one view.

    Args:
        setting: the round's.
        view: the view.
        give: takes orders.
        merges: whether this machine can merge parts itself.
        doubts: whom and what we do without.
    """

    def __init__(
        self, setting: Setting, view: int, give: Callable[[Order], None], merges: bool = True,
        doubts: Doubts | None = None,
    ) -> None:  # fmt: skip
        self._setting = setting
        self._merges = merges
        self._doubts = doubts or Doubts()
        self._view = view
        self._give = give
        self.phase = "states" if view else "joining"
        self.over = False
        self._began = 0.0
        self._phase_at = 0.0
        self._next_tick = 0.0
        self._states: dict[bytes, Signed] = {}
        self._state_of: dict[bytes, ViewState] = {}
        self._votes: dict[bytes, tuple[MadePlan, MadeResults]] = {}
        self._proposal: Propose | None = None
        self._joins: dict[bytes, tuple[Signed, Join]] = {}
        self._made: MadePlan | None = None
        self._planned_at = 0.0
        self._limit_s = setting.policy.transfer_s
        self._holdings = Holdings()
        self._close: tuple[Signed, Close] | None = None
        self._grams: dict[int, F64] = {}
        self._verdict: Verdict | None = None
        self._weights: Signed | None = None
        self._headers: dict[int, Signed] = {}
        self._results: MadeResults | None = None
        self._confirms: dict[bytes, Signed] = {}
        self._apply: Apply | None = None
        self._applied: set[bytes] = set()
        self._apply_ticks = 0

    _after_plan = "committing"
    _after_close = "gram"

    # ---- time

    def begin(self, now: float) -> None:
        """The view begins."""
        self._began = self._phase_at = now
        self._next_tick = now + TICK_S
        if self._view == 0:
            self._propose(now, None)

    def next_time(self) -> float:
        """When `on_time` wants to be called."""
        looks = [self._next_tick]
        if self.phase == "joining":
            looks.append(max(self._phase_at + JOIN_S, self._seen + 0.1))
        elif self.phase in {"scatter", "gram", "merge"}:
            looks.append(self._overdue_at)
        if self.phase == "committing" and self._made is not None:
            offset = self._seen - self._planned_at
            look = next_look(offset, self._made.plan.deadline_s)
            grace = self._setting.policy.grace_s
            if grace is not None and offset < grace:
                look = grace if look is None else min(look, grace)
            if look is not None:
                looks.append(self._planned_at + look)
        # Never at once again: what was due when it was called has been done.
        return max(min(looks), self._seen + 0.001)

    _seen = 0.0

    def on_time(self, now: float) -> None:
        """Go on with what the clock decides, and ask again."""
        self._seen = now
        if self.over:
            return
        if self.phase == "joining":
            self._maybe_plan(now)
        elif self.phase == "committing":
            self._maybe_scatter(now)
        elif self.phase in {"scatter", "gram", "merge"} and now >= self._overdue_at:
            self._overdue(now)
        elif self.phase == "confirm" and now >= self._phase_at + CONFIRM_TRANSFERS * self._limit_s:
            self._abort("overdue: too few members could fetch the result")
        if now >= self._next_tick and not self.over:
            self._next_tick = now + TICK_S
            self._ask_again(now)

    @property
    def _overdue_at(self) -> float:
        return self._phase_at + self._limit_s

    def _enter(self, phase: str, now: float) -> None:
        self.phase = phase
        self._phase_at = now
        self._give(Tell(f"round.{phase}", f"view {self._view}"))

    # ---- states, joins

    def moved(self, now: float, message: Moved) -> None:
        """A member is in our view, and says what it voted for before.

        Raises:
            DecodeError: it does not hold together.
        """
        signer = message.state.signer
        if self.phase != "states" or signer in self._states:
            return
        state = check_state(self._setting, message.state, self._view)
        if state.vote_view >= 0 and self._doubts.cannot_finish(state.vote_root):
            return
        if state.vote_view >= 0:
            if message.plan_of_vote is None or message.results_of_vote is None:
                raise DecodeError("a vote without what it was about")
            made = check_plan(self._setting, message.plan_of_vote)
            results = check_results(self._setting, message.results_of_vote, made)
            if (results.root, results.results.view) != (state.vote_root, state.vote_view):
                raise DecodeError("a vote for something else than comes with it")
            self._votes.setdefault(state.vote_root, (made, results))
        self._states[signer] = message.state
        self._state_of[signer] = state
        chosen = choose(self._setting, self._state_of)
        if chosen is not None:
            self._propose(now, chosen)

    def _propose(self, now: float, chosen: Chosen | None) -> None:
        setting = self._setting
        finish = None
        if chosen is not None and chosen.root is not None:
            finish = self._signed_anew(*self._votes[chosen.root])
        self._proposal = Propose(
            setting.federation, setting.number, self._view, bytes(32), setting.base_root,
            setting.policy.digest(), setting.schema, (*setting.circle, *setting.newcomers),
            tuple(self._states.values()), finish[0].signed if finish else None,
            finish[1].signed if finish else None,
        )  # fmt: skip
        if finish:
            self._made, self._results = finish
            self._enter("confirm", now)
        else:
            self._enter("joining", now)
        self._to(self._everybody, self._proposal)

    def _signed_anew(self, made: MadePlan, results: MadeResults) -> tuple[MadePlan, MadeResults]:
        """An earlier view's results as this one's: who votes for them votes for a word of ours."""
        setting = self._setting
        head = (setting.federation, setting.number, self._view, made.hash)
        signed = sign(setting.signer, setting.me, Results(*head, results.results.headers))
        return made, check_results(setting, signed, made)

    @property
    def _everybody(self) -> tuple[bytes, ...]:
        return (*self._setting.circle, *self._setting.newcomers)

    def join(self, now: float, signed: Signed) -> None:
        """A member takes part.

        Raises:
            DecodeError: not signed by it.
        """
        if self.phase != "joining" or signed.signer not in self._everybody:
            return
        if signed.signer in self._doubts.banned:
            return
        join = open_signed(signed, self._setting.signer)
        if not isinstance(join, Join) or join.view != self._view:
            return
        if join.base_root != self._setting.base_root:
            raise DecodeError("a join on another base")
        self._joins.setdefault(signed.signer, (signed, join))
        self._maybe_plan(now)

    def _maybe_plan(self, now: float) -> None:
        missing = set(self._everybody) - self._joins.keys() - self._doubts.banned
        if missing and now < self._phase_at + JOIN_S:
            return
        known = [peer for peer in self._setting.circle if peer in self._joins]
        if len(known) < max(1, self._setting.quorum()):
            if now >= self._overdue_at:
                self._abort("below_quorum: too few members answered")
            return
        fresh = [peer for peer in self._setting.newcomers if peer in self._joins]
        roster = known + fresh[: self._room_for_newcomers(len(known), len(fresh))]
        if len(roster) < self._setting.policy.min_peers:
            if now >= self._overdue_at:
                self._abort("below_quorum: fewer members than min_peers answered")
            return
        self._plan(now, roster)

    def _room_for_newcomers(self, known: int, fresh: int) -> int:
        room = fresh
        while room and room > newcomers_max(known + room, self._setting.policy.quorum):
            room -= 1
        return room

    def _plan_of(self, roster: list[bytes]) -> Plan:
        setting = self._setting
        return Plan(
            setting.federation, setting.number, self._view, bytes(32),
            tuple(self._joins[peer][0] for peer in roster), setting.circle, setting.base_root,
            setting.policy.digest(), setting.schema, setting.elements, self._cut(roster),
            setting.rule, setting.policy.codec, setting.clip, setting.deadline_s,
        )  # fmt: skip

    def _plan(self, now: float, roster: list[bytes]) -> None:
        setting = self._setting
        plan = self._plan_of(roster)
        signed = sign(setting.signer, setting.me, plan)
        self._made = check_plan(setting, signed)
        self._planned_at = now
        self._holdings = Holdings(self._made.roster, [part.reducer for part in plan.parts])
        self._enter(self._after_plan, now)
        self._to_signed(roster, signed)

    def _cut(self, roster: list[bytes]) -> tuple[PartOf, ...]:
        joins = {peer: self._joins[peer][1] for peer in roster}
        parts = planning.cut(
            self._setting, self._view, roster, joins, merges=self._merges,
            unreliable=self._doubts.unreliable,
        )  # fmt: skip
        self._limit_s = planning.limit_s(self._setting, parts, joins)
        return parts

    # ---- commits, parts

    def commit(self, now: float, signed: Signed) -> None:
        """A member says what it sends.

        Raises:
            DecodeError: not signed by it.
        """
        made = self._made
        if made is None or signed.signer not in made.roster or self.phase != "committing":
            return
        message = open_signed(signed, self._setting.signer)
        if not isinstance(message, Commit) or message.plan != made.hash:
            return
        if len(message.hashes) != len(made.plan.parts):
            raise DecodeError("a commit with more or fewer parts than the plan")
        self._holdings.commit(signed, message, now - self._planned_at)
        self._maybe_scatter(now)

    def _maybe_scatter(self, now: float) -> None:
        made = self._made
        assert made is not None
        self._seen = now
        came, count = len(self._holdings.updates), len(self._senders)
        offset, deadline = now - self._planned_at, made.plan.deadline_s
        grace = self._setting.policy.grace_s
        if grace is None:
            what = closing(offset, came, self._needed, count, deadline)
        else:
            what = closing_early(offset, came, count, deadline, grace)
        if what is Closing.BELOW_QUORUM:
            self._abort("below_quorum: too few updates by three deadlines")
        elif what is Closing.CLOSE:
            self._enter("scatter", now)
            self._maybe_close(now, late=False)

    def have(self, now: float, sender: bytes, message: Have) -> None:
        """A reducer says what it has."""
        if not self._holdings.merges(sender, message.part):
            return
        self._holdings.have(sender, message)
        if self.phase == "scatter":
            self._maybe_close(now, late=False)

    @property
    def _senders(self) -> tuple[bytes, ...]:
        """Whose updates may come."""
        assert self._made is not None
        return self._made.roster

    @property
    def _needed(self) -> int:
        """Without how many of the roster's updates nothing is merged."""
        assert self._made is not None
        policy, count = self._setting.policy, len(self._made.roster)
        return quorum_of(count, policy.quorum) if policy.grace_s is None else -(-count // 2)

    def _maybe_close(self, now: float, *, late: bool) -> None:
        assert self._made is not None
        whole, awaited = self._holdings.whole(), self._holdings.awaited()
        if not late and awaited:
            return
        if len(whole) < self._needed:
            if (late or not awaited) and not self._disbelieve(now):
                self._abort("below_quorum: too few updates came whole")
            return
        setting = self._setting
        weights = tuple(self._holdings.updates[peer].commit.weight for peer in whole)
        close = Close(*self._head, tuple(whole), weights, self._statuses(set(whole), {}))
        self._close = (sign(setting.signer, setting.me, close), close)
        self._enter(self._after_close, now)
        self._to_signed(self._made.roster, self._close[0])
        if setting.rule == "sum":
            self._verdict = verdicts.add_up(close.included)
            self._weigh(now)

    def _disbelieve(self, now: float) -> bool:
        """Where one reducer's words alone leave too few, its parts go to their standbys.

        Returns:
            Whether there was such a reducer.
        """
        for sayer in self._holdings.alone():
            held = self._holdings.unmoved_of(sayer)
            if sayer == self._setting.me or not held:
                continue
            self._doubts.unreliable.add(sayer)
            self._holdings.strike_out(sayer)
            for number in held:
                self._move(number)
            self._phase_at = now
            return True
        return False

    def _statuses(
        self, included: set[bytes], rejected: dict[bytes, str]
    ) -> tuple[MemberStatus, ...]:
        found = []
        known = self._made.roster if self._made is not None else tuple(self._joins)
        for peer in dict.fromkeys((*known, *self._setting.circle)):
            status, reason = self._fate(peer, known, included, rejected)
            of = self._holdings.updates.get(peer)
            figures = (of.arrival_s, of.commit.norm, of.commit.weight) if of else (-1.0, 0.0, 0.0)
            found.append(MemberStatus(peer, status, reason[:200], *figures))
        return tuple(found)

    def _fate(
        self,
        peer: bytes,
        roster: tuple[bytes, ...],
        included: set[bytes],
        rejected: dict[bytes, str],
    ) -> tuple[Status, str]:
        if peer in self._doubts.banned:
            return "rejected", "signed two contradicting messages"
        unfit = self._holdings.unfit(peer)
        if unfit:
            return "rejected", unfit
        if peer in rejected:
            return "rejected", rejected[peer]
        if peer in included:
            return "included", ""
        if peer not in roster:
            return "lost", "did not answer when the round began"
        if peer not in self._holdings.updates:
            return "late", "no update by the deadline"
        return "lost", "its update did not arrive whole"

    # ---- products, coefficients

    def gram(self, now: float, sender: bytes, message: Gram) -> None:
        """A reducer's products.

        Raises:
            DecodeError: of another shape.
        """
        if self._close is None or self.phase != "gram":
            return
        if not self._holdings.merges(sender, message.part):
            return
        order = self._close[1].included
        diagonal = self._setting.rule in DIAGONAL_RULES
        if message.diagonal != diagonal:
            raise DecodeError("products of another kind than the rule needs")
        self._grams[message.part] = verdicts.read_gram(
            message.values, len(order) + 1, diagonal=diagonal
        )
        if len(self._grams) == len(self._holdings.parts):
            assert self._made is not None
            commits = {peer: of.commit for peer, of in self._holdings.updates.items()}
            wrong = verdicts.unbelievable(self._setting, order, commits, self._grams)
            if wrong and self._holdings.reducers - {self._setting.me}:
                # Nobody knows which reducer it was: none gets a part of ours again in this round.
                self._doubt(self._holdings.reducers)
                self._abort(f"products: {wrong}")
                return
            self._verdict = verdicts.judge(
                self._setting, order, commits,
                [self._grams[part] for part in sorted(self._grams)], self._made.hash,
            )  # fmt: skip
            self._weigh(now)

    def _doubt(self, reducers: Iterable[bytes]) -> None:
        self._doubts.unreliable.update(reducers)
        self._doubts.unreliable.discard(self._setting.me)

    def _weigh(self, now: float) -> None:
        assert self._verdict is not None
        assert self._close is not None
        assert self._made is not None
        setting = self._setting
        members = self._statuses(set(self._close[1].included), self._verdict.rejected)
        weights = Weights(*self._head, self._verdict.coefficients, members, self._verdict.clip)
        self._weights = sign(setting.signer, setting.me, weights)
        self._enter("merge", now)
        self._to_signed(self._made.roster, self._weights)

    # ---- results, votes

    def result(self, now: float, signed: Signed) -> None:
        """A reducer has merged its part.

        Raises:
            DecodeError: not signed by it.
        """
        made = self._made
        if made is None or self.phase != "merge":
            return
        message = open_signed(signed, self._setting.signer)
        if not isinstance(message, Result) or message.plan != made.hash:
            return
        if not self._holdings.merges(signed.signer, message.part, message.counter):
            return
        check_size(made.plan, message)
        self._headers.setdefault(message.part, signed)
        if len(self._headers) == len(made.plan.parts):
            headers = tuple(self._headers[part] for part in sorted(self._headers))
            results = sign(self._setting.signer, self._setting.me, Results(*self._head, headers))
            self._results = check_results(self._setting, results, made)
            self._enter("confirm", now)
            self._to_signed(made.roster, results)

    def confirm(self, now: float, signed: Signed) -> None:
        """A vote.

        Raises:
            DecodeError: not signed by it.
        """
        if self._results is None or self.phase != "confirm" or signed.signer in self._confirms:
            return
        assert self._made is not None
        message = open_signed(signed, self._setting.signer)
        if not isinstance(message, Confirm) or message.view != self._view:
            return
        if message.root != self._results.root:
            self._give(Tell("member.differs", "voted for another result", signed.signer))
            return
        self._confirms[signed.signer] = signed
        if decides(self._setting, set(self._confirms)):
            self._apply = Apply(
                *self._head, self._made.signed, self._results.signed,
                tuple(self._confirms.values()),
            )  # fmt: skip
            self._enter("applied", now)
            self._to(self._audience, self._apply)

    @property
    def _audience(self) -> tuple[bytes, ...]:
        roster = self._made.roster if self._made is not None else ()
        return tuple(dict.fromkeys((*self._everybody, *roster)))

    def applied(self, sender: bytes, message: Applied) -> None:
        """A member has it."""
        if self._results is not None and message.root == self._results.root:
            self._applied.add(sender)
            if self.phase == "applied" and self._applied >= set(self._audience):
                self.over = True

    # ---- lateness

    def _overdue(self, now: float) -> None:
        """A phase took too long: another reducer for who is silent, else without who is missing."""
        if self.phase == "scatter" and len(self._holdings.whole()) >= self._needed:
            self._maybe_close(now, late=True)
            return
        late = self._late_parts()
        self._doubt(self._holdings.reducer(number) for number in late)
        movable = self._holdings.unmoved(late)
        for number in movable:
            self._move(number)
        if movable:
            self._phase_at = now
        else:
            self._abort(f"overdue: {self.phase} took too long")

    def _late_parts(self) -> list[int]:
        """Parts whose reducer is silent; if none is, those of which the fewest updates came.

        A part that one reducer alone does not get is worth a try at another.
        """
        silent = [number for number in self._holdings.parts if not self._heard(number)]
        if silent or self.phase != "scatter":
            return silent
        return self._holdings.least_come()

    def _heard(self, number: int) -> bool:
        if self.phase == "scatter":
            return self._holdings.came(number) >= self._needed
        return number in (self._grams if self.phase == "gram" else self._headers)

    def _move(self, number: int) -> None:
        assert self._made is not None
        part = self._made.plan.parts[number]
        counter = self._holdings.move(number, part.standby)
        move = Move(*self._head, number, part.standby, counter)
        signed = sign(self._setting.signer, self._setting.me, move)
        self._holdings.moves[number] = signed
        self._give(Tell("part.moved", f"part {number} to its standby", part.standby))
        self._to_signed(self._made.roster, signed)
        self._pass_commits(number)

    def _pass_commits(self, number: int) -> None:
        """Commits of whom a reducer has not said to have, so that it fetches them."""
        to = (self._holdings.reducer(number),)
        for some in self._holdings.unseen(number):
            self._to(to, Commits(*self._head, some))

    def _abort(self, reason: str) -> None:
        self.over = True
        abort = Abort(*self._head, reason, self._statuses(set(), {}))
        self._to(self._audience, abort)

    # ---- asking again

    def _ask_again(self, now: float) -> None:
        if self.phase == "states":
            return  # who says nothing but that it waits must not keep others waiting
        left = max(0.0, self._overdue_at - now)
        self._to(self._audience, Tick(*self._head, self.phase, left))
        made = self._made
        if self.phase == "joining" and self._proposal is not None:
            self._to(set(self._everybody) - self._joins.keys(), self._proposal)
        elif self.phase == "committing" and made is not None:
            self._to_signed(set(made.roster) - self._holdings.updates.keys(), made.signed)
        elif self.phase in {"scatter", "gram", "merge"}:
            self._ask_reducers()
        elif self.phase == "confirm":
            self._ask_votes()
        elif self.phase == "applied" and self._apply is not None:
            self._to(set(self._audience) - self._applied, self._apply)
            self._apply_ticks += 1
            self.over = self._apply_ticks >= APPLY_TICKS

    def _ask_reducers(self) -> None:
        assert self._made is not None
        for number in self._holdings.parts:
            if number in self._headers:
                continue
            reducer = self._holdings.reducer(number)
            self._to_signed((reducer,), self._made.signed)
            for move in self._holdings.moves.values():
                self._to_signed(self._made.roster, move)
            self._pass_commits(number)
            if self._close is not None:
                self._to_signed((reducer,), self._close[0])
            if self._weights is not None:
                self._to_signed((reducer,), self._weights)

    def _ask_votes(self) -> None:
        assert self._made is not None
        assert self._results is not None
        missing = set(self._audience) - self._confirms.keys()
        if self._made.plan.view == self._view:
            self._to_signed(missing & set(self._made.roster), self._made.signed)
            self._to_signed(missing & set(self._made.roster), self._results.signed)
        elif self._proposal is not None:
            self._to(missing, self._proposal)

    # ---- small

    @property
    def _head(self) -> tuple[bytes, int, int, bytes]:
        plan = self._made.hash if self._made is not None else bytes(32)
        return (self._setting.federation, self._setting.number, self._view, plan)

    def _to(self, peers: Iterable[bytes], message: Message) -> None:
        packet = unsigned(message)
        for peer in sorted(peers):
            self._give(Send(peer, packet))

    def _to_signed(self, peers: Iterable[bytes], signed: Signed) -> None:
        packet = packet_of(signed)
        for peer in sorted(peers):
            self._give(Send(peer, packet))
