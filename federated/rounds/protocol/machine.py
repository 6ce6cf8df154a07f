"""One round at one member: views by the clock, and who hears which message.

    machine = Machine(setting, link)
    machine.start(now); machine.submit(now, Update(weight)); machine.receive(now, peer, packet)
    for order in machine.take(): ...        # in this order; a `Persist` is durable before the next

The driver calls `on_time` at `next_time` and answers orders with `event`. Everything may be lost,
repeated or reordered on the way. The machine ends by `Decided`; `Ended` says that an attempt came
to nothing, and the next view begins by itself.
Source: docs/specs/rounds.md s.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from federated.errors import UsageError
from federated.rounds.protocol import planning
from federated.rounds.protocol.checks import TICK_S, VIEW_MAX, belongs, check_state
from federated.rounds.protocol.deadline import QUORUM_DEADLINES
from federated.rounds.protocol.leader import JOIN_S, Leader
from federated.rounds.protocol.masked_leader import MaskedLeader
from federated.rounds.protocol.masked_member import MaskedMember
from federated.rounds.protocol.member import Link, Member, Update
from federated.rounds.protocol.orders import (
    Encoded,
    Ended,
    GramMade,
    Merged,
    PartArrived,
    PartFailed,
    Prepared,
    ResultArrived,
    ResultFailed,
    Send,
    SetsRead,
    SumOpened,
    Tell,
)
from federated.rounds.protocol.policy import moves_on
from federated.rounds.protocol.wire import (
    NUMBER_OF,
    SIGNED,
    Abort,
    Applied,
    Apply,
    Close,
    Commit,
    Commits,
    Confirm,
    Evidence,
    Gram,
    Have,
    Join,
    Keys,
    MaskAgree,
    MaskMembers,
    MaskRead,
    MaskReveal,
    MaskShares,
    Move,
    Moved,
    Packet,
    Plan,
    Propose,
    Result,
    Results,
    Signed,
    Tick,
    ViewState,
    Weights,
    decode_untrusted,
    open_signed,
    sign,
    unsigned,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from federated.rounds.privacy.shamir import RandomBytes
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.orders import Event, Order, Vote
    from federated.rounds.protocol.wire import AnyMessage

AFTER: Final = (Apply, Applied, MaskAgree, MaskReveal, MaskRead)
"""What is said of a decided round; whoever says anything else has not heard of the decision."""
DOUBLINGS_MAX: Final = 5
"""Of a member's patience with silent coordinators."""
PHASES: Final = 12
"""Limits of a phase that a view lasts at most: a part that moves makes its phase two, the last is
three, and some slack."""
VIEWS_A_SECOND: Final = 1024
"""How fast others are followed through views: where few members move a round on, one alone must not
take it to where there are no more. Who was away for a year is up with the others in minutes."""


