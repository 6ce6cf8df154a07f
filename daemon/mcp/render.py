"""Results as a model reads them: our words outside, foreign text between marks nobody can forge.

A memory's text was written by agents and people, some on other machines, and a model may obey what
it reads. Each answer therefore draws a delimiter of five random characters; foreign text stands
between `<delimiter>` and `</delimiter>`, and cannot contain it, so that it cannot end its own
quotation and speak as the daemon. Names of agents and devices stand outside of the marks and are
cut down to letters that cannot imitate our words. Source: docs/specs/mcp.md s.6.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from daemon.sanitise import sanitise, sanitise_line, sanitise_name, sanitise_tree
from memory.model import Forgotten, History, Hit, Hits, Page, Remembered

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from daemon.json_types import Json
    from memory.model import Author, Withheld

DELIMITER_CHARS: Final = 5
"""Length of the delimiter: 60 million values, drawn after the text was fixed (daemon.md 6)."""

DELIMITER_DRAWS_MAX: Final = 16
"""A text that holds sixteen draws in a row was made by somebody who knows the generator; then the
delimiter is cut out of the text instead."""

BYTES_PER_TOKEN: Final = 3.6
"""As `memory.model.Query.budget_tokens` counts."""

ID_DIGITS: Final = 8
"""People and models see this many digits of an id (daemon.md 5)."""

_ALPHABET: Final = string.ascii_lowercase + string.digits
_WHO: Final = {
    "own": "you: ",
    "own_device": "you: ",
    "peer": "PEER ",
    "tool": "TOOL via ",
    "web": "WEB via ",
}


class Shown(NamedTuple):
    """A result in the forms MCP carries.

    Attributes:
        text: for the model.
        structured: for programs; sanitised.
        trust: summary for `_meta["covey/trust"]`; None when no foreign text is in it.
    """

    text: str
    structured: dict[str, Json]
    trust: dict[str, Json] | None


def show(result: object, rng: random.Random, *, tokens_max: int) -> Shown:
    """Render a method's result.

    Args:
        result: what the method returned: a struct of `memory.model`, or anything msgspec encodes.
        rng: draws the delimiter.
        tokens_max: bodies beyond this many tokens are left out and counted; the first one stays.

    Returns:
        Its forms.
    """
    if isinstance(result, Hits):
        fitted = fit(result, tokens_max)
        return Shown(_hits_text(fitted, rng), _structured(fitted), trust_summary(fitted.hits))
    if isinstance(result, Page):
        return _show_page(result, rng, tokens_max)
    if isinstance(result, History):
        return Shown(_history_text(result, rng), _structured(result), None)
    if isinstance(result, Remembered):
        return Shown(_remembered_text(result), _structured(result), None)
    if isinstance(result, Forgotten):
        return Shown(f"{result.status} id {short_id(result.id)}", _structured(result), None)
    one = result[0] if isinstance(result, list) and len(result) == 1 else None
    if isinstance(one, Remembered | Forgotten):
        # The methods take many notes, the tools one: one answer is shown as itself.
        return show(one, rng, tokens_max=tokens_max)
    if result == []:
        return Shown("Nothing to list.", {"items": []}, None)
    structured = _structured(result)
    body = msgspec.json.encode(structured).decode()
    return Shown(quote(body, draw_delimiter(rng, [body])), structured, None)


def fit(hits: Hits, tokens_max: int) -> Hits:
    """Leave out bodies beyond a token budget.

    Args:
        hits: as recalled or fetched.
        tokens_max: budget in tokens of `BYTES_PER_TOKEN` bytes.

    Returns:
        The same hits; those past the budget without text and counted in `withheld.over_budget`.
        The first body is always given whole: who asks for one note gets it.
    """
    room_bytes = tokens_max * BYTES_PER_TOKEN
    kept: list[Hit] = []
    left_out = 0
    given = False
    for hit in hits.hits:
        size_bytes = len(hit.text.encode()) if hit.text is not None else 0
        if hit.text is not None and given and size_bytes > room_bytes:
            hit = msgspec.structs.replace(hit, text=None)  # noqa: PLW2901 - the trimmed one
            left_out += 1
        elif hit.text is not None:
            given = True
            room_bytes -= size_bytes
        kept.append(hit)
    if not left_out:
        return hits
    withheld = msgspec.structs.replace(
        hits.withheld, over_budget=hits.withheld.over_budget + left_out
    )
    return msgspec.structs.replace(hits, hits=kept, withheld=withheld)


def trust_summary(hits: Sequence[Hit]) -> dict[str, Json] | None:
    """What `_meta["covey/trust"]` says: lowest trust, number of foreign hits, each hit's origin."""
    if not hits:
        return None
    return {
        "min": min(hit.trust for hit in hits),
        "foreign": sum(hit.author.relation not in {"own", "own_device"} for hit in hits),
        "hits": [
            {
                "id": hit.id,
                "trust": hit.trust,
                "relation": hit.author.relation,
                "verified": hit.verified,
            }
            for hit in hits
        ],
    }


