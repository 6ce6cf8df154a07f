"""What the typed clients of jobs ask: methods, parameters and the shapes of their answers.

Source: docs/specs/local-rpc.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

import msgspec

from daemon.methods.job import Events, Explained, ResultPage
from daemon.methods.job_after import JobQuarantine, Lifted
from daemon.methods.job_lookup import JobState
from daemon.methods.job_plan import JobPlan
from daemon.methods.job_submit import HandlerRow, Submitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.json_types import Json
    from daemon.methods.job_events import JobEvent
    from federated.jobs.types import JobSpec

T = TypeVar("T")

WAIT_S: Final = 20.0
"""How long the daemon holds one question of a watch."""


@dataclass(frozen=True)
class Ask(Generic[T]):
    """One call: what to send, what comes back, and whether it may be sent twice."""

    method: str
    shape: type[T]
    params: dict[str, object] = field(default_factory=dict)
    twice: bool = True

    def answer(self, found: Json) -> T:
        """What the daemon answered, in its shape."""
        return msgspec.convert(found, self.shape)

    @property
    def json(self) -> dict[str, Json]:
        """The parameters."""
        return cast("dict[str, Json]", self.params)


def submit(spec: JobSpec, key: str | None) -> Ask[Submitted]:
    """`job.submit` of a spec."""
    params: dict[str, object] = {"spec": msgspec.to_builtins(spec)}
    if key is not None:
        params["idempotency_key"] = key
    return Ask("job.submit", Submitted, params, twice=key is not None)


def plan(spec: JobSpec) -> Ask[JobPlan]:
    """`job.plan`."""
    return Ask("job.plan", JobPlan, {"spec": msgspec.to_builtins(spec)})


def planned(plan_id: str, key: str | None) -> Ask[Submitted]:
    """`job.submit` of a plan."""
    params: dict[str, object] = {"plan_id": plan_id}
    if key is not None:
        params["idempotency_key"] = key
    return Ask("job.submit", Submitted, params, twice=key is not None)


def retry(ident: str, columns: Sequence[str], rows: Sequence[int]) -> Ask[Submitted]:
    """`job.retry_gaps`."""
    params: dict[str, object] = {"id": ident, "columns": list(columns), "rows": list(rows)}
    return Ask("job.retry_gaps", Submitted, params, twice=False)


def of(what: str, shape: type[T], ident: str, *, twice: bool = True) -> Ask[T]:
    """A method that takes a job and nothing else."""
    return Ask(f"job.{what}", shape, {"id": ident}, twice)


def resume(ident: str, executions: int | None) -> Ask[JobState]:
    """`job.resume`."""
    return Ask("job.resume", JobState, {"id": ident, "executions": executions}, twice=False)


def feedback(ident: str, good: Sequence[int], bad: Sequence[int], rule: str) -> Ask[JobState]:
    """`job.feedback`."""
    params: dict[str, object] = {
        "id": ident,
        "rows_good": list(good),
        "rows_bad": list(bad),
        "rule": rule,
    }
    return Ask("job.feedback", JobState, params, twice=False)


def answer(ident: str, executions: int | None) -> Ask[JobState]:
    """`job.answer`."""
    params: dict[str, object] = {"id": ident, "executions": executions, "stop": executions is None}
    return Ask("job.answer", JobState, params, twice=False)


QUARANTINES: Final = Ask("job.quarantines", list[JobQuarantine])


def lift(who: str) -> Ask[Lifted]:
    """`job.lift`."""
    return Ask("job.lift", Lifted, {"who": who}, twice=False)


def events(ident: str, since_seq: int) -> Ask[Events]:
    """`job.watch`."""
    return Ask("job.watch", Events, {"id": ident, "since_seq": since_seq, "wait_s": WAIT_S})


def page(ident: str, offset: int, limit: int, *, raw: bool) -> Ask[ResultPage]:
    """`job.result`."""
    params = {"id": ident, "offset": offset, "limit": limit, "raw": raw}
    return Ask("job.result", ResultPage, params)


def row(ident: str, row: int) -> Ask[Explained]:
    """`job.explain`."""
    return Ask("job.explain", Explained, {"id": ident, "row": row})


def list_ask(limit: int) -> Ask[list[JobState]]:
    """`job.list`."""
    return Ask("job.list", list[JobState], {"limit": limit})


def handlers(group: str) -> Ask[list[HandlerRow]]:
    """`job.handlers`."""
    return Ask("job.handlers", list[HandlerRow], {"group": group})


class Seen:
    """How far a watch has come: the events not yet given out, and the number of the last."""

    def __init__(self, since_seq: int) -> None:
        self.last_seq = since_seq
        self.over = False
        self._waiting: list[JobEvent] = []

    def take(self) -> JobEvent | None:
        """The next event; None: ask for more."""
        if not self._waiting:
            return None
        event = self._waiting.pop(0)
        self.last_seq = event.seq
        return event

    def add(self, found: Events) -> None:
        """What an ask brought, once all before it is taken."""
        self._waiting = list(found.events)
        self.over = found.final
