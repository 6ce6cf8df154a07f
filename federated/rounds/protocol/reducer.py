"""Merging the parts of a plan that are ours: fetch, say what is here, products, merge.

One object a plan. Whoever sends us a signed commit has its part fetched; the coordinator says which
senders count and with which coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federated.rounds.protocol.orders import FetchPart, MakeGram, Merge, Send
from federated.rounds.protocol.wire import Close, Gram, Have, Result, packet_of, sign, unsigned

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.protocol.checks import MadePlan, Setting
    from federated.rounds.protocol.orders import GramMade, Merged, Order, PartArrived, PartFailed
    from federated.rounds.protocol.wire import Commit, Message, Signed, Weights

DIAGONAL_RULES = frozenset({"mean", "norm_bounded", "median", "trimmed"})


@dataclass
class _Part:
    number: int
    counter: int
    have: set[bytes] = field(default_factory=set)
    unfit: dict[bytes, str] = field(default_factory=dict)
    fetching: set[bytes] = field(default_factory=set)
    gram: Message | None = None
    gram_wanted: bool = False
    merging: bool = False
    result: Signed | None = None


class Reducing:
    """What a member does as the reducer of parts.

    Args:
        setting: the round's.
        made: the plan.
        give: takes orders.
    """

    def __init__(self, setting: Setting, made: MadePlan, give: Callable[[Order], None]) -> None:
        self._setting = setting
        self._made = made
        self._give = give
        self._commits: dict[bytes, Commit] = {}
        self._parts: dict[int, _Part] = {}
        self._close: Close | None = None
        self._weights: Weights | None = None

    def assign(self, part: int, counter: int) -> None:
        """A part is ours from now on."""
        known = self._parts.get(part)
        if known is None or known.counter < counter:
            self._parts[part] = _Part(part, counter)
            self._fetch_missing(self._parts[part])

    def unassign(self, part: int, counter: int) -> None:
        """A part went to another member."""
        known = self._parts.get(part)
        if known is not None and known.counter < counter:
            del self._parts[part]

    @property
    def counters(self) -> dict[int, int]:
        """Our parts and with which counter each is ours."""
        return {number: part.counter for number, part in self._parts.items()}

    def commit(self, sender: bytes, commit: Commit) -> None:
        """A member says what it will send; its first word holds."""
        if sender in self._made.roster and len(commit.hashes) == len(self._made.plan.parts):
            self._commits.setdefault(sender, commit)
        for part in self._parts.values():
            self._fetch_missing(part)
            self._say_have(part)

    def _fetch_missing(self, part: _Part) -> None:
        for sender, commit in self._commits.items():
            if sender not in part.have | part.fetching and sender not in part.unfit:
                part.fetching.add(sender)
                self._give(
                    FetchPart(self._made.hash, part.number, sender, commit.hashes[part.number])
                )

    def arrived(self, event: PartArrived) -> None:
        """Bytes with the right hash are here."""
        part = self._parts.get(event.part)
        if part is None:
            return
        part.fetching.discard(event.sender)
        if event.unfit:
            part.unfit[event.sender] = event.unfit[:200]
        else:
            part.have.add(event.sender)
        self._say_have(part)
        self._go_on(part)

    def failed(self, event: PartFailed) -> None:
        """Bytes cannot be had now: the next commit, ours or passed on, has them fetched again."""
        part = self._parts.get(event.part)
        if part is not None:
            part.fetching.discard(event.sender)

    def _say_have(self, part: _Part) -> None:
        if part.have or part.unfit:
            unfit = tuple(sorted(part.unfit.items()))
            self._tell(Have(*self._head, part.number, tuple(sorted(part.have)), unfit))

    def close(self, close: Close) -> None:
        """The included set is fixed."""
        self._close = close
        for part in list(self._parts.values()):
            if part.gram is not None:
                self._tell(part.gram)
            else:
                self._go_on(part)

    def weights(self, weights: Weights) -> None:
        """The coefficients are fixed."""
        self._weights = weights
        for part in list(self._parts.values()):
            if part.result is not None:
                self._tell_signed(part.result)
            else:
                self._go_on(part)

    def gram_made(self, event: GramMade) -> None:
        """Products of a part are computed."""
        part = self._parts.get(event.part)
        if part is not None and part.gram is None:
            diagonal = self._setting.rule in DIAGONAL_RULES
            part.gram = Gram(*self._head, part.number, diagonal, event.values)
            self._tell(part.gram)

    def merged(self, event: Merged) -> None:
        """A part is merged."""
        part = self._parts.get(event.part)
        if part is None or part.counter != event.counter or part.result is not None:
            return
        header = Result(*self._head, part.number, part.counter, event.nbytes, event.sha256)
        part.result = sign(self._setting.signer, self._setting.me, header)
        self._tell_signed(part.result)

    def _go_on(self, part: _Part) -> None:
        if self._close is None or not set(self._close.included) <= part.have:
            return
        order = self._close.included
        if self._weights is not None:
            if not part.merging and len(self._weights.coefficients) == len(order) + 1:
                part.merging = True
                coefficients = self._weights.coefficients
                self._give(Merge(self._made.hash, part.number, order, coefficients, part.counter))
        elif self._setting.rule != "sum" and not part.gram_wanted:
            part.gram_wanted = True
            diagonal = self._setting.rule in DIAGONAL_RULES
            self._give(MakeGram(self._made.hash, part.number, order, diagonal))

    @property
    def _head(self) -> tuple[bytes, int, int, bytes]:
        plan = self._made.plan
        return (plan.federation, plan.round, plan.view, self._made.hash)

    def _tell(self, message: Message) -> None:
        self._give(Send(self._made.signed.signer, unsigned(message)))

    def _tell_signed(self, signed: Signed) -> None:
        self._give(Send(self._made.signed.signer, packet_of(signed)))
