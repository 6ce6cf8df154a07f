"""Which handlers this node offers, and to whom.

A peer is shown the handlers that it may use and no others; one that it may not use and one that
does not exist are refused with the same word.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from federated.errors import HandlerError, UsageError
from federated.jobs.config import FRIENDS, OWN
from federated.jobs.handlers.builtin import builtins
from federated.jobs.handlers.expr import Expr
from federated.jobs.handlers.files import files_handlers
from federated.jobs.handlers.llm import Llm
from federated.jobs.handlers.memory import MemorySearch
from federated.jobs.handlers.names import EXPR_ID, LLM_PREFIX
from federated.jobs.handlers.proc import operator_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from federated.jobs.config import JobsConfig
    from federated.jobs.handlers.base import Handler, HandlerInfo, PureHandler
    from federated.jobs.handlers.memory import Search
    from federated.seams import GroupId, TrustClass

log = logging.getLogger("covey.jobs.handlers")

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
        unavailable: what was switched on and cannot be offered, by id, and why.

    Raises:
        UsageError: two have the same id.
    """

    def __init__(
        self,
        offers: Iterable[tuple[AnyHandler, Rule]],
        *,
        named: Callable[[str], GroupId | None],
        unavailable: Mapping[str, str] | None = None,
    ) -> None:
        self.unavailable: Final[Mapping[str, str]] = dict(unavailable or {})
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

    What needs a program or an extra that is not there is not offered, logged, and named in
    `Handlers.unavailable`: the rest of the node is not to suffer from it.
    """
    offers: list[tuple[AnyHandler, Rule]] = [(handler, ANYBODY) for handler in builtins()]
    if search is not None:
        offers.append((MemorySearch(search), ANYBODY))
    files_rule = Rule(groups=frozenset(config.files_groups))
    offers += [(handler, files_rule) for handler in files_handlers(config.files)]
    unavailable: dict[str, str] = {}
    for name, groups, make in _switched_on(config):
        try:
            offers.append((make(), Rule(groups=frozenset(groups))))
        except HandlerError as error:
            unavailable[name] = str(error)
            log.warning("handler_unavailable", extra={"f": {"handler": name, "why": str(error)}})
    return Handlers([*offers, *more], named=named, unavailable=unavailable)


def _switched_on(
    config: JobsConfig,
) -> Iterator[tuple[str, Iterable[str], Callable[[], AnyHandler]]]:
    """What the operator switched on: its id, for whom, and how it is made."""
    for name, program in config.handlers.items():
        yield name, program.groups, partial(operator_handler, name, program)
    for name, model in config.llm.items():
        yield f"{LLM_PREFIX}{name}", model.groups, partial(Llm, name, model)
    if config.expr:
        yield EXPR_ID, config.expr, partial(Expr, slots=slots_of(config))


def slots_of(config: JobsConfig) -> int:
    """Tasks at once on this machine."""
    return config.slots or max(1, (os.cpu_count() or 2) // 2)
