"""`job.retry_gaps`, `feedback`, `answer`, `quarantines`, `lift`: what follows from how it went."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import msgspec
import trio

from daemon.errors import RpcError
from daemon.methods.job_lookup import (
    FINAL,
    JobState,
    find_job,
    group_id,
    job_state,
    with_parent,
)
from daemon.methods.job_submit import Submitted, check_allowed
from daemon.methods.peers import device_names, shown_name
from daemon.rpc.registry import Call, method
from federated.errors import JobError
from federated.jobs.types import JobSpec
from memory.provenance import iso

PREFIX_MIN = 8
"""Hex digits that name an owner or device at least."""


class RetryParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A finished job whose gaps are to be filled.

    Attributes:
        id: the job.
        columns: ask also for rows whose answer lacks one of these, and take these alone.
        rows: ask for these rows alone; what may have acted on the world already is asked only so.
    """

    id: str
    columns: list[str] = []
    rows: list[int] = []


class JobFeedbackParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the caller found of a finished job's answers.

    Attributes:
        id: the job.
        rows_good: indices of rows that are right.
        rows_bad: of those that are wrong: `job.retry_gaps` asks for them again, no later job is
            given their answers.
        rule: a note on the handler that its next plans show, at most 280 characters.
    """

    id: str
    rows_good: list[int] = []
    rows_bad: list[int] = []
    rule: str = ""


class AnswerParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a job that waits for its caller is to do.

    Attributes:
        id: the job.
        executions: go on with so many more.
        stop: end it; what it has stays.
    """

    id: str
    executions: int | None = None
    stop: bool = False


class NoParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Nothing to say."""


class LiftParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whose quarantine ends.

    Attributes:
        who: an owner's or device's key in hex, its beginning, or a device's name.
    """

    who: str


class JobQuarantine(msgspec.Struct, kw_only=True):
    """An owner whose devices are asked for nothing.

    Attributes:
        owner: key, hex.
        handler: what they are not asked for; empty: anything.
        until: ISO 8601.
        times: how often the owner was quarantined, ever; each time it lasts twice as long.
        machines: names of those that were caught.
    """

    owner: str
    handler: str
    until: str
    times: int
    machines: list[str]


class Lifted(msgspec.Struct, kw_only=True):
    """Who is asked again.

    Attributes:
        owner: key, hex.
    """

    owner: str


@method("job.retry_gaps", scope="jobs", mutates=True)
async def retry_gaps(call: Call, p: RetryParams) -> Submitted:
    """Run a finished job again for its missing, disputed and tainted rows; a new job, whole."""
    spec = JobSpec(handler="", rows=[], gaps_of=p.id, gap_columns=p.columns, gap_rows=p.rows)
    spec = await with_parent(call, spec)
    check_allowed(call, spec)
    jobs = call.services.jobs
    ident = await jobs.submit(
        spec,
        agent=call.principal.agent,
        group=group_id(call.services, spec.group),
        idem=None if call.receipt_key is None else f"receipt-{call.receipt_key.hex()}",
    )
    job = jobs.core.job(ident)
    return Submitted(job_id=ident.hex(), state=job.phase if job is not None else "done")


@method("job.feedback", scope="jobs")
async def feedback(call: Call, p: JobFeedbackParams) -> JobState:
    """Say which answers of a finished job are right and wrong, and what to mind the next time."""
    services, found = call.services, await find_job(call, p.id)
    if found.phase not in FINAL:
        raise RpcError("invalid_state", f"the job is {found.phase}: it is not over")
    for k in (*p.rows_good, *p.rows_bad):
        if not 0 <= k < found.rows:
            raise RpcError("invalid_params", f"the job has no row {k}")
    if twice := set(p.rows_good) & set(p.rows_bad):
        raise RpcError("invalid_params", f"row {min(twice)} is called right and wrong")
    if p.rows_bad:
        await services.jobs.journal.call_bad(found.id, sorted(set(p.rows_bad)))
    learn = partial(
        services.jobs.lessons.feedback,
        found.id,
        found.spec.handler,
        agent=call.principal.agent,
        wall_ms=services.env.wall_ms(),
    )
    await learn(rule=p.rule)
    # A job that computed nothing, all being cached, teaches nothing of batches.
    with suppress(JobError):
        await learn(rows_good=len(set(p.rows_good)), rows_bad=len(set(p.rows_bad)))
    return await job_state(services, found)


@method("job.answer", scope="jobs")
async def answer(call: Call, p: AnswerParams) -> JobState:
    """Answer a job that has used up its executions: stop, or how many more it may use."""
    found = await find_job(call, p.id)
    if p.stop == (p.executions is not None):
        raise RpcError("invalid_params", "say `stop`, or how many more executions")
    live = call.services.jobs.core.job(found.id)
    state = (live or found).phase
    if state in FINAL or state != "waiting_input":
        raise RpcError("invalid_state", f"the job is {state}: it waits for no answer")
    if p.stop:
        await call.services.jobs.cancel(found.id)
    else:
        await call.services.jobs.go_on(found.id, p.executions)
    return await job_state(call.services, found)


@method("job.quarantines", scope="jobs")
async def quarantines(call: Call, p: NoParams) -> list[JobQuarantine]:
    """List the owners whose answers turned out wrong and who are asked no more, until when."""
    del p
    services = call.services
    names = await device_names(services)
    return [
        JobQuarantine(
            owner=one.owner.hex(),
            handler=one.handler,
            until=iso(one.until_ms),
            times=one.times,
            machines=[shown_name(names, device, services) for device in one.devices],
        )
        for one in services.jobs.core.board.reputation.quarantines(services.env.wall_ms())
    ]


@method("job.lift", scope="owner")
async def lift(call: Call, p: LiftParams) -> Lifted:
    """Ask an owner's devices again before its quarantine is over; the next one is longer."""
    services = call.services
    names = await device_names(services)
    await trio.lowlevel.checkpoint()
    found = {
        one.owner
        for one in services.jobs.core.board.reputation.quarantines(services.env.wall_ms())
        for key in (one.owner, *one.devices)
        if (len(p.who) >= PREFIX_MIN and key.hex().startswith(p.who.lower()))
        or p.who == shown_name(names, key, services)
    }
    if len(found) != 1:
        raise RpcError(
            "conflict" if found else "not_found",
            f"{'several are' if found else 'nobody is'} quarantined by that name",
            remedy="`covey job quarantine` lists them; give more of the key.",
        )
    owner = found.pop()
    await services.jobs.lift(owner)
    return Lifted(owner=owner.hex())
