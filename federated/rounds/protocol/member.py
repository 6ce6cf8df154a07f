"""A member's side of a round: promise, join, commit, fetch what was merged, vote once a view.

The member trusts no coordinator: a plan, a set of results and a decision are judged by
`checks`. What it promised and voted is durable before anybody hears of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.rounds.protocol.checks import (
    Chosen,
    MadePlan,
    check_apply,
    check_plan,
    check_results,
    check_state,
    choose,
)
from federated.rounds.protocol.doubts import Doubts
from federated.rounds.protocol.orders import (
    Decided,
    Ended,
    FetchResult,
    Persist,
    Prepare,
    Send,
    ServePart,
    Tell,
    Vote,
)
from federated.rounds.protocol.reducer import Reducing
from federated.rounds.protocol.wire import (
    Abort,
    Applied,
    Apply,
    Close,
    Commit,
    Commits,
    Confirm,
    Evidence,
    Join,
    Move,
    Propose,
    Weights,
    hash_of,
    open_signed,
    packet_of,
    sign,
    unsigned,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.protocol.checks import MadeResults, Setting
    from federated.rounds.protocol.orders import Order, Prepared, ResultArrived, ResultFailed
    from federated.rounds.protocol.wire import MemberStatus, Message, Result, Signed


class Update:
    """What this member brings: its weight and figures; the vector lies with the driver."""

    def __init__(self, weight: float, metrics: dict[str, float] | None = None) -> None:
        self.weight = weight
        self.metrics = metrics or {}


class Link:
    """How this machine is reached, as the plan's topology needs it.

    Args:
        dialable: whether others can open a connection to it.
        up, down: bytes a second.
        merges: whether it can merge parts: it has the last update, row 0 of the rules. Who cannot
            joins as one that nobody can dial, so that it gets no part.
    """

    def __init__(
        self, *, dialable: bool = True, up: float = 2.5e6, down: float = 2.5e6, merges: bool = True
    ) -> None:
        self.dialable = dialable and merges
        self.up = up
        self.down = down
        self.merges = merges


class Member:
    """One member in one round.

    Args:
        setting: the round's.
        link: how we are reached.
        give: takes orders.
        promised: view promised before a restart; -1: none.
        vote: the last vote before a restart.
    """

    def __init__(
        self, setting: Setting, link: Link, give: Callable[[Order], None], *, promised: int = -1,
        vote: Vote | None = None,
    ) -> None:  # fmt: skip
        self._setting = setting
        self._link = link
        self._give = give
        self.view = promised
        self.vote = vote
        self.update: Update | None = None
        self.made: MadePlan | None = None
        self.statuses: tuple[MemberStatus, ...] = ()
        self.clip = setting.clip
        self.decided: Apply | None = None
        self.done = False
        self._chosen: Chosen | None = None
        self._proposed_view = -1
        self._preparing = False
        self._commit: Signed | None = None
        self._reducing: Reducing | None = None
        self._reducers: dict[int, tuple[bytes, int]] = {}
        self._close: Signed | None = None
        self._results: MadeResults | None = None
        self._results_plan: MadePlan | None = None
        self.doubts = Doubts(banned=set(setting.banned))
        self._here = self.doubts.here
        self._confirm: Signed | None = None
        self._commits_seen: dict[bytes, Signed] = {}
        self._early: dict[bytes, Signed] = {}
        self._ended_view = -1
        self._spent = promised
        self._failed: set[bytes] = set()
        """Merged parts that nobody gave, or that are none."""

    def recall(self, decided: Apply) -> None:
        """A decision from before a restart, as it was kept."""
        self.decided = decided
        self._decided = check_apply(self._setting, decided)
        self.done = True

    # ---- views

    def enter(self, view: int) -> None:
        """Promise to take part in no earlier view; what belongs to one is forgotten."""
        if view <= self.view:
            return
        self._doubt_results()
        self.view = view
        self._give(Persist(view, self.vote))
        self.made = None
        self._chosen = None
        self._preparing = False
        self._commit = None
        self._reducing = None
        self._reducers = {}
        self._close = None
        self._results = None
        self._results_plan = None
        self._confirm = None
        self._commits_seen = {}
        self._early = {}
        self.statuses = ()

    def propose(self, sender: bytes, message: Propose) -> None:
        """A coordinator begins a view.

        Raises:
            DecodeError: it may not.
        """
        setting = self._setting
        if message.view < self.view or sender != setting.coordinator(message.view):
            return
        if message.view <= self._spent:
            return  # what we said in it before a restart is forgotten: we must not contradict it
        ours = (setting.base_root, setting.policy.digest(), setting.schema)
        if (message.base_root, message.policy, message.schema) != ours:
            raise DecodeError("a proposal with another base, policy or schema than ours")
        chosen = self._chosen_by(message)
        self.enter(message.view)
        self._proposed_view = message.view
        self._chosen = chosen
        if chosen.root is not None:
            self._finish(message, chosen)
        elif setting.me in message.invited:
            link = self._link
            head = (setting.federation, setting.number, message.view, bytes(32))
            join = Join(*head, setting.base_root, link.dialable, link.up, link.down)
            self._send_signed(sender, sign(setting.signer, setting.me, join))

    def _chosen_by(self, message: Propose) -> Chosen:
        if message.view == 0:
            return Chosen(None, -1)
        states = {
            one.signer: check_state(self._setting, one, message.view) for one in message.states
        }
        chosen = choose(self._setting, states)
        if chosen is None:
            raise DecodeError("a proposal without the states of a quorum")
        return chosen

    def _finish(self, message: Propose, chosen: Chosen) -> None:
        if message.plan_of_vote is None or message.results_of_vote is None:
            raise DecodeError("a proposal to finish a vote without what it was about")
        made = check_plan(self._setting, message.plan_of_vote)
        results = check_results(self._setting, message.results_of_vote, made)
        if results.root != chosen.root or results.results.view != message.view:
            raise DecodeError("a proposal to finish another result than was voted for")
        self._take_results(made, results)

    # ---- plan, commit

    def plan(self, sender: bytes, signed: Signed) -> None:
        """The coordinator says who takes part.

        Raises:
            DecodeError: the plan is not right.
        """
        made = check_plan(self._setting, signed)
        if made.plan.view != self.view or sender != signed.signer:
            return
        if self._chosen is None or self._chosen.root is not None:
            return  # not proposed here yet, or a vote is to be finished
        if self.made is not None:
            if self.made.hash != made.hash:
                self._accuse(self.made.signed, signed)
            else:
                self._say_commit()
            return
        if self._setting.me not in made.roster:
            self._give(Tell("member.left_out", "the plan of this attempt is without us"))
            return
        self.made = made
        self._reducing = Reducing(self._setting, made, self._give)
        for number, part in enumerate(made.plan.parts):
            self._reducers[number] = (part.reducer, 0)
            self._give(ServePart(made.hash, number, part.reducer))
            if part.reducer == self._setting.me:
                self._reducing.assign(number, 0)
        self._give(Tell("round.planned", f"{len(made.roster)} members"))
        self._prepare()
        early, self._early = self._early, {}
        for one in early.values():
            self.commit(one)

    def submit(self, update: Update) -> None:
        """The update is there."""
        self.update = update
        self._prepare()

    def _prepare(self) -> None:
        if self.made is not None and self.update is not None and not self._preparing:
            self._preparing = True
            self._give(Prepare(self.made.hash, self.made.plan))

    def prepared(self, event: Prepared) -> None:
        """The update is cut and encoded."""
        if self.made is None or event.plan_hash != self.made.hash or self._commit is not None:
            return
        assert self.update is not None
        commit = Commit(
            *self._head(), event.hashes, event.norm, self.update.weight, dict(self.update.metrics)
        )
        self._commit = sign(self._setting.signer, self._setting.me, commit)
        self._say_commit()

    def _say_commit(self) -> None:
        if self._commit is None or self.made is None:
            return
        to = {self.made.signed.signer} | {peer for peer, _ in self._reducers.values()}
        for peer in sorted(to):
            self._send_signed(peer, self._commit)

    def commit(self, signed: Signed) -> None:
        """Another member's commit, for the parts that we merge.

        Raises:
            DecodeError: not signed by it, or of another round.
        """
        if signed.signer not in self._setting.circle and not self._setting.may_join(signed.signer):
            return
        commit = open_signed(signed, self._setting.signer)
        if not isinstance(commit, Commit):
            return
        if self.made is None or self._reducing is None:
            # It had the plan before us. One a member, so that nobody fills this.
            self._early[signed.signer] = signed
            return
        if commit.plan != self.made.hash:
            return
        known = self._commits_seen.setdefault(signed.signer, signed)
        if known.body != signed.body:
            self._accuse(known, signed)
            return
        self._reducing.commit(signed.signer, commit)

    def commits(self, message: Commits) -> None:
        """Commits passed on by the coordinator."""
        for signed in message.commits:
            self.commit(signed)

    def move(self, sender: bytes, signed: Signed) -> None:
        """A part has another reducer.

        Raises:
            DecodeError: not signed by the coordinator.
        """
        message = open_signed(signed, self._setting.signer)
        if not isinstance(message, Move) or not self._of_plan(sender, message):
            return
        assert self.made is not None
        assert self._reducing is not None
        known = self._reducers.get(message.part)
        if known is None or message.reducer not in self.made.roster:
            raise DecodeError("a move of a part, or to a member, that the plan does not have")
        if message.counter < known[1]:
            return
        self._reducers[message.part] = (message.reducer, message.counter)
        self._give(ServePart(self.made.hash, message.part, message.reducer))
        if message.reducer == self._setting.me:
            self._reducing.assign(message.part, message.counter)
        else:
            self._reducing.unassign(message.part, message.counter)
        self._say_commit()

    # ---- close, merge

    def close(self, sender: bytes, signed: Signed) -> None:
        """The included set is fixed.

        Raises:
            DecodeError: not signed by the coordinator.
        """
        message = open_signed(signed, self._setting.signer)
        if not isinstance(message, Close) or not self._of_plan(sender, message):
            return
        assert self.made is not None
        assert self._reducing is not None
        if self._close is not None and self._close.body != signed.body:
            self._accuse(self._close, signed)
            return
        if not set(message.included) <= set(self.made.roster):
            raise DecodeError("a close that includes a stranger")
        self._close = signed
        self.statuses = message.members
        self._reducing.close(message)

    def weights(self, sender: bytes, signed: Signed) -> None:
        """The coefficients are fixed.

        Raises:
            DecodeError: not signed by the coordinator.
        """
        message = open_signed(signed, self._setting.signer)
        if not isinstance(message, Weights) or not self._of_plan(sender, message):
            return
        assert self._reducing is not None
        self.statuses = message.members
        self.clip = message.clip
        self._reducing.weights(message)

    @property
    def finishing(self) -> MadePlan | None:
        """The plan whose results this view finishes, if it has none of its own."""
        return self._results_plan if self.made is None else None

    @property
    def proposed_view(self) -> int:
        """The last view whose coordinator proposed it here; -1: none."""
        return self._proposed_view

    @property
    def reducing(self) -> Reducing | None:
        """Our part as reducer under the present plan."""
        return self._reducing

    # ---- results, vote

    def results(self, sender: bytes, signed: Signed) -> None:
        """What came out, says the coordinator.

        Raises:
            DecodeError: it is not right.
        """
        if self.made is None or sender != self.made.signed.signer:
            return
        results = check_results(self._setting, signed, self.made)
        if results.results.view != self.view:
            return
        if self._results is not None and self._results.signed.body != signed.body:
            self._accuse(self._results.signed, signed)
            return
        self._take_results(self.made, results)

    def _take_results(self, made: MadePlan, results: MadeResults) -> None:
        self._results = results
        self._results_plan = made
        holders = tuple(peer for peer in made.roster if peer != self._setting.me)
        for header, reducer in zip(results.headers, results.reducers, strict=True):
            if header.sha256 not in self._here:
                first = (reducer, *(peer for peer in holders if peer != reducer))
                self._give(self._fetch(made, header, first))
        self._vote_if_whole()

    def result_arrived(self, event: ResultArrived) -> None:
        """Bytes of a merged part are here."""
        self._here.add(event.sha256)
        self._vote_if_whole()
        self._decide_if_whole()

    @staticmethod
    def _fetch(made: MadePlan, header: Result, holders: tuple[bytes, ...]) -> FetchResult:
        piece = made.plan.parts[header.part]
        return FetchResult(made.hash, header.part, piece, header.nbytes, header.sha256, holders)

    def result_failed(self, event: ResultFailed) -> None:
        """Bytes of a merged part cannot be had, or are none.

        In the first case the coordinator asks again, with the holders of that time; what is still
        missing when the view ends counts against who signed for it.
        """
        self._failed.add(event.sha256)
        results = self._results
        if not event.unfit or results is None:
            return
        for header, reducer in zip(results.headers, results.reducers, strict=True):
            if header.sha256 == event.sha256 and reducer not in self.doubts.unreliable:
                self.doubts.unreliable.add(reducer)
                self._give(Tell("member.unfit_part", event.unfit[:200], reducer))

    def _doubt_results(self) -> None:
        """A view ends without a decision: note the results that could not be voted for here.

        A part that only trickles in never fails, and is as little here in the next view.
        """
        results = self._results
        if results is None or set(results.hashes) <= self._here:
            return
        self.doubts.roots[results.root] = results.hashes
        for header, reducer in zip(results.headers, results.reducers, strict=True):
            if header.sha256 in self._failed - self._here and reducer != self._setting.me:
                self.doubts.unreliable.add(reducer)

    def _vote_if_whole(self) -> None:
        results, made = self._results, self._results_plan
        if results is None or made is None or not set(results.hashes) <= self._here:
            return
        if self._confirm is None:
            self.vote = Vote(self.view, results.root, made.signed, results.signed)
            self._give(Persist(self.view, self.vote))
            # The vote names the plan it is about; a view that finishes has none of its own.
            head = (self._setting.federation, self._setting.number, self.view, made.hash)
            confirm = Confirm(*head, results.root)
            self._confirm = sign(self._setting.signer, self._setting.me, confirm)
        self._send_signed(self._setting.coordinator(self.view), self._confirm)

    # ---- end

    def apply(self, sender: bytes, message: Apply) -> None:
        """The round is decided, of whatever view.

        Raises:
            DecodeError: it is not.
        """
        if self.done:
            self._say_applied(sender)
            return
        made, results = check_apply(self._setting, message)
        self.decided = message
        self._decided = (made, results)
        voters = tuple(sorted({one.signer for one in message.confirms} - {self._setting.me}))
        for header in results.headers:
            if header.sha256 not in self._here:
                self._give(self._fetch(made, header, voters))
        if self._decide_if_whole():
            self._say_applied(sender)

    def _decide_if_whole(self) -> bool:
        """Say so once all bytes of the decision are here; whether they are."""
        if self.decided is None or self.done:
            return self.done
        made, results = self._decided
        if not set(results.hashes) <= self._here:
            return False
        self.done = True
        self._give(
            Decided(
                self.decided.view, results.root, made.plan, made.hash, made.plan.parts,
                results.hashes, self.decided,
            )
        )  # fmt: skip
        return True

    def _say_applied(self, to: bytes) -> None:
        root = self._decided[1].root
        head = (self._setting.federation, self._setting.number, max(0, self.view), bytes(32))
        self._give(Send(to, unsigned(Applied(*head, root))))

    def abort(self, sender: bytes, message: Abort) -> bool:
        """An attempt ends; whether it was the one we are in."""
        if message.view != self.view or sender != self._setting.coordinator(self.view):
            return False
        if self._ended_view == message.view:
            return False  # said again: it must not put off the next view
        self._ended_view = message.view
        self.statuses = message.members
        self._give(Ended(message.reason))
        return True

    # ---- small

    def _of_plan(self, sender: bytes, message: Message) -> bool:
        made = self.made
        return made is not None and sender == made.signed.signer and message.plan == made.hash

    def _head(self) -> tuple[bytes, int, int, bytes]:
        assert self.made is not None
        return (self._setting.federation, self._setting.number, self.view, self.made.hash)

    def _send_signed(self, to: bytes, signed: Signed) -> None:
        self._give(Send(to, packet_of(signed)))

    def _accuse(self, first: Signed, second: Signed) -> None:
        """Two signed words of one member that contradict each other: everybody shall know."""
        if hash_of(first) == hash_of(second):
            return
        head = (self._setting.federation, self._setting.number, max(0, self.view), bytes(32))
        evidence = unsigned(Evidence(*head, first, second))
        for peer in self._setting.circle:  # ourselves too: the machine judges it as the others do
            self._give(Send(peer, evidence))
