"""`job.cancel`, `pause`, `resume`, `purge`: what the caller does to a job that is there."""

from __future__ import annotations

import msgspec

from daemon.errors import RpcError
from daemon.methods.job_lookup import FINAL, JobParams, JobState, find_job, job_state
from daemon.rpc.registry import Call, Tool, method


class ResumeParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job to go on with.

    Attributes:
        id: the job.
        executions: for a job that has used up its executions: how many more.
    """

    id: str
    executions: int | None = None


class Stopped(msgspec.Struct, kw_only=True):
    """What a cancel met.

    Attributes:
        stopped: tasks that ran.
        never_started: tasks that waited at peers.
        unreachable: machines that could not be told; their tasks end with their leases.
    """

    stopped: int
    never_started: int
    unreachable: int


@method(
    "job.cancel",
    scope="jobs",
    mutates=True,
    tool=Tool(
        name="job_cancel",
        destructive=True,
        idempotent=True,
        summary="End a job; its tasks are stopped wherever they are.",
    ),
)
async def cancel(call: Call, p: JobParams) -> Stopped:
    """End a job; its tasks are stopped wherever they are."""
    found = await find_job(call, p.id)
    live = call.services.jobs.core.job(found.id)
    if live is None or live.final:
        return Stopped(stopped=0, never_started=0, unreachable=0)
    told = await call.services.jobs.cancel(found.id)
    return Stopped(
        stopped=told["running"],
        never_started=told["unstarted"],
        unreachable=told["unreachable"],
    )


@method("job.pause", scope="jobs")
async def pause(call: Call, p: JobParams) -> JobState:
    """Hand out no more tasks of a job; its deadline goes on."""
    found = await find_job(call, p.id)
    await call.services.jobs.pause(found.id)
    return await job_state(call.services, found)


@method("job.resume", scope="jobs")
async def resume(call: Call, p: ResumeParams) -> JobState:
    """Go on with a job that was paused, or that asks for more executions."""
    found = await find_job(call, p.id)
    await call.services.jobs.go_on(found.id, p.executions)
    return await job_state(call.services, found)


@method("job.purge", scope="jobs")
async def purge(call: Call, p: JobParams) -> JobState:
    """Remove a finished job with its rows and events."""
    found = await find_job(call, p.id)
    state = await job_state(call.services, found)
    if state.state not in FINAL:
        raise RpcError("invalid_state", f"the job is {state.state}", remedy="Cancel it first.")
    await call.services.jobs.journal.purge(found.id)
    call.services.jobs.core.forget(found.id)
    return state
