"""Which handlers this node offers, and to whom.

A peer is shown the handlers that it may use and no others; one that it may not use and one that
does not exist are refused with the same word.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from federated.errors import HandlerError, UsageError
from federated.jobs.config import FRIENDS, OWN
from federated.jobs.handlers.builtin import builtins
from federated.jobs.handlers.expr import Expr
from federated.jobs.handlers.files import files_handlers
from federated.jobs.handlers.memory import MemorySearch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from federated.jobs.config import JobsConfig
    from federated.jobs.handlers.base import Handler, HandlerInfo, PureHandler
    from federated.jobs.handlers.memory import Search
    from federated.seams import GroupId, TrustClass

AnyHandler: TypeAlias = "Handler | PureHandler"

# Seconds that handlers get to end what they keep.
CLOSE_S: Final = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Who may use a handler.

    Attributes:
        anybody: all that are somebody to us in the group they ask in.
        groups: else `own` devices, `friends`, and members of the groups named.
    """

    anybody: bool = False
    groups: frozenset[str] = frozenset()

    def allows(
        self, trust: TrustClass, group: GroupId | None, named: Callable[[str], GroupId | None]
    ) -> bool:
        """Whether a peer that is `trust` to us in `group` may.

        Args:
            trust: `none` never may.
            group: the job's; None: between own devices.
            named: the group that the operator calls so on this node.
        """
        if trust == "none":
            return False
        if self.anybody:
            return True
        if trust == "own" and OWN in self.groups:
            return True
        if trust == "friend" and FRIENDS in self.groups:
            return True
        if group is None:
            return False
        return any(named(name) == group for name in self.groups - {OWN, FRIENDS})


ANYBODY: Final = Rule(anybody=True)


class Handlers:
    """The handlers of this node.

    Args:
        offers: each handler with who may use it.
        named: the group that the operator calls so on this node; None: there is none (yet).

    Raises:
        UsageError: two have the same id.
    """

    def __init__(
        self,
        offers: Iterable[tuple[AnyHandler, Rule]],
        *,
        named: Callable[[str], GroupId | None],
    ) -> None:
        self._offers: dict[str, tuple[AnyHandler, Rule]] = {}
        self._named = named
        for handler, rule in offers:
            if handler.info.id in self._offers:
                raise UsageError(f"two handlers are called {handler.info.id}")
            self._offers[handler.info.id] = (handler, rule)

    def offered_to(self, trust: TrustClass, group: GroupId | None) -> list[HandlerInfo]:
        """What such a peer may use, ascending by id."""
        return [
            handler.info
            for _, (handler, rule) in sorted(self._offers.items())
            if rule.allows(trust, group, self._named)
        ]

    def get(self, handler: str, trust: TrustClass, group: GroupId | None) -> AnyHandler:
        """The handler `handler` for such a peer.

        Raises:
            HandlerError: `policy`: there is none, or not for this peer; it is not told which.
        """
        found = self._offers.get(handler)
        if found is None or not found[1].allows(trust, group, self._named):
            raise HandlerError("policy")
        return found[0]

    def own(self, handler: str) -> HandlerInfo | None:
        """What this node itself says of a handler; None: it has none of that id."""
        found = self._offers.get(handler)
        return found[0].info if found else None

    async def aclose(self) -> None:
        """End what the handlers keep, in `CLOSE_S` seconds."""
        with trio.move_on_after(CLOSE_S, shield=True):
            async with trio.open_nursery() as nursery:
                for handler, _ in self._offers.values():
                    if not hasattr(handler, "compute"):
                        nursery.start_soon(handler.aclose)


def build_handlers(
    config: JobsConfig,
    *,
    search: Search | None,
    named: Callable[[str], GroupId | None],
    more: Sequence[tuple[AnyHandler, Rule]] = (),
) -> Handlers:
    """The handlers that `config` asks for.

    Args:
        config: what the operator switched on.
        search: this node's memory; None: it offers no search.
        named: the group that the operator calls so on this node.
        more: others, from elsewhere.

    Raises:
        HandlerError: `unavailable`: one needs an extra that is not installed; the message says
            which.
    """
    offers: list[tuple[AnyHandler, Rule]] = [(handler, ANYBODY) for handler in builtins()]
    if search is not None:
        offers.append((MemorySearch(search), ANYBODY))
    files_rule = Rule(groups=frozenset(config.files_groups))
    offers += [(handler, files_rule) for handler in files_handlers(config.files)]
    if config.expr:
        offers.append((Expr(slots=slots_of(config)), Rule(groups=frozenset(config.expr))))
    return Handlers([*offers, *more], named=named)


def slots_of(config: JobsConfig) -> int:
    """Tasks at once on this machine."""
    return config.slots or max(1, (os.cpu_count() or 2) // 2)