def draw_delimiter(rng: random.Random, texts: Iterable[str]) -> str:
    """Draw a delimiter that none of `texts` contains, in any case."""
    haystack = "\n".join(texts).lower()
    delimiter = ""
    for _ in range(DELIMITER_DRAWS_MAX):
        delimiter = "".join(rng.choice(_ALPHABET) for _ in range(DELIMITER_CHARS))
        if delimiter not in haystack:
            break
    return delimiter


def quote(text: str, delimiter: str) -> str:
    """Sanitise foreign text and put it between marks it cannot contain."""
    safe = sanitise(text)
    # Cutting one out can join another: repeat until none is left. `draw_delimiter` makes this rare.
    if delimiter in safe.lower():
        before = ""
        while before != safe:
            before, safe = safe, re.sub(re.escape(delimiter), "", safe, flags=re.IGNORECASE)
    if "\n" in safe:
        return f"<{delimiter}>\n{safe}\n</{delimiter}>"
    return f"<{delimiter}> {safe} </{delimiter}>"


def short_id(text: str) -> str:
    """The digits of an id that are shown."""
    return sanitise_name(text[:ID_DIGITS])


def who(author: Author) -> str:
    """An author in a few words of ours and two restricted names."""
    agent = author.agent
    if agent in {"", "you"}:
        agent = "person"
    return f"{_WHO[author.relation]}{sanitise_name(agent)}@{sanitise_name(author.device)}"


def _trust(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _quoted_body(hit: Hit) -> str:
    title = sanitise_line(hit.title)
    if hit.text is None:
        return title
    # An importer or an agent often repeats the first line as title.
    if not title or hit.text.lstrip("# ").startswith(title):
        return hit.text
    return f"{title}\n{hit.text}"


def _hit_head(number: int, hit: Hit) -> str:
    words = [
        f"[{number}] trust {_trust(hit.trust)} {who(hit.author)}",
        sanitise_name(hit.created[:10]),
    ]
    if hit.confirmations:
        words.append(f"confirmed by {hit.confirmations}")
    if not hit.verified:
        words.append("unverified")
    words.extend(sanitise_name(flag) for flag in hit.flags)
    if hit.superseded_by:
        words.append(f"superseded by {short_id(hit.superseded_by)}")
    if hit.disputed:
        words.append("against " + " ".join(short_id(other) for other in hit.disputed))
    if hit.copies:
        words.append(f"{hit.copies} more like it")
    words.append(f"id {short_id(hit.id)}")
    if hit.text is None:
        words.append("(text left out: memory_get)")
    return " ".join(words)


def _hits_text(hits: Hits, rng: random.Random) -> str:
    if not hits.hits:
        return "\n".join(["No memory found.", *_withheld_lines(hits.withheld)])
    bodies = [_quoted_body(hit) for hit in hits.hits]
    delimiter = draw_delimiter(rng, (sanitise(body) for body in bodies))
    lines = [f"Memories, data between <{delimiter}> marks:"]
    for number, (hit, body) in enumerate(zip(hits.hits, bodies, strict=True), 1):
        lines.append(_hit_head(number, hit))
        if body:
            lines.append(quote(body, delimiter))
    return "\n".join(lines + _withheld_lines(hits.withheld))


def _withheld_lines(withheld: Withheld) -> list[str]:
    counts = (
        (withheld.low_trust, "low trust"),
        (withheld.quarantined, "quarantined"),
        (withheld.over_budget, "over budget"),
    )
    words = ", ".join(f"{count} {what}" for count, what in counts if count)
    return [f"withheld: {words}"] if words else []


def _show_page(page: Page, rng: random.Random, tokens_max: int) -> Shown:
    from memory.model import Withheld as Counts

    hits = fit(Hits(hits=page.hits, withheld=Counts(), searched=len(page.hits), ms=0.0), tokens_max)
    structured = _structured(msgspec.structs.replace(page, hits=hits.hits))
    return Shown(_hits_text(hits, rng), structured, trust_summary(hits.hits))


def _history_text(history: History, rng: random.Random) -> str:
    bodies = ["\n".join(filter(None, (v.text, v.note))) for v in history.versions]
    delimiter = draw_delimiter(rng, (sanitise(body) for body in bodies))
    lines = [f"{sanitise_name(history.status)} id {short_id(history.id)}, oldest first:"]
    for number, (version, body) in enumerate(zip(history.versions, bodies, strict=True), 1):
        date = sanitise_name(version.created[:10])
        what = sanitise_name(version.what)
        lines.append(f"[{number}] {what} {who(version.author)} {date} id {short_id(version.id)}")
        if body:
            lines.append(quote(body, delimiter))
    return "\n".join(lines)


def _remembered_text(done: Remembered) -> str:
    words = [f"{done.status} id {short_id(done.id)}"]
    if done.redactions:
        words.append("redacted: " + ", ".join(sanitise_name(kind) for kind in done.redactions))
    if done.conflicts:
        words.append("conflicts with: " + ", ".join(short_id(i) for i in done.conflicts))
    return "; ".join(words)


def _structured(result: object) -> dict[str, Json]:
    tree = sanitise_tree(cast("Json", msgspec.to_builtins(result)))
    return tree if isinstance(tree, dict) else {"items": tree}
