"""What happened to a job, in words for a person: one line an event."""

from __future__ import annotations

from daemon.cli import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.json_types import Json

BAR = 30
NAME_WIDTH = 40
WHY = {
    "no_eligible_peer": (
        "no machine that is up offers the handler to you;"
        " `covey job handlers` there shows what it offers, `covey peers` who is up"
    ),
    "no_row_ok": "no row got an answer",
    "deadline": "its time was over",
    "executions": "it has used the executions it was given; `covey job resume ID --executions N`",
}
"""Reasons of a job that a person should not have to look up."""


def event_line(event: dict[str, Json]) -> str:
    """An event of `job.watch` as a line."""
    data = out.mapping(event.get("data"))
    match event.get("name"):
        case "progress":
            return _progress(data)
        case "state":
            return _state(data)
        case "gap":
            return f"row {_number(data, 'k')} has no answer: {_word(data.get('reason'))}"
        case "conflict":
            claims = [_word(claim.get("machine")) for claim in out.rows(data.get("claims"))]
            column = f", column {_word(data.get('column'))}" if data.get("column") else ""
            who = ", ".join(claims)
            return f"row {_number(data, 'k')}{column}: {who} do not all say the same"
        case "quarantine":
            names = data.get("machines")
            who = ", ".join(_word(name) for name in names) if isinstance(names, list) else ""
            again = counted(_number(data, "reopened"), "row is", "rows are")
            return f"{who} answered wrongly and is asked no more; {again} open again"
        case "peer_lost":
            return f"the connection to {_word(data.get('machine'))} is lost"
        case "reopened":
            return f"row {_number(data, 'k')} is open again"
        case name:
            words = " ".join(f"{key}={_word(str(value))}" for key, value in data.items())
            return f"{out.text(name)} {words}"


def counted(n: int, one: str, many: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{n} {one if n == 1 else many}"


def unknown_words(n: int) -> str:
    """What `outcome_unknown` means for so many rows, and what to do."""
    return (
        f"outcome_unknown: {counted(n, 'row', 'rows')} may have taken effect or not;"
        " nobody runs them again: look where it would show before you start them anew"
    )


def cached_of(data: dict[str, Json]) -> str:
    """`12 of 40 rows from the cache`, of what an event or a status says; empty if none are."""
    if not data.get("cached"):
        return ""
    rows = sum(int(out.number(data.get(key))) for key in ("pending", "ok", "missing", "disputed"))
    return f"{int(out.number(data.get('cached')))} of {rows} rows from the cache"


def _progress(data: dict[str, Json]) -> str:
    rows, done = _number(data, "rows"), _number(data, "done")
    filled = BAR * done // max(1, rows)
    at_peers = counted(_number(data, "at_peers"), "task", "tasks")
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{rows} rows, {at_peers} at peers"


def _state(data: dict[str, Json]) -> str:
    reason = out.text(data.get("reason"))
    counts = ", ".join(
        f"{_number(data, key)} {key}" for key in ("ok", "missing", "disputed") if data.get(key)
    )
    rest = "; ".join(filter(None, [WHY.get(reason, reason), counts, cached_of(data)]))
    return out.text(data.get("state")) + (f": {rest}" if rest else "")


def _number(data: dict[str, Json], key: str) -> int:
    return int(out.number(data.get(key)))


def _word(text: Json) -> str:
    """Names and reasons may come from peers: one line of them, and not for ever."""
    return out.one_line(out.text(text), NAME_WIDTH)


def tenths_of(progress: dict[str, Json]) -> int:
    """How many tenths of its rows a job has done, as its event `progress` says."""
    return int(10 * out.number(progress.get("done")) // max(1, out.number(progress.get("rows"))))
