"""`covey recall --explain`: how a hit came to its place, for a person to read."""

from __future__ import annotations

from daemon.cli import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.json_types import Json

_TERMS = (
    ("previous", "the one before it in its thread"),
    ("following", "the one after it"),
    ("thread", "the best of its thread"),
    ("by_author", "by whom you name, or yours"),
    ("length", "length"),
    ("question", "only asks"),
)

_LIMITS = {
    "author": "its author",
    "domain": "its author's owner",
    "role": "where it was taken from",
    "parent": "what it was derived from",
    "confirmed": "confirmations",
}


def lines(hit: dict[str, Json]) -> list[str]:
    """The lines below a hit."""
    parts = out.mapping(hit.get("explain"))
    shown = [
        _row("words", _words(parts), _share(parts, "bm25_norm", 0.4)),
        *_meaning(parts),
        *(
            _row(label, "", out.number(parts[name]))
            for name, label in _TERMS
            if out.number(parts.get(name))
        ),
        _row("together", "", out.number(parts.get("f"))),
        _row("trust", _trust(parts), out.number(parts.get("trust")), "x"),
    ]
    if out.number(parts.get("echo", 1.0)) < 1:
        shown.append(_row("repeats the question", "", out.number(parts.get("echo")), "x"))
    rank = int(out.number(parts.get("rank")))
    tail = f"score {_short(hit.get('score'))} = {_short(parts.get('score'))} / 2.5"
    notes = [f"place {rank} before trust"]
    if parts.get("tier") == "low":
        notes.append("low-trust index")
    notes.append(f"ranker {out.text(parts.get('ranker'))}" if parts.get("ranker") else "")
    if parts.get("embedder"):
        notes.append(out.text(parts["embedder"]))
    return [*shown, f"{tail}; {', '.join(note for note in notes if note)}"]


def _row(label: str, why: str, value: float, sign: str = "") -> str:
    number = f"x {value:.3f}" if sign else f"{value:+.3f}"
    return f"{label:<32}{number:>8}  {why}".rstrip()


def _share(parts: dict[str, Json], name: str, weight: float) -> float:
    """What a channel adds: all of it counts when it is the only one."""
    return out.number(parts.get(name)) * (weight if parts.get("embedder") else 1.0)


def _words(parts: dict[str, Json]) -> str:
    raw, discount = out.number(parts.get("bm25")), out.number(parts.get("length_discount", 1.0))
    chunks = int(out.number(parts.get("chunks", 1)))
    pieces = f" x {discount:.2f} for {chunks} pieces" if chunks > 1 else ""
    weight = " x .4" if parts.get("embedder") else ""
    return f"bm25 {raw:.2f}{pieces}, {_short(parts.get('bm25_norm', 0.0))} of the best{weight}"


def _meaning(parts: dict[str, Json]) -> list[str]:
    if not parts.get("embedder"):
        return []
    cosine = parts.get("cosine")
    near = _short(parts.get("cosine_norm", 0.0))
    why = (
        f"no vector yet: as its words, {near} x .6"
        if cosine is None
        else f"cosine {out.number(cosine):.2f}, {near} of the best x .6"
    )
    return [_row("meaning", why, _share(parts, "cosine_norm", 0.6))]


def _trust(parts: dict[str, Json]) -> str:
    if out.number(parts.get("trust")) >= 1:
        return ""
    limit = out.text(parts.get("limited_by"))
    author = out.number(parts.get("author_trust"))
    ceiling = out.number(parts.get("role_ceiling", 1.0))
    why = _LIMITS.get(limit, out.one_line(limit, 30))
    return f"held by {why} (author {author:.2f}, kind of source at most {ceiling:.2f})"


def _short(value: Json) -> str:
    return f"{out.number(value):.3f}"
