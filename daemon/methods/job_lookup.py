"""A job of the caller's by its id, and how far it is, as every `job.*` method tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from daemon.errors import RpcError
from daemon.methods.group import find_group
from daemon.methods.peers import device_names, shown_name
from federated.jobs.cache import CACHED
from federated.jobs.state import RowState
from federated.jobs.tainting import SUSPECT
from federated.jobs.types import JobId

if TYPE_CHECKING:
    from daemon.rpc.registry import Call
    from daemon.services import Services
    from federated.jobs.journal import Finished
    from federated.jobs.state import Job
    from federated.jobs.types import JobSpec

LIST_LIMIT_MAX: Final = 200
FINAL: Final = frozenset({"done", "failed", "cancelled", "expired"})


class JobParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job by its id, or the beginning of it."""

    id: str


class JobState(msgspec.Struct, kw_only=True):
    """A job and how far it is.

    Attributes:
        id: hex.
        title: for people.
        handler: what computes it.
        group: who may see its rows.
        agent: who submitted it; empty for the person.
        state: queued, running, paused, waiting_input, reducing, done, failed, cancelled, expired.
        reason: why it waits or failed.
        rows: how many.
        by_state: rows pending, ok, missing and disputed.
        cached: rows whose answer an earlier job gave.
        tainted: answered rows whose owners were quarantined since, or that the caller calls bad.
        executions: attempts so far.
        at_peers: tasks that are at peers now.
        peers: answered rows by machine.
        submitted_ms: Unix milliseconds.
        finished_ms: likewise; 0 while it runs.
    """

    id: str
    title: str
    handler: str
    group: str
    agent: str
    state: str
    reason: str
    rows: int
    by_state: dict[str, int]
    cached: int
    tainted: int
    executions: int
    at_peers: int
    peers: dict[str, int]
    submitted_ms: int
    finished_ms: int


def group_id(services: Services, name: str) -> bytes | None:
    """The group a name stands for; None for the user's own devices.

    Raises:
        RpcError: not_found.
    """
    return None if name == "own" else find_group(services, name)


async def find_job(call: Call, text: str) -> Finished:
    """A job of the caller's by its id or the beginning of it.

    Raises:
        RpcError: not_found, also for another agent's job; conflict for a prefix of several.
    """
    agent = None if call.principal.is_owner else call.principal.agent
    jobs = call.services.jobs
    try:
        exact = bytes.fromhex(text)
    except ValueError:
        exact = b""
    found = await jobs.journal.job(JobId(exact)) if len(exact) == 16 else None
    if found is None and len(text) >= 4:
        near = [one for one in await jobs.journal.jobs(agent, LIST_LIMIT_MAX)
                if one.id.hex().startswith(text.lower())]  # fmt: skip
        if len(near) > 1:
            raise RpcError("conflict", "several jobs begin so: give more digits")
        found = near[0] if near else None
    if found is None or (agent is not None and found.agent != agent):
        raise RpcError("not_found", "no such job", remedy="`covey job list` shows them.")
    return found


async def with_parent(call: Call, spec: JobSpec) -> JobSpec:
    """A spec with the whole id of the job whose gaps it fills; without a handler, as that job's.

    Raises:
        RpcError: not_found, conflict: of `find_job`.
    """
    if spec.gaps_of is None:
        return spec
    found = await find_job(call, spec.gaps_of)
    return msgspec.structs.replace(
        spec if spec.handler else found.spec,
        rows=spec.rows,
        gaps_of=found.id.hex(),
        gap_columns=spec.gap_columns,
        gap_rows=spec.gap_rows,
    )


def group_name(services: Services, group: bytes | None) -> str:
    """The inverse of `group_id`, for people."""
    if group is None:
        return "own"
    names = {view.group: view.name for view in services.replication.groups()}
    return names.get(group, group.hex()[:16])


async def job_state(services: Services, found: Finished) -> JobState:
    """How far a job is: from memory while it lives, else from the journal."""
    live = services.jobs.core.job(found.id)
    if live is not None:
        counts = {state.name.lower(): live.counts[state] for state in RowState}
    else:
        counts = await services.jobs.journal.counts(found.id)
    marks = await services.jobs.journal.marks(found.id)
    names = await device_names(services)
    return JobState(
        id=found.id.hex(),
        title=found.title,
        handler=found.spec.handler,
        group=group_name(services, found.group),
        agent=found.agent,
        state=(live or found).phase,
        reason=(live or found).reason,
        rows=found.rows,
        by_state=counts,
        cached=marks.get(CACHED, 0),
        tainted=sum(marks.get(reason, 0) for reason in SUSPECT),
        executions=(live or found).executions,
        at_peers=0 if live is None else len(live.live),
        peers=_by_machine(services, names, live),
        submitted_ms=found.submitted_ms,
        finished_ms=found.finished_ms if live is None else live.finished_ms,
    )


def _by_machine(services: Services, names: dict[bytes, str], live: Job | None) -> dict[str, int]:
    if live is None:
        return {}
    return {
        shown_name(names, bytes(peer), services): count
        for peer, count in sorted(live.peers.items())
    }
