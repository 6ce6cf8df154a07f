"""Jobs' own step: work handed to the other machines, while one of them dies and one lies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

import trio
from typing_extensions import override

from daemon.demo.corpus import write_notes
from daemon.demo.hostile import joined_guest
from daemon.demo.steps import field, until
from daemon.mesh_door import MeshDoor
from daemon.wiring import ThreadOffload
from federated.jobs.handlers.builtin import WordCount
from federated.jobs.handlers.registry import ANYBODY, Handlers
from federated.jobs.template import parse_template
from federated.jobs.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from daemon.client import LocalClient
    from daemon.demo.hostile import Guest
    from daemon.demo.machine import Machine
    from daemon.demo.show import Show
    from daemon.json_types import Json
    from federated.jobs.handlers.base import Batch
    from federated.jobs.types import RowOut
    from p2p.env import Env

TEXTS: Final = 4000
JOB_S: Final = 120.0
GROUP: Final = "lab"


class _Lying(WordCount):
    """Counts each word once too often."""

    @override
    def compute(self, batch: Batch) -> Sequence[RowOut]:
        """What an honest peer says, changed in every row."""
        honest = super().compute(batch)
        return [(k, row and _exaggerated(row), reason) for k, row, reason in honest]


def _exaggerated(row: dict[str, object]) -> dict[str, object]:
    pairs = cast("list[list[object]]", row["pairs"])
    return {"pairs": [[word, cast("int", n) + 1] for word, n in pairs]}


async def fan_out(show: Show, env: Env, machines: list[Machine], folder: Path) -> None:
    """Count words on the other machines; one is killed meanwhile, a guest in the group lies."""
    host, _, victim = machines
    show.step(f"{host.name} hands work to the others: one is killed, and a guest lies")
    await host.covey("group", "create", GROUP)
    for other in machines[1:]:
        invite = await host.covey_json("invite", "--no-wait", "--group", GROUP)
        await other.covey_json("join", str(invite["ticket"]), "--yes")
    invite = await host.covey_json("invite", "--no-wait", "--group", GROUP)
    async with joined_guest(env, str(invite["ticket"])) as guest, trio.open_nursery() as nursery:
        worker = _lying_worker(guest, env)
        await nursery.start(worker.run)
        client = await host.connect()
        await until(lambda: _all_members(client, len(machines) + 1))
        rows = _texts(folder / "texts.jsonl")
        spec: dict[str, Json] = {
            "handler": "wordcount@1", "rows": rows, "batch": {"kind": "per_row"}, "group": GROUP,
            "reduce": {"kind": "topk", "n": 5}, "title": "words of the documentation",
        }  # fmt: skip
        began = env.now()
        job = str(field(await client.call("job.submit", {"spec": spec}), "job_id"))
        show.note(f"{len(rows):,} texts of Python's documentation, a task each")
        await until(lambda: _has_begun(client, job))
        victim.kill()
        show.note(f"{victim.name} was killed with tasks in its hands (kill -9)")
        events = await _watched(client, job)
        await _verdicts(show, client, job, events, guest, began)
        await client.aclose()
        nursery.cancel_scope.cancel()
    await victim.covey("up")


def _lying_worker(guest: Guest, env: Env) -> Worker:
    handlers = Handlers([(_Lying(), ANYBODY)], named=lambda _name: None)
    worker = Worker(
        MeshDoor(guest.node, guest.replication, ()), handlers, env, ThreadOffload(), slots=1,
        parse_template=lambda text: parse_template(text, None).render,
    )  # fmt: skip
    worker.register()
    return worker


def _texts(target: Path) -> list[Json]:
    write_notes(target, notes_max=TEXTS)
    lines = target.read_text(encoding="utf-8").splitlines()
    return [{"text": json.loads(line)["text"]} for line in lines]


async def _all_members(client: LocalClient, count: int) -> bool:
    groups = cast("list[Json]", await client.call("group.list"))
    return any(field(g, "name") == GROUP and field(g, "members") == count for g in groups)


async def _has_begun(client: LocalClient, job: str) -> bool:
    status = await client.call("job.status", {"id": job})
    return len(cast("dict[str, Json]", field(status, "peers") or {})) > 2


async def _watched(client: LocalClient, job: str) -> list[Json]:
    """All events of a job until it is over."""
    found: list[Json] = []
    since: Json = 0
    with trio.move_on_after(JOB_S):
        while True:
            answer = await client.call("job.watch", {"id": job, "since_seq": since, "wait_s": 10})
            found += cast("list[Json]", field(answer, "events") or [])
            since = field(answer, "last_seq")
            if field(answer, "final"):
                break
    return found


async def _verdicts(
    show: Show, client: LocalClient, job: str, events: list[Json], guest: Guest, began: float
) -> None:
    status = await client.call("job.status", {"id": job})
    counts = cast("dict[str, Json]", field(status, "by_state") or {})
    show.check(
        f"the table is complete: {counts.get('ok')} rows, none missing",
        field(status, "state") == "done" and counts.get("ok") == field(status, "rows"),
        began,
    )
    caught = [
        str(field(event, "data", "owner")) for event in events
        if field(event, "name") == "quarantine"
    ]  # fmt: skip
    show.check(
        f"the liar is named and asked no more: {bytes(guest.identity.id).hex()[:16]}…",
        caught == [bytes(guest.identity.id).hex()],
    )
    result = await client.call("job.result", {"id": job})
    top = cast("list[Json]", field(result, "reduced") or [])
    said = ", ".join(f"{field(row, 'key')} {field(row, 'sum')}" for row in top)
    show.note(f"most frequent words: {said}")
    show.check("and the counts are those of a computation here", await _same_here(client, job, top))


async def _same_here(client: LocalClient, job: str, top: list[Json]) -> bool:
    """Whether the same job on this machine alone has the same result."""
    rows: list[Json] = []
    offset: Json = 0
    while offset is not None:
        page = await client.call(
            "job.result",
            {"id": job, "offset": offset, "limit": 1000, "raw": True},
        )
        rows += [field(row, "source") for row in cast("list[Json]", field(page, "rows"))]
        offset = field(page, "next")
    spec: dict[str, Json] = {
        "handler": "wordcount@1", "rows": rows, "engine": "local",
        "reduce": {"kind": "topk", "n": 5},
    }  # fmt: skip
    again = str(field(await client.call("job.submit", {"spec": spec}), "job_id"))
    await _watched(client, again)
    return field(await client.call("job.result", {"id": again}), "reduced") == top
