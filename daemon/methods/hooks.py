"""`hooks.*`: what an agent's hooks ask for."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from daemon.agents import MAIN_SCOPE
from daemon.hooks.context import context_text
from daemon.rpc.registry import Call, method
from memory.model import Hit, Query
from memory.store import Filter

HITS_MAX: Final = 5
"""Memories a hook shows for a prompt: guess; the agent can ask for more."""

LOOKED_AT: Final = 30
"""Candidates taken, because those of others are dropped afterwards."""

STANDING_KINDS: Final = ("policy", "preference", "decision", "lesson")
"""What holds for every session of a project, the most binding first."""


class ContextParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What happened in the agent.

    Attributes:
        event: SessionStart, or UserPromptSubmit with its prompt.
        prompt: what the person typed, at most 4 KiB.
    """

    event: Literal["SessionStart", "UserPromptSubmit"]
    prompt: str = ""


class HookContext(msgspec.Struct, kw_only=True):
    """Text for the model, empty when there is nothing to say."""

    text: str


@method("hooks.context", scope="read")
async def context(call: Call, p: ContextParams) -> HookContext:
    """Own memories that fit an event of an agent, quoted for its context."""
    settings = call.services.config.hooks
    if p.event == "SessionStart":
        hits = await _standing(call)
    elif p.prompt.strip():
        query = Query(
            query=p.prompt,
            limit=LOOKED_AT,
            trust_min=settings.trust_min,
            # Those of others take their share of the budget before they are dropped.
            budget_tokens=settings.tokens_max * 4,
        )
        hits = (await call.services.memory.recall(call.context.caller(), query)).hits
    else:
        hits = []
    text = context_text(
        hits,
        call.services.env.rng,
        hits_max=HITS_MAX,
        trust_min=settings.trust_min,
        tokens_max=settings.tokens_max,
    )
    return HookContext(text=text)


async def _standing(call: Call) -> list[Hit]:
    """Policies, preferences, decisions and lessons of the project and of `main`, newest first."""
    caller = call.context.caller()
    places = dict.fromkeys([call.context.project or MAIN_SCOPE, MAIN_SCOPE])
    names = [name for place in places for name in (place, f"private/{place}")]
    scope = [name for name in names if caller.read.everything or name in caller.read.names]
    if not scope:
        return []
    what = Filter(scope=scope, kinds=list(STANDING_KINDS))
    page = await call.services.memory.list(caller, what, limit=LOOKED_AT)
    # The list is newest first, and the sort keeps that within a kind.
    return sorted(page.hits, key=lambda hit: STANDING_KINDS.index(hit.kind))