class Machine:
    """One round.

    Args:
        setting: the round's.
        link: how we are reached.
        promised: view promised before a restart; -1: this is the first start.
        vote: the vote before a restart.
        decided: the decision before a restart: others are told, nothing else happens.
        random_bytes: gives what nobody can foresee; for masked rounds.
    """

    def __init__(
        self, setting: Setting, link: Link | None = None, *, promised: int = -1,
        vote: Vote | None = None, decided: Apply | None = None,
        random_bytes: RandomBytes | None = None,
    ) -> None:  # fmt: skip
        self._setting = setting
        self._out: list[Order] = []
        self._local: list[Packet] = []
        self._link = link or Link()
        self.member = self._member(min(promised, VIEW_MAX - 2), vote, random_bytes)
        self.leader: Leader | None = None
        if decided is not None:
            self.member.recall(decided)
        self._restarted = promised >= 0
        self._heard = 0.0
        self._began = 0.0
        self._first_view = max(0, self.member.view)
        self._says_at: float | None = None
        self._enter_at: float | None = None
        self._views: dict[bytes, int] = {}
        self.evidence: dict[bytes, Evidence] = {}
        self._view_ends = float("inf")

    def _member(self, promised: int, vote: Vote | None, random_bytes: RandomBytes | None) -> Member:
        setting, link, give = self._setting, self._link, self._give
        if not setting.masked:
            return Member(setting, link, give, promised=promised, vote=vote)
        if random_bytes is None:
            raise UsageError("a masked round needs a source of secrets")
        return MaskedMember(
            setting, link, give, promised=promised, vote=vote, random_bytes=random_bytes
        )

    # ---- driver's side

    def start(self, now: float) -> None:
        """Begin; after a restart in the next view, as what was said in this one is forgotten."""
        self._heard = self._began = now
        if self.member.done:
            return
        if self._restarted and self._decides:
            self._enter(now, self.member.view + 1)
        elif self._setting.coordinator(0) == self._setting.me:
            self._enter(now, 0)
        self._loop(now)

    def submit(self, now: float, update: Update) -> None:
        """Our update is there, in the driver's workshop."""
        self.member.submit(update)
        self._loop(now)

    def receive(self, now: float, sender: bytes, packet: Packet) -> None:
        """A message came.

        Raises:
            DecodeError: it breaks the rules; nothing changed.
        """
        self._receive(now, sender, packet)
        self._loop(now)

    def event(self, now: float, event: Event) -> None:
        """An order was carried out."""
        reducing = self.member.reducing
        made = self.member.made
        match event:
            case Prepared():
                self.member.prepared(event)
            case ResultArrived():
                self.member.result_arrived(event)
            case ResultFailed():
                self.member.result_failed(event)
            case Encoded() | SetsRead() | SumOpened():
                self._of_masks_done(event)
            case PartArrived() | PartFailed() | GramMade() | Merged():
                if reducing is not None and made is not None and event.plan_hash == made.hash:
                    self._to_reducing(event)
        self._loop(now)

    def _of_masks_done(self, event: Encoded | SetsRead | SumOpened) -> None:
        member = self.member
        assert isinstance(member, MaskedMember)
        match event:
            case Encoded():
                member.encoded(event)
            case SetsRead():
                member.unmasking.sets(event)
            case SumOpened():
                member.opened(event)

    def _to_reducing(self, event: PartArrived | PartFailed | GramMade | Merged) -> None:
        reducing = self.member.reducing
        assert reducing is not None
        match event:
            case PartArrived():
                reducing.arrived(event)
            case PartFailed():
                reducing.failed(event)
            case GramMade():
                reducing.gram_made(event)
            case Merged():
                reducing.merged(event)

    def on_time(self, now: float) -> None:
        """Do what the clock asks for."""
        if self.member.done:
            if self.leader is not None:
                self.leader.on_time(now)
            if isinstance(self.member, MaskedMember):
                self.member.unmasking.on_time(now)
            self._loop(now)
            return
        if self._enter_at is not None and now >= self._enter_at:
            self._enter_at = None
            self._lose_patience(now)
        elif self._enter_at is None and now >= self._heard + self._patience:
            self._lose_patience(now)
        if self._says_at is not None and now >= self._says_at:
            self._says_at = now + TICK_S
            self._say_view()
        if self.leader is not None:
            self.leader.on_time(now)
        self._loop(now)

    def next_time(self) -> float:
        """When `on_time` wants to be called."""
        times = []
        if not self.member.done:
            waits = self._heard + self._patience
            times.append(waits if self._enter_at is None else self._enter_at)
        if self._says_at is not None and not self.member.done:
            times.append(self._says_at)
        if isinstance(self.member, MaskedMember):
            times.append(self.member.unmasking.next_time())
        if self.leader is not None and not self.leader.over:
            times.append(self.leader.next_time())
        return min(times, default=float("inf"))

    def take(self) -> list[Order]:
        """What is to be done since the last call."""
        out, self._out = self._out, []
        return out

    @property
    def banned(self) -> set[bytes]:
        """Who signed two contradicting messages, in this round or before."""
        return self.member.doubts.banned

    # ---- views

    @property
    def _decides(self) -> bool:
        """Whether we are of the circle; who is not follows views and begins none."""
        return self._setting.me in self._setting.circle

    def _lose_patience(self, now: float) -> None:
        self._heard = now
        if not self._decides:
            self._say_view()  # who has decided meanwhile says so
            return
        self._give(Tell("view.changed", f"the coordinator of view {self.member.view} is silent"))
        self._enter(now, max(0, self.member.view) + 1)

    @property
    def _patience(self) -> float:
        doublings = min(max(self.member.view, 0), DOUBLINGS_MAX)
        return float(self._setting.patience_s * 2**doublings)

    @property
    def _opening_s(self) -> float:
        """How long an honest coordinator may take until its plan is here."""
        setting = self._setting
        return float(JOIN_S + 2 * setting.policy.transfer_s + setting.patience_s)

    @property
    def _finishing_s(self) -> float:
        """What a view takes beside that which has no plan, but an earlier view's vote to finish."""
        made = self.member.finishing
        if made is None:
            return 0.0
        return PHASES * planning.limit_s(self._setting, made.plan.parts, made.joins)

    def _planned(self, now: float, sender: bytes, signed: Signed) -> None:
        """How long a view may last is known from its plan.

        A coordinator that only says that it is there is believed no longer than that.
        """
        before = self.member.made
        self.member.plan(sender, signed)
        made = self.member.made
        if made is None or made is before:
            return
        setting = self._setting
        deadline = min(made.plan.deadline_s, 2 * setting.deadline_s)
        limit = planning.limit_s(setting, made.plan.parts, made.joins)
        self._view_ends = now + QUORUM_DEADLINES * deadline + PHASES * limit

    def _enter(self, now: float, view: int) -> None:
        setting = self._setting
        self.member.enter(view)
        self._heard = now
        self._view_ends = now + self._opening_s
        self._enter_at = None
        self._says_at = None
        self.leader = None
        if setting.coordinator(view) == setting.me:
            able = self._link.merges
            kind = MaskedLeader if setting.masked else Leader
            self.leader = kind(setting, view, self._give, able, self.member.doubts)
            self.leader.begin(now)
        if view > 0:
            self._says_at = now + TICK_S
            self._say_view()

    def _say_view(self) -> None:
        """Tell the circle which view we are in: its coordinator begins with a quorum of these."""
        setting = self._setting
        vote = self.member.vote
        state = ViewState(
            setting.federation, setting.number, max(0, self.member.view), bytes(32),
            vote.view if vote else -1, vote.root if vote else bytes(32),
        )  # fmt: skip
        moved = Moved(
            setting.federation, setting.number, max(0, self.member.view), bytes(32),
            sign(setting.signer, setting.me, state), vote.plan if vote else None,
            vote.results if vote else None,
        )  # fmt: skip
        for peer in setting.circle:
            self._give(Send(peer, unsigned(moved)))

    def _others_moved(self, now: float, sender: bytes, view: int) -> None:
        """Follow when so many are further that the view we are in cannot end."""
        self._views[sender] = max(view, self._views.get(sender, -1))
        needed = moves_on(len(self._setting.circle), self._setting.policy.quorum)
        views = sorted(self._views.values(), reverse=True)
        if len(views) < needed:
            return
        furthest = self._first_view + VIEWS_A_SECOND * (1 + int(now - self._began))
        view = min(views[needed - 1], furthest)
        if view > self.member.view:
            self._enter(now, view)

    # ---- messages

    def _give(self, order: Order) -> None:
        if isinstance(order, Send) and order.to == self._setting.me:
            self._local.append(order.packet)
            return
        if isinstance(order, Ended):
            self._enter_at = self._ended_at + self._setting.backoff_s
        self._out.append(order)

    _ended_at = 0.0

    def _loop(self, now: float) -> None:
        """Hear what we said to ourselves."""
        while self._local:
            try:
                self._receive(now, self._setting.me, self._local.pop(0))
            except DecodeError as error:
                # Of our own making: told, and this attempt is without it.
                self._give(Tell("round.fault", str(error)))

    def _receive(self, now: float, sender: bytes, packet: Packet) -> None:
        message = decode_untrusted(packet.body)
        belongs(self._setting, message)
        kind = type(message)
        signed = Signed(sender, NUMBER_OF[kind], packet.body, packet.signature)
        if kind in SIGNED and kind is not Commit:
            open_signed(signed, self._setting.signer)
        if self.member.done and not isinstance(message, AFTER):
            self._remind(sender, message)
            return
        self._ended_at = now
        if self._leads(sender, message) and now < self._view_ends:
            self._heard = now
        if isinstance(message, Moved):
            self._moved(now, sender, message)
        elif not self._to_leader(now, sender, signed, message):
            self._to_member(now, sender, signed, message)

    def _leads(self, sender: bytes, message: AnyMessage) -> bool:
        """Whether our view's coordinator says that something goes on.

        That it waits for others, as we do, is no progress.
        """
        if isinstance(message, Moved) or message.view != self.member.view:
            return False
        return sender == self._setting.coordinator(self.member.view) and sender not in self.banned

    def _remind(self, sender: bytes, message: AnyMessage) -> None:
        """Who still works on a decided round gets the decision."""
        if sender != self._setting.me and not isinstance(message, Tick | Confirm):
            assert self.member.decided is not None
            self._give(Send(sender, unsigned(self.member.decided)))

    def _moved(self, now: float, sender: bytes, message: Moved) -> None:
        if sender not in self._setting.circle:
            return
        if message.state.signer != sender:
            raise DecodeError("another member's view state")
        check_state(self._setting, message.state, message.view)
        self._others_moved(now, sender, message.view)
        if self.leader is not None and message.view == self.member.view:
            self.leader.moved(now, message)

    def _to_leader(self, now: float, sender: bytes, signed: Signed, message: AnyMessage) -> bool:
        """Give it to the coordinator in us, if it is for it; whether it was."""
        leader = self.leader
        match message:
            case Join() | Have() | Gram() | Result() | Confirm() | Applied():
                pass
            case Keys() | MaskShares():
                if isinstance(leader, MaskedLeader) and message.view == self.member.view:
                    if isinstance(message, Keys):
                        leader.keys(now, signed, message)
                    else:
                        leader.shares(now, sender, message)
                return True
            case Commit():
                if leader is not None and message.view == self.member.view:
                    leader.commit(now, signed)
                self.member.commit(signed)
                return True
            case _:
                return False
        if leader is None or (
            message.view != self.member.view and not isinstance(message, Applied)
        ):
            return True
        match message:
            case Join():
                leader.join(now, signed)
            case Have():
                leader.have(now, sender, message)
            case Gram():
                leader.gram(now, sender, message)
            case Result():
                leader.result(now, signed)
            case Confirm():
                leader.confirm(now, signed)
            case Applied():
                leader.applied(sender, message)
        return True

    def _to_member(self, now: float, sender: bytes, signed: Signed, message: AnyMessage) -> None:
        member = self.member
        match message:
            case Propose():
                self._proposed(now, sender, message)
            case Plan():
                self._planned(now, sender, signed)
            case Move():
                member.move(sender, signed)
            case Commits():
                member.commits(message)
            case Close():
                member.close(sender, signed)
            case Weights():
                member.weights(sender, signed)
            case Results():
                member.results(sender, signed)
            case Apply():
                member.apply(sender, message)
            case Abort():
                member.abort(sender, message)
            case Evidence():
                self._evidence(message)
            case MaskMembers():
                if isinstance(member, MaskedMember):
                    member.members(sender, message)
            case MaskAgree() | MaskReveal() | MaskRead():
                if isinstance(member, MaskedMember):
                    member.unmask(sender, message)
            case _:
                pass  # a tick: hearing it was all

    def _proposed(self, now: float, sender: bytes, message: Propose) -> None:
        if sender in self.banned:
            return  # its views pass: patience brings on the next
        before, proposed = self.member.view, self.member.proposed_view
        self.member.propose(sender, message)
        if self.member.proposed_view > proposed:
            # In a view that we entered by ourselves, too: what it finishes is known only now.
            self._view_ends = now + self._opening_s + self._finishing_s
        if self.member.view > before:
            self._heard = now
            self._enter_at = None
            self._says_at = None
            self.leader = None
        elif message.view == self.member.view:
            self._says_at = None

    def _evidence(self, message: Evidence) -> None:
        """Believe two contradicting signatures, if they are that."""
        first = open_signed(message.first, self._setting.signer)
        second = open_signed(message.second, self._setting.signer)
        if message.first.signer != message.second.signer or type(first) is not type(second):
            raise DecodeError("evidence that shows nothing")
        same = (first.federation, first.round, first.view) == (
            second.federation, second.round, second.view,
        )  # fmt: skip
        once = isinstance(first, Plan | Close | Results | Weights | Commit)
        belongs(self._setting, first)
        if not same or not once or message.first.body == message.second.body:
            raise DecodeError("evidence that shows nothing")
        signer = message.first.signer
        if signer not in self.evidence:
            self.evidence[signer] = message
            self.banned.add(signer)
            self._give(Tell("evidence", "signed two contradicting messages", signer))
