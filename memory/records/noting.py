"""From a caller's words to a note that may be written: everything that needs no database.

A bad note so costs the writer nothing; `memory.records.writing` does the rest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from memory.bodies import (
    BODY_BYTES_MAX,
    PARENTS_MAX,
    TAGS_MAX,
    NoteBody,
    decode_body_untrusted,
)
from memory.errors import DecodeError, RefusedError
from memory.provenance import parse_iso
from memory.records.ingest import content_hash
from memory.records.scanning import scan_own
from memory.relations.lineage import parents
from memory.scopes import DEFAULT_SCOPE, parse_scope
from memory.text.cleaning import clean, clean_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory.bodies import SourceBody
    from memory.model import Caller, NoteIn, Role
    from memory.relations.lineage import Recalled
    from memory.seams import Scanner

SUPERSEDES_MAX: Final = 16

_HEX: Final = re.compile(r"[0-9a-f]{8,64}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Prepared(NamedTuple):
    """A checked note; what needs the database is still open: place in the thread, ids."""

    body: NoteBody
    group_name: str
    content_hash: bytes
    supersedes: tuple[str, ...]
    derived_from: tuple[str, ...]
    redactions: tuple[str, ...] = ()
    recalled: tuple[bytes, ...] = ()
    """Parents by lineage (memory/relations/lineage.py): what the caller's session had just read."""


def prepare(who: Caller, note: NoteIn, now_ms: int, scanner: Scanner | None = None) -> Prepared:
    """Check and clean a note and take secrets out of it.

    Raises:
        RefusedError: `invalid`, `too_large`, `forbidden` or `secret`; the message names the field.
    """
    text = clean(note.text)
    if not text.strip():
        raise RefusedError("invalid", "text is empty")
    group_name, scope = parse_scope(note.scope or DEFAULT_SCOPE)
    body = NoteBody(
        agent=check_line(who.agent, "agent", 64),
        scope=scope,
        kind=note.kind,
        role=_role(who, note),
        speaker=_optional(note.speaker, "speaker", 128),
        text=text,
        title=_optional(note.title, "title", 512),
        thread=_optional(note.thread or who.session, "thread", 128),
        pos=_natural(note.pos, "pos") or 0,
        at_ms=now_ms if note.at is None else parse_iso(note.at, "at"),
        valid_from=None if note.valid_from is None else parse_iso(note.valid_from, "valid_from"),
        valid_to=None if note.valid_to is None else parse_iso(note.valid_to, "valid_to"),
        tags=_tags(note.tags),
        claim=_claim(note),
        source=_source(note),
        derived_from=[],
        ttl_s=_natural(note.ttl_s, "ttl_s"),
        idem=_optional(note.idempotency_key, "idempotency_key", 128),
    )
    _check_encodes(body)  # before the scan: its time is bounded by the limit
    body, found = scan_own(scanner, body, person=who.is_owner)
    if found.redactions:
        _check_encodes(body)
    _check_ids(note.supersedes, "supersedes", SUPERSEDES_MAX)
    _check_ids(note.derived_from, "derived_from", PARENTS_MAX)
    return Prepared(
        body,
        group_name,
        content_hash(scope, note.kind, body.claim, body.text),
        tuple(note.supersedes),
        tuple(note.derived_from),
        found.redactions,
    )


def with_lineage(note: Prepared, recalled: Sequence[Recalled]) -> Prepared:
    """The note with the memories it repeats of those its writer has just read."""
    text = f"{note.body.title or ''} {note.body.text}"
    return note._replace(recalled=parents(text, recalled))


def _role(who: Caller, note: NoteIn) -> Role:
    if note.role is None:
        return "owner" if who.is_owner else "agent"
    if note.role == "owner" and not who.is_owner:
        raise RefusedError("forbidden", "role owner belongs to the person at the terminal")
    return note.role


def check_line(text: str, name: str, chars_max: int) -> str:
    """A cleaned one-line field.

    Raises:
        RefusedError: `invalid`: too long.
    """
    line = clean_line(text)
    if len(line) > chars_max:
        raise RefusedError("invalid", f"{name} is longer than {chars_max} characters")
    return line


def _optional(text: str | None, name: str, chars_max: int) -> str | None:
    return check_line(text, name, chars_max) or None if text else None


def _natural(value: int | None, name: str) -> int | None:
    if value is not None and not 0 < value <= 2**31:
        raise RefusedError("invalid", f"{name} must be 1 to 2147483648")
    return value


def _tags(tags: Sequence[str]) -> list[str]:
    cleaned = [check_line(tag, "a tag", 64) for tag in tags]
    unique = [tag for tag in dict.fromkeys(cleaned) if tag]
    if len(unique) > TAGS_MAX:
        raise RefusedError("invalid", f"more than {TAGS_MAX} tags")
    return unique


def _claim(note: NoteIn) -> tuple[str, str, str] | None:
    if note.claim is None:
        return None
    subject = check_line(note.claim.subject, "claim.subject", 512)
    attribute = check_line(note.claim.attribute, "claim.attribute", 512)
    value = clean(note.claim.value)
    if not subject or not attribute:
        raise RefusedError("invalid", "a claim needs a subject and an attribute")
    if len(value) > 4096:
        raise RefusedError("invalid", "claim.value is longer than 4096 characters")
    return subject, attribute, value


def _source(note: NoteIn) -> SourceBody | None:
    if note.source is None:
        return None
    digest = note.source.sha256
    if digest and not _SHA256.fullmatch(digest):
        raise RefusedError("invalid", "source.sha256 is not 64 lower-case hex digits")
    source = (
        _optional(note.source.uri, "source.uri", 2048),
        _optional(note.source.tool, "source.tool", 128),
        bytes.fromhex(digest) if digest else None,
    )
    return source if any(source) else None


def _check_encodes(body: NoteBody) -> None:
    """What is stored must be readable by everybody who gets it, ourselves first."""
    data = msgspec.msgpack.encode(body)
    if len(data) > BODY_BYTES_MAX - PARENTS_MAX * 35:
        raise RefusedError(
            "too_large",
            "the note with all its fields is over 64 KiB: keep the text in a file and remember"
            " where it is",
        )
    try:
        decode_body_untrusted(data)
    except DecodeError as exc:
        raise RefusedError(
            "invalid", f"a field of the note is out of range: {exc.__cause__ or exc}"
        ) from exc


def _check_ids(ids: Sequence[str], name: str, count_max: int) -> None:
    if len(ids) > count_max:
        raise RefusedError("invalid", f"{name} has more than {count_max} ids")
    for written in ids:
        check_id(written)


def check_id(written: str) -> str:
    """A full id or a prefix, lower case.

    Raises:
        RefusedError: `invalid`.
    """
    lowered = written.strip().lower()
    if not _HEX.fullmatch(lowered):
        raise RefusedError("invalid", "an id is 64 hex digits, or at least the first 8 of them")
    return lowered
