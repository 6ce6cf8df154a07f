"""`job.handlers`, `job.submit`: what there is to compute with, and work handed to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
import trio

from daemon.errors import RpcError
from daemon.methods.job_lookup import find_job, group_id, with_parent
from daemon.methods.peers import device_names, find_peer, shown_name
from daemon.rpc.registry import Call, Tool, method
from federated.jobs.plan import PIN
from federated.jobs.types import Collect, Column, Count, JobSpec, Reduce, RowsRef, Sum, TopK
from p2p.identity import PeerId

if TYPE_CHECKING:
    from daemon.services import Services

AGENT_PRIORITY_MAX: Final = 6
"""Agents choose up to here; what is above is the person's (tasks.md s.5)."""


class SubmitParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job to run: a spec, or the plan that was made of one.

    Attributes:
        spec: the job; see docs/guides/jobs.md.
        plan_id: of job.plan: runs exactly that, or fails with conflict, `plan_changed`.
        idempotency_key: the same key and spec name the same job however often it is sent.
    """

    spec: JobSpec | None = None
    plan_id: str | None = None
    idempotency_key: str | None = None


class JobTool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job as an agent writes it.

    Attributes:
        handler: such as wordcount@1 or memory.search@1.
        rows: the input; `@peer` in a row names its machine.
        columns: cells each answer must have.
        template: text with {{column}}.
        reduce: of the answers.
        top: for topk.
        group: who may see the rows.
        params: for the handler.
        effect: once: it acts on the world.
    """

    handler: str = ""
    rows: list[dict[str, object]] = []
    columns: list[str] = []
    template: str | None = None
    reduce: Literal["collect", "count", "sum", "topk"] = "collect"
    top: int = 20
    group: str = "own"
    params: dict[str, object] = {}
    effect: Literal["none", "once"] = "none"


