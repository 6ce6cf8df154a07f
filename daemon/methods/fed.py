"""`fed.*`: ask everybody's data without collecting it, and look at the rounds that answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from daemon.errors import RpcError
from daemon.methods.group import find_group
from daemon.methods.peers import device_names, shown_name
from daemon.rpc.registry import Call, method
from federated.errors import RoundError, UsageError
from federated.rounds.statistics.answers import Histogram, Mean, Quantiles

if TYPE_CHECKING:
    from daemon.services import Services
    from federated.rounds.history import RoundReport

VALUES_MAX: Final = 500_000
LIMIT_MAX: Final = 200
PREFIX_MIN: Final = 6
ERROR_OF: Final = {
    "nobody": "aborted",
    "plain_refused": "refused",
    "no_masks": "refused",
    "below_quorum": "aborted",
    "timeout": "aborted",
    "unread": "unread",
    "busy": "invalid_state",
    "too_few": "invalid_state",
    "unknown": "not_found",
    "stale": "conflict",
    "differs": "conflict",
}
"""Names of the error table for the reasons of `RoundError`."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class StatParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A question to the data of several machines; who asks the same takes part with its own data.

    Attributes:
        kind: what is asked.
        values: this machine's data, at most 500,000 numbers; only sums of them leave it.
        weights: for a mean: one a value.
        name: what is asked about; calls meet when kind, name and the arguments below are equal.
        group: whose machines; none: your own.
        edges: of a histogram: ascending.
        q: of quantiles: shares between 0 and 1.
        bounds: of quantiles: between which values they are looked for.
        expected: machines to wait for; 0: begin when nobody new comes.
        wait_s: how long to wait for them.
        timeout_s: how long the round itself may take.
        privacy: masked: nobody sees another machine's sums, or there is no answer; plain: who adds
            up sees them; auto: masked where machines of four owners or more meet.
        allow_plain: let machines of several owners see each other's sums, where masks cannot be.
        epsilon: noise for privacy: refused, because nothing keeps account of it yet.
    """

    kind: Literal["mean", "histogram", "quantiles"]
    values: list[float]
    weights: list[float] | None = None
    name: str = ""
    group: str | None = None
    edges: list[float] = []
    q: list[float] = []
    bounds: tuple[float, float] | None = None
    expected: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    wait_s: Seconds = 60.0
    timeout_s: Seconds = 60.0
    privacy: Literal["auto", "plain", "masked"] = "auto"
    allow_plain: bool = False
    epsilon: float | None = None


class RoundMember(msgspec.Struct, kw_only=True):
    """How a machine fared in a round.

    Attributes:
        peer: its id.
        machine: its name.
        status: included, late, lost or rejected.
        reason: why, unless it is included.
        arrival_s: when its data was announced, after the plan; -1: never.
        norm: size of its update; 0 in statistics.
        weight: as it claimed.
    """

    peer: str
    machine: str
    status: str
    reason: str
    arrival_s: float
    norm: float
    weight: float


class RoundPart(msgspec.Struct, kw_only=True):
    """A part of the data and who merged it.

    Attributes:
        part: its number.
        reducer: the machine that was to merge it.
        standby: the machine that would have.
        count: numbers in it.
        nbytes: bytes that each member sent for it.
    """

    part: int
    reducer: str
    standby: str
    count: int
    nbytes: int


class RoundInfo(msgspec.Struct, kw_only=True):
    """A round as this machine saw it.

    Attributes:
        id: hex.
        group: its name; empty: your own machines.
        kind: mean, histogram, quantiles or model.
        name: what was asked about, or the model.
        number: of the model's rounds; 1 in statistics.
        began_ms: Unix milliseconds.
        seconds: how long it took here.
        outcome: applied or failed.
        reason: why it failed.
        attempts: why earlier attempts ended.
        root: hash of the result, equal at all members.
        view: how many coordinators before this one were given up.
        rule: how rows were merged.
        codec: how they travelled.
        deadline_s: D: until when data was waited for.
        clip: norms above it were shortened; 0: none.
        privacy: masked: nobody saw another machine's data, only their sum; plain: who merged did.
        threshold: masked: how many machines had to agree to the sum.
        metrics: figures of this machine, such as loss.
        members: how each machine fared.
        parts: who merged what.
    """

    id: str
    group: str
    kind: str
    name: str
    number: int
    began_ms: int
    seconds: float
    outcome: str
    reason: str
    attempts: list[str]
    root: str
    view: int
    rule: str
    codec: str
    deadline_s: float
    clip: float
    privacy: str
    threshold: int
    metrics: dict[str, float]
    members: list[RoundMember]
    parts: list[RoundPart]


class StatResult(msgspec.Struct, kw_only=True):
    """An answer; exactly one of the first three is given.

    Attributes:
        mean: of a mean.
        histogram: of a histogram.
        quantiles: of quantiles.
        round: how it came about.
    """

    mean: Mean | None = None
    histogram: Histogram | None = None
    quantiles: Quantiles | None = None
    round: RoundInfo


class HistoryParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which rounds.

    Attributes:
        group: of this group; none: all.
        name: of this model or question.
        limit: at most 200.
    """

    group: str | None = None
    name: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)] = 20


class ExplainParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A round by its id, or the beginning of it."""

    id: str


@method("fed.stat", scope="rounds")
async def stat(call: Call, p: StatParams) -> StatResult:
    """Ask the same question on several machines; each answers with sums of its own data alone."""
    if p.epsilon is not None:
        raise RpcError(
            "refused",
            "noise is claimed by nobody here: there is no ledger yet that would charge a privacy"
            " budget for it, and epsilon without one means nothing",
            remedy="Leave epsilon out; masks (--privacy masked) hide each machine's sums without"
            " it, but not the answer.",
        )
    if len(p.values) > VALUES_MAX:
        raise RpcError(
            "too_large",
            f"{len(p.values)} values: at most {VALUES_MAX} a call",
            data={"limit": VALUES_MAX},
        )
    from daemon.fed_questions import Question

    services = call.services
    group = None if p.group is None else find_group(services, p.group)
    try:
        asked = await services.rounds.offload.run(lambda: Question(p, group))
    except UsageError as error:
        raise RpcError("invalid_params", str(error)) from None
    try:
        total = await services.rounds.total(asked.ask, asked.vector)
        found = asked.answer(total)
    except RoundError as error:
        raise RpcError(ERROR_OF[error.reason], str(error), data={"reason": error.reason}) from None
    except UsageError as error:
        raise RpcError("aborted", str(error)) from None
    return _stat_result(found, await round_info(services, total.report))


def _stat_result(found: Mean | Histogram | Quantiles, info: RoundInfo) -> StatResult:
    match found:
        case Mean():
            return StatResult(mean=found, round=info)
        case Histogram():
            return StatResult(histogram=found, round=info)
        case Quantiles():
            return StatResult(quantiles=found, round=info)


@method("fed.history", scope="rounds")
async def history(call: Call, p: HistoryParams) -> list[RoundInfo]:
    """Rounds that this machine took part in, newest first."""
    group = None if p.group is None else find_group(call.services, p.group).hex()
    reports = await call.services.rounds.history.last(group=group, name=p.name, limit=p.limit)
    return [await round_info(call.services, report) for report in reports]


@method("fed.explain", scope="rounds")
async def explain(call: Call, p: ExplainParams) -> RoundInfo:
    """Who was included in a round, late, lost or rejected, and why."""
    wanted = p.id.lower()
    if len(wanted) < PREFIX_MIN:
        raise RpcError("invalid_params", f"give at least {PREFIX_MIN} digits of the round's id")
    found = await call.services.rounds.history.find(wanted)
    if not found:
        raise RpcError("not_found", "no round of that id", remedy="`covey fed history` lists them.")
    if len(found) > 1 and found[0].id != wanted:
        raise RpcError("conflict", "several rounds begin so: give more digits")
    return await round_info(call.services, found[0])


async def round_info(services: Services, report: RoundReport) -> RoundInfo:
    """A round, with machines and groups by their names."""
    names = await device_names(services)
    groups = {view.group.hex(): view.name for view in services.replication.groups()}

    def machine(peer: str) -> str:
        return shown_name(names, bytes.fromhex(peer), services)

    return RoundInfo(
        id=report.id,
        group=groups.get(report.group, report.group[:16]),
        kind=report.kind,
        name=report.name,
        number=report.number,
        began_ms=report.began_ms,
        seconds=report.seconds,
        outcome=report.outcome,
        reason=report.reason,
        attempts=report.attempts,
        root=report.root,
        view=report.view,
        rule=report.rule,
        codec=report.codec,
        deadline_s=report.deadline_s,
        clip=report.clip,
        privacy=report.privacy,
        threshold=report.threshold,
        metrics=report.metrics,
        members=[
            RoundMember(
                peer=one.peer, machine=machine(one.peer), status=one.status, reason=one.reason,
                arrival_s=one.arrival_s, norm=one.norm, weight=one.weight,
            )
            for one in report.members
        ],
        parts=[
            RoundPart(
                part=one.part, reducer=machine(one.reducer), standby=machine(one.standby),
                count=one.count, nbytes=one.nbytes,
            )
            for one in report.parts
        ],
    )  # fmt: skip
