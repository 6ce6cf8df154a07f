"""What `covey job plan` prints."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.job_words import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json

WHY_NOT = {
    "not_connected": "not connected",
    "no_session": "connected, but has not said what it computes",
    "not_trusted": "not trusted in this group",
    "no_handler": "does not offer this handler to you",
    "quarantined": "gave wrong answers; not asked for a while",
    "draining": "is stopping",
    "not_pinned": "the rows name other machines",
    "runs_here": "the job runs on this machine alone",
    "runs_elsewhere": "the job runs elsewhere",
}
UNKNOWN = "unknown: no job of this handler has finished here yet"


def show_plan(args: argparse.Namespace, plan: dict[str, Json]) -> int:
    """Print a plan; what peers and agents wrote is cleaned."""
    if args.json:
        out.say_json(plan)
        return 0
    out.say(f"plan {out.text(plan.get('plan_id'))}")
    for name, text in (
        ("rows", _rows(plan)),
        ("executions", _executions(plan)),
        ("time", _time(plan)),
        ("from the cache", _cached(plan)),
    ):
        out.say(f"{name + ':':16}{text}")
    out.say("")
    out.table(
        ["machine", "sees the rows", "why"],
        [_machine(peer) for peer in out.rows(plan.get("peers"))],
    )
    for key, word in (("good", "went well"), ("bad", "went badly")):
        example = plan.get(key)
        if isinstance(example, dict):
            out.say(_example(example, word))
    hints = plan.get("hints")
    for hint in hints if isinstance(hints, list) else []:
        out.say(f"hint: {out.one_line(out.text(hint), 200)}")
    for note in out.rows(plan.get("notes")):
        by = out.text(note.get("by")) or "you"
        number = _count(note.get("id"))
        out.say(
            f"note {number} by {out.clean(by)}: {out.one_line(out.text(note.get('text')), 280)}"
        )
    out.note(f"`covey job run --plan {out.text(plan.get('plan_id'))}` runs it, for an hour.")
    return 0


def drop_note(args: argparse.Namespace, answer: dict[str, Json]) -> int:
    """Print what is left of a note."""
    if args.json:
        out.say_json(answer)
    elif answer.get("score"):
        out.say(f"noted; others want it: {_count(answer.get('score'))} points left")
    else:
        out.say("removed")
    return 0


def _count(value: Json) -> int:
    return int(out.number(value))


def _rows(plan: dict[str, Json]) -> str:
    text = (
        f"{_count(plan.get('rows'))} in {_count(plan.get('tasks'))} tasks of up to"
        f" {_count(plan.get('rows_a_task'))}"
    )
    batch = plan.get("batch")
    return text if not isinstance(batch, dict) else f"{text} ({out.text(batch.get('why'))})"


def _executions(plan: dict[str, Json]) -> str:
    least, most = _count(plan.get("executions_min")), _count(plan.get("executions_max"))
    return f"{least}" if least == most else f"{least} to {most}, as the answers agree"


def _time(plan: dict[str, Json]) -> str:
    seconds = plan.get("seconds")
    if not isinstance(seconds, int | float):
        return UNKNOWN
    shown = f"about {seconds:.1f} s" if seconds >= 0.1 else "under 0.1 s"
    jobs = counted(_count(plan.get("learned_jobs")), "finished job", "finished jobs")
    return f"{shown}, from {jobs}"


def _cached(plan: dict[str, Json]) -> str:
    cached = plan.get("cached_rows")
    return "not looked" if cached is None else f"{_count(cached)} rows"


def _machine(peer: dict[str, Json]) -> list[str]:
    why = out.text(peer.get("why"))
    sees = bool(peer.get("sees"))
    text = f"{_count(peer.get('slots'))} at once" if sees else WHY_NOT.get(why, out.clean(why))
    return [out.clean(out.text(peer.get("machine"))), "yes" if sees else "no", text]


def _example(example: dict[str, Json], word: str) -> str:
    text = (
        f"{word}: {out.text(example.get('job_id'))[:8]}, {_count(example.get('rows'))} rows,"
        f" up to {_count(example.get('size'))} a task,"
        f" {out.number(example.get('right')):.0%} right, {out.number(example.get('seconds')):.1f} s"
    )
    why = out.text(example.get("why"))
    return text + (f", gaps mostly: {out.clean(why)}" if why else "")
