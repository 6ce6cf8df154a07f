"""Which handlers an engine can compute: built-ins, and operators' functions by their name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.jobs.engines.crew import Portable, without_effects
from federated.jobs.engines.tasks import Code
from federated.jobs.handlers.builtin import builtins

if TYPE_CHECKING:
    from federated.jobs.worker import Offers


def portable_handlers(handlers: Offers) -> dict[str, Portable]:
    """Those of this node's handlers that an engine can compute, by id.

    What depends on this machine (files, memory, a model's endpoint) or acts on the world is none.
    """
    known = {handler.info.id for handler in builtins()}
    found: dict[str, Portable] = {}
    for info in handlers.offered_to("own", None):
        function = getattr(handlers.get(info.id, "own", None), "function", None)
        if isinstance(function, str):
            found[info.id] = Portable(info, Code(run=function))
        elif info.id in known:
            found[info.id] = Portable(info, Code(builtin=info.id))
    return without_effects(found)
