"""Bodies through the scanner: which fields are looked at, and what is noted about them.

Own bodies are scanned before they are signed, so that a secret never gets a signature; a peer's
signed bytes stay as they are and what is shown of them is scanned when it is projected. Pure.
Source: docs/specs/memory.md, *Scan*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, assert_never, cast

import msgspec

from memory.bodies import (
    EndorseBody,
    ForgetBody,
    LinkBody,
    NoteBody,
    ProfileBody,
    VerdictBody,
)
from memory.flags import IMPERATIVE
from memory.text.cleaning import clean, clean_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from memory.bodies import Body, ClaimBody, SourceBody
    from memory.seams import Scanned, Scanner

_Body = TypeVar("_Body", bound="Body")

_LINE_MAX: Final = {
    "title": 512, "speaker": 128, "thread": 128, "note": 512, "reason": 512, "name": 64, "tag": 64,
    "claim": 512, "value": 4096, "uri": 2048, "tool": 128,
}  # fmt: skip
"""Characters of a field (docs/specs/memory.md, *Bodies*): a mark may be longer than its secret."""


class Found(NamedTuple):
    """What a scan found out about a body.

    Attributes:
        redactions: kinds of secrets taken out, in order.
        flags: bits of `memory.flags`.
    """

    redactions: tuple[str, ...] = ()
    flags: int = 0


NOTHING: Final = Found()


class _Pass:
    """One body on its way through the scanner."""

    def __init__(self, scan: Callable[[str], Scanned]) -> None:
        self._scan = scan
        self.redactions: list[str] = []

    def text(self, text: str) -> str:
        scanned = self._scan(text)
        self.redactions += scanned.redactions
        return scanned.text

    def line(self, text: str, field: str) -> str:
        return self.text(text)[: _LINE_MAX[field]] if text else text

    def optional(self, text: str | None, field: str) -> str | None:
        return self.line(text, field) if text else text

    def claim(self, claim: ClaimBody | None) -> ClaimBody | None:
        if claim is None:
            return None
        subject = self.line(claim[0], "claim")
        attribute = self.line(claim[1], "claim")
        # `password` is the attribute and the value stands alone: looked at as one assignment.
        head = f"{attribute} = "
        whole = self.text(head + claim[2])
        value = whole[len(head) :] if whole.startswith(head) else self.text(claim[2])
        return subject, attribute, value[: _LINE_MAX["value"]]

    def source(self, source: SourceBody | None) -> SourceBody | None:
        if source is None:
            return None
        return self.optional(source[0], "uri"), self.optional(source[1], "tool"), source[2]


def scan_own(scanner: Scanner | None, body: _Body, *, person: bool) -> tuple[_Body, Found]:
    """A body of ours without secrets, before it is signed.

    Args:
        scanner: None lets everything through.
        body: with cleaned fields.
        person: whether the person at the terminal wrote it.

    Raises:
        RefusedError: `secret`, where the setting says to refuse.
    """
    if scanner is None:
        return body, NOTHING
    worker = _Pass(lambda text: scanner.scan(text, foreign=False, person=person))
    done = _rewritten(worker, body)
    return done, Found(tuple(worker.redactions))


def scan_foreign(scanner: Scanner | None, body: _Body) -> tuple[_Body, Found]:
    """What is shown of a peer's body, and what it is: never refuses."""
    if scanner is None:
        return body, NOTHING
    worker = _Pass(lambda text: scanner.scan(text, foreign=True))
    done = _rewritten(worker, _cleaned(body))
    return done, Found(tuple(worker.redactions), flags_of(scanner, done))


def flags_of(scanner: Scanner | None, body: Body) -> int:
    """Bits of `memory.flags` for what a note says."""
    if scanner is None or not isinstance(body, NoteBody):
        return 0
    parts = [body.title or "", body.text, body.speaker or "", *body.tags, *(body.claim or ())]
    said = "\n".join(part for part in parts if part)
    return IMPERATIVE if "imperative" in scanner.flags(said) else 0


def _rewritten(worker: _Pass, body: _Body) -> _Body:
    match cast("Body", body):
        case NoteBody() as note:
            changed: Body = msgspec.structs.replace(
                note,
                text=worker.text(note.text),
                title=worker.optional(note.title, "title"),
                speaker=worker.optional(note.speaker, "speaker"),
                thread=worker.optional(note.thread, "thread"),
                tags=[worker.line(tag, "tag") for tag in note.tags],
                claim=worker.claim(note.claim),
                source=worker.source(note.source),
            )
        case LinkBody() | VerdictBody() as said:
            changed = msgspec.structs.replace(said, note=worker.optional(said.note, "note"))
        case ForgetBody() as forget:
            changed = msgspec.structs.replace(
                forget, reason=worker.optional(forget.reason, "reason")
            )
        case ProfileBody() as profile:
            changed = msgspec.structs.replace(profile, name=worker.line(profile.name, "name"))
        case EndorseBody() as endorse:
            changed = endorse
        case other:
            assert_never(other)
    return cast("_Body", changed)  # each case keeps its type


def _cleaned(body: _Body) -> _Body:
    """Fields as they will be shown: a control character inside a token must not hide it."""
    match cast("Body", body):
        case NoteBody() as note:
            changed: Body = msgspec.structs.replace(
                note,
                text=clean(note.text),
                title=_line(note.title),
                speaker=_line(note.speaker),
                tags=[clean_line(tag) for tag in note.tags],
                claim=_clean_claim(note.claim),
                source=_clean_source(note.source),
            )
        case LinkBody() | VerdictBody() as said:
            changed = msgspec.structs.replace(said, note=_line(said.note))
        case ForgetBody() as forget:
            changed = msgspec.structs.replace(forget, reason=_line(forget.reason))
        case ProfileBody() as profile:
            changed = msgspec.structs.replace(profile, name=clean_line(profile.name))
        case EndorseBody() as endorse:
            changed = endorse
        case other:
            assert_never(other)
    return cast("_Body", changed)  # each case keeps its type


def _line(text: str | None) -> str | None:
    return clean_line(text) if text else text


def _clean_claim(claim: ClaimBody | None) -> ClaimBody | None:
    return None if claim is None else (clean_line(claim[0]), clean_line(claim[1]), clean(claim[2]))


def _clean_source(source: SourceBody | None) -> SourceBody | None:
    return None if source is None else (_line(source[0]), _line(source[1]), source[2])