class SubmitTool(JobTool, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job as an agent asks for it: handler and rows, or a plan.

    Attributes:
        handler: such as wordcount@1 or memory.search@1.
        rows: the input; `@peer` in a row names its machine.
        columns: cells each answer must have.
        template: text with {{column}}.
        reduce: of the answers.
        top: for topk.
        group: who may see the rows.
        params: for the handler.
        effect: once: it acts on the world.
        plan_id: of job_plan, alone.
        gaps_of: a finished job: fill its gaps.
    """

    plan_id: str | None = None
    gaps_of: str | None = None


def spec_of(tool: JobTool) -> JobSpec:
    """The job an agent wrote.

    Raises:
        RpcError: invalid_params: it names no handler.
    """
    if not tool.handler:
        raise RpcError("invalid_params", "handler: name one, such as wordcount@1")
    kinds: dict[str, Reduce] = {
        "collect": Collect(),
        "count": Count(),
        "sum": Sum(),
        "topk": TopK(n=tool.top),
    }
    return JobSpec(
        handler=tool.handler,
        rows=tool.rows,
        columns=[Column(name=name) for name in tool.columns],
        template=tool.template,
        reduce=kinds[tool.reduce],
        group=tool.group,
        params=tool.params,
        effect=tool.effect,
    )


def _submit_params(tool: msgspec.Struct) -> SubmitParams:
    assert isinstance(tool, SubmitTool)
    if tool.plan_id:
        return SubmitParams(plan_id=tool.plan_id)
    if tool.gaps_of:
        return SubmitParams(spec=JobSpec(handler="", rows=[], gaps_of=tool.gaps_of))
    return SubmitParams(spec=spec_of(tool))


class Submitted(msgspec.Struct, kw_only=True):
    """A job that is on disk.

    Attributes:
        job_id: hex.
        state: its state now.
    """

    job_id: str
    state: str


class HandlersParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whose handlers.

    Attributes:
        group: `own` devices, or the name of a group.
    """

    group: str = "own"


class HandlerRow(msgspec.Struct, kw_only=True):
    """A handler this machine offers.

    Attributes:
        id: `name@version`.
        kind: named, memory, llm or expr.
        deterministic: whether equal rows have equal answers.
        local: whether the answer depends on the machine.
        effect: whether it acts on the world.
        summary: what it does.
    """

    id: str
    kind: str
    deterministic: bool
    local: bool
    effect: bool
    summary: str


async def peer_names(services: Services, spec: JobSpec) -> dict[str, PeerId]:
    """The devices that the rows name in `@peer`.

    Raises:
        RpcError: not_found or conflict, naming the cell.
    """
    found: dict[str, PeerId] = {}
    if isinstance(spec.rows, RowsRef):
        for ident, known in (await device_names(services)).items():
            found[known] = found[ident.hex()] = PeerId(ident)
        for ours in ("self", services.config.node.name, bytes(services.device).hex()):
            found[ours] = services.device
        return found
    for row in spec.rows:
        name = row.get(PIN)
        if isinstance(name, str) and name not in found:
            if name in {"self", services.config.node.name, bytes(services.device).hex()}:
                found[name] = services.device
            else:
                peer = await find_peer(services, name)
                found[name] = PeerId(bytes.fromhex(peer.node_id))
    return found


@method("job.handlers", scope="jobs")
async def handlers(call: Call, p: HandlersParams) -> list[HandlerRow]:
    """List what this machine can compute for itself and others."""
    await trio.lowlevel.checkpoint()
    group = group_id(call.services, p.group)
    return [
        HandlerRow(
            id=info.id,
            kind=info.kind,
            deterministic=info.deterministic,
            local=info.local,
            effect=info.effect,
            summary=info.summary,
        )
        for info in call.services.jobs.handlers.offered_to("own", group)
    ]


async def referred(call: Call, spec: JobSpec) -> JobSpec:
    """A spec whose rows the caller may read, where they stand elsewhere.

    Raises:
        RpcError: not_found for a job of another agent's; forbidden for blobs without their scope.
    """
    if not isinstance(spec.rows, RowsRef):
        return spec
    if spec.rows.blob is not None and not call.principal.allows("share"):
        raise RpcError(
            "forbidden", "this agent may not read blobs", remedy="Give it a token with share."
        )
    if spec.rows.job is not None and spec.rows.blob is None:
        found = await find_job(call, spec.rows.job)
        return msgspec.structs.replace(spec, rows=RowsRef(job=found.id.hex()))
    return spec


@method(
    "job.submit",
    scope="jobs",
    mutates=True,
    tool=Tool(
        name="job_submit",
        open_world=True,
        summary=(
            "Have the rows of a table computed by the user's other machines with a named handler."
            " Answers an id at once; job_status and job_result follow."
        ),
        arguments=SubmitTool,
        adapt=_submit_params,
    ),
)
async def submit(call: Call, p: SubmitParams) -> Submitted:
    """Run a job; it is on disk before the answer and goes on whatever becomes of this call."""
    services, jobs = call.services, call.services.jobs
    spec, ident_of_plan = p.spec, b""
    # A repeated request must not start a second job: its receipt's key names the first.
    again = None if call.receipt_key is None else f"receipt-{call.receipt_key.hex()}"
    idem = p.idempotency_key or again
    if p.plan_id is not None:
        ident_of_plan = _plan_id(p.plan_id, spec)
        spec = jobs.planner.find(ident_of_plan, call.principal.agent).spec
    if spec is None:
        raise RpcError("invalid_params", "give a spec, or the plan_id of one")
    spec = await referred(call, await with_parent(call, spec))
    check_allowed(call, spec)
    named = await peer_names(services, spec)
    if ident_of_plan:
        names = await device_names(services)
        ident = await jobs.submit_plan(
            ident_of_plan,
            agent=call.principal.agent,
            idem=idem,
            find_peer=named.get,
            name=lambda peer: shown_name(names, bytes(peer), services),
        )
    else:
        ident = await jobs.submit(
            spec,
            agent=call.principal.agent,
            group=group_id(services, spec.group),
            idem=idem,
            find_peer=named.get,
        )
    job = jobs.core.job(ident)
    return Submitted(job_id=ident.hex(), state=job.phase if job is not None else "done")


def _plan_id(text: str, spec: JobSpec | None) -> bytes:
    if spec is not None:
        raise RpcError("invalid_params", "give a spec or a plan_id, not both")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise RpcError("invalid_params", "plan_id: not hex") from None


def check_allowed(call: Call, spec: JobSpec) -> None:
    """Whether the caller may run such a job.

    Raises:
        RpcError: forbidden.
    """
    if not call.principal.is_owner and spec.priority > AGENT_PRIORITY_MAX:
        raise RpcError("forbidden", f"an agent's jobs have at most priority {AGENT_PRIORITY_MAX}")
    if spec.group != "own" and not call.principal.covers(f"jobs:submit:{spec.group}"):
        raise RpcError(
            "forbidden",
            f"this agent may not show rows to the group {spec.group}",
            remedy=f"Give it a token with jobs:submit:{spec.group}.",
        )
